// SPDX-License-Identifier: Apache-2.0
#pragma once

// A family as somebody would add one: this class in a file of src/decoder/families, and a line in
// the list of families.cpp. It differs from the built-in ones wherever an executor can follow.

#include <cmath>

#include "decoder/families/family.h"

namespace prefopt::testing_support {

class ToyFamily final : public detail::Family {
 public:
  ToyFamily()
      : Family({.model_type = "toy",
                .architecture = "ToyForCausalLM",
                .gguf = "toy",
                .rms_norm_eps = 1e-4,
                .tie_word_embeddings = true}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return detail::first_misfit(
        {{"qk_norm", options.qk_norm, true}, {"attention_bias", options.attention_bias, false}});
  }

  detail::ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    detail::ModelSpec spec = detail::plain_spec(options, where);
    spec.embedding_scale = std::sqrt(static_cast<double>(options.hidden_size));
    for (detail::LayerSpec& layer : spec.layers) {
      layer.query_scale = 0.3;
      layer.mlp_bias = true;
    }
    spec.logits = {.scale = 0.5, .softcap = 4};
    return spec;
  }

  void read(const detail::StrictConfig&, DecoderOptions& options) const override {
    options.qk_norm = true;
  }
  void read_gguf(const detail::GgufFields&, DecoderOptions& options) const override {
    options.qk_norm = true;
  }
  void write(const DecoderOptions&, detail::Json& config) const override {
    config["mlp_bias"] = true;
    config["final_logit_softcapping"] = 4.0;
  }
  std::vector<detail::RequiredValue> required() const override {
    return {{"mlp_bias", true}, {"final_logit_softcapping", 4}};
  }
  std::vector<detail::TensorName> tensor_names() const override {
    return {{"mlp.gate_proj", "mlp.w1"}};
  }
};

}  // namespace prefopt::testing_support
