// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tensors of an adapter, and the network that they make of the weights under it. Those stay as
// they are: other models may share them.

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "decoder/adapters/lora_rules.h"
#include "decoder/network.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// A module that may have an adapter.
struct AdaptableModule {
  std::string name;    ///< in transformers, "model.layers.0.self_attn.q_proj"
  std::string weight;  ///< name of its weight here, without ".weight"
  ModuleKind kind;
  std::int64_t in, out;  ///< of an embedding: tokens and hidden size
  bool has_bias;
  std::size_t place = 0;  ///< of a linear map of a layer: which it is of all layers'
};

struct LowRank {
  AdaptableModule module;
  double scale;
  at::Tensor a, b;       ///< [rank, in], [out, rank]
  at::Tensor magnitude;  ///< [out], DoRA's; undefined: none
  at::Tensor b_bias;     ///< [out]; undefined: none
};

/// A weight of the model that the adapter has a trained copy of.
struct WholeWeight {
  std::string name;  ///< of the weight here
  std::string key;   ///< PEFT's
  at::Tensor value;
};

struct AdapterParts {
  double common_scale = 0;  ///< of modules that no pattern is about
  bool unties = false;      ///< a tied head and embedding are no longer the same
  std::vector<LowRank> low_rank;
  std::vector<WholeWeight> whole;

  /// Calls `visit(key, tensor)` for each tensor, under PEFT's name.
  template <class Visit>
  void for_each_tensor(Visit&& visit);
};

/// Where an adapter is made for.
struct AdapterSite {
  const Network& network;
  bool has_head;     ///< an output head; false in a reward model
  bool is_training;  ///< a name or pattern without use is a mistake, not a remnant
};

/// Returns the parts that the rules ask for, with zeros that take no memory: a file may name any
/// rank. Throws ConfigError, led by the rules' `where`, for targets that the network does not have.
AdapterParts plan_adapter(const AdapterSite& site, const LoraRules& rules);

/// Returns the network with an output head apart from the embedding, of the same values.
Network untied(Network network);

/// The dtype of weights that an adapter makes.
enum class MadeWeights { kWide, kAsStored };

/// Returns the network that executors see, with a graph to the adapter's tensors.
Network with_adapter(const Network& base, const AdapterParts& parts, MadeWeights made);
/// Returns the weight of its output head alone.
at::Tensor adapted_head(const Network& base, const AdapterParts& parts, MadeWeights made);

/// Returns what the adapter makes of weights, by their names here.
std::map<std::string, TrainedWeight> trained_weights(const Network& base,
                                                     const AdapterParts& parts);

/// PEFT's name of a module or weight of the model.
inline std::string peft_key(const std::string& name) { return "base_model.model." + name; }

template <class Visit>
void AdapterParts::for_each_tensor(Visit&& visit) {
  for (LowRank& part : low_rank) {
    const std::string key = peft_key(part.module.name);
    if (part.module.kind == ModuleKind::kEmbedding) {
      visit(key + ".lora_embedding_A", part.a);
      visit(key + ".lora_embedding_B", part.b);
    } else {
      visit(key + ".lora_A.weight", part.a);
      visit(key + ".lora_B.weight", part.b);
    }
    if (part.b_bias.defined()) visit(key + ".lora_B.bias", part.b_bias);
    if (part.magnitude.defined()) visit(key + ".lora_magnitude_vector", part.magnitude);
  }
  for (WholeWeight& weight : whole) visit(weight.key, weight.value);
}

}  // namespace prefopt::detail
