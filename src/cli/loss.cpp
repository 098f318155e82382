// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
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

bool is_overlap(std::string_view field) { return field.ends_with("_overlap_logps"); }
bool is_limited(std::string_view field) { return field.ends_with("_limited_logratios"); }
bool is_confident(std::string_view field) { return field.ends_with("_confident_logps"); }

/// Whether a file has a field as the log-probs of other fields alone.
bool is_derived(std::string_view field) {
  return std::any_of(kInputs.begin(), kInputs.end(), [&](const InputInfo& info) {
    return info.name == field && (info.key.empty() || info.kind == InputKind::kCount);
  });
}

/// `chosen_logps` of `chosen_lens`, `chosen_overlap_logps` and the like.
std::string completion_of(std::string_view field) {
  for (const std::string_view end :
       {"_lens", "_overlap_logps", "_limited_logratios", "_confident_logps"}) {
    if (field.ends_with(end))
      return std::string(field.substr(0, field.size() - end.size())) + "_logps";
  }
  return std::string(field);
}

/// Derivatives in sums over the tokens of one completion; undefined where there are none.
struct TokenSlopes {
  at::Tensor full;
  at::Tensor overlap = {};    ///< of the first min(n_w, n_l) tokens alone
  at::Tensor limited = {};    ///< of log-ratios within limits
  at::Tensor confident = {};  ///< of log-probs times stopped probabilities

  bool any() const {
    return full.defined() || overlap.defined() || limited.defined() || confident.defined();
  }
};

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
        rows_(read_logps(path_)) {
    // Rows of completions alone have prompts of no token.
    const auto has_prompt = [](const LogpsRow& row) {
      return row.completions.contains("prompt_logps");
    };
    if (!needs_.has(Input::prompt_logps) || std::any_of(rows_.begin(), rows_.end(), has_prompt))
      return;
    for (LogpsRow& row : rows_)
      row.completions["prompt_logps"] = {{.sum = 0, .each = {}, .tokens = 0}};
  }

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
  /// gradient of a sum is that of each of its tokens.
  Json token_gradients(std::string_view field, const TokenSlopes& slopes) const {
    const auto numbers = [](const at::Tensor& x) {
      return x.defined() ? values(x) : std::vector<double>{};
    };
    const auto full = numbers(slopes.full), overlap = numbers(slopes.overlap),
               limited = numbers(slopes.limited), confident = numbers(slopes.confident);
    Json lists = Json::array();
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const auto& completions = completions_of(rows_[i], field);
      Json of_row = Json::array();
      for (std::size_t k = 0; k < completions.size(); ++k) {
        const auto& tokens = completions[k].each;
        std::vector<double> each(std::max<std::size_t>(tokens.size(), 1),
                                 full.empty() ? 0 : full.at(i * completions.size() + k));
        const std::size_t shared =
            overlap.empty() ? 0 : std::min(each.size(), overlap_tokens(rows_[i]));
        for (std::size_t t = 0; t < shared; ++t) each[t] += overlap.at(i);
        for (std::size_t t = 0; t < tokens.size(); ++t) {
          if (!limited.empty() && is_within_limits(rows_[i], field, t)) each[t] += limited.at(i);
          if (!confident.empty()) each[t] += confident.at(i) * std::exp(tokens[t]);
        }
        of_row.push_back(std::move(each));
      }
      lists.push_back(field == "sample_logps" ? std::move(of_row) : std::move(of_row[0]));
    }
    return lists;
  }

  /// Returns the keys of the file that neither the loss nor its metrics read.
  Json unread() const {
    Json keys = Json::array();
    for (const InputInfo& info : kInputs) {
      const bool is_given = !is_derived(info.name) && !none_has(info.name);
      if (is_given && !is_read(info.name)) keys.push_back(key(info.name));
    }
    return keys;
  }

 private:
  /// Log-probs of the completions are in the metrics of any loss.
  bool is_read(std::string_view field) const {
    if (field == "chosen_logps" || field == "rejected_logps") return true;
    return std::any_of(
        kPairFields<at::Tensor>.begin(), kPairFields<at::Tensor>.end(), [&](const auto& other) {
          if (!other.needed(needs_)) return false;
          if (other.name == field) return true;
          if (!is_derived(other.name)) return false;
          const std::string completion = completion_of(other.name);
          return field == completion || (is_limited(other.name) && field == "ref_" + completion);
        });
  }

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
    if (needs_.labels() && all_have("rejected_logps") && none_has("labels")) {
      throw ConfigError(
          fmt::format("{}: expected rows of one completion and a label, which {} is for, got pairs",
                      path_, loss_));
    }
    if (needs_.rejected() && all_have("labels") && none_has("rejected_logps")) {
      throw ConfigError(fmt::format(
          "{}: expected pairs, which {} compares, got rows of one completion", path_, loss_));
    }
  }

  /// Empty where no row has the field and the loss does not need it.
  std::vector<double> values_of(std::string_view field, bool needed) const {
    std::vector<double> column;
    if (is_derived(field)) {
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
    if (is_overlap(field)) {
      column.push_back(overlap_sum(row, completion));
      return;
    }
    if (is_limited(field) || is_confident(field)) {
      double sum = 0;
      for (std::size_t t = 0; t < tokens_of(row, completion).size(); ++t) {
        sum += is_limited(field) ? limited_logratio(row, completion, t)
                                 : confident_logp(tokens_of(row, completion)[t]);
      }
      column.push_back(sum);
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
            where(row), key(field), field == "sample_logps" ? "" : ", or its length next to it",
            loss_));
      }
      counts.push_back(*completion.tokens);
    }
    return counts;
  }

  /// Log-probs that have to be there token by token.
  const std::vector<double>& tokens_of(const LogpsRow& row, std::string_view field) const {
    const auto completion = row.completions.find(field);
    if (completion == row.completions.end()) {
      throw DataError(fmt::format("{}: expected {}, got a row without it; {} needs it", where(row),
                                  key(field), loss_));
    }
    const auto& each = completion->second.front().each;
    if (!each.empty()) return each;
    throw DataError(fmt::format("{}: expected {} token by token, got a sum; {} weighs each token",
                                where(row), key(field), loss_));
  }

  double logratio(const LogpsRow& row, std::string_view field, std::size_t token) const {
    return tokens_of(row, field)[token] - tokens_of(row, "ref_" + std::string(field))[token];
  }
  double limited_logratio(const LogpsRow& row, std::string_view field, std::size_t token) const {
    return std::clamp(logratio(row, field, token), needs_.limits->low, needs_.limits->high);
  }
  bool is_within_limits(const LogpsRow& row, std::string_view field, std::size_t token) const {
    return limited_logratio(row, field, token) == logratio(row, field, token);
  }
  static double confident_logp(double logp) { return std::exp(logp) * logp; }

  /// Tokens that both completions of the pair have.
  std::size_t overlap_tokens(const LogpsRow& row) const {
    return static_cast<std::size_t>(
        std::min(lengths(row, "chosen_logps").front(), lengths(row, "rejected_logps").front()));
  }

  double overlap_sum(const LogpsRow& row, std::string_view field) const {
    const bool chosen = field.ends_with("chosen_logps");
    const std::size_t overlap = overlap_tokens(row);
    const auto tokens = lengths(row, chosen ? "chosen_logps" : "rejected_logps").front();
    const CompletionLogps& completion = completions_of(row, field).front();
    if (static_cast<std::size_t>(tokens) == overlap) return completion.sum;
    if (completion.each.empty()) {
      throw DataError(fmt::format(
          "{}: expected {} token by token, got a sum; {} needs that of the first {} of {} tokens",
          where(row), key(field), loss_, overlap, tokens));
    }
    const auto begin = completion.each.begin();
    return std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(overlap), 0.0);
  }

  static const std::vector<CompletionLogps>& completions_of(const LogpsRow& row,
                                                            std::string_view field) {
    return row.completions.find(field)->second;
  }

  std::string_view key(std::string_view field) const { return row_key(field, needs_.labels()); }

  std::string path_;
  std::string loss_;
  LossRequirements needs_;
  std::vector<LogpsRow> rows_;
};

