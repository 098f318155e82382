// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jinja/value.h"

namespace prefopt::jinja {

/// Returns Python's `format % values`: conversions s, r, d, i, u, o, x, X, e, E, f, F, g, G and %.
Text formatted(const Text& format, const Value& values);

/// Returns Python's format.format(…): fields with attributes and items, !s and !r, and widths,
/// precisions and number types after a colon. Throws Failure for other specifications.
Text formatted_fields(const Text& format, const Arguments& arguments);

}  // namespace prefopt::jinja
