// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/tensor.h>

#include <cmath>
#include <map>
#include <vector>

#include "prefopt/testing/objective_checks.h"
#include "testing/draws.h"
#include "testing/token_members.h"

namespace prefopt::testing {
namespace {

Eigen::ArrayXd uniform_array(Draws& draws, Eigen::Index size, double low, double high) {
  Eigen::ArrayXd x(size);
  for (double& value : x) value = draws.uniform(low, high);
  return x;
}

Eigen::ArrayXd as_array(const std::vector<double>& x) {
  return Eigen::Map<const Eigen::ArrayXd>(x.data(), static_cast<Eigen::Index>(x.size()));
}

/// Places of the tokens of these completions, one completion after the other.
std::vector<Eigen::Index> tokens_of(const RolloutStep& step,
                                    const std::vector<std::int64_t>& completions) {
  const auto starts = step.starts();
  std::vector<Eigen::Index> places;
  for (const std::int64_t completion : completions) {
    const auto of = static_cast<std::size_t>(completion);
    for (std::int64_t t = starts[of]; t < starts[of + 1]; ++t) places.push_back(t);
  }
  return places;
}

Eigen::ArrayXd taken(const Eigen::ArrayXd& x, const std::vector<Eigen::Index>& places) {
  if (x.size() == 0) return x;
  return x(places);
}

}  // namespace

RolloutStep random_rollouts(std::uint64_t seed) {
  Draws draws(seed);
  RolloutStep step;
  step.groups = {7, 7, 2, 7, 2, 2, 7, 5, 5, 5, 5};
  for (std::size_t i = 0; i < step.groups.size(); ++i) step.lens.push_back(draws.integer(1, 6));
  step.lens[3] = 0;
  std::vector<double> acted;
  for (std::size_t i = 0; i < step.lens.size(); ++i) {
    for (std::int64_t t = 0; t < step.lens[i]; ++t) {
      acted.push_back(i != 8 && (t == 0 || draws.uniform(0, 1) < 0.7) ? 1 : 0);
    }
  }
  step.acted = as_array(acted);
  const Eigen::Index completions = step.completions();
  const Eigen::Index tokens = step.tokens();
  step.rewards = uniform_array(draws, completions, -1, 1);
  step.greedy_rewards = uniform_array(draws, completions, -1, 1);
  step.given = uniform_array(draws, tokens, -2, 2);
  step.token_rewards = uniform_array(draws, tokens, -0.3, 0.3);
  step.values = uniform_array(draws, tokens, -1, 1);
  step.old_logps = uniform_array(draws, tokens, -3, -0.1);
  step.ref_logps = step.old_logps + uniform_array(draws, tokens, -0.5, 0.5);
  step.extra_logps = step.ref_logps + uniform_array(draws, tokens, -0.5, 0.5);
  return step;
}

BasicTokenArrays<Eigen::ArrayXd> token_arrays_of(const RolloutStep& step,
                                                 const Eigen::ArrayXd& advantages,
                                                 std::uint64_t seed, double spread) {
  Draws draws(seed);
  BasicTokenArrays<Eigen::ArrayXd> in;
  const auto starts = step.starts();
  const Eigen::ArrayXd acted = step.acted_tokens();
  std::map<std::int64_t, double> group_tokens;
  std::vector<Eigen::Index> places;
  std::vector<double> completions, turns, lens, group_lens;
  for (std::size_t i = 0; i < step.lens.size(); ++i) {
    const double count = acted[static_cast<Eigen::Index>(i)];
    if (count == 0) continue;
    group_tokens[step.groups[i]] += count;
    for (std::int64_t t = starts[i]; t < starts[i + 1]; ++t) {
      if (step.acted[t] == 0) continue;
      if (t == starts[i] || step.acted[t - 1] == 0) ++in.turn_count;
      places.push_back(t);
      completions.push_back(static_cast<double>(in.completion_count));
      turns.push_back(static_cast<double>(in.turn_count - 1));
      lens.push_back(count);
      group_lens.push_back(static_cast<double>(step.groups[i]));
    }
    ++in.completion_count;
  }
  for (double& group : group_lens) group = group_tokens.at(std::lround(group));
  const auto tokens = static_cast<Eigen::Index>(places.size());
  in.old_logps = taken(step.old_logps, places);
  in.logps = in.old_logps + uniform_array(draws, tokens, -spread, spread);
  in.ref_logps = taken(step.ref_logps, places);
  in.sampler_logps = in.old_logps + uniform_array(draws, tokens, -0.2, 0.2);
  in.advantages = taken(advantages, places);
  in.entropies = uniform_array(draws, tokens, 0.1, 3);
  in.exact_kls = uniform_array(draws, tokens, 0, 1);
  in.old_values = taken(step.values, places);
  in.values = in.old_values + uniform_array(draws, tokens, -0.4, 0.4);
  in.returns = uniform_array(draws, tokens, -1, 1);
  in.completions = as_array(completions);
  in.turns = as_array(turns);
  in.lens = as_array(lens);
  in.group_lens = as_array(group_lens);
  in.totals = {.tokens = static_cast<double>(tokens),
               .completions = static_cast<double>(in.completion_count),
               .groups = static_cast<double>(group_tokens.size())};
  return in;
}

BasicTokenArrays<Eigen::ArrayXd> random_token_arrays(std::uint64_t seed, double spread) {
  const RolloutStep step = random_rollouts(seed);
  return token_arrays_of(step, step.given, seed, spread);
}

BasicTokenArrays<Eigen::ArrayXd> take_completions(const BasicTokenArrays<Eigen::ArrayXd>& in,
                                                  const std::vector<std::int64_t>& completions) {
  BasicTokenArrays<Eigen::ArrayXd> out = in;
  out.completion_count = std::ssize(completions);
  out.turn_count = 0;
  std::vector<Eigen::Index> places;
  std::vector<double> of_completions, turns;
  for (std::size_t i = 0; i < completions.size(); ++i) {
    double last_turn = -1;
    for (Eigen::Index t = 0; t < in.logps.size(); ++t) {
      if (std::lround(in.completions[t]) != completions[i]) continue;
      places.push_back(t);
      of_completions.push_back(static_cast<double>(i));
      const double turn = in.turns.size() > 0 ? in.turns[t] : 0;
      if (turn != last_turn) ++out.turn_count;
      last_turn = turn;
      turns.push_back(static_cast<double>(out.turn_count - 1));
    }
  }
  for (const auto& member : kTokenMembers<Eigen::ArrayXd>) {
    out.*member.value = taken(in.*member.value, places);
  }
  out.completions = as_array(of_completions);
  if (in.turns.size() > 0) out.turns = as_array(turns);
  return out;
}

RolloutStep take_completions(const RolloutStep& step,
                             const std::vector<std::int64_t>& completions) {
  RolloutStep out;
  for (const std::int64_t completion : completions) {
    out.lens.push_back(step.lens[static_cast<std::size_t>(completion)]);
    out.groups.push_back(step.groups[static_cast<std::size_t>(completion)]);
  }
  const std::vector<Eigen::Index> places = tokens_of(step, completions);
  const std::vector<Eigen::Index> rows(completions.begin(), completions.end());
  for (const auto x : {&RolloutStep::rewards, &RolloutStep::greedy_rewards}) {
    out.*x = taken(step.*x, rows);
  }
  for (const auto x :
       {&RolloutStep::acted, &RolloutStep::given, &RolloutStep::token_rewards, &RolloutStep::values,
        &RolloutStep::old_logps, &RolloutStep::ref_logps, &RolloutStep::extra_logps}) {
    out.*x = taken(step.*x, places);
  }
  return out;
}

TokenArrays as_tensors(const BasicTokenArrays<Eigen::ArrayXd>& in) {
  TokenArrays out;
  for (std::size_t i = 0; i < kTokenMembers<at::Tensor>.size(); ++i) {
    const Eigen::ArrayXd& x = in.*kTokenMembers<Eigen::ArrayXd>[i].value;
    if (x.size() == 0) continue;
    out.*kTokenMembers<at::Tensor>[i].value =
        at::tensor(std::vector<double>(x.begin(), x.end()), at::kDouble);
  }
  out.completion_count = in.completion_count;
  out.turn_count = in.turn_count;
  out.totals = in.totals;
  return out;
}

}  // namespace prefopt::testing
