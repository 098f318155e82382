// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/rollouts_file.h"
#include "cli/token_loss.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_objective.h"

namespace prefopt::cli {
namespace {

using detail::Json;

constexpr double kNoReward = std::numeric_limits<double>::quiet_NaN();

/// The completions of a step, as an objective wants them.
class RolloutTable {
 public:
  RolloutTable(std::string path, const TokenObjective& objective)
      : path_(std::move(path)), objective_(objective), rows_(read_rollouts(path_)) {}

  /// Throws DataError where the objective needs what a row lacks.
  RolloutStep step() const {
    const ObjectiveNeeds needs = objective_.needs();
    const bool has_kl_reward = objective_.options().kl.is_in_advantages();
    const bool reads_token_rewards = objective_.advantage().needs().per_token;
    RolloutStep step;
    std::vector<double> rewards;
    std::vector<double> greedy;
    for (const RolloutRow& row : rows_) {
      step.lens.push_back(row.length());
      if (needs.groups && !row.group) lacks(row, "group");
      step.groups.push_back(row.group.value_or(0));
      const bool may_lack =
          needs.given || (reads_token_rewards && !row.numbers("token_rewards").empty());
      if (!row.reward && !may_lack) lacks(row, "reward");
      rewards.push_back(row.reward.value_or(needs.given ? kNoReward : 0));
      if (needs.greedy_rewards && !row.greedy_reward) lacks(row, "greedy_reward");
      greedy.push_back(row.greedy_reward.value_or(kNoReward));
    }
    const auto array = [](const std::vector<double>& x) {
      return Eigen::ArrayXd(
          Eigen::Map<const Eigen::ArrayXd>(x.data(), static_cast<Eigen::Index>(x.size())));
    };
    step.rewards = array(rewards);
    if (needs.greedy_rewards) step.greedy_rewards = array(greedy);
    step.acted = array(column("acted", /*is_needed=*/false, [](const RolloutRow& row) {
      return std::vector<double>(static_cast<std::size_t>(row.length()), 1);
    }));
    step.given = array(column("advantage", needs.given));
    step.token_rewards =
        array(column("token_rewards", /*is_needed=*/false, [](const RolloutRow& row) {
          return std::vector<double>(static_cast<std::size_t>(row.length()), 0);
        }));
    step.values = array(column("values", needs.values));
    step.ref_logps = array(column("ref_logps", has_kl_reward || needs.extra_logps));
    step.extra_logps = array(column("extra_logps", needs.extra_logps));
    step.old_logps = array(column("old_logps", /*is_needed=*/false, logps_of));
    return step;
  }

  /// Returns the tokens that train: acted ones of the completions that count.
  TokenArrays arrays(const RolloutStep& step, const StepAdvantages& of) {
    const ObjectiveNeeds needs = objective_.needs();
    const TokenObjectiveOptions& options = objective_.options();
    const bool trains_values = options.value_loss.coefficient > 0;
    const auto starts = step.starts();
    const Eigen::ArrayXd acted = step.acted_tokens();
    std::vector<double> completions;
    std::vector<double> turns;
    std::vector<double> lens;
    std::map<std::int64_t, double> group_tokens;
    TokenArrays in;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const auto at = static_cast<Eigen::Index>(i);
      const bool is_masked =
          options.unfinished == UnfinishedCompletions::kMask && !rows_[i].finished;
      if (is_masked || of.kept[at] == 0 || acted[at] == 0) continue;
      std::size_t turn = 0;
      std::int64_t last_turn = -1;
      for (std::int64_t t = 0; t < step.lens[i]; ++t) {
        while (!rows_[i].turn_ends.empty() && t >= rows_[i].turn_ends[turn]) ++turn;
        if (step.acted[starts[i] + t] == 0) continue;
        if (last_turn != static_cast<std::int64_t>(turn)) ++in.turn_count;
        last_turn = static_cast<std::int64_t>(turn);
        places_.push_back(starts[i] + t);
        completions.push_back(static_cast<double>(in.completion_count));
        turns.push_back(static_cast<double>(in.turn_count - 1));
        lens.push_back(acted[at]);
      }
      ++in.completion_count;
      group_tokens[step.groups[i]] += acted[at];
    }
    if (places_.empty()) {
      throw DataError(fmt::format("{}: expected a completion that counts, got none", path_));
    }
    in.totals = {.tokens = static_cast<double>(places_.size()),
                 .completions = static_cast<double>(in.completion_count),
                 .groups = static_cast<double>(group_tokens.size())};
    std::vector<double> group_lens;
    std::size_t token = 0;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      for (; token < places_.size() && places_[token] < starts[i + 1]; ++token) {
        group_lens.push_back(group_tokens.at(step.groups[i]));
      }
    }
    const auto tensor = [](const std::vector<double>& x) { return at::tensor(x, at::kDouble); };
    in.completions = tensor(completions);
    in.turns = tensor(turns);
    in.lens = tensor(lens);
    in.group_lens = tensor(group_lens);
    in.logps = taken(column("logps", true));
    in.old_logps = taken(column("old_logps", false));
    in.ref_logps = taken(column("ref_logps", options.kl.is_in_loss() && !needs.exact_kls));
    in.sampler_logps = taken(column("sampler_logps", needs.sampler_logps));
    in.entropies = taken(column("entropies", needs.entropies));
    in.exact_kls = taken(column("exact_kls", needs.exact_kls));
    in.values = taken(column("values", trains_values));
    in.old_values = taken(column("old_values", false));
    if (trains_values && !in.old_values.defined()) in.old_values = in.values;
    in.advantages = taken({of.advantages.begin(), of.advantages.end()});
    in.returns = taken({of.returns.begin(), of.returns.end()});
    return in;
  }

