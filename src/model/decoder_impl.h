// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/json.h"
#include "model/network.h"
#include "prefopt/model/decoder.h"

namespace prefopt {

struct Decoder::Impl {
  detail::Network network;
  std::optional<LoraOptions> adapter;
  Checkpointing checkpointing = Checkpointing::kNone;
  detail::Json config;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
};

/// Calls `visit(name, tensor)` for each adapter tensor, under PEFT's names.
template <class Visit>
void Decoder::for_each_adapter_weight(Visit&& visit) const {
  detail::Network& network = impl_->network;
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    network.for_each_linear(i, [&](const detail::LinearPlace& place, detail::Linear& map) {
      if (!map.lora_a.defined()) return;
      const auto name = [&](std::string_view part) {
        return fmt::format("base_model.model.model.layers.{}.{}.{}.weight", i, place.name, part);
      };
      visit(name("lora_A"), map.lora_a);
      visit(name("lora_B"), map.lora_b);
    });
  }
}

}  // namespace prefopt
