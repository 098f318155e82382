// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "files/gguf_encoding.h"

namespace prefopt::detail {

/// Returns the encoding that a float model can be brought to when it is loaded: "q8_0" or "q4_k";
/// null for any other name.
const GgufEncoding* encoding_on_load(std::string_view name);

/// Returns whether a decoder's weight of this name and shape can be in blocks: maps, embedding and
/// head can, routed experts, their router and a score head, which LibTorch's operators read,
/// cannot.
bool can_be_blocks(std::string_view name, const std::vector<std::int64_t>& shape);

/// Returns the bytes of such a weight in blocks.
std::int64_t bytes_in_blocks(const GgufEncoding& encoding, const std::vector<std::int64_t>& shape);

/// Returns a matrix in blocks of the encoding, which are made of some rows at a time. Throws
/// DtypeError, led by `where`, as `encoded` does.
at::Tensor quantized(const GgufEncoding& encoding, const at::Tensor& matrix,
                     const std::string& where);

}  // namespace prefopt::detail
