// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/files/gguf_writer.h"

namespace prefopt::detail {

/// Adds `tokenizer.*` of the tokenizer `name` (as for make_tokenizer) for a model of `rows` tokens
/// that ends texts with `ends`: that of a GGUF file as it is there, byte-level BPE under
/// the name that llama.cpp gives its pre-tokenizer, "byte" or an empty name as none. Returns the
/// end tokens for which the format has no place: it has three. Throws CheckpointError for a
/// tokenizer that llama.cpp would not give the same tokens.
std::vector<std::int64_t> write_gguf_tokenizer(const std::string& name, std::int64_t rows,
                                               const std::vector<std::int64_t>& ends,
                                               GgufWriter& writer);

}  // namespace prefopt::detail
