// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "jinja/value.h"

namespace prefopt::jinja {

using Filter = Value (*)(const Value& value, const Arguments& arguments);
using Test = bool (*)(const Value& value, const Arguments& arguments);

/// Null for a name that is not known here.
Filter find_filter(std::string_view name);
Test find_test(std::string_view name);

/// Returns whether jinja2 has a filter of this name, known here or not.
bool is_filter_of_jinja(std::string_view name);

}  // namespace prefopt::jinja
