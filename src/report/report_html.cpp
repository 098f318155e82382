// SPDX-License-Identifier: Apache-2.0
#include "report/report_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/html.h"
#include "report/run_record.h"

namespace prefopt::detail {

std::string number_html(double value) {
  if (std::isnan(value)) return "not finite";
  if (value == std::floor(value) && std::abs(value) < 1e15) return fmt::format("{:.0f}", value);
  return fmt::format("{:.4g}", value);
}

std::string percent_html(double rate) { return fmt::format("{:.1f} %", 100 * rate); }

std::string duration_html(double seconds) {
  const auto whole = std::llround(std::max(0.0, seconds));
  if (whole < 60) return fmt::format("{:.3g} s", seconds);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string code_html(std::string_view text) {
  return text.empty() ? "" : "<code>" + escape_html(text) + "</code>";
}

std::string heading_html(std::string_view text) { return fmt::format("<h2>{}</h2>\n", text); }

std::string text_html(const Json& object, std::string_view key) {
  return escape_html(text_at(object, key));
}

void FactTable::add(std::string_view name, const std::string& html) {
  if (html.empty()) return;
  rows_ += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", name, html);
}

std::string FactTable::html() const {
  return rows_.empty() ? "" : "<table class=\"facts\">\n" + rows_ + "</table>\n";
}

}  // namespace prefopt::detail
