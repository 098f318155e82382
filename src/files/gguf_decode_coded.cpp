// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "files/gguf_blocks.h"

// Blocks whose few bits are numbers of a list of values (IQ4, FP4), or ternary digits (TQ).

namespace prefopt::detail {
namespace {

// `count` bytes of nibbles.
void decode_listed(const ValueList& list, float scale, const std::uint8_t* nibbles, int count,
                   float* values) {
  for (int i = 0; i < count; ++i) {
    values[i] = scale * static_cast<float>(list[static_cast<std::size_t>(low(nibbles[i]))]);
    values[i + count] =
        scale * static_cast<float>(list[static_cast<std::size_t>(high(nibbles[i]))]);
  }
}

// Half of a float of 4 exponent and 3 mantissa bits, whose sign bit is ignored. 0x7f, NaN in that
// format, is 0 in ggml.
float half_of_eight_bits(std::uint8_t byte) {
  constexpr int kBias = 7;
  constexpr std::uint8_t kNotANumber = 0x7f;
  if (byte == kNotANumber) return 0;
  const int exponent = (byte >> 3) & 15;
  const int mantissa = byte & 7;
  const int whole = exponent == 0 ? mantissa : mantissa + 8;
  return std::ldexp(static_cast<float>(whole), std::max(exponent, 1) - kBias - 3 - 1);
}

// `bytes` of `digits` ternary digits each, all first digits in front. Read as a fraction of 256, a
// byte begins with them, one behind another.
float* decode_digits(const std::uint8_t* packed, int bytes, int digits, float scale,
                     float* values) {
  std::uint8_t shift = 1;
  for (int digit = 0; digit < digits; ++digit, shift = static_cast<std::uint8_t>(3 * shift)) {
    for (int i = 0; i < bytes; ++i) {
      const auto rest = static_cast<std::uint8_t>(packed[i] * shift);
      *values++ = scale * static_cast<float>(((rest * 3) >> 8) - 1);
    }
  }
  return values;
}

}  // namespace

// f16 scale, 16 bytes of nibbles.
void decode_iq4_nl(const std::uint8_t* block, float* values) {
  decode_listed(kUneven, half_at(block), block + 2, kBlock / 2, values);
}

// f16 scale of scales, 8 pairs of high bits of scales, 8 nibbles of their low bits, 128 bytes of
// nibbles.
void decode_iq4_xs(const std::uint8_t* block, float* values) {
  const float scale_of_scales = half_at(block);
  for (int part = 0; part < 8; ++part) {
    decode_listed(kUneven, scale_of_scales * static_cast<float>(scale_of_iq4_xs(block, part)),
                  block + 8 + part * kBlock / 2, kBlock / 2, values + part * kBlock);
  }
}

// Exponent of the scale, 16 bytes of nibbles.
void decode_mxfp4(const std::uint8_t* block, float* values) {
  decode_listed(kFourBitFloats, half_power(block[0]), block + 1, kBlock / 2, values);
}

// 4 scales of 8 bits, 8 bytes of nibbles for each.
void decode_nvfp4(const std::uint8_t* block, float* values) {
  for (int part = 0; part < 4; ++part) {
    decode_listed(kFourBitFloats, half_of_eight_bits(block[part]), block + 4 + part * 8, 8,
                  values + part * 16);
  }
}

// 32 and 16 bytes of five digits, 4 bytes of four, f16 scale.
void decode_tq1_0(const std::uint8_t* block, float* values) {
  const float scale = half_at(block + 52);
  values = decode_digits(block, 32, 5, scale, values);
  values = decode_digits(block + 32, 16, 5, scale, values);
  decode_digits(block + 48, 4, 4, scale, values);
}

// 64 bytes of pairs of bits, f16 scale.
void decode_tq2_0(const std::uint8_t* block, float* values) {
  const float scale = half_at(block + 64);
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int i = 0; i < kBlock; ++i) {
        const int pair = (block[half * kBlock + i] >> (2 * quarter)) & 3;
        *values++ = scale * static_cast<float>(pair - 1);
      }
    }
  }
}

}  // namespace prefopt::detail
