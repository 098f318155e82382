// SPDX-License-Identifier: Apache-2.0
#include "run/plan/known_models.h"

#include <array>

namespace prefopt::detail {
namespace {

struct KnownModel {
  std::string_view name;
  std::int64_t hidden, intermediate, layers, heads, key_value_heads, head_dim, vocab;
  bool tied, has_bias;
};

constexpr std::array kKnownModels = {
    KnownModel{"smollm2-135m", 576, 1536, 30, 9, 3, 64, 49152, true, false},
    KnownModel{"qwen2.5-1.5b", 1536, 8960, 28, 12, 2, 128, 151936, true, true},
    KnownModel{"qwen2.5-7b", 3584, 18944, 28, 28, 4, 128, 152064, false, true},
    KnownModel{"llama-3.1-8b", 4096, 14336, 32, 32, 8, 128, 128256, false, false},
    KnownModel{"llama-3.1-70b", 8192, 28672, 80, 64, 8, 128, 128256, false, false},
};

}  // namespace

std::optional<DecoderOptions> known_model(std::string_view name) {
  for (const KnownModel& model : kKnownModels) {
    if (model.name != name) continue;
    return DecoderOptions{.vocab_size = model.vocab,
                          .hidden_size = model.hidden,
                          .intermediate_size = model.intermediate,
                          .num_hidden_layers = model.layers,
                          .num_attention_heads = model.heads,
                          .num_key_value_heads = model.key_value_heads,
                          .head_dim = model.head_dim,
                          .attention_bias = model.has_bias,
                          .tie_word_embeddings = model.tied};
  }
  return std::nullopt;
}

std::vector<std::string> known_models() {
  std::vector<std::string> names;
  for (const KnownModel& model : kKnownModels) names.emplace_back(model.name);
  return names;
}

}  // namespace prefopt::detail
