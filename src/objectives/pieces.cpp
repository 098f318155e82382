// SPDX-License-Identifier: Apache-2.0
// The registries of advantages and rules, and what all pieces have in common.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <mutex>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/objectives/advantages/batch_std.h"
#include "prefopt/objectives/advantages/gae.h"
#include "prefopt/objectives/advantages/given.h"
#include "prefopt/objectives/advantages/greedy.h"
#include "prefopt/objectives/advantages/group_mean.h"
#include "prefopt/objectives/advantages/group_std.h"
#include "prefopt/objectives/advantages/leave_one_out.h"
#include "prefopt/objectives/advantages/length_mean.h"
#include "prefopt/objectives/advantages/none.h"
#include "prefopt/objectives/advantages/soft_mean.h"
#include "prefopt/objectives/advantages/to_go.h"
#include "prefopt/objectives/advantages/whiten_tokens.h"
#include "prefopt/objectives/rules/cispo.h"
#include "prefopt/objectives/rules/none.h"
#include "prefopt/objectives/rules/ppo.h"
#include "prefopt/objectives/rules/regress.h"
#include "prefopt/objectives/rules/sapo.h"
#include "prefopt/objectives/rules/vespo.h"

namespace prefopt {
namespace {

using detail::Json;

/// Pieces of one part of an objective, by kind.
template <class Entry>
struct PieceRegistry {
  std::deque<Entry> entries;
  std::string_view part;
  std::mutex mutex = {};

  const Entry* find(std::string_view kind) const {
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [&](const Entry& entry) { return entry.info.kind == kind; });
    return found == entries.end() ? nullptr : &*found;
  }

  std::vector<Entry> all() {
    const std::lock_guard lock(mutex);
    return {entries.begin(), entries.end()};
  }

  void add(Entry entry) {
    const std::lock_guard lock(mutex);
    if (find(entry.info.kind) != nullptr) {
      throw ConfigError(
          fmt::format("{}: expected a kind that is free, got '{}'", part, entry.info.kind));
    }
    entries.push_back(std::move(entry));
  }

  Entry named_in(std::string_view json) {
    const Json config = detail::parse_json<ConfigError>(json, part);
    if (!config.is_object() || !config.contains("kind") || !config["kind"].is_string()) {
      throw ConfigError(fmt::format("{}: expected an object with a key 'kind', got {}", part,
                                    detail::shown_json(config)));
    }
    const auto kind = config["kind"].template get<std::string>();
    const std::lock_guard lock(mutex);
    if (const Entry* entry = find(kind)) return *entry;
    std::vector<std::string_view> kinds;
    for (const Entry& entry : entries) kinds.push_back(entry.info.kind);
    throw ConfigError(fmt::format("{}: expected a registered kind, got '{}'{}", part, kind,
                                  detail::did_you_mean(kind, kinds)));
  }
};

PieceRegistry<AdvantageEntry>& advantages() {
  static PieceRegistry<AdvantageEntry> registry{
      .entries = {advantage_entry<NoBaseline>(), advantage_entry<GreedyBaseline>(),
                  advantage_entry<LeaveOneOut>(), advantage_entry<GroupMean>(),
                  advantage_entry<GroupStd>(), advantage_entry<BatchStd>(),
                  advantage_entry<WhitenTokens>(), advantage_entry<LengthMean>(),
                  advantage_entry<SoftMean>(), advantage_entry<Gae>(), advantage_entry<ToGo>(),
                  advantage_entry<GivenAdvantage>()},
      .part = "advantage"};
  return registry;
}

PieceRegistry<RuleEntry>& rules() {
  static PieceRegistry<RuleEntry> registry{
      .entries = {rule_entry<NoRule>(), rule_entry<PpoRule>(), rule_entry<CispoRule>(),
                  rule_entry<SapoRule>(), rule_entry<VespoRule>(), rule_entry<RegressRule>()},
      .part = "rule"};
  return registry;
}

void check_groups(const RolloutStep& step, const std::string& kind) {
  std::map<std::int64_t, std::int64_t> sizes;
  for (const std::int64_t group : step.groups) ++sizes[group];
  for (const auto& [group, size] : sizes) {
    if (size >= 2) continue;
    throw ConfigError(
        fmt::format("advantage: expected at least 2 completions of each prompt, as '{}' compares "
                    "them, got 1 in "
                    "group {}",
                    kind, group));
  }
}

std::string kind_config(const std::string& kind, std::initializer_list<std::string> objects) {
  Json config = {{"kind", kind}};
  for (const std::string& object : objects) {
    config.update(detail::parse_json<ConfigError>(object, kind));
  }
  return detail::dump_json(config);
}

}  // namespace

void AdvantageOptions::fields(FieldVisitor& v) {
  v.real({"clip", "advantages are limited to [-clip, clip]; 0: no limit"}, clip,
         Range::at_least(0));
  v.real({"keep_above",
          "completions whose advantages all are at most this from 0 are dropped; 0: none is"},
         keep_above, Range::at_least(0));
  v.choice({"unscorable",
            "completions whose reward nobody could say: zero counts them with advantage 0, error "
            "refuses them"},
           unscorable, {"zero", "error"});
}

