// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/chart.h"
#include "core/html.h"
#include "report/report_html.h"
#include "report/report_parts.h"

namespace prefopt::detail {
namespace {

/// A curve of rounds.jsonl, or of the evaluations of metrics.jsonl.
struct RoundCurve {
  std::string_view key;
  std::string_view name;
  bool is_evaluation = false;
};

struct RoundTopic {
  std::string_view title;
  std::string_view unit;
  std::string_view caption;
  RoundCurve first, second = {};
};

constexpr RoundTopic kRoundTopics[] = {
    {"Reward",
     "reward",
     "Mean over the completions of a round, and over those of held-out prompts, after penalties.",
     {"samples/reward", "samples of the round"},
     {"reward", "held-out prompts", true}},
    {"Win rate",
     "share of prompts",
     "Share of held-out prompts whose completion is better than that of the policy before "
     "training, and than that of the evaluation before; a tie counts half.",
     {"win_rate", "against the first policy", true},
     {"win_rate_last", "against the last policy", true}},
    {"KL to the reference",
     "nats a completion",
     "By completions of held-out prompts that the policy wrote itself.",
     {"kl", "KL", true}},
    {"Spread of the rewards",
     "reward",
     "Standard deviation among the completions of a prompt, mean over prompts.",
     {"reward_std", "standard deviation"}},
    {"Prompts that teach nothing",
     "share of prompts",
     "Those whose completions all have the same reward.",
     {"frac_reward_zero_std", "equal rewards"}},
    {"Distance of the round's start",
     "nats a completion",
     "KL to the reference, by the completions of the round.",
     {"kl/sequence", "KL"}},
    {"Unfinished completions",
     "share of completions",
     "Those without an end token, and those that do not train.",
     {"completions/clipped_ratio", "without an end token"},
     {"completions/dropped_ratio", "dropped"}},
    {"Questions asked",
     "questions",
     "Rewards and comparisons of a round, each asked once.",
     {"questions", "questions"}},
    {"Rows of a round",
     "rows",
     "Rows that the selection made of the completions; a round without rows does not train.",
     {"pairs/kept", "rows"}},
    {"Length of the samples",
     "tokens",
     "Mean over the completions of a round.",
     {"samples/length", "length"}},
};

/// The newest round that had begun to train at a step; 0: none had. Steps are asked in order.
class RoundsBySteps {
 public:
  explicit RoundsBySteps(const std::vector<Json>& rounds) : rounds_(rounds) {}

  double at(double step) {
    for (; next_ < rounds_.size(); ++next_) {
      const Json& line = rounds_[next_];
      if (number_at(line, "step").value_or(0) > step) break;
      // A round without rows has the step before it.
      const bool has_rows = line.contains("pairs/kept") ? number_at(line, "pairs/kept") != 0
                                                        : line.contains("reward");
      if (has_rows) newest_ = number_at(line, "round").value_or(newest_);
    }
    return newest_;
  }

 private:
  const std::vector<Json>& rounds_;
  std::size_t next_ = 0;
  double newest_ = 0;
};

/// Points of one round replace each other: the last one stays.
void add_point(Series& series, double round, double value) {
  if (!series.xs.empty() && series.xs.back() == round) {
    series.ys.back() = value;
    return;
  }
  series.xs.push_back(round);
  series.ys.push_back(value);
}

Series series_of(const RunRecord& record, const RoundCurve& curve) {
  Series series{.name = std::string(curve.name)};
  if (curve.is_evaluation) {
    const auto found = record.evaluations.find(curve.key);
    if (found == record.evaluations.end()) return series;
    RoundsBySteps rounds(record.rounds);
    for (std::size_t i = 0; i < found->second.steps.size(); ++i) {
      add_point(series, rounds.at(found->second.steps[i]), found->second.values[i]);
    }
  } else {
    for (const Json& line : record.rounds) {
      const auto round = number_at(line, "round");
      const auto value = number_at(line, curve.key);
      if (round && value) add_point(series, *round, *value);
    }
  }
  series.style = series.xs.size() > 40 ? Series::Style::kLine : Series::Style::kLineAndPoints;
  return series;
}

std::string round_figure(const RunRecord& record, const RoundTopic& topic) {
  Chart chart{.title = std::string(topic.title),
              .x_label = "round",
              .y_label = std::string(topic.unit),
              .width = 400,
              .height = 250};
  for (const RoundCurve& curve : {topic.first, topic.second}) {
    Series series = series_of(record, curve);
    if (!series.xs.empty()) chart.series.push_back(std::move(series));
  }
  if (chart.series.empty()) return {};
  return fmt::format("<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n", to_svg(chart),
                     escape_html(topic.caption));
}

/// The part that a completion has in the rows of its prompt.
std::string_view role_of(std::int64_t place, const Json& rows, bool are_rollouts) {
  if (are_rollouts) return "drawn";
  for (const Json& row : rows) {
    if (!row.is_array() || row.size() != 2) continue;
    if (row[0] == place) return row[1] == -1 ? "trained on" : "chosen";
    if (row[1] == place) return "rejected";
  }
  return "not used";
}

std::string prompt_html(const Json& sample, bool are_rollouts) {
  std::string columns;
  const Json none = Json::array();
  const auto rows = sample.find("rows");
  const auto completions = sample.find("completions");
  if (completions == sample.end() || !completions->is_array()) return {};
  std::int64_t place = 0;
  for (const Json& completion : *completions) {
    const auto reward = number_at(completion, "reward");
    columns += fmt::format(
        "<div class=\"policy\"><p class=\"quiet\">{}, {}{}{}</p><p class=\"text\">{}</p></div>\n",
        escape_html(text_at(completion, "source")),
        role_of(place++, rows == sample.end() ? none : *rows, are_rollouts),
        reward ? ", reward " + number_html(*reward) : "",
        text_at(completion, "ended") == "true" ? "" : ", cut off",
        escape_html(text_at(completion, "text")));
  }
  return fmt::format(
      "<div class=\"sample\">\n<p class=\"text prompt\">{}</p>\n<div class=\"pair\">\n{}</div>\n"
      "</div>\n",
      escape_html(text_at(sample, "prompt")), columns);
}

}  // namespace

std::string rounds_html(const RunRecord& record) {
  if (record.rounds.empty()) return {};
  std::string html = heading_html("Rounds");
  std::string figures;
  for (const RoundTopic& topic : kRoundTopics) figures += round_figure(record, topic);
  if (!figures.empty()) html += "<div class=\"charts\">\n" + figures + "</div>\n";
  const Json& last = record.rounds.back();
  const auto samples = last.find("samples");
  if (samples == last.end() || !samples->is_array() || samples->empty()) return html;
  html += fmt::format("<p class=\"quiet\">Completions of round {} and what became of them.</p>\n",
                      number_html(number_at(last, "round").value_or(0)));
  const bool are_rollouts = last.contains("completions/mean_length");
  for (const Json& sample : *samples) html += prompt_html(sample, are_rollouts);
  return html;
}

}  // namespace prefopt::detail
