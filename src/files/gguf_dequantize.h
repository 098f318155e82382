// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
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
  /// Of one in blocks: one block to float32.
  void (*decode)(const std::uint8_t* block, float* values) = nullptr;
};

/// Returns null for the number of an unknown encoding. Some are known by name and size only.
const GgufEncoding* find_gguf_encoding(std::uint32_t id);

/// Whole blocks to a contiguous tensor of a floating `dtype`, in parallel. `encoding.decode` is
/// set, and the last size of `shape` is a multiple of `encoding.values`.
at::Tensor dequantize(const GgufEncoding& encoding, const std::uint8_t* blocks,
                      at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace prefopt::detail
