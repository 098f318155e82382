// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

#include "core/json.h"
#include "prefopt/model/decoder.h"

namespace prefopt::detail {

/// Far above any model, and low enough that products of two sizes fit in 64 bits.
inline constexpr std::int64_t kMaxDecoderSize = std::int64_t{1} << 30;

/// A `config.json`: what the decoder needs of it, and all that it holds.
struct DecoderConfig {
  DecoderOptions options;
  Json json;
};

/// Throws CheckpointError, led by the path.
DecoderConfig read_decoder_config(const std::string& path);

/// A config that transformers loads: of Qwen3, Qwen2 or Llama, whichever fits norms and biases.
Json make_decoder_config(const DecoderOptions& options);

/// Names the dtype of the weights where `config` does so already.
void set_config_dtype(Json& config, at::ScalarType dtype);

/// Fills in `head_dim`. Throws ConfigError, led by `where`, for values out of range or sizes that
/// do not fit each other.
DecoderOptions checked_decoder_options(DecoderOptions options, std::string_view where);

}  // namespace prefopt::detail
