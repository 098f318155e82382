// SPDX-License-Identifier: Apache-2.0
#pragma once

// The eight completions of tests/data/policy_gradient.json, from its integer formulas.

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "prefopt/objectives/token_objective.h"

namespace prefopt::testing_support {

using TokenArraysXd = BasicTokenArrays<Eigen::ArrayXd>;

struct GoldenRollouts {
  RolloutStep step;
  Eigen::ArrayXd logps, sampler_logps, old_values;
};

inline GoldenRollouts golden_rollouts() {
  GoldenRollouts all;
  RolloutStep& step = all.step;
  step.lens = {3, 1, 4, 2, 2, 5, 3, 1};
  step.groups = {0, 0, 0, 0, 1, 1, 1, 1};
  step.rewards.resize(8);
  step.rewards << 1, 0, 0.5, 0, 2, -1, 0.25, 0.75;
  step.greedy_rewards.resize(8);
  step.greedy_rewards << 0.25, 0.25, 0.25, 0.25, 1, 1, 1, 1;
  constexpr Eigen::Index kTokens = 21;
  step.acted = Eigen::ArrayXd::Ones(kTokens);
  for (Eigen::ArrayXd* x : {&step.old_logps, &step.ref_logps, &step.extra_logps, &step.values,
                            &all.logps, &all.sampler_logps, &all.old_values}) {
    x->resize(kTokens);
  }
  Eigen::Index at = 0;
  for (std::int64_t i = 0; i < 8; ++i) {
    for (std::int64_t t = 0; t < step.lens[static_cast<std::size_t>(i)]; ++t, ++at) {
      const auto cycle = [&](std::int64_t a, std::int64_t b, std::int64_t n) {
        return static_cast<double>((a * i + b * t) % n);
      };
      all.logps[at] = -(0.2 + 0.13 * cycle(7, 3, 11));
      step.old_logps[at] = all.logps[at] + 0.12 * (cycle(5, 2, 7) - 3);
      step.ref_logps[at] = all.logps[at] + 0.07 * (cycle(3, 4, 9) - 4);
      step.extra_logps[at] = step.ref_logps[at] + 0.6 * (cycle(2, 5, 6) - 2.5);
      step.values[at] = 0.1 * (cycle(2, 3, 7) - 2);
      all.sampler_logps[at] = step.old_logps[at] + 0.03 * (cycle(1, 1, 5) - 2);
      all.old_values[at] = step.values[at] + 0.08 * (cycle(1, 3, 7) - 3);
    }
  }
  return all;
}

/// Returns all tokens with these advantages, as an objective takes them.
inline TokenArraysXd golden_arrays(const GoldenRollouts& all, const StepAdvantages& of) {
  const RolloutStep& step = all.step;
  TokenArraysXd in;
  in.logps = all.logps;
  in.old_logps = step.old_logps;
  in.ref_logps = step.ref_logps;
  in.sampler_logps = all.sampler_logps;
  in.advantages = of.advantages;
  in.values = step.values;
  in.old_values = all.old_values;
  in.returns = of.returns;
  Eigen::ArrayXd places(8), lens(8), group_lens(8);
  for (Eigen::Index i = 0; i < 8; ++i) {
    places[i] = static_cast<double>(i);
    lens[i] = static_cast<double>(step.lens[static_cast<std::size_t>(i)]);
    group_lens[i] = i < 4 ? 10 : 11;
  }
  in.completions = step.spread(places);
  in.lens = step.spread(lens);
  in.group_lens = step.spread(group_lens);
  in.completion_count = 8;
  in.totals = {.tokens = 21, .completions = 8, .groups = 2};
  return in;
}

}  // namespace prefopt::testing_support