  /// Returns one list a completion of numbers of the tokens that train, 0 at the others.
  Json lists(const RolloutStep& step, const at::Tensor& of_places) const {
    std::vector<double> each(static_cast<std::size_t>(step.tokens()), 0);
    const auto numbers = values(of_places);
    for (std::size_t i = 0; i < places_.size(); ++i) {
      each[static_cast<std::size_t>(places_[i])] = numbers[i];
    }
    return lists(step, each);
  }

  template <class Numbers>
  Json lists(const RolloutStep& step, const Numbers& each) const {
    Json all = Json::array();
    auto at = each.begin();
    for (const std::int64_t length : step.lens) {
      all.push_back(std::vector<double>(at, at + length));
      at += length;
    }
    return all;
  }

  /// Returns the keys of the file that neither the objective nor its metrics read.
  std::set<std::string> unread() const {
    const ObjectiveNeeds needs = objective_.needs();
    const TokenObjectiveOptions& options = objective_.options();
    std::set<std::string_view> read{"logps", "old_logps", "sampler_logps", "acted"};
    const auto add = [&](std::string_view key, bool is_read) {
      if (is_read) read.insert(key);
    };
    add("group", needs.groups);
    add("reward", !needs.given);
    add("greedy_reward", needs.greedy_rewards);
    add("advantage", needs.given);
    add("token_rewards", objective_.advantage().needs().per_token);
    add("values", needs.values);
    add("old_values", options.value_loss.coefficient > 0);
    add("ref_logps", !needs.exact_kls);
    add("extra_logps", needs.extra_logps);
    add("entropies", needs.entropies);
    add("exact_kls", needs.exact_kls);
    add("turn_ends", options.level == RatioLevel::kTurn);
    return unread_keys(rows_, read);
  }

 private:
  static std::vector<double> logps_of(const RolloutRow& row) { return row.numbers("logps"); }

  [[noreturn]] void lacks(const RolloutRow& row, std::string_view key) const {
    throw DataError(fmt::format("{}:{}: expected {}, got a row without it; {} needs it", path_,
                                row.line, key, objective_.name()));
  }

  /// Numbers of all tokens; empty where no row has the key and none is needed. `fallback` gives
  /// those of a row without, else all rows have the key or none.
  template <class Fallback = std::nullptr_t>
  std::vector<double> column(std::string_view key, bool is_needed,
                             Fallback fallback = nullptr) const {
    constexpr bool kHasFallback = !std::is_same_v<Fallback, std::nullptr_t>;
    std::vector<double> all;
    const auto first = std::find_if(rows_.begin(), rows_.end(), [&](const RolloutRow& row) {
      return !row.numbers(key).empty();
    });
    if (first == rows_.end() && !is_needed && !kHasFallback) return all;
    for (const RolloutRow& row : rows_) {
      std::vector<double> numbers = row.numbers(key);
      if (numbers.empty()) {
        if constexpr (kHasFallback) {
          numbers = fallback(row);
        } else if (is_needed) {
          lacks(row, key);
        } else {
          throw DataError(fmt::format("{}:{}: expected {}, got a row without it; line {} has it",
                                      path_, row.line, key, first->line));
        }
      }
      all.insert(all.end(), numbers.begin(), numbers.end());
    }
    return all;
  }

  at::Tensor taken(const std::vector<double>& all) const {
    if (all.empty()) return {};
    std::vector<double> chosen;
    for (const std::int64_t place : places_) chosen.push_back(all[static_cast<std::size_t>(place)]);
    return at::tensor(chosen, at::kDouble);
  }

  std::string path_;
  const TokenObjective& objective_;
  std::vector<RolloutRow> rows_;
  std::vector<std::int64_t> places_;  ///< of the tokens that train
};

}  // namespace

void run_rollout_loss(const LossArguments& arguments, std::ostream& out) {
  const std::string config = read_json_argument(arguments.loss);
  if (is_token_loss(config)) return run_token_loss(arguments, out);
  const TokenObjective objective = make_token_objective(config);
  RolloutTable table(arguments.rollouts, objective);
  const RolloutStep step = table.step();
  const StepAdvantages advantages = objective.advantages(step);
  const TokenArrays in = table.arrays(step, advantages);
  const ObjectiveOutput output = objective.forward(in);
  const double loss = output.loss.item<double>();
  if (!std::isfinite(loss)) {
    throw NonFiniteError(
        fmt::format("{}: expected a finite loss, got {}", arguments.rollouts, loss));
  }
  Json result{{"loss", loss}, {"grad", table.lists(step, output.grad_logps)}};
  const auto add = [&](std::string_view name, const at::Tensor& gradient) {
    if (gradient.defined()) result[std::string(name)] = table.lists(step, gradient);
  };
  add("grad_entropies", output.grad_entropies);
  add("grad_exact_kls", output.grad_exact_kls);
  add("grad_values", output.grad_values);
  result["advantages"] = table.lists(step, advantages.advantages);
  if (advantages.returns.size() > 0) result["returns"] = table.lists(step, advantages.returns);
  Json metrics = Json::object();
  if (output.terms.size() > 1) {
    for (const auto& term : output.terms) metrics["loss/" + term.name] = term.value.item<double>();
  }
  for (const auto& statistic : output.statistics) {
    metrics[statistic.name] = statistic.sum.item<double>() / in.totals.tokens;
  }
  result["metrics"] = std::move(metrics);
  if (const auto unread = table.unread(); !unread.empty()) result["unread"] = unread;
  out << result.dump() << '\n';
}

}  // namespace prefopt::cli
