// SPDX-License-Identifier: Apache-2.0
#include "data/defect_line.h"

#include <fmt/format.h>

#include <algorithm>

namespace prefopt::detail {

std::string counted(std::int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::string places(const std::vector<std::int64_t>& lines) {
  constexpr std::size_t kMaxLines = 5;
  std::string list;
  for (std::size_t i = 0; i < std::min(lines.size(), kMaxLines); ++i) {
    list += fmt::format("{}{}", i > 0 ? ", " : "", lines[i]);
  }
  if (lines.size() > kMaxLines) list += ", …";
  return fmt::format("({} {})", lines.size() == 1 ? "line" : "lines", list);
}

std::string defect_line(std::string_view verb, std::string_view reason,
                        const std::vector<std::int64_t>& lines) {
  return fmt::format("{} {}: {} {}", verb, counted(static_cast<std::int64_t>(lines.size()), "row"),
                     reason, places(lines));
}

}  // namespace prefopt::detail
