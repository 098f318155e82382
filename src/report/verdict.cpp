// SPDX-License-Identifier: Apache-2.0
#include "report/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "prefopt/evaluation/statistics.h"
#include "train/metrics.h"

namespace prefopt::detail {
namespace {

using Outcome = Verdict::Outcome;

std::string percent(double rate) { return fmt::format("{:.1f} %", 100 * rate); }

std::string percent(const Estimate& interval) {
  return fmt::format("95 % interval {:.1f} to {:.1f} %", 100 * interval.low, 100 * interval.high);
}

/// Returns what the policy lost of its hold on the chosen completions, in words; empty if little.
std::string price_of(const RunRecord& record) {
  constexpr double kMuch = 0.1;
  const auto tokens = change_of(record.evaluations, "mean_token_accuracy");
  if (!tokens || !(tokens->after < (1 - kMuch) * tokens->before)) return {};
  return fmt::format(
      "But it has lost much of what it could: the share of the chosen completions' tokens that it "
      "holds the most likely ones fell from {} to {}. See what it writes; a lower learning rate, "
      "fewer steps or more weight on the reference (beta) may help.",
      percent(tokens->before), percent(tokens->after));
}

Verdict judge_accuracy(const RunRecord& record, const Change& accuracy, double rows) {
  const Estimate after = wilson_rate(accuracy.after, rows);
  const bool from_chance = began_as_reference(record);
  const Estimate before =
      from_chance ? Estimate{0.5, 0.5, 0.5} : wilson_rate(accuracy.before, rows);

  Verdict verdict;
  verdict.outcome = after.low > before.high   ? Outcome::kBetter
                    : after.high < before.low ? Outcome::kWorse
                                              : Outcome::kUnclear;
  const std::string figures = fmt::format(
      "Of {:.0f} held-out pairs the trained policy prefers the chosen completion in {} ({}), {}",
      rows, percent(accuracy.after), percent(after),
      from_chance ? "where a policy equal to its reference would be at 50 %"
                  : fmt::format("before training it was {} ({})", percent(accuracy.before),
                                percent(before)));
  const std::string price = price_of(record);
  switch (verdict.outcome) {
    case Outcome::kBetter:
      if (price.empty()) {
        verdict.sentence = fmt::format("It worked. {}.", figures);
      } else {
        verdict.outcome = Outcome::kUnclear;
        verdict.sentence =
            fmt::format("It learned the preferences, at a price. {}. {}", figures, price);
      }
      break;
    case Outcome::kWorse:
      verdict.sentence = fmt::format("It went the wrong way. {}.", figures);
      break;
    default:
      verdict.sentence = fmt::format("No clear effect. {}; the difference may be chance.", figures);
  }
  return verdict;
}

Verdict judge_loss(const Change& loss) {
  // Below this a change of the loss is not worth the word.
  constexpr double kShare = 0.005;
  const double change = (loss.after - loss.before) / std::max(std::abs(loss.before), 1e-12);
  const std::string figures = fmt::format("from {:.4g} to {:.4g}", loss.before, loss.after);
  if (change < -kShare) {
    return {Outcome::kBetter,
            fmt::format("It learned: the loss on held-out rows fell {}.", figures),
            {}};
  }
  if (change > kShare) {
    return {Outcome::kWorse,
            fmt::format("It got worse: the loss on held-out rows rose {}.", figures),
            {}};
  }
  return {Outcome::kUnclear,
          fmt::format("No clear effect: the loss on held-out rows went {}.", figures),
          {}};
}

Verdict judge_training(const RunRecord& record) {
  const auto loss = change_of(record.train, "loss");
  if (!loss) return {Outcome::kUnknown, "The run has not logged a step yet.", {}};
  return {Outcome::kUnknown,
          fmt::format("No rows were held out, so nothing here says what the policy does on other "
                      "rows. The loss on the training rows went from {:.4g} to {:.4g}.",
                      loss->before, loss->after),
          {}};
}

Verdict judge_outcome(const RunRecord& record) {
  const auto loss = change_of(record.evaluations, "loss");
  if (!loss) return judge_training(record);
  if (record.count_evaluations() < 2) {
    return {Outcome::kUnknown,
            "There is only one evaluation so far, with which nothing can be compared.",
            {}};
  }
  if (!std::isfinite(loss->after)) {
    return {
        Outcome::kWorse, "It broke: the loss of the last evaluation is not a finite number.", {}};
  }
  const auto accuracy = change_of(record.evaluations, "rewards/accuracies");
  const auto rows = held_out_rows(record);
  return accuracy && rows ? judge_accuracy(record, *accuracy, *rows) : judge_loss(*loss);
}

void warn_if_unfinished(const RunRecord& record, std::vector<std::string>& warnings) {
  const auto total = number_at(record.facts, "total_steps");
  // A run that ended itself, by its patience, is complete before the last step.
  const bool complete = text_at(record.facts, "complete") == "true";
  if (!complete && total && record.last_step() < *total) {
    warnings.push_back(
        fmt::format("The run is not complete: step {:.0f} of {:.0f} is the last "
                    "one in this folder.",
                    record.last_step(), *total));
  }
}

void warn_of_displacement(const RunRecord& record, std::vector<std::string>& warnings) {
  const auto chosen = change_of(record.evaluations, "logps/chosen");
  const auto reference = change_of(record.evaluations, "logps/ref_chosen");
  if (!chosen || !reference) return;
  if (!is_displaced(chosen->after, reference->after)) return;
  warnings.push_back(fmt::format(
      "Likelihood displacement: the chosen completions have become less likely than under the "
      "reference, {:.2f} against {:.2f} nats. A margin that grows all the same comes from rejected "
      "ones that fall further. A loss with an SFT term (rpo) holds the chosen ones up.",
      chosen->after, reference->after));
}

void warn_of_overfitting(const RunRecord& record, std::vector<std::string>& warnings) {
  const auto found = record.evaluations.find("loss");
  if (found == record.evaluations.end()) return;
  const auto& [steps, values] = found->second;
  const auto least = std::min_element(values.begin(), values.end());
  const double last = values.back();
  if (!(last > *least + 0.01 * std::abs(*least))) return;
  const auto step = steps[static_cast<std::size_t>(least - values.begin())];
  if (step == steps.front()) return;  // it only ever rose, which is the verdict already
  warnings.push_back(fmt::format(
      "The held-out loss was lowest at step {:.0f} ({:.4g}) and is {:.4g} at the end: an earlier "
      "checkpoint may be the better one.",
      step, *least, last));
}

void warn_of_skipped_steps(const RunRecord& record, std::vector<std::string>& warnings) {
  const auto found = record.train.find("skipped");
  if (found == record.train.end()) return;
  // A line of metrics counts those since the line before.
  const auto& counts = found->second.values;
  warnings.push_back(
      fmt::format("{:.0f} steps changed nothing, because loss or gradient was not finite.",
                  std::accumulate(counts.begin(), counts.end(), 0.0)));
}

void warn_of_few_rows(const RunRecord& record, std::vector<std::string>& warnings) {
  constexpr double kFew = 100;
  const auto rows = held_out_rows(record);
  if (rows && *rows < kFew && record.count_evaluations() > 0) {
    warnings.push_back(
        fmt::format("Only {:.0f} rows were held out: small effects cannot be seen.", *rows));
  }
}

}  // namespace

std::optional<Change> change_of(const Curves& curves, std::string_view name) {
  const auto found = curves.find(name);
  if (found == curves.end()) return std::nullopt;
  return Change{found->second.values.front(), found->second.values.back()};
}

bool began_as_reference(const RunRecord& record) {
  const auto margins = change_of(record.evaluations, "rewards/margins");
  return margins && std::abs(margins->before) < 1e-6;
}

std::optional<double> held_out_rows(const RunRecord& record) {
  const auto rows = number_at(record.facts, "eval_rows");
  return rows && *rows > 0 ? rows : std::nullopt;
}

Verdict judge(const RunRecord& record) {
  Verdict verdict = judge_outcome(record);
  warn_if_unfinished(record, verdict.warnings);
  warn_of_displacement(record, verdict.warnings);
  warn_of_overfitting(record, verdict.warnings);
  warn_of_skipped_steps(record, verdict.warnings);
  warn_of_few_rows(record, verdict.warnings);
  return verdict;
}

}  // namespace prefopt::detail
