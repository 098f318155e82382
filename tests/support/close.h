// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "support/catch.h"

namespace prefopt::testing_support {

inline void check_close(double got, double expected, double rtol, double atol = 0) {
  INFO("got " << got << ", expected " << expected);
  CHECK(std::abs(got - expected) <= atol + rtol * std::abs(expected));
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace prefopt::testing_support
