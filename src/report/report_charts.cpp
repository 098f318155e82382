// SPDX-License-Identifier: Apache-2.0
#include "report/report_charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "core/chart.h"
#include "core/html.h"
#include "prefopt/evaluation/statistics.h"
#include "report/verdict.h"

namespace prefopt::detail {
namespace {

constexpr std::size_t kMostPoints = 300;
// Text of 12 pixels stays readable where a telephone shrinks the picture to its width.
constexpr double kWidth = 400, kHeight = 250;

struct Topic {
  std::string_view metric;
  std::string_view title;
  std::string_view unit;
  std::string_view caption;
  bool is_of_rounds = false;  ///< shown by round where the run has rounds
  /// Of an objective on rollouts, training has another number of this name, or the only one.
  bool is_of_rollouts = false;
};

constexpr Topic kTopics[] = {
    {"loss", "Loss", "loss", "What training lowers."},
    {"rewards/margins", "Reward margin", "margin",
     "Implicit reward of the chosen completion minus that of the rejected one; 0 where the policy "
     "is as its reference."},
    {"rewards/accuracies", "Accuracy", "share of pairs",
     "Share of pairs whose chosen completion has the higher implicit reward; a tie counts as none. "
     "The band is a 95 % interval."},
    {"kl", "KL to the reference", "nats a completion",
     "How far the policy has moved from its reference, by completions that it wrote itself."},
    {"kl", "KL of tokens", "nats a token", "Mean over the tokens of a step.", false, true},
    {"entropy", "Entropy", "nats a token",
     "Of the policy's distribution, mean over the tokens of a step; towards 0 it explores no more.",
     false, true},
    {"value/error", "Error of the values", "reward",
     "Root mean square of what the values miss of the returns.", false, true},
    {"reward", "Reward", "reward", "Mean over completions of held-out prompts, after penalties.",
     true},
    {"win_rate", "Win rate against the first policy", "share of prompts",
     "Share of held-out prompts whose completion is better than that of the policy before "
     "training; a tie counts half.",
     true},
    {"mean_token_accuracy", "Token accuracy", "share of tokens",
     "Share of the chosen completions' tokens that the policy holds the most likely ones."},
    {"grad_norm", "Gradient norm", "norm", "Before clipping."},
    {"learning_rate", "Learning rate", "", "As the schedule has it."},
    {"tokens_per_second", "Speed", "tokens a second", "In training steps, without evaluations."},
};

Series::Style style_of(std::size_t points) {
  constexpr std::size_t kMostMarks = 40;
  if (points == 1) return Series::Style::kPoints;
  return points <= kMostMarks ? Series::Style::kLineAndPoints : Series::Style::kLine;
}

Series series_of(std::string name, const Curve& curve) {
  Curve shown = thinned(curve, kMostPoints);
  const auto style = style_of(shown.steps.size());
  return {.name = std::move(name),
          .xs = std::move(shown.steps),
          .ys = std::move(shown.values),
          .low = {},
          .high = {},
          .style = style};
}

void add_wilson_band(Series& series, double rows) {
  for (const double rate : series.ys) {
    const Estimate interval = wilson_rate(rate, rows);
    series.low.push_back(interval.low);
    series.high.push_back(interval.high);
  }
}

std::string figure(Chart chart, std::string_view caption) {
  chart.x_label = "step";
  chart.width = kWidth;
  chart.height = kHeight;
  std::string html = "<figure>\n" + to_svg(chart);
  if (!caption.empty()) html += fmt::format("<figcaption>{}</figcaption>\n", escape_html(caption));
  return html + "</figure>\n";
}

bool has_rollouts(const RunRecord& record) {
  return record.train.contains("completions/mean_length");
}

std::string topic_figure(const RunRecord& record, const Topic& topic) {
  if (topic.is_of_rollouts && !has_rollouts(record)) return {};
  Chart chart{.title = std::string(topic.title), .y_label = std::string(topic.unit)};
  const bool has_another = topic.metric == "kl" && !topic.is_of_rollouts && has_rollouts(record);
  if (const auto found = record.train.find(topic.metric);
      found != record.train.end() && !has_another) {
    chart.series.push_back(series_of("training", found->second));
  }
  if (topic.is_of_rollouts) {
    return chart.series.empty() ? "" : figure(std::move(chart), topic.caption);
  }
  if (const auto found = record.evaluations.find(topic.metric); found != record.evaluations.end()) {
    chart.series.push_back(series_of("held out", found->second));
    const auto rows = held_out_rows(record);
    if (rows && topic.metric == "rewards/accuracies") add_wilson_band(chart.series.back(), *rows);
  }
  return chart.series.empty() ? "" : figure(std::move(chart), topic.caption);
}

/// Returns the gain of the policy's log-probs of the completions on the reference's.
std::string likelihood_figure(const RunRecord& record) {
  const bool held_out = record.evaluations.contains("logps/ref_chosen");
  const Curves& curves = held_out ? record.evaluations : record.train;
  Chart chart{.title = "Likelihood of the completions", .y_label = "nats above the reference"};
  for (const std::string side : {"chosen", "rejected"}) {
    const auto policy = curves.find("logps/" + side);
    const auto reference = curves.find("logps/ref_" + side);
    if (policy == curves.end() || reference == curves.end() ||
        policy->second.steps != reference->second.steps) {
      continue;
    }
    Curve gain = policy->second;
    for (std::size_t i = 0; i < gain.values.size(); ++i) {
      gain.values[i] -= reference->second.values[i];
    }
    chart.series.push_back(series_of(side, gain));
  }
  if (chart.series.empty()) return {};
  return figure(std::move(chart),
                held_out
                    ? "Mean log-ratio of policy and reference on held-out rows. Chosen below 0 "
                      "means that even the good completions became less likely."
                    : "Mean log-ratio of policy and reference on training rows.");
}

std::string terms_figure(const RunRecord& record) {
  constexpr std::string_view kPrefix = "loss/";
  Chart chart{.title = "Terms of the loss", .y_label = "loss"};
  for (const auto& [name, curve] : record.train) {
    if (name.starts_with(kPrefix)) {
      chart.series.push_back(series_of(name.substr(kPrefix.size()), curve));
    }
  }
  return chart.series.empty() ? "" : figure(std::move(chart), "On training rows.");
}

/// Returns the shares of tokens whose ratio a limit took the gradient of.
std::string limits_figure(const RunRecord& record) {
  Chart chart{.title = "Limited ratios", .y_label = "share of tokens"};
  for (const std::string side : {"low", "high"}) {
    const auto curve = record.train.find("clip_ratio/" + side + "_mean");
    if (curve == record.train.end()) continue;
    chart.series.push_back(series_of(side == "low" ? "below" : "above", curve->second));
  }
  if (chart.series.empty()) return {};
  return figure(std::move(chart),
                "Tokens that a limit of the importance ratio took out of the gradient.");
}

}  // namespace

std::string charts_html(const RunRecord& record) {
  std::string html;
  for (const Topic& topic : kTopics) {
    if (topic.is_of_rounds && !record.rounds.empty()) continue;
    html += topic_figure(record, topic);
    if (topic.metric == "loss") html += terms_figure(record);
    if (topic.metric == "rewards/accuracies") html += likelihood_figure(record);
    if (topic.metric == "entropy") html += limits_figure(record);
  }
  return html.empty() ? "" : "<div class=\"charts\">\n" + html + "</div>\n";
}

Curve thinned(const Curve& curve, std::size_t most) {
  const std::size_t points = curve.steps.size();
  if (points <= most) return curve;
  Curve few;
  for (std::size_t i = 0; i < most; ++i) {
    const std::size_t begin = i * points / most;
    const std::size_t end = (i + 1) * points / most;
    double sum = 0;
    double finite = 0;
    for (std::size_t k = begin; k < end; ++k) {
      if (!std::isfinite(curve.values[k])) continue;
      sum += curve.values[k];
      ++finite;
    }
    few.steps.push_back(curve.steps[end - 1]);
    few.values.push_back(finite > 0 ? sum / finite : std::numeric_limits<double>::quiet_NaN());
  }
  return few;
}

}  // namespace prefopt::detail
