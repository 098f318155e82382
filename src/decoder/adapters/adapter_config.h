// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/json.h"
#include "prefopt/decoder/lora_options.h"

namespace prefopt::detail {

/// The change of the weights under an adapter when it was made.
enum class BaseChange {
  kNone,
  kPissa,  ///< the largest singular values of each were taken out (2404.02948)
  kOlora,  ///< the first columns of Q with the first rows of R were (2406.01775)
};

/// An `adapter_config.json` of PEFT.
struct AdapterConfig {
  LoraOptions options;
  BaseChange change = BaseChange::kNone;
  bool ties_weights = false;  ///< `ensure_weight_tying`
};

/// Throws CheckpointError for fields that would change results and are not understood. `has_score`:
/// of a reward model, whose score head is among the modules to save.
AdapterConfig read_adapter_config(const std::string& path, bool has_score);

/// Returns what the config of the adapter in `folder` names as its model, a folder or a name; null
/// where it names none.
Json base_model_of(const std::string& folder);

/// Returns a config that PEFT, vLLM and llama.cpp's converter read. `base`: folder or name of the
/// model, empty for none.
Json adapter_config_json(const LoraOptions& options, const std::string& base, bool has_score);

}  // namespace prefopt::detail
