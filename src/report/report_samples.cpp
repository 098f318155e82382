// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <string_view>

#include "core/html.h"
#include "report/report_html.h"
#include "report/report_parts.h"

namespace prefopt::detail {
namespace {

constexpr std::size_t kMostPrompts = 12;

/// Without line breaks and spaces around it, which chat formats put there.
std::string shown(std::string_view text) {
  constexpr std::string_view kBlank = " \n\t";
  const auto begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) return "<span class=\"quiet\">(nothing)</span>";
  return escape_html(text.substr(begin, text.find_last_not_of(kBlank) + 1 - begin));
}

/// One completion as a column.
std::string completion_html(std::string_view title, std::string_view css, const Json& line,
                            const std::string& key) {
  const auto tokens = number_at(line, key + "_tokens");
  std::string about;
  if (tokens) {
    about = fmt::format(", {} tokens{}", number_html(*tokens),
                        text_at(line, key + "_ended") == "true" ? "" : ", cut off there");
  }
  return fmt::format(
      "<div class=\"{}\"><p class=\"quiet\">{}{}</p><p class=\"text\">{}</p></div>\n", css, title,
      about, shown(text_at(line, key)));
}

/// The first and the last draw of one prompt.
struct PromptSamples {
  const Json* first = nullptr;
  const Json* last = nullptr;
};

std::string sample_html(const PromptSamples& samples) {
  const Json& first = *samples.first;
  const Json& last = *samples.last;
  const std::string policy =
      fmt::format("Policy at step {}", number_html(number_at(last, "step").value_or(0)));
  std::string pair;
  if (first.contains("reference")) {
    pair = completion_html("Reference", "reference", first, "reference");
  } else if (&first != &last) {
    pair = completion_html(
        fmt::format("Policy at step {}", number_html(number_at(first, "step").value_or(0))),
        "reference", first, "policy");
  }
  pair += completion_html(policy, "policy", last, "policy");
  return fmt::format(
      "<div class=\"sample\">\n<p class=\"text prompt\">{}</p>\n"
      "<div class=\"pair\">\n{}</div>\n</div>\n",
      shown(text_at(first, "prompt")), pair);
}

}  // namespace

std::string samples_html(const RunRecord& record) {
  std::map<double, PromptSamples> prompts;
  for (const Json& line : record.samples) {
    const auto index = number_at(line, "index");
    if (!index || std::isnan(*index)) continue;
    auto& prompt = prompts[*index];
    if (prompt.first == nullptr) prompt.first = &line;
    prompt.last = &line;
  }
  if (prompts.empty()) return {};
  const Json& sampling = object_at(record.config, "sampling");
  const auto temperature = number_at(sampling, "temperature");
  const std::string how =
      !temperature ? ""
      : *temperature == 0
          ? " Each token is the most likely one."
          : fmt::format(" Drawn at temperature {}, with the same random numbers each time.",
                        number_html(*temperature));
  std::string html =
      heading_html("What it writes") +
      "<p class=\"quiet\">Held-out prompts, each with a completion from before and one "
      "from after training." +
      how + "</p>\n";
  std::size_t left = kMostPrompts;
  for (const auto& [index, samples] : prompts) {
    if (left-- == 0) break;
    html += sample_html(samples);
  }
  if (prompts.size() > kMostPrompts) {
    html += fmt::format("<p class=\"quiet\">{} more are in samples.jsonl.</p>\n",
                        prompts.size() - kMostPrompts);
  }
  return html;
}

}  // namespace prefopt::detail
