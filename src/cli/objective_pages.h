// SPDX-License-Identifier: Apache-2.0
#pragma once

// The pages of `prefopt losses` about objectives on tokens.

#include <iosfwd>
#include <string>

namespace prefopt::cli {

/// Prints the page of a preset, or of all pieces for the name "objectives". Returns whether there
/// is one of that name.
bool print_objective_page(const std::string& name, bool as_json, std::ostream& out);

/// Prints a line for each preset.
void print_presets(std::ostream& out);

}  // namespace prefopt::cli
