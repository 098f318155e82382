// SPDX-License-Identifier: Apache-2.0
#pragma once

// ggml's blocks: a stretch of numbers under a common scale, in a few bytes. Halves or quarters of a
// byte hold values that lie half or a quarter of a part's stretch apart.

#include <c10/util/Half.h>

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

/// Each writes one block. Values are finite and within float16's range.
void encode_q4_0(const float* values, std::uint8_t* block);
void encode_q5_0(const float* values, std::uint8_t* block);
void encode_q8_0(const float* values, std::uint8_t* block);
void encode_q4_k(const float* values, std::uint8_t* block);
void encode_q6_k(const float* values, std::uint8_t* block);

}  // namespace prefopt::detail
