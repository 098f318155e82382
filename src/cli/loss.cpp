// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/gt.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ostream>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/logps_file.h"
#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

/// One key of every row: tensors [rows * completions a row].
struct Column {
  std::vector<CompletionLogps> completions;
  std::int64_t per_row = 0;
  at::Tensor sums;  ///< undefined where no row has the key
  at::Tensor lens;  ///< undefined unless every length is known
};

/// The rows of a file, as the named loss wants them.
class LogpsTable {
 public:
  LogpsTable(std::string path, std::string loss)
      : path_(std::move(path)), loss_(std::move(loss)), rows_(read_logps(path_)) {}

  const std::vector<LogpsRow>& rows() const { return rows_; }

  /// DataError unless all rows have the key, or none has it and it is not needed.
  Column column(std::string_view key, bool needed) const {
    const auto has = [&](const LogpsRow& row) { return row.completions.contains(key); };
    const auto with = std::find_if(rows_.begin(), rows_.end(), has);
    if (with == rows_.end() && !needed) return {};
    if (const auto without = std::find_if_not(rows_.begin(), rows_.end(), has);
        without != rows_.end()) {
      throw DataError(
          fmt::format("{}: expected {}, got a row without it; {}", where(*without), key,
                      needed ? loss_ + " needs it" : fmt::format("line {} has it", with->line)));
    }
    return fill(key);
  }

  std::string where(const LogpsRow& row) const { return fmt::format("{}:{}", path_, row.line); }

 private:
  Column fill(std::string_view key) const {
    Column column;
    std::vector<double> sums, lens;
    for (const LogpsRow& row : rows_) {
      const auto& completions = row.completions.find(key)->second;
      const auto count = static_cast<std::int64_t>(completions.size());
      if (column.per_row == 0) column.per_row = count;
      if (count != column.per_row) {
        throw DataError(fmt::format("{}: expected {} samples in {} as in line {}, got {}",
                                    where(row), column.per_row, key, rows_.front().line, count));
      }
      for (const CompletionLogps& completion : completions) {
        column.completions.push_back(completion);
        sums.push_back(completion.sum);
        if (completion.tokens) lens.push_back(static_cast<double>(*completion.tokens));
      }
    }
    column.sums = at::tensor(sums, at::kDouble);
    if (lens.size() == sums.size()) column.lens = at::tensor(lens, at::kDouble);
    return column;
  }

  std::string path_;
  std::string loss_;
  std::vector<LogpsRow> rows_;
};

/// The gradient of a sum is the gradient of each of its tokens.
std::vector<Json> token_gradients(const at::Tensor& coefficients, const Column& column) {
  std::vector<Json> lists;
  if (!coefficients.defined()) return lists;
  const auto each = values(coefficients);
  for (std::size_t i = 0; i < column.completions.size(); ++i) {
    lists.emplace_back(std::vector<double>(column.completions[i].entries, each.at(i)));
  }
  return lists;
}

std::vector<Json> grouped(const std::vector<Json>& lists, std::int64_t per_row) {
  std::vector<Json> groups;
  for (auto next = lists.begin(); next != lists.end(); next += per_row) {
    groups.emplace_back(std::vector<Json>(next, next + per_row));
  }
  return groups;
}

/// TRL's names; what the loss does not define is left out.
Json mean_metrics(const LossOutput& output, const PairLogps& logps) {
  Json metrics = Json::object();
  const auto add = [&](const char* name, const at::Tensor& tensor) {
    if (tensor.defined()) metrics[name] = tensor.to(at::kDouble).mean().item<double>();
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

}  // namespace

void run_loss(const LossArguments& arguments, std::ostream& out) {
  const Loss loss = read_loss(arguments.loss);
  const LossRequirements needs = loss.requirements();
  const bool needs_samples = needs.sample_source != SampleSource::kNone;
  const LogpsTable table(arguments.logps, loss.info().name);
  const Column chosen = table.column("chosen_logps", true);
  const Column rejected = table.column("rejected_logps", needs.rejected);
  const Column samples = table.column("sample_logps", needs_samples);

  const PairLogps logps{
      .chosen_logps = chosen.sums,
      .rejected_logps = rejected.sums,
      .ref_chosen_logps = table.column("ref_chosen_logps", needs.reference).sums,
      .ref_rejected_logps =
          table.column("ref_rejected_logps", needs.reference && needs.rejected).sums,
      .chosen_lens = chosen.lens,
      .rejected_lens = rejected.lens,
      .samples_per_prompt = samples.per_row,
      .sample_logps = samples.sums,
      .ref_sample_logps = table.column("ref_sample_logps", needs.reference && needs_samples).sums,
      .sample_lens = samples.lens,
      .totals = {}};
  const LossOutput output = loss.forward(logps);

  const auto losses = values(output.losses);
  for (std::size_t i = 0; i < losses.size(); ++i) {
    if (!std::isfinite(losses[i])) {
      throw NonFiniteError(fmt::format("{}: expected a finite loss, got {}",
                                       table.where(table.rows().at(i)), losses[i]));
    }
  }
  Json result{{"loss", output.loss.item<double>()},
              {"losses", losses},
              {"grad_chosen", token_gradients(output.grad_chosen, chosen)},
              {"grad_rejected", token_gradients(output.grad_rejected, rejected)}};
  if (output.grad_samples.defined()) {
    result["grad_samples"] =
        grouped(token_gradients(output.grad_samples, samples), samples.per_row);
  }
  result["metrics"] = mean_metrics(output, logps);
  out << result.dump() << '\n';
}

}  // namespace prefopt::cli
