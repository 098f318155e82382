// SPDX-License-Identifier: Apache-2.0
#include "cli/token_loss.h"

#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <cmath>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "cli/inputs.h"
#include "cli/rollouts_file.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/objectives/token_loss.h"

namespace prefopt::cli {
namespace {

using detail::Json;

/// The acted tokens of completions, as a loss on tokens wants them.
class TokenTable {
 public:
  TokenTable(std::string path, const TokenLoss& loss)
      : path_(std::move(path)), loss_(loss), rows_(read_rollouts(path_)) {}

  TokenRows inputs() {
    const TokenLossNeeds needs = loss_.needs();
    std::vector<double> completions, steps, lens, rewards;
    TokenRows in;
    for (const RolloutRow& row : rows_) {
      const std::vector<std::int64_t> acted = acted_places(row);
      const double reward = needs.rewards ? reward_of(row) : 0;
      if (needs.steps && row.step_ends.empty()) lacks(row, "step_ends");
      std::size_t step = 0;
      std::int64_t last_step = -1;
      for (const std::int64_t t : acted) {
        while (needs.steps && t >= row.step_ends[step]) ++step;
        if (last_step != static_cast<std::int64_t>(step)) ++in.step_count;
        last_step = static_cast<std::int64_t>(step);
        completions.push_back(static_cast<double>(in.completion_count));
        steps.push_back(static_cast<double>(in.step_count - 1));
        lens.push_back(static_cast<double>(acted.size()));
        rewards.push_back(reward);
      }
      ++in.completion_count;
    }
    in.totals = {.tokens = static_cast<double>(completions.size()),
                 .completions = static_cast<double>(in.completion_count)};
    in.logps = column("logps", true);
    in.ref_logps = column("ref_logps", needs.ref_logps);
    in.values = column("values", needs.values);
    in.log_normalizers = column("log_normalizers", needs.log_normalizers);
    in.exact_kls = column("exact_kls", needs.exact_kls);
    in.rewards = tensor(rewards);
    in.completions = tensor(completions);
    in.steps = tensor(steps);
    in.lens = tensor(lens);
    return in;
  }

  /// Returns one list a completion, 0 at tokens that the policy did not choose.
  Json lists(const at::Tensor& of_acted) const {
    const std::vector<double> numbers = values(of_acted);
    auto next = numbers.begin();
    Json all = Json::array();
    for (const RolloutRow& row : rows_) {
      std::vector<double> each(static_cast<std::size_t>(row.length()), 0);
      for (const std::int64_t t : acted_places(row)) each[static_cast<std::size_t>(t)] = *next++;
      all.push_back(each);
    }
    return all;
  }

  /// Returns the keys of the file that the loss does not read.
  std::set<std::string> unread() const {
    const TokenLossNeeds needs = loss_.needs();
    std::set<std::string_view> read{"logps", "acted"};
    const auto add = [&](std::string_view key, bool is_read) {
      if (is_read) read.insert(key);
    };
    add("reward", needs.rewards);
    add("step_ends", needs.steps);
    add("ref_logps", needs.ref_logps);
    add("values", needs.values);
    add("log_normalizers", needs.log_normalizers);
    add("exact_kls", needs.exact_kls);
    return unread_keys(rows_, read);
  }

 private:
  static at::Tensor tensor(const std::vector<double>& x) { return at::tensor(x, at::kDouble); }

  [[noreturn]] void lacks(const RolloutRow& row, std::string_view key) const {
    throw DataError(fmt::format("{}:{}: expected {}, got a row without it; {} needs it", path_,
                                row.line, key, loss_.name()));
  }

  double reward_of(const RolloutRow& row) const {
    if (!row.reward) lacks(row, "reward");
    if (std::isfinite(*row.reward)) return *row.reward;
    throw DataError(
        fmt::format("{}:{}: expected a reward for {}, got null", path_, row.line, loss_.name()));
  }

  /// Throws DataError for a completion in which the policy chose nothing.
  std::vector<std::int64_t> acted_places(const RolloutRow& row) const {
    const std::vector<double>& acted = row.numbers("acted");
    std::vector<std::int64_t> places;
    for (std::int64_t t = 0; t < row.length(); ++t) {
      if (acted.empty() || acted[static_cast<std::size_t>(t)] != 0) places.push_back(t);
    }
    if (!places.empty()) return places;
    throw DataError(
        fmt::format("{}:{}: expected a token that the policy chose, got none", path_, row.line));
  }

  at::Tensor column(std::string_view key, bool is_needed) const {
    if (!is_needed) return {};
    std::vector<double> all;
    for (const RolloutRow& row : rows_) {
      const std::vector<double>& numbers = row.numbers(key);
      if (numbers.empty()) lacks(row, key);
      for (const std::int64_t t : acted_places(row)) {
        all.push_back(numbers[static_cast<std::size_t>(t)]);
      }
    }
    return tensor(all);
  }

  std::string path_;
  const TokenLoss& loss_;
  std::vector<RolloutRow> rows_;
};

}  // namespace

void run_token_loss(const LossArguments& arguments, std::ostream& out) {
  const TokenLoss loss = make_token_loss(read_json_argument(arguments.loss));
  TokenTable table(arguments.rollouts, loss);
  const TokenRows in = table.inputs();
  const TokenLossOutput output = loss.forward(in);
  const double value = output.loss.item<double>();
  if (!std::isfinite(value)) {
    throw NonFiniteError(
        fmt::format("{}: expected a finite loss, got {}", arguments.rollouts, value));
  }
  Json result{{"loss", value}, {"grad", table.lists(output.grad_logps)}};
  const auto add = [&](std::string_view name, const at::Tensor& gradient) {
    if (gradient.defined()) result[std::string(name)] = table.lists(gradient);
  };
  add("grad_values", output.grad_values);
  add("grad_log_normalizers", output.grad_log_normalizers);
  add("grad_exact_kls", output.grad_exact_kls);
  Json metrics = Json::object();
  for (const auto& term : output.terms) metrics["loss/" + term.name] = term.value.item<double>();
  for (const auto& statistic : output.statistics) {
    metrics[statistic.name] = statistic.sum.item<double>() / in.totals.tokens;
  }
  result["metrics"] = std::move(metrics);
  if (const auto unread = table.unread(); !unread.empty()) result["unread"] = unread;
  out << result.dump() << '\n';
}

}  // namespace prefopt::cli
