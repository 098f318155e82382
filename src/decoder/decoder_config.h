// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/json.h"
#include "decoder/strict_config.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

class Family;

/// A `config.json`: what the decoder needs of it, and all that it holds.
struct DecoderConfig {
  DecoderOptions options;
  Json json;
  Json generation = nullptr;  ///< `generation_config.json`; null where there is none
};

/// With the end tokens of `generation_config.json` in the same folder, where that is there. Throws
/// CheckpointError, led by the path.
DecoderConfig read_decoder_config(const std::string& path);

/// Returns the `generation_config.json` of a model that ends in these tokens.
Json make_generation_config(const DecoderOptions& options);

/// All end tokens that `options` name, each once, `eos_token_id` first.
std::vector<std::int64_t> end_tokens_of(const DecoderOptions& options);

/// Returns a config that transformers loads, of the family that checked options name.
Json make_decoder_config(const DecoderOptions& options);

/// The tensor of a score head.
inline constexpr const char* kScoreWeight = "score.weight";

/// Returns the config of the same model as a `…ForSequenceClassification` with one label.
Json make_reward_config(Json config, const Family& family);

/// Throws CheckpointError for a reward model's config that counts other than one label.
void check_one_label(const DecoderConfig& config, const std::string& path);

/// Whether the `config.json` of a folder names a `…ForSequenceClassification`. Throws
/// CheckpointError where there is none.
bool names_reward_model(const std::string& path);

/// Names the dtype of the weights where `config` does so already.
void set_config_dtype(Json& config, at::ScalarType dtype);

/// Fills in `head_dim` and settles the family. Throws ConfigError, led by `where`, for values out
/// of range, sizes that do not fit each other, or options that the family does not have.
DecoderOptions checked_decoder_options(DecoderOptions options, std::string_view where);

}  // namespace prefopt::detail
