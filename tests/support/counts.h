// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <iostream>
#include <string_view>

namespace prefopt::testing_support {

/// A line of what tools/test says at its end: how much of a promise was tried.
inline void report_count(std::string_view what, std::size_t count) {
  std::cout << "counted: " << what << ": " << count << std::endl;
}

}  // namespace prefopt::testing_support
