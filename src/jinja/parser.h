// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <string>
#include <string_view>

#include "jinja/ast.h"

namespace prefopt::jinja {

struct ParsedTemplate {
  Body body;
  std::set<std::string, std::less<>> names;  ///< all that are read
  bool has_generation = false;
};

/// Throws SyntaxFailure for what is no template, and for tags, filters and tests that are not known
/// here, by their names.
ParsedTemplate parse_template(std::string_view source);

}  // namespace prefopt::jinja
