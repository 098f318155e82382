// SPDX-License-Identifier: Apache-2.0
#include "cli/tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>

namespace prefopt::cli {

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string in_words(const OtherImplementation& other) {
  std::string text = other.library;
  if (!other.name.empty()) text += ": " + other.name;
  if (!other.difference.empty()) text += " (" + other.difference + ")";
  return text;
}

std::pair<std::string, std::string> range_and_meaning(std::string range, std::string meaning) {
  constexpr std::size_t kWidestRange = 24;
  if (range.size() <= kWidestRange) return {std::move(range), std::move(meaning)};
  return {"", meaning + "; one of " + range};
}

void print_table(const std::vector<std::vector<std::string>>& rows, std::ostream& out) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) line += fmt::format("{:<{}}  ", row[i], widths[i]);
    out << line.substr(0, line.find_last_not_of(' ') + 1) << '\n';
  }
}

}  // namespace prefopt::cli
