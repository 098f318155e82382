// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "core/chart.h"
#include "core/html.h"
#include "report/report_html.h"
#include "report/report_parts.h"

namespace prefopt::detail {
namespace {

struct RoundTopic {
  std::string_view key;
  std::string_view title;
  std::string_view unit;
  std::string_view caption;
};

constexpr RoundTopic kRoundTopics[] = {
    {"samples/reward", "Reward of the samples", "reward",
     "Mean over all completions of the round, after penalties."},
    {"pairs/kept", "Rows of a round", "rows", "Rows that the selection made of the completions."},
    {"samples/length", "Length of the samples", "tokens", "Mean over the completions."},
    {"questions", "Questions asked", "questions", "Rewards and comparisons, each asked once."},
};

std::string round_figure(const std::vector<Json>& rounds, const RoundTopic& topic) {
  Series series{.name = std::string(topic.title)};
  for (const Json& line : rounds) {
    const auto round = number_at(line, "round");
    const auto value = number_at(line, topic.key);
    if (!round || !value) continue;
    series.xs.push_back(*round);
    series.ys.push_back(*value);
  }
  if (series.xs.empty()) return {};
  series.style = series.xs.size() > 40 ? Series::Style::kLine : Series::Style::kLineAndPoints;
  const Chart chart{.title = std::string(topic.title),
                    .x_label = "round",
                    .y_label = std::string(topic.unit),
                    .series = {std::move(series)},
                    .width = 400,
                    .height = 250};
  return fmt::format("<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n", to_svg(chart),
                     escape_html(topic.caption));
}

/// The part that a completion has in the rows of its prompt.
std::string_view role_of(std::int64_t place, const Json& rows) {
  for (const Json& row : rows) {
    if (!row.is_array() || row.size() != 2) continue;
    if (row[0] == place) return row[1] == -1 ? "trained on" : "chosen";
    if (row[1] == place) return "rejected";
  }
  return "not used";
}

std::string prompt_html(const Json& sample) {
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
        role_of(place++, rows == sample.end() ? none : *rows),
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
  for (const RoundTopic& topic : kRoundTopics) figures += round_figure(record.rounds, topic);
  if (!figures.empty()) html += "<div class=\"charts\">\n" + figures + "</div>\n";
  const Json& last = record.rounds.back();
  const auto samples = last.find("samples");
  if (samples == last.end() || !samples->is_array() || samples->empty()) return html;
  html += fmt::format("<p class=\"quiet\">Completions of round {} and what became of them.</p>\n",
                      number_html(number_at(last, "round").value_or(0)));
  for (const Json& sample : *samples) html += prompt_html(sample);
  return html;
}

}  // namespace prefopt::detail
