// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <random>

namespace prefopt::testing {

/// Random numbers that are the same on every machine; the distributions of the standard library
/// differ between implementations.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : engine_(seed) {}

  double uniform(double low, double high) {
    return low + (high - low) * std::ldexp(static_cast<double>(engine_() >> 11), -53);
  }
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(uniform(0, static_cast<double>(high - low + 1)));
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace prefopt::testing
