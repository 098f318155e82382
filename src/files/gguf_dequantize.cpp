// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_dequantize.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "prefopt/error.h"

// A block of 32 has one scale, and one offset in the encodings "_1". A block of 256, "_K", has a
// scale of float16 over small integer scales of its 8 or 16 parts. Halves of a byte hold values
// that lie half a part's stretch apart.

namespace prefopt::detail {
namespace {

constexpr int kBlock = 32;
constexpr int kSuperBlock = 256;

float half_at(const std::uint8_t* bytes) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return c10::Half(bits, c10::Half::from_bits());
}

std::uint32_t word_at(const std::uint8_t* bytes) {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

int low(std::uint8_t byte) { return byte & 15; }
int high(std::uint8_t byte) { return byte >> 4; }

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

// Value i of 32, from its nibble and bit i of a word.
int five_bits(int nibble, std::uint32_t word, int i) {
  return nibble | (static_cast<int>((word >> i) & 1U) << 4);
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

// Scale and offset of one of the 8 parts of a Q4_K or Q5_K block, 6 bits each.
struct Part {
  float scale, offset;
};

// Reads the 12 bytes: 4 low scales, 4 low offsets, both with 2 bits of the upper four on top,
// then the other 4 bits of the upper scales and offsets.
Part part_at(const std::uint8_t* block, int part) {
  const std::uint8_t* packed = block + 4;
  int scale = 0;
  int offset = 0;
  if (part < 4) {
    scale = packed[part] & 63;
    offset = packed[part + 4] & 63;
  } else {
    scale = low(packed[part + 4]) | ((packed[part - 4] >> 6) << 4);
    offset = high(packed[part + 4]) | ((packed[part] >> 6) << 4);
  }
  return {half_at(block) * static_cast<float>(scale),
          half_at(block + 2) * static_cast<float>(offset)};
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
    const int half = i / 128;
    const int quarter = i % 128 / kBlock;
    const std::uint8_t nibbles = block[half * 64 + i % 64];
    const int pair = (block[128 + half * kBlock + i % kBlock] >> (2 * quarter)) & 3;
    const int value = ((quarter < 2 ? low(nibbles) : high(nibbles)) | (pair << 4)) - 32;
    const auto scale = static_cast<float>(static_cast<std::int8_t>(scales[i / 16]));
    values[i] = scale_of_scales * scale * static_cast<float>(value);
  }
}

// Sizes of the encodings that are not decoded serve to find the data behind them.
constexpr std::array kEncodings = std::to_array<GgufEncoding>({
    {0, "F32", 1, 4, at::kFloat},
    {1, "F16", 1, 2, at::kHalf},
    {2, "Q4_0", kBlock, 18, {}, decode_q4_0},
    {3, "Q4_1", kBlock, 20, {}, decode_q4_1},
    {6, "Q5_0", kBlock, 22, {}, decode_q5_0},
    {7, "Q5_1", kBlock, 24, {}, decode_q5_1},
    {8, "Q8_0", kBlock, 34, {}, decode_q8_0},
    {10, "Q2_K", kSuperBlock, 84},
    {11, "Q3_K", kSuperBlock, 110},
    {12, "Q4_K", kSuperBlock, 144, {}, decode_q4_k},
    {13, "Q5_K", kSuperBlock, 176, {}, decode_q5_k},
    {14, "Q6_K", kSuperBlock, 210, {}, decode_q6_k},
    {16, "IQ2_XXS", kSuperBlock, 66},
    {17, "IQ2_XS", kSuperBlock, 74},
    {18, "IQ3_XXS", kSuperBlock, 98},
    {19, "IQ1_S", kSuperBlock, 50},
    {20, "IQ4_NL", kBlock, 18},
    {21, "IQ3_S", kSuperBlock, 110},
    {22, "IQ2_S", kSuperBlock, 82},
    {23, "IQ4_XS", kSuperBlock, 136},
    {24, "I8", 1, 1},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8, at::kDouble},
    {29, "IQ1_M", kSuperBlock, 56},
    {30, "BF16", 1, 2, at::kBFloat16},
    {34, "TQ1_0", kSuperBlock, 54},
    {35, "TQ2_0", kSuperBlock, 66},
    {39, "MXFP4", kBlock, 17},
});

template <class T>
void decode_blocks(const GgufEncoding& encoding, const std::uint8_t* blocks, std::int64_t count,
                   T* values) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint8_t* block = blocks + i * encoding.bytes;
    T* out = values + i * encoding.values;
    if constexpr (std::is_same_v<T, float>) {
      encoding.decode(block, out);
    } else {
      std::array<float, kSuperBlock> decoded;
      encoding.decode(block, decoded.data());
      std::transform(decoded.begin(), decoded.begin() + encoding.values, out,
                     [](float value) { return static_cast<T>(value); });
    }
  }
}

template <class T>
void decode_into(const GgufEncoding& encoding, const std::uint8_t* blocks, at::Tensor& values) {
  constexpr std::int64_t kGrain = 1024;
  T* out = values.mutable_data_ptr<T>();
  parallel_for(0, values.numel() / encoding.values, kGrain,
               [&](std::int64_t first, std::int64_t last) {
                 decode_blocks(encoding, blocks + first * encoding.bytes, last - first,
                               out + first * encoding.values);
               });
}

}  // namespace

const GgufEncoding* find_gguf_encoding(std::uint32_t id) {
  const auto* at = std::find_if(kEncodings.begin(), kEncodings.end(),
                                [&](const GgufEncoding& known) { return known.id == id; });
  return at == kEncodings.end() ? nullptr : at;
}

at::Tensor dequantize(const GgufEncoding& encoding, const std::uint8_t* blocks,
                      at::IntArrayRef shape, at::ScalarType dtype) {
  at::Tensor values = at::empty(shape, at::TensorOptions(dtype));
  switch (dtype) {
    case at::kDouble:
      decode_into<double>(encoding, blocks, values);
      break;
    case at::kBFloat16:
      decode_into<at::BFloat16>(encoding, blocks, values);
      break;
    case at::kHalf:
      decode_into<at::Half>(encoding, blocks, values);
      break;
    case at::kFloat:
      decode_into<float>(encoding, blocks, values);
      break;
    default:
      throw DtypeError(
          fmt::format("dequantize: expected a floating dtype, got {}", c10::toString(dtype)));
  }
  return values;
}

}  // namespace prefopt::detail
