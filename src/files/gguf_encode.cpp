// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "files/gguf_blocks.h"

// As ggml's reference quantizers: the value farthest from zero decides the scale.

namespace prefopt::detail {
namespace {

// Of several the first.
float farthest(const float* values) {
  return *std::max_element(values, values + kBlock,
                           [](float a, float b) { return std::abs(a) < std::abs(b); });
}

// Value in [0, 2 half), where `half` is zero.
int level(float value, float inverse_scale, int half) {
  const float shifted = value * inverse_scale + (static_cast<float>(half) + 0.5F);
  return std::min(static_cast<int>(shifted), 2 * half - 1);
}

}  // namespace

void encode_q4_0(const float* values, std::uint8_t* block) {
  const float scale = farthest(values) / -8;
  put_half(scale, block);
  const float by = inverse_of(scale);
  for (int i = 0; i < kBlock / 2; ++i) {
    block[2 + i] = static_cast<std::uint8_t>(level(values[i], by, 8) |
                                             (level(values[i + kBlock / 2], by, 8) << 4));
  }
}

void encode_q5_0(const float* values, std::uint8_t* block) {
  const float scale = farthest(values) / -16;
  put_half(scale, block);
  const float by = inverse_of(scale);
  std::uint32_t high_bits = 0;
  for (int i = 0; i < kBlock / 2; ++i) {
    const int j = i + kBlock / 2;
    const int first = level(values[i], by, 16);
    const int second = level(values[j], by, 16);
    block[6 + i] = static_cast<std::uint8_t>((first & 15) | ((second & 15) << 4));
    high_bits |= static_cast<std::uint32_t>(first >> 4) << i;
    high_bits |= static_cast<std::uint32_t>(second >> 4) << j;
  }
  std::memcpy(block + 2, &high_bits, sizeof high_bits);
}

void encode_q8_0(const float* values, std::uint8_t* block) {
  const float scale = std::abs(farthest(values)) / 127;
  put_half(scale, block);
  const float by = inverse_of(scale);
  for (int i = 0; i < kBlock; ++i) {
    block[2 + i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::round(values[i] * by)));
  }
}

}  // namespace prefopt::detail
