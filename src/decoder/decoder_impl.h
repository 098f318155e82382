// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/json.h"
#include "decoder/network.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt {
namespace detail {

/// Calls `visit(layer index, place, linear)` for each linear map that has an adapter.
template <class Visit>
void for_each_adapted(Network& network, Visit&& visit) {
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    network.for_each_linear(i, [&](const LinearPlace& place, Linear& map) {
      if (map.lora_a.defined()) visit(i, place, map);
    });
  }
}

}  // namespace detail

struct Decoder::Impl {
  detail::Network network;
  std::optional<LoraOptions> adapter;
  Checkpointing checkpointing = Checkpointing::kNone;
  detail::Json config;
  detail::Json generation;  ///< `generation_config.json`, or null
  std::string source;       ///< the path that was loaded; empty for fresh weights
  std::string load_note;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};

  /// What forward_packed returns. `has_last_tokens`: the stream has a row for every token, where
  /// that of a language model needs none for the last one.
  at::Tensor packed_states(const PackedTokens& tokens, bool has_last_tokens) const;
};

/// Calls `visit(name, tensor)` for each adapter tensor, under PEFT's names.
template <class Visit>
void Decoder::for_each_adapter_weight(Visit&& visit) const {
  detail::for_each_adapted(
      impl_->network, [&](std::size_t i, const detail::LinearPlace& place, detail::Linear& map) {
        const auto name = [&](std::string_view part) {
          return fmt::format("base_model.model.model.layers.{}.{}.{}.weight", i, place.name, part);
        };
        visit(name("lora_A"), map.lora_a);
        visit(name("lora_B"), map.lora_b);
      });
}

}  // namespace prefopt
