// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/losses/loss.h"

namespace prefopt::cli {

/// Returns the names with commas between them.
std::string joined(const std::vector<std::string>& names);

/// Returns "library: name (difference)".
std::string in_words(const OtherImplementation& other);

/// Returns range and meaning of an option; a long list of choices, which would push all meanings
/// off the screen, follows the meaning.
std::pair<std::string, std::string> range_and_meaning(std::string range, std::string meaning);

/// Prints left-aligned columns as wide as their widest cell; the last one is left as it is.
void print_table(const std::vector<std::vector<std::string>>& rows, std::ostream& out);

}  // namespace prefopt::cli
