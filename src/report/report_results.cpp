// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <optional>
#include <string_view>

#include "core/html.h"
#include "prefopt/evaluation/statistics.h"
#include "report/report_html.h"
#include "report/report_parts.h"
#include "report/verdict.h"

namespace prefopt::detail {
namespace {

std::string_view css_class(Verdict::Outcome outcome) {
  switch (outcome) {
    case Verdict::Outcome::kBetter:
      return "better";
    case Verdict::Outcome::kWorse:
      return "worse";
    case Verdict::Outcome::kUnclear:
      return "unclear";
    default:
      return "unknown";
  }
}

std::string sentences_html(const Verdict& verdict) {
  std::string html = fmt::format("<p class=\"verdict {}\">{}</p>\n", css_class(verdict.outcome),
                                 escape_html(verdict.sentence));
  if (verdict.warnings.empty()) return html;
  html += "<ul class=\"warnings\">\n";
  for (const auto& warning : verdict.warnings) {
    html += fmt::format("<li>{}</li>\n", escape_html(warning));
  }
  return html + "</ul>\n";
}

std::string card(std::string_view name, const std::string& value, const std::string& detail) {
  return fmt::format("<div class=\"card\">{}<b>{}</b><span class=\"quiet\">{}</span></div>\n", name,
                     escape_html(value), escape_html(detail));
}

std::string cards_html(const RunRecord& record) {
  std::string cards;
  const auto held_out = [&](std::string_view name) { return change_of(record.evaluations, name); };
  if (const auto accuracy = held_out("rewards/accuracies")) {
    const auto rows = held_out_rows(record);
    std::string interval;
    if (rows) {
      const Estimate rate = wilson_rate(accuracy->after, *rows);
      interval = fmt::format("95 %: {:.1f} to {:.1f}", 100 * rate.low, 100 * rate.high);
    }
    cards += card("Accuracy, held out", percent_html(accuracy->after), interval);
  }
  const auto change = [&](std::string_view title, std::string_view name) {
    if (const auto values = held_out(name)) {
      cards += card(title, number_html(values->after), "before: " + number_html(values->before));
    }
  };
  change("Margin, held out", "rewards/margins");
  change("Loss, held out", "loss");
  change("KL, nats", "kl");
  cards += card("Steps", number_html(record.last_step()),
                record.seconds > 0 ? "in " + duration_html(record.seconds) : "");
  return "<div class=\"cards\">\n" + cards + "</div>\n";
}

struct ComparedMetric {
  std::string_view metric;
  std::string_view title;
  std::string_view what;
  bool is_share = false;
};

constexpr ComparedMetric kCompared[] = {
    {"loss", "Loss", "what training lowers"},
    {"rewards/accuracies", "Accuracy", "pairs whose chosen completion has the higher reward", true},
    {"rewards/margins", "Margin", "reward of chosen minus reward of rejected"},
    {"rewards/chosen", "Reward of chosen", "implicit, against the reference"},
    {"rewards/rejected", "Reward of rejected", ""},
    {"logps/chosen", "Log-prob of chosen", "nats a completion, by the policy"},
    {"logps/ref_chosen", "… by the reference", ""},
    {"logps/rejected", "Log-prob of rejected", "nats a completion, by the policy"},
    {"logps/ref_rejected", "… by the reference", ""},
    {"kl", "KL to the reference", "nats, on completions that the policy wrote; of kto its z0"},
    {"mean_token_accuracy", "Token accuracy", "chosen tokens that the policy holds most likely",
     true},
    {"entropy", "Entropy", "nats a token, of the policy's choice"},
};

}  // namespace

std::string verdict_html(const RunRecord& record) {
  return sentences_html(judge(record)) + cards_html(record);
}

std::string evaluations_html(const RunRecord& record) {
  std::string rows;
  for (const auto& [metric, title, what, is_share] : kCompared) {
    const auto change = change_of(record.evaluations, metric);
    if (!change) continue;
    const auto show = is_share ? percent_html : number_html;
    const bool is_tie = metric == "rewards/accuracies" && began_as_reference(record);
    rows += fmt::format(
        "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td class=\"number\">{}</td>"
        "<td class=\"what quiet\">{}</td></tr>\n",
        title, is_tie ? "all tie" : show(change->before), show(change->after), what);
  }
  if (rows.empty()) return {};
  const auto& steps = record.evaluations.begin()->second.steps;
  return heading_html("Before and after, on held-out rows") +
         fmt::format(
             "<table class=\"change\">\n<tr><th></th><th class=\"number\" scope=\"col\">step "
             "{}</th>"
             "<th class=\"number\" scope=\"col\">step {}</th><th class=\"what\"></th></tr>\n{}"
             "</table>\n",
             number_html(steps.front()), number_html(steps.back()), rows);
}

}  // namespace prefopt::detail