/// Those of the two log-probs that every pair has, defined or not, and the others that are.
void add_gradients(const LogpsTable& table, const LossOutput& output, Json& result) {
  result["grad_chosen"] = result["grad_rejected"] = Json::array();
  for (const auto& field : kPairFields<at::Tensor>) {
    if (field.gradient == nullptr || is_derived(field.name)) continue;
    const std::string name = gradient_name(field.name);
    TokenSlopes slopes{.full = output.*field.gradient};
    if (name == "grad_chosen") {
      slopes.overlap = output.grad_chosen_overlap;
      slopes.limited = output.grad_chosen_limited;
      slopes.confident = output.grad_confident;
    } else if (name == "grad_rejected") {
      slopes.overlap = output.grad_rejected_overlap;
      slopes.limited = output.grad_rejected_limited;
    }
    if (slopes.any()) result[name] = table.token_gradients(field.name, slopes);
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
  const bool sums = !output.logged_chosen_logps.defined();
  add("logps/chosen", sums ? logps.chosen_logps : output.logged_chosen_logps);
  add("logps/rejected", sums ? logps.rejected_logps : output.logged_rejected_logps);
  return metrics;
}

/// Of unpaired rows: desirable ones count as chosen, the others as rejected.
Json label_metrics(const Loss& loss, const LossOutput& output, const PairLogps& logps) {
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
  if (metrics.contains("rewards/chosen") && metrics.contains("rewards/rejected")) {
    metrics["rewards/margins"] =
        metrics["rewards/chosen"].get<double>() - metrics["rewards/rejected"].get<double>();
  }
  if (output.kl.defined()) {
    metrics["kl"] = output.kl.item<double>();
  } else if (loss.info().name == "kto") {
    metrics["kl"] = 0;  // apo_zero_unpaired
  }
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
  result["metrics"] = loss.requirements().labels() ? label_metrics(loss, output, logps)
                                                   : pair_metrics(output, logps);
  if (Json unread = table.unread(); !unread.empty()) result["unread"] = std::move(unread);
  out << result.dump() << '\n';
}

}  // namespace prefopt::cli
