// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/eq.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/logps_file.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"

namespace prefopt::cli {
namespace {

using detail::Json;

bool is_length(std::string_view field) { return field.ends_with("_lens"); }
bool is_head(std::string_view field) { return field.ends_with("_head_logps"); }

/// `chosen_logps` of `chosen_lens` and of `chosen_head_logps`.
std::string completion_of(std::string_view field) {
  return std::string(field.substr(0, field.rfind(is_length(field) ? "_lens" : "_head_logps"))) +
         "_logps";
}

/// As LossOutput calls it.
std::string gradient_name(std::string_view field) {
  if (field == "sample_logps") return "grad_samples";
  if (field.ends_with("_logps")) field.remove_suffix(std::string_view("_logps").size());
  return "grad_" + std::string(field);
}

/// The rows of a file, as a loss wants them.
class LogpsTable {
 public:
  LogpsTable(std::string path, const Loss& loss)
      : path_(std::move(path)),
        loss_(loss.info().name),
        needs_(loss.requirements()),
        rows_(read_logps(path_)) {}

  const std::vector<LogpsRow>& rows() const { return rows_; }
  std::string where(const LogpsRow& row) const { return fmt::format("{}:{}", path_, row.line); }

  /// DataError where the loss needs what a row lacks, or where only some rows have a key;
  /// ConfigError where the file is for another kind of loss.
  PairLogps logps() const {
    check_kind();
    PairLogps logps;
    for (const auto& field : kPairFields<at::Tensor>) {
      const auto column = values_of(field.name, field.needed(needs_));
      if (!column.empty()) logps.*field.value = at::tensor(column, at::kDouble);
    }
    if (logps.sample_logps.defined()) {
      logps.samples_per_prompt =
          logps.sample_logps.size(0) / static_cast<std::int64_t>(rows_.size());
    }
    return logps;
  }

  /// One list a row, of what the file has of `field`: token by token, or one number for a sum. The
  /// gradient of a sum is that of each of its tokens; the first ones are in the head's sum as well.
  Json token_gradients(std::string_view field, const at::Tensor& slopes,
                       const at::Tensor& head_slopes) const {
    const auto outer = values(slopes);
    const auto inner = head_slopes.defined() ? values(head_slopes) : std::vector<double>{};
    Json lists = Json::array();
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const auto& completions = completions_of(rows_[i], field);
      Json of_row = Json::array();
      for (std::size_t k = 0; k < completions.size(); ++k) {
        std::vector<double> each(std::max<std::size_t>(completions[k].each.size(), 1),
                                 outer.at(i * completions.size() + k));
        if (!inner.empty()) {
          const std::size_t head = std::min(each.size(), head_tokens(rows_[i]));
          for (std::size_t token = 0; token < head; ++token) each[token] += inner.at(i);
        }
        of_row.push_back(std::move(each));
      }
      lists.push_back(field == "sample_logps" ? std::move(of_row) : std::move(of_row[0]));
    }
    return lists;
  }

 private:
  static bool has(const LogpsRow& row, std::string_view field) {
    return row.completions.contains(field) || row.numbers.contains(field);
  }
  bool all_have(std::string_view field) const {
    return std::all_of(rows_.begin(), rows_.end(),
                       [&](const LogpsRow& row) { return has(row, field); });
  }
  bool none_has(std::string_view field) const {
    return std::none_of(rows_.begin(), rows_.end(),
                        [&](const LogpsRow& row) { return has(row, field); });
  }

  void check_kind() const {
    if (needs_.labels && all_have("rejected_logps") && none_has("labels")) {
      throw ConfigError(
          fmt::format("{}: expected rows of one completion and a label, which {} is for, got pairs",
                      path_, loss_));
    }
    if (needs_.rejected && all_have("labels") && none_has("rejected_logps")) {
      throw ConfigError(fmt::format(
          "{}: expected pairs, which {} compares, got rows of one completion", path_, loss_));
    }
  }

  /// Empty where no row has the field and the loss does not need it.
  std::vector<double> values_of(std::string_view field, bool needed) const {
    std::vector<double> column;
    if (is_length(field) || is_head(field)) {
      if (!needed) return column;
      for (const LogpsRow& row : rows_) append_derived(row, field, column);
      return column;
    }
    if (!check_presence(field, needed)) return column;
    for (const LogpsRow& row : rows_) {
      if (const auto number = row.numbers.find(field); number != row.numbers.end()) {
        column.push_back(number->second);
        continue;
      }
      const auto& completions = completions_of(row, field);
      check_samples(row, field, completions.size());
      for (const CompletionLogps& completion : completions) column.push_back(completion.sum);
    }
    return column;
  }

  void append_derived(const LogpsRow& row, std::string_view field,
                      std::vector<double>& column) const {
    const std::string completion = completion_of(field);
    if (is_head(field)) {
      column.push_back(head_sum(row, completion));
      return;
    }
    for (const auto length : lengths(row, completion)) {
      column.push_back(static_cast<double>(length));
    }
  }

  /// Whether the rows have the field: all of them or none.
  bool check_presence(std::string_view field, bool needed) const {
    const auto has_it = [&](const LogpsRow& row) { return has(row, field); };
    const auto with = std::find_if(rows_.begin(), rows_.end(), has_it);
    if (with == rows_.end() && !needed) return false;
    const auto without = std::find_if_not(rows_.begin(), rows_.end(), has_it);
    if (without == rows_.end()) return true;
    throw DataError(
        fmt::format("{}: expected {}, got a row without it; {}", where(*without), key(field),
                    needed ? loss_ + " needs it" : fmt::format("line {} has it", with->line)));
  }

