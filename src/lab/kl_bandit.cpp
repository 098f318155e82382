// SPDX-License-Identifier: Apache-2.0
#include "lab/kl_bandit.h"

#include "lab/token_steps.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab {

using Eigen::ArrayXd;

KlBandit four_actions() {
  return {.ref = ArrayXd{{0.4, 0.3, 0.2, 0.1}}.log(), .rewards = ArrayXd{{0.0, 0.5, 1.0, 0.2}}};
}

ArrayXd tilted(const KlBandit& bandit) {
  return exact::optimum(bandit.ref, bandit.rewards, kKlCoefficient).col(0);
}

ArrayXd expected_slopes(const TokenObjective& objective, const KlBandit& bandit,
                        const ArrayXd& logps) {
  const auto actions = static_cast<std::size_t>(logps.size());
  RolloutStep step = listed_step(std::vector<std::int64_t>(actions, 1), bandit.rewards);
  step.old_logps = logps;
  step.ref_logps = bandit.ref;
  TokenNumbers in = token_numbers(
      step, logps,
      bandit.advantages.size() > 0 ? bandit.advantages : objective.advantages(step).advantages);
  in.old_logps = bandit.old;
  in.ref_logps = bandit.ref;
  if (objective.needs().exact_kls) {
    in.exact_kls = ArrayXd::Constant(logps.size(), exact::kl(logps, bandit.ref));
  }
  const auto out = objective.formula<ArrayXd>(in, objective.options().kl.coefficient);
  // One completion, which may be any, is the step: each has the whole of its weight.
  const ArrayXd weights =
      in.totals.completions * (bandit.behaviour.size() > 0 ? bandit.behaviour : logps).exp();
  ArrayXd slopes = -weights * out.grad_logps;
  if (out.grad_exact_kls.size() > 0) {
    // d KL / d log π(y) = π(y) (log π(y) − log π_ref(y) + 1)
    slopes -= (weights * out.grad_exact_kls).sum() * logps.exp() * (logps - bandit.ref + 1);
  }
  return slopes;
}

ArrayXd expected_gradient(const TokenObjective& objective, const KlBandit& bandit,
                          const ArrayXd& logps) {
  return exact::SoftmaxPolicy::tabular(bandit.ref)
      .pullback(logps, expected_slopes(objective, bandit, logps))
      .array();
}

ArrayXd walk(const TokenObjective& objective, const KlBandit& bandit, const Walk& how) {
  ArrayXd logps = bandit.ref;
  for (int step = 0; step < how.steps; ++step) {
    ArrayXd ascent = expected_gradient(objective, bandit, logps);
    if (!how.is_plain) {
      ascent /= how.preconditioner.size() > 0 ? how.preconditioner : ArrayXd(logps.exp());
    }
    logps = exact::log_softmax(logps + how.rate * ascent).col(0);
  }
  return logps;
}

}  // namespace prefopt::lab
