// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "files/gguf_encoding.h"

namespace prefopt::detail {

/// Whole blocks to a contiguous tensor of a floating `dtype`, in parallel. `encoding.decode` is
/// set, and the last size of `shape` is a multiple of `encoding.values`.
at::Tensor dequantize(const GgufEncoding& encoding, const std::uint8_t* blocks,
                      at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace prefopt::detail
