// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// An encoding of ggml: `values` numbers in `bytes` bytes.
struct GgufEncoding {
  std::uint32_t id;
  std::string_view name;
  std::int64_t values;
  std::int64_t bytes;
  /// Of an encoding that is a dtype.
  std::optional<at::ScalarType> dtype = {};
  /// Of one in blocks: `count` blocks that follow one another to float32.
  void (*decode)(const std::uint8_t* blocks, std::int64_t count, float* values) = nullptr;
  /// And back.
  void (*encode)(const float* values, std::uint8_t* block) = nullptr;
};

/// Returns null for the number of an unknown encoding. Some are known by name and size only.
const GgufEncoding* find_gguf_encoding(std::uint32_t id);
const GgufEncoding* find_gguf_encoding(std::string_view name);

/// The names of the encodings that can be read: "F64, …, Q4_K or Q6_K".
std::string decoded_encodings();

}  // namespace prefopt::detail
