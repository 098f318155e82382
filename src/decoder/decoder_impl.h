// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/json.h"
#include "decoder/adapters/adapter_parts.h"
#include "decoder/decoder_files.h"
#include "decoder/network.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt {
struct Decoder::Impl {
  detail::Network network;  ///< without its adapter
  std::optional<LoraOptions> adapter;
  detail::AdapterParts parts;
  bool has_head = true;  ///< an output head; false in a reward model
  Checkpointing checkpointing = Checkpointing::kNone;
  detail::Json config;
  detail::Json generation;  ///< `generation_config.json`, or null
  std::string source;       ///< the path that was loaded; empty for fresh weights
  detail::BlockSource blocks = detail::BlockSource::kNone;
  std::string load_note;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};

  /// Returns the dtype of weights that an adapter makes, for streams and decoding: on the CPU they
  /// are as wide as activations.
  detail::MadeWeights made_weights() const {
    return network.embedding.is_cpu() ? detail::MadeWeights::kWide : detail::MadeWeights::kAsStored;
  }
  /// Returns the network with its adapter, as executors see it.
  detail::Network seen(detail::MadeWeights made) const;
  at::Tensor head_weight(detail::MadeWeights made) const;
  /// Returns the result of forward_packed. `has_last_tokens`: the stream has a row for every token,
  /// where that of a language model needs none for the last one.
  at::Tensor packed_states(const PackedTokens& tokens, bool has_last_tokens) const;
};

}  // namespace prefopt
