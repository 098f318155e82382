// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>

#include "jinja/value.h"

namespace prefopt::jinja {

/// Returns the attribute that a value has in Python: a method, bound to it, or that of an object.
/// Throws Failure for one that Python has and that is not known here, and for an undefined value.
/// Methods that change a list or a dict are values whose call is refused, as in jinja2's sandbox.
std::optional<Value> own_attribute(const Value& value, std::string_view name);

}  // namespace prefopt::jinja
