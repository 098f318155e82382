// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

namespace prefopt::testing_support {

/// `model.decoder` of a config: a model that trains in milliseconds.
inline nlohmann::json small_decoder() {
  return {{"hidden_size", 16},
          {"intermediate_size", 32},
          {"num_hidden_layers", 1},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1}};
}

}  // namespace prefopt::testing_support
