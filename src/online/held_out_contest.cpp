// SPDX-License-Identifier: Apache-2.0
#include "online/held_out_contest.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "online/draw_seed.h"
#include "online/rated_prompts.h"
#include "online/rollout_writer.h"
#include "online/shared_work.h"
#include "policy/parameters.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Tokens one after the other, each completion led by their number.
std::vector<std::int64_t> packed(const std::vector<Rollout>& rollouts) {
  std::vector<std::int64_t> values;
  for (const Rollout& rollout : rollouts) {
    values.push_back(std::ssize(rollout.completion));
    values.insert(values.end(), rollout.completion.begin(), rollout.completion.end());
  }
  return values;
}

/// Throws CheckpointError for values that are not those of `count` completions.
std::vector<std::vector<std::int64_t>> unpacked(const std::vector<std::int64_t>& values,
                                                std::size_t count) {
  std::vector<std::vector<std::int64_t>> completions;
  for (auto at = values.begin(); at != values.end();) {
    const std::int64_t length = *at++;
    if (length < 0 || values.end() - at < length) break;
    completions.emplace_back(at, at + length);
    at += length;
    if (at == values.end() && completions.size() == count) return completions;
  }
  throw CheckpointError(
      fmt::format("expected evaluated_completions of {} held-out prompts, got others", count));
}

}  // namespace

HeldOutContest::HeldOutContest(const OnlineParts& parts, std::int64_t at_once, std::int64_t seed,
                               Meeting& meeting)
    : parts_(parts), sampling_(parts.sampling), at_once_(at_once), meeting_(meeting) {
  sampling_.seed = draw_seed(seed, {kEvaluationDraws});
}

Metrics HeldOutContest::measure(Policy& policy) {
  if (parts_.eval_prompts.empty() || !parts_.feedback) return {};
  measured_ = write(policy);
  // Before the first step they are one model, of which equal draws need not be made twice.
  if (parts_.initial && first_.empty()) {
    first_ = have_equal_weights(policy, *parts_.initial) ? measured_ : write(*parts_.initial);
  }
  std::vector<Opponent> opponents;
  if (!first_.empty()) opponents.push_back({"win_rate", &first_});
  if (!last_.empty()) opponents.push_back({"win_rate_last", &last_});
  const std::vector<std::int64_t> failures = parts_.feedback->failures();
  Metrics metrics = contest_metrics(parts_, measured_, opponents, meeting_);
  share_failures(*parts_.feedback, failures, meeting_);
  return metrics;
}

void HeldOutContest::finish() {
  last_ = std::exchange(measured_, {});
  // Tokens alone are saved, which do not say how an environment rewarded them.
  if (has_environment()) last_.clear();
}

void HeldOutContest::visit_state(StateVisitor& visitor) {
  std::vector<std::int64_t> values = packed(last_);
  visitor.integers("evaluated_completions", values);
  if (!visitor.is_loading()) return;
  last_.clear();
  if (values.empty()) return;
  std::vector<Rollout> rollouts;
  for (auto& completion : unpacked(values, parts_.eval_prompts.size())) {
    rollouts.push_back(
        {.prompt = parts_.eval_prompts[rollouts.size()].ids, .completion = std::move(completion)});
    rollouts.back().ended = has_ended(rollouts.back().completion, sampling_);
  }
  last_ = with_texts(std::move(rollouts), parts_, sampling_);
}

bool HeldOutContest::has_environment() const { return environment() < parts_.sources.size(); }

/// Returns the place of the first source that has an environment; else the number of sources.
std::size_t HeldOutContest::environment() const {
  const auto acts = std::find_if(
      parts_.sources.begin(), parts_.sources.end(),
      [](const SourceOptions& source) { return source.from == SourceKind::kEnvironment; });
  return static_cast<std::size_t>(acts - parts_.sources.begin());
}

std::vector<Rollout> HeldOutContest::write(Policy& policy) const {
  const Portion own = portion_of(std::ssize(parts_.eval_prompts), *meeting_.ranks());
  std::vector<Rollout> all = gather_rollouts(write(policy, own), meeting_);
  return has_environment() ? all : with_texts(std::move(all), parts_, sampling_);
}

/// Returns the completions of a share of the prompts.
std::vector<Rollout> HeldOutContest::write(Policy& policy, const Portion& own) const {
  if (own.begin == own.end) return {};
  SamplingOptions sampling = sampling_;
  sampling.first_index += own.begin;
  if (has_environment()) {
    std::vector<const OnlinePrompt*> held_out;
    for (auto i = own.begin; i < own.end; ++i) held_out.push_back(&parts_.eval_prompts[i]);
    return play_episodes(policy, parts_, static_cast<std::int64_t>(environment()), held_out,
                         /*n=*/1, sampling, at_once_, [&](std::int64_t i) {
                           return draw_seed(sampling_.seed, {kEnvironmentDraws, own.begin + i});
                         });
  }
  std::vector<std::vector<std::int64_t>> prompts;
  for (auto i = own.begin; i < own.end; ++i) prompts.push_back(parts_.eval_prompts[i].ids);
  return draw_rollouts(policy, prompts, {.sampling = sampling, .at_once = at_once_});
}

}  // namespace prefopt::detail
