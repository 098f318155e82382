// SPDX-License-Identifier: Apache-2.0
#pragma once

// ggml's blocks: a stretch of numbers under a common scale, in a few bytes. Halves or quarters of a
// byte hold values that lie half or a quarter of a part's stretch apart.

#include <c10/util/Half.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace prefopt::detail {

inline constexpr int kBlock = 32;
inline constexpr int kSuperBlock = 256;

inline float half_at(const std::uint8_t* bytes) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return c10::Half(bits, c10::Half::from_bits());
}

inline void put_half(float value, std::uint8_t* bytes) {
  const std::uint16_t bits = c10::Half(value).x;
  std::memcpy(bytes, &bits, sizeof bits);
}

/// 0 where that is beyond float32: such a scale is 0 in float16.
inline float inverse_of(float scale) {
  const float inverse = 1 / scale;
  return std::isfinite(inverse) ? inverse : 0;
}

inline int low(std::uint8_t byte) { return byte & 15; }
inline int high(std::uint8_t byte) { return byte >> 4; }

/// Scale and offset of one of the 8 parts of a Q4_K or Q5_K block, 6 bits each.
struct PartBits {
  int scale, offset;
};

/// Reads the 12 bytes: 4 low scales, 4 low offsets, both with 2 bits of the upper four on top,
/// then the other 4 bits of the upper scales and offsets.
inline PartBits part_bits(const std::uint8_t* packed, int part) {
  if (part < 4) return {packed[part] & 63, packed[part + 4] & 63};
  return {low(packed[part + 4]) | ((packed[part - 4] >> 6) << 4),
          high(packed[part + 4]) | ((packed[part] >> 6) << 4)};
}

/// Scale `part` of the 16 of a Q3_K block: four bits of 8 bytes, low nibbles first, and two bits of
/// the 4 bytes behind them.
inline int scale_of_q3_k(const std::uint8_t* packed, int part) {
  const int nibble = part < 8 ? low(packed[part]) : high(packed[part - 8]);
  return (nibble | (((packed[8 + part % 4] >> (2 * (part / 4))) & 3) << 4)) - 32;
}

/// Scale `part` of the 8 of an IQ4_XS block.
inline int scale_of_iq4_xs(const std::uint8_t* block, int part) {
  const int pair = (block[2 + part / 4] >> (2 * (part % 4))) & 3;
  const std::uint8_t nibbles = block[4 + part / 2];
  return ((part % 2 == 0 ? low(nibbles) : high(nibbles)) | (pair << 4)) - 32;
}

using ValueList = std::array<std::int8_t, 16>;

/// ggml's, denser around zero.
inline constexpr ValueList kUneven{-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

/// The floats of 1 sign, 2 exponent and 1 mantissa bits, twice as large (OCP Microscaling
/// Formats 1.0).
inline constexpr ValueList kFourBitFloats{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// Half of the power of two that a byte names, for values that are twice as large: 2^(byte − 128).
inline float half_power(std::uint8_t exponent) {
  constexpr std::uint32_t kLeast = 0x00200000;  // 2^-128, and twice that is no normal number either
  return std::bit_cast<float>(exponent < 2 ? kLeast << exponent
                                           : (std::uint32_t{exponent} - 1U) << 23U);
}

/// Each reads one block of its encoding to float32.
void decode_q4_0(const std::uint8_t* block, float* values);
void decode_q4_1(const std::uint8_t* block, float* values);
void decode_q5_0(const std::uint8_t* block, float* values);
void decode_q5_1(const std::uint8_t* block, float* values);
void decode_q8_0(const std::uint8_t* block, float* values);
void decode_q2_k(const std::uint8_t* block, float* values);
void decode_q3_k(const std::uint8_t* block, float* values);
void decode_q4_k(const std::uint8_t* block, float* values);
void decode_q5_k(const std::uint8_t* block, float* values);
void decode_q6_k(const std::uint8_t* block, float* values);
void decode_iq4_nl(const std::uint8_t* block, float* values);
void decode_iq4_xs(const std::uint8_t* block, float* values);
void decode_tq1_0(const std::uint8_t* block, float* values);
void decode_tq2_0(const std::uint8_t* block, float* values);
void decode_mxfp4(const std::uint8_t* block, float* values);
void decode_nvfp4(const std::uint8_t* block, float* values);

/// Those of them that are decoded by vectors: name, values of a block, bytes of one.
#define PREFOPT_FAST_ENCODINGS(X) \
  X(q8_0, 32, 34)                 \
  X(q4_0, 32, 18)                 \
  X(q4_1, 32, 20)                 \
  X(q5_0, 32, 22)                 \
  X(q5_1, 32, 24)                 \
  X(q2_k, 256, 84)                \
  X(q3_k, 256, 110)               \
  X(q4_k, 256, 144)               \
  X(q5_k, 256, 176)               \
  X(q6_k, 256, 210)               \
  X(iq4_nl, 32, 18)               \
  X(iq4_xs, 256, 136)             \
  X(mxfp4, 32, 17)                \
  X(tq2_0, 256, 66)

/// Each reads `count` blocks that follow one another, to the bits of the functions above.
#define PREFOPT_DECLARE_RUN(name, values_of_block, bytes_of_block) \
  void decode_run_##name(const std::uint8_t* blocks, std::int64_t count, float* values);
PREFOPT_FAST_ENCODINGS(PREFOPT_DECLARE_RUN)
#undef PREFOPT_DECLARE_RUN

/// Each writes one block. Values are finite and within float16's range.
void encode_q4_0(const float* values, std::uint8_t* block);
void encode_q5_0(const float* values, std::uint8_t* block);
void encode_q8_0(const float* values, std::uint8_t* block);
void encode_q4_k(const float* values, std::uint8_t* block);
void encode_q6_k(const float* values, std::uint8_t* block);

}  // namespace prefopt::detail
