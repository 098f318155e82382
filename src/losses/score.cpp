// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/score.h"

#include "prefopt/error.h"

namespace prefopt {

void ScoreOptions::fields(FieldVisitor& v) {
  v.choice(
      {"divergence", "f-divergence that takes the place of the KL term", {"f_divergence_type"}},
      divergence,
      {"reverse_kl", "forward_kl", "js_divergence", "alpha_divergence", "jeffrey",
       "chi_squared_mix", "total_variation"});
  v.real({"divergence_alpha",
          "a of alpha_divergence; the paper's alpha is 1 - a",
          {"f_alpha_divergence_coef"}},
         alpha, Range::any());
  v.real({"divergence_gamma", "gamma of chi_squared_mix"}, gamma, Range::at_least(0));
}

Score make_score(const ScoreOptions& options) {
  if (options.divergence == Divergence::kTotalVariation) {
    throw ConfigError(
        "score: expected a divergence whose f' can be inverted, got 'total_variation'; its f' is a "
        "step function, so no reward follows from the policy (arXiv:2309.16240)");
  }
  return {.divergence = options.divergence, .alpha = options.alpha, .gamma = options.gamma};
}

}  // namespace prefopt
