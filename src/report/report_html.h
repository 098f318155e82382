// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pieces that the parts of report.html are made with.

#include <string>
#include <string_view>

#include "core/json.h"

namespace prefopt::detail {

/// Four digits, or all of a whole number.
std::string number_html(double value);
std::string percent_html(double rate);
/// `2 h 7 min`.
std::string duration_html(double seconds);
std::string code_html(std::string_view text);
std::string heading_html(std::string_view text);
/// Returns the text under `key`, escaped; empty where there is none.
std::string text_html(const Json& object, std::string_view key);

/// A table of names and HTML; what is empty is left out, and so is an empty table.
class FactTable {
 public:
  void add(std::string_view name, const std::string& html);
  std::string html() const;

 private:
  std::string rows_;
};

}  // namespace prefopt::detail