  void check_samples(const LogpsRow& row, std::string_view field, std::size_t count) const {
    const std::size_t expected = completions_of(rows_.front(), field).size();
    if (count == expected) return;
    throw DataError(fmt::format("{}: expected {} samples in {} as in line {}, got {}", where(row),
                                expected, key(field), rows_.front().line, count));
  }

  std::vector<std::int64_t> lengths(const LogpsRow& row, std::string_view field) const {
    std::vector<std::int64_t> counts;
    for (const CompletionLogps& completion : completions_of(row, field)) {
      if (!completion.tokens) {
        throw DataError(fmt::format(
            "{}: expected {} token by token{}, got a sum; {} needs the number of tokens",
            where(row), key(field), field == "sample_logps" ? "" : ", or its length beside it",
            loss_));
      }
      counts.push_back(*completion.tokens);
    }
    return counts;
  }

  /// Tokens that both completions of the pair have.
  std::size_t head_tokens(const LogpsRow& row) const {
    return static_cast<std::size_t>(
        std::min(lengths(row, "chosen_logps").front(), lengths(row, "rejected_logps").front()));
  }

  double head_sum(const LogpsRow& row, std::string_view field) const {
    const bool chosen = field.ends_with("chosen_logps");
    const std::size_t head = head_tokens(row);
    const auto tokens = lengths(row, chosen ? "chosen_logps" : "rejected_logps").front();
    const CompletionLogps& completion = completions_of(row, field).front();
    if (static_cast<std::size_t>(tokens) == head) return completion.sum;
    if (completion.each.empty()) {
      throw DataError(fmt::format(
          "{}: expected {} token by token, got a sum; {} needs that of the first {} of {} tokens",
          where(row), key(field), loss_, head, tokens));
    }
    const auto begin = completion.each.begin();
    return std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(head), 0.0);
  }

  static const std::vector<CompletionLogps>& completions_of(const LogpsRow& row,
                                                            std::string_view field) {
    return row.completions.find(field)->second;
  }

  std::string_view key(std::string_view field) const { return row_key(field, needs_.labels); }

  std::string path_;
  std::string loss_;
  LossRequirements needs_;
  std::vector<LogpsRow> rows_;
};

/// Those of the two log-probs that every pair has, defined or not, and the others that are.
void add_gradients(const LogpsTable& table, const LossOutput& output, Json& result) {
  result["grad_chosen"] = result["grad_rejected"] = Json::array();
  for (const auto& field : kPairFields<at::Tensor>) {
    if (field.gradient == nullptr || is_head(field.name)) continue;
    const at::Tensor& slopes = output.*field.gradient;
    if (!slopes.defined()) continue;
    const std::string name = gradient_name(field.name);
    const at::Tensor head = name == "grad_chosen"     ? output.grad_chosen_head
                            : name == "grad_rejected" ? output.grad_rejected_head
                                                      : at::Tensor();
    result[name] = table.token_gradients(field.name, slopes, head);
  }
}

double mean_of(const at::Tensor& tensor) { return tensor.to(at::kDouble).mean().item<double>(); }

/// TRL's names; what the loss does not define is left out.
Json pair_metrics(const LossOutput& output, const PairLogps& logps) {
  Json metrics = Json::object();
  const auto add = [&](const char* name, const at::Tensor& tensor) {
    if (tensor.defined()) metrics[name] = mean_of(tensor);
  };
  add("rewards/chosen", output.chosen_rewards);
  add("rewards/rejected", output.rejected_rewards);
  if (output.chosen_rewards.defined() && output.rejected_rewards.defined()) {
    add("rewards/accuracies", at::gt(output.chosen_rewards, output.rejected_rewards));
  }
  add("rewards/margins", output.margins);
  add("logps/chosen", logps.chosen_logps);
  add("logps/rejected", logps.rejected_logps);
  return metrics;
}

/// Of unpaired rows: desirable ones count as chosen, the others as rejected.
Json label_metrics(const LossOutput& output, const PairLogps& logps) {
  Json metrics = Json::object();
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    for (const bool desirable : {true, false}) {
      const at::Tensor rows = at::masked_select(tensor, at::eq(logps.labels, desirable ? 1 : 0));
      if (rows.numel() > 0) metrics[name + (desirable ? "chosen" : "rejected")] = mean_of(rows);
    }
  };
  add("rewards/", output.chosen_rewards);
  add("logps/", logps.chosen_logps);
  return metrics;
}

}  // namespace

void run_loss(const LossArguments& arguments, std::ostream& out) {
  const Loss loss = read_loss(arguments.loss);
  const LogpsTable table(arguments.logps, loss);
  const PairLogps logps = table.logps();
  const LossOutput output = loss.forward(logps);

  const auto losses = values(output.losses);
  for (std::size_t i = 0; i < losses.size(); ++i) {
    if (!std::isfinite(losses[i])) {
      throw NonFiniteError(fmt::format("{}: expected a finite loss, got {}",
                                       table.where(table.rows().at(i)), losses[i]));
    }
  }
  Json result{{"loss", output.loss.item<double>()}, {"losses", losses}};
  add_gradients(table, output, result);
  result["metrics"] =
      loss.requirements().labels ? label_metrics(output, logps) : pair_metrics(output, logps);
  out << result.dump() << '\n';
}

}  // namespace prefopt::cli
