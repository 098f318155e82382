// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_blocks.h"

// Blocks of evenly spaced values. One of 32 has a scale, and an offset in the encodings "_1". One
// of 256, "_K", has a scale of float16 over small integer scales of its 8 or 16 parts.

namespace prefopt::detail {
namespace {

std::uint32_t word_at(const std::uint8_t* bytes) {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// Value i of 32, from its nibble and bit i of a word.
int five_bits(int nibble, std::uint32_t word, int i) {
  return nibble | (static_cast<int>((word >> i) & 1U) << 4);
}

// Value i of 256, two bits of it.
int pair_at(const std::uint8_t* pairs, int i) {
  return (pairs[i / 128 * kBlock + i % kBlock] >> (2 * (i % 128 / kBlock))) & 3;
}

struct Part {
  float scale, offset;
};

Part part_at(const std::uint8_t* block, int part) {
  const auto [scale, offset] = part_bits(block + 4, part);
  return {half_at(block) * static_cast<float>(scale),
          half_at(block + 2) * static_cast<float>(offset)};
}

}  // namespace

// f16 scale, 16 bytes of nibbles.
void decode_q4_0(const std::uint8_t* block, float* values) {
  const float scale = half_at(block);
  const std::uint8_t* nibbles = block + 2;
  for (int i = 0; i < kBlock / 2; ++i) {
    values[i] = static_cast<float>(low(nibbles[i]) - 8) * scale;
    values[i + kBlock / 2] = static_cast<float>(high(nibbles[i]) - 8) * scale;
  }
}

// f16 scale, f16 offset, 16 bytes of nibbles.
void decode_q4_1(const std::uint8_t* block, float* values) {
  const float scale = half_at(block);
  const float offset = half_at(block + 2);
  const std::uint8_t* nibbles = block + 4;
  for (int i = 0; i < kBlock / 2; ++i) {
    values[i] = static_cast<float>(low(nibbles[i])) * scale + offset;
    values[i + kBlock / 2] = static_cast<float>(high(nibbles[i])) * scale + offset;
  }
}

// f16 scale, 32 high bits, 16 bytes of nibbles.
void decode_q5_0(const std::uint8_t* block, float* values) {
  const float scale = half_at(block);
  const std::uint32_t word = word_at(block + 2);
  const std::uint8_t* nibbles = block + 6;
  for (int i = 0; i < kBlock / 2; ++i) {
    const int j = i + kBlock / 2;
    values[i] = static_cast<float>(five_bits(low(nibbles[i]), word, i) - 16) * scale;
    values[j] = static_cast<float>(five_bits(high(nibbles[i]), word, j) - 16) * scale;
  }
}

// f16 scale, f16 offset, 32 high bits, 16 bytes of nibbles.
void decode_q5_1(const std::uint8_t* block, float* values) {
  const float scale = half_at(block);
  const float offset = half_at(block + 2);
  const std::uint32_t word = word_at(block + 4);
  const std::uint8_t* nibbles = block + 8;
  for (int i = 0; i < kBlock / 2; ++i) {
    const int j = i + kBlock / 2;
    values[i] = static_cast<float>(five_bits(low(nibbles[i]), word, i)) * scale + offset;
    values[j] = static_cast<float>(five_bits(high(nibbles[i]), word, j)) * scale + offset;
  }
}

// f16 scale, 32 signed bytes.
void decode_q8_0(const std::uint8_t* block, float* values) {
  const float scale = half_at(block);
  for (int i = 0; i < kBlock; ++i) {
    values[i] = static_cast<float>(static_cast<std::int8_t>(block[2 + i])) * scale;
  }
}

// 16 bytes of 4-bit scales and offsets, 64 bytes of pairs of bits, f16 scale of scales, f16 scale
// of offsets.
void decode_q2_k(const std::uint8_t* block, float* values) {
  const float scale_of_scales = half_at(block + 80);
  const float scale_of_offsets = half_at(block + 82);
  for (int i = 0; i < kSuperBlock; ++i) {
    const std::uint8_t part = block[i / 16];
    const float scale = scale_of_scales * static_cast<float>(low(part));
    const float offset = scale_of_offsets * static_cast<float>(high(part));
    values[i] = scale * static_cast<float>(pair_at(block + 16, i)) - offset;
  }
}

// 32 bytes of bits that say that 4 is not taken off, 64 bytes of pairs of bits, 12 bytes of scales,
// f16 scale of scales.
void decode_q3_k(const std::uint8_t* block, float* values) {
  const float scale_of_scales = half_at(block + 108);
  for (int i = 0; i < kSuperBlock; ++i) {
    const auto scale = static_cast<float>(scale_of_q3_k(block + 96, i / 16));
    const bool kept = ((block[i % kBlock] >> (i / kBlock)) & 1) != 0;
    const int value = pair_at(block + kBlock, i) - (kept ? 0 : 4);
    values[i] = scale_of_scales * scale * static_cast<float>(value);
  }
}

// f16 scale of scales, f16 scale of offsets, 12 bytes of both, 128 bytes of nibbles.
void decode_q4_k(const std::uint8_t* block, float* values) {
  for (int part = 0; part < 8; ++part) {
    const auto [scale, offset] = part_at(block, part);
    const std::uint8_t* nibbles = block + 16 + part / 2 * kBlock;
    for (int i = 0; i < kBlock; ++i) {
      const int value = part % 2 == 0 ? low(nibbles[i]) : high(nibbles[i]);
      values[part * kBlock + i] = scale * static_cast<float>(value) - offset;
    }
  }
}

// As Q4_K, with 32 bytes of high bits, bit `part` of byte i, in front of the nibbles.
void decode_q5_k(const std::uint8_t* block, float* values) {
  const std::uint8_t* bits = block + 16;
  for (int part = 0; part < 8; ++part) {
    const auto [scale, offset] = part_at(block, part);
    const std::uint8_t* nibbles = block + 48 + part / 2 * kBlock;
    for (int i = 0; i < kBlock; ++i) {
      const int nibble = part % 2 == 0 ? low(nibbles[i]) : high(nibbles[i]);
      values[part * kBlock + i] =
          scale * static_cast<float>(five_bits(nibble, bits[i] >> part, 0)) - offset;
    }
  }
}

// 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 signed scales, f16 scale of scales.
void decode_q6_k(const std::uint8_t* block, float* values) {
  const std::uint8_t* scales = block + 192;
  const float scale_of_scales = half_at(block + 208);
  for (int i = 0; i < kSuperBlock; ++i) {
    const std::uint8_t nibbles = block[i / 128 * 64 + i % 64];
    const int nibble = i % 128 < 64 ? low(nibbles) : high(nibbles);
    const int value = (nibble | (pair_at(block + 128, i) << 4)) - 32;
    const auto scale = static_cast<float>(static_cast<std::int8_t>(scales[i / 16]));
    values[i] = scale_of_scales * scale * static_cast<float>(value);
  }
}

}  // namespace prefopt::detail