Eigen::ArrayXd Advantage::of(const RolloutStep& step) const {
  check_rollout_step(step);
  const std::string kind = info().kind;
  const AdvantageNeeds needs = this->needs();
  const auto require = [&](bool is_needed, const Eigen::ArrayXd& x, std::int64_t size,
                           std::string_view what) {
    if (!is_needed || x.size() == size) return;
    throw ShapeError(
        fmt::format("advantage: expected {} of the rollouts for '{}', got none", what, kind));
  };
  require(needs.greedy_rewards, step.greedy_rewards, step.completions(), "greedy_rewards");
  require(needs.values, step.values, step.tokens(), "values");
  require(needs.given, step.given, step.tokens(), "advantages");
  if (needs.groups) check_groups(step, kind);
  // Given advantages do not depend on the rewards.
  Eigen::ArrayXd rewards = step.rewards;
  if (needs.greedy_rewards) rewards += step.greedy_rewards;  // NaN where either is
  if (needs.given) rewards.setZero();
  for (std::int64_t i = 0; i < step.completions(); ++i) {
    if (options_.unscorable != Unscorable::kError || !std::isnan(rewards[i])) continue;
    throw DataError(fmt::format(
        "advantage: expected a reward of each completion, got none of completion {}", i));
  }
  Eigen::ArrayXd each = self_->of(step);
  if (each.size() != step.tokens()) {
    throw ShapeError(fmt::format("advantage: expected '{}' to return [{}], got [{}]", kind,
                                 step.tokens(), each.size()));
  }
  const auto places = step.starts();
  for (std::int64_t i = 0; i < step.completions(); ++i) {
    const std::int64_t start = places[static_cast<std::size_t>(i)];
    for (std::int64_t t = start; t < places[static_cast<std::size_t>(i) + 1]; ++t) {
      if (step.acted[t] == 0 || std::isnan(rewards[i])) each[t] = 0;
      if (std::isfinite(each[t])) continue;
      throw NonFiniteError(
          fmt::format("advantage: expected finite numbers of '{}', got {} at token {} of "
                      "completion {}",
                      kind, each[t], t - start, i));
    }
  }
  if (options_.clip > 0) each = each.max(-options_.clip).min(options_.clip);
  return each;
}

Eigen::ArrayXd Advantage::returns(const RolloutStep& step) const {
  Eigen::ArrayXd each = self_->returns(step);
  if (each.size() == 0) return each;
  if (each.size() != step.tokens()) {
    throw ShapeError(fmt::format("advantage: expected returns [{}] of '{}', got [{}]",
                                 step.tokens(), info().kind, each.size()));
  }
  if (step.values.size() == 0) return each;
  return step.spread(step.rewards).isNaN().select(step.values, each);
}

Eigen::ArrayXd Advantage::kept(const RolloutStep& step, const Eigen::ArrayXd& advantages) const {
  Eigen::ArrayXd kept = Eigen::ArrayXd::Ones(step.completions());
  if (options_.keep_above == 0) return kept;
  const auto places = step.starts();
  for (std::int64_t i = 0; i < step.completions(); ++i) {
    const auto of = static_cast<std::size_t>(i);
    const bool is_small =
        step.lens[of] == 0 ||
        advantages.segment(places[of], step.lens[of]).abs().maxCoeff() <= options_.keep_above;
    if (is_small) kept[i] = 0;
  }
  return kept;
}

std::string Advantage::config() const {
  return kind_config(info().kind, {self_->options_json(), options_to_json(options_)});
}

std::string TokenRule::config() const { return kind_config(info().kind, {self_->options_json()}); }

Advantage make_advantage(std::string_view json) { return advantages().named_in(json).make(json); }
std::vector<AdvantageEntry> registered_advantages() { return advantages().all(); }
void register_advantage(AdvantageEntry entry) { advantages().add(std::move(entry)); }

TokenRule make_rule(std::string_view json) { return rules().named_in(json).make(json); }
std::vector<RuleEntry> registered_rules() { return rules().all(); }
void register_rule(RuleEntry entry) { rules().add(std::move(entry)); }

namespace detail {

void read_piece(std::string_view json, const std::string& kind, const FieldList& own,
                const FieldList& common) {
  Json config = parse_json<ConfigError>(json, kind);
  config.erase("kind");
  const FieldList all = [&](FieldVisitor& v) {
    own(v);
    if (common) common(v);
  };
  read_fields(all, dump_json(config), kind);
}

void check_ratio_limit(std::string_view where, std::string_view option, double value) {
  if (value == 0 || value > 1) return;
  throw ConfigError(fmt::format("{}: expected {} above 1, or 0, got {}", where, option, value));
}

void check_upper_limit(std::string_view where, double delta, double high) {
  constexpr double kRounding = 1e-12;
  if (delta == 0 || delta >= 1 + high - kRounding) return;
  throw ConfigError(fmt::format("{}: expected delta of at least 1 + high, {}, or 0, got {}", where,
                                1 + high, delta));
}

void check_ratio_range(std::string_view where, double min, double max) {
  if (min <= max) return;
  throw ConfigError(fmt::format("{}: expected min of at most max, {}, got {}", where, max, min));
}

}  // namespace detail
}  // namespace prefopt
