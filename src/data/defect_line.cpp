// SPDX-License-Identifier: Apache-2.0
#include "data/defect_line.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/json.h"

namespace prefopt::detail {

std::string counted(std::int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

namespace {

template <class Place>
std::string first_of(const std::vector<Place>& places) {
  constexpr std::size_t kMost = 5;
  std::string list;
  for (std::size_t i = 0; i < std::min(places.size(), kMost); ++i) {
    list += fmt::format("{}{}", i > 0 ? ", " : "", places[i]);
  }
  return places.size() > kMost ? list + ", …" : list;
}

}  // namespace

std::string places(const std::vector<std::int64_t>& lines) {
  return fmt::format("({} {})", lines.size() == 1 ? "line" : "lines", first_of(lines));
}

std::string defect_line(std::string_view verb, std::string_view reason,
                        const std::vector<std::int64_t>& lines) {
  return fmt::format("{} {}: {} {}", verb, counted(static_cast<std::int64_t>(lines.size()), "row"),
                     reason, places(lines));
}

std::string defect_line(std::string_view verb, std::string_view reason,
                        const std::vector<std::string>& rows) {
  return fmt::format("{} {}: {} ({})", verb, counted(std::ssize(rows), "row"), reason,
                     first_of(rows));
}

std::string unread_line(const std::map<std::string, std::int64_t>& columns, std::int64_t rows) {
  constexpr std::size_t kMaxColumns = 20;
  std::string list;
  std::size_t named = 0;
  for (const auto& [name, count] : columns) {
    if (named++ == kMaxColumns) break;
    list += fmt::format("{}'{}' ({:.3g} % of the rows)", list.empty() ? "" : ", ", shown_text(name),
                        100.0 * static_cast<double>(count) / static_cast<double>(rows));
  }
  if (columns.size() > kMaxColumns) list += ", …";
  return fmt::format("text that nothing reads: {}", list);
}

}  // namespace prefopt::detail
