// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_dequantize.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "core/parallel.h"
#include "files/gguf_blocks.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

template <class T>
void decode_blocks(const GgufEncoding& encoding, const std::uint8_t* blocks, std::int64_t count,
                   T* values) {
  if constexpr (std::is_same_v<T, float>) {
    encoding.decode(blocks, count, values);
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      std::array<float, kSuperBlock> decoded;
      encoding.decode(blocks + i * encoding.bytes, 1, decoded.data());
      std::transform(decoded.begin(), decoded.begin() + encoding.values,
                     values + i * encoding.values,
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
