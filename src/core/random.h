// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace prefopt {

/// Spreads neighbouring numbers over all 64 bits (Steele, Lea, Flood 2014): seeds that have nothing
/// in common.
inline std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace prefopt
