// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace prefopt::jinja {

/// An error in a template, without the place: Template adds file and line and throws
/// ConfigError or DataError.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace prefopt::jinja
