// SPDX-License-Identifier: Apache-2.0
#include "lab/token_steps.h"

#include <cmath>
#include <numeric>
#include <utility>

namespace prefopt::lab {

using Eigen::ArrayXd;
using Eigen::Index;

RolloutStep listed_step(std::vector<std::int64_t> lens, ArrayXd rewards) {
  RolloutStep step;
  step.lens = std::move(lens);
  step.rewards = std::move(rewards);
  step.groups.resize(step.lens.size());
  std::iota(step.groups.begin(), step.groups.end(), std::int64_t{0});
  step.acted = ArrayXd::Ones(
      static_cast<Index>(std::accumulate(step.lens.begin(), step.lens.end(), std::int64_t{0})));
  return step;
}

ArrayXd of_acted(const RolloutStep& step, const ArrayXd& x) {
  ArrayXd kept(static_cast<Index>(step.acted.sum()));
  Index place = 0;
  for (Index t = 0; t < x.size(); ++t) {
    if (step.acted[t] == 1) kept[place++] = x[t];
  }
  return kept;
}

TokenNumbers token_numbers(const RolloutStep& step, const ArrayXd& logps,
                           const ArrayXd& advantages) {
  const Index completions = step.completions();
  TokenNumbers in;
  in.logps = of_acted(step, logps);
  in.advantages = of_acted(step, advantages);
  in.completions = of_acted(
      step, step.spread(ArrayXd::LinSpaced(completions, 0, static_cast<double>(completions - 1))));
  in.lens = of_acted(step, step.spread(step.acted_tokens()));
  in.completion_count = completions;
  in.totals = {.tokens = static_cast<double>(in.logps.size()),
               .completions = static_cast<double>(completions)};
  return in;
}

ArrayXd true_gradient(const Bandit& bandit) {
  const ArrayXd p = bandit.logps.exp();
  return p * (bandit.rewards - (p * bandit.rewards).sum());
}

GradientMoments group_gradient(const Advantage& advantage, const TokenObjective& objective,
                               const Bandit& bandit, Index size) {
  const Index actions = bandit.logps.size();
  const auto groups = static_cast<Index>(std::llround(std::pow(actions, size)));
  const ArrayXd sampler = bandit.sampler_logps.size() > 0 ? bandit.sampler_logps : bandit.logps;

  // Completion `size * g + i` is the i-th of group g, whose number has the actions as its digits.
  std::vector<Index> drawn;
  for (Index g = 0; g < groups; ++g) {
    for (Index i = 0, rest = g; i < size; ++i, rest /= actions) drawn.push_back(rest % actions);
  }
  Index best = 0;
  bandit.logps.maxCoeff(&best);
  RolloutStep step = listed_step(std::vector<std::int64_t>(drawn.size(), 1), bandit.rewards(drawn));
  step.greedy_rewards = ArrayXd::Constant(step.completions(), bandit.rewards[best]);
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    step.groups[i] = static_cast<std::int64_t>(i) / size;
  }
  TokenNumbers in = token_numbers(step, bandit.logps(drawn), advantage.of(step));
  in.sampler_logps = sampler(drawn);
  // Each group is a whole step, not a part of one.
  const ArrayXd slopes =
      -static_cast<double>(groups) *
      objective.formula<ArrayXd>(in, objective.options().kl.coefficient).grad_logps;

  const ArrayXd p = bandit.logps.exp();
  GradientMoments moments{ArrayXd::Zero(actions)};
  double squares = 0;
  for (Index g = 0; g < groups; ++g) {
    ArrayXd gradient = ArrayXd::Zero(actions);
    double log_weight = 0;
    for (Index i = size * g; i < size * (g + 1); ++i) {
      gradient[drawn[static_cast<std::size_t>(i)]] += slopes[i];
      log_weight += in.sampler_logps[i];
    }
    gradient -= p * slopes.segment(size * g, size).sum();
    moments.mean += std::exp(log_weight) * gradient;
    squares += std::exp(log_weight) * gradient.square().sum();
  }
  moments.variance = squares - moments.mean.square().sum();
  return moments;
}

double cosine(const ArrayXd& a, const ArrayXd& b) {
  return (a * b).sum() / std::sqrt(a.square().sum() * b.square().sum());
}

}  // namespace prefopt::lab
