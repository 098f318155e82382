// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "files/gguf_encoding.h"

namespace prefopt::detail {

/// Returns whether tensors can be written in this encoding.
bool is_written(const GgufEncoding& encoding);

/// Returns the bytes of a tensor, in parallel. Throws DtypeError, led by `where`, for values that
/// the encoding cannot hold: rows in other than whole blocks, and beyond float16's range, in which
/// scales are kept, anything that is not finite or too large.
std::string encoded(const GgufEncoding& encoding, const at::Tensor& values, std::string_view where);

}  // namespace prefopt::detail
