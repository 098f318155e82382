// SPDX-License-Identifier: Apache-2.0
#pragma once

// Values as Python writes them.

#include <string>

#include "jinja/value.h"

namespace prefopt::jinja {

/// Returns Python's str(). Throws Failure for what it would show by its address.
Text displayed(const Value& value);
/// Returns Python's repr().
Text represented(const Value& value);
/// Returns repr() of a float: the shortest digits that give the number again.
std::string float_text(double number);

}  // namespace prefopt::jinja
