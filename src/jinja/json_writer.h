// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "jinja/value.h"

namespace prefopt::jinja {

/// The options of json.dumps that transformers' filter `tojson` has.
struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent = {};  ///< of a level; none: all on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};

/// Returns the value as Python's json.dumps writes it. Throws Failure for one that it refuses.
Text json_of(const Value& value, const JsonStyle& style);

}  // namespace prefopt::jinja
