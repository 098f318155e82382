// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Granite 3 (dense): Llama with factors of embeddings, attention scores, residuals and logits.
class Granite final : public Family {
 public:
  Granite()
      : Family({.model_type = "granite",
                .architecture = "GraniteForCausalLM",
                .gguf = "granite",
                .gguf_neighbours = true,
                .needs_key_value_heads = false}) {}

  std::string misfit(const DecoderOptions& options) const override { return llama_misfit(options); }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    const FamilyFields fields(options, where);
    ModelSpec spec = plain_spec(options, where);
    spec.embedding_scale = fields.positive("embedding_multiplier", 1);
    spec.logits.scale = 1 / fields.positive("logits_scaling", 1);
    for (LayerSpec& layer : spec.layers) {
      layer.query_scale = fields.positive("attention_multiplier", 1);
      layer.residual_scale = fields.positive("residual_multiplier", 1);
      layer.mlp_bias = fields.config().flag("mlp_bias", false);
    }
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_attention_bias(config, options);
    read_window_of_all(config, /*used=*/false, /*absent=*/0, options);
    keep_fields(config, understood(), options);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
  }
  std::vector<std::string_view> understood() const override {
    return {"embedding_multiplier", "logits_scaling", "attention_multiplier", "residual_multiplier",
            "mlp_bias"};
  }
  // transformers computes no window in this family, whatever the field says.
  std::vector<RequiredValue> required() const override { return {{"sliding_window", nullptr}}; }

  void read_gguf(const GgufFields& fields, DecoderOptions& options) const override {
    const auto keep = [&](std::string_view gguf, std::string_view name) {
      if (fields.has(gguf)) set_family_field(options, name, fields.real(gguf));
    };
    keep("embedding_scale", "embedding_multiplier");
    keep("logit_scale", "logits_scaling");
    keep("residual_scale", "residual_multiplier");
    // llama.cpp's default is 1 / sqrt(head_dim), not 1.
    if (fields.has("attention.scale") && fields.real("attention.scale") != 0) {
      keep("attention.scale", "attention_multiplier");
    } else {
      set_family_field(options, "attention_multiplier",
                       1 / std::sqrt(static_cast<double>(gguf_head_dim(options))));
    }
    if (fields.file().find_tensor("blk.0.ffn_gate.bias")) {
      set_family_field(options, "mlp_bias", true);
    }
  }
  void write_gguf(const ModelSpec& spec, GgufFieldWriter& fields) const override {
    fields.real("embedding_scale", spec.embedding_scale);
    fields.real("logit_scale", 1 / spec.logits.scale);
    fields.real("residual_scale", spec.layers.front().residual_scale);
    fields.real("attention.scale", spec.layers.front().query_scale);
  }
  // llama.cpp rotates nothing without it.
  std::vector<RequiredValue> gguf_required() const override {
    return {{"rope.scaling.finetuned", true}};
  }
  std::vector<std::string_view> gguf_understood() const override {
    return {"embedding_scale", "logit_scale", "residual_scale", "attention.scale"};
  }
};

}  // namespace

const Family& granite_family() {
  static const Granite family;
  return family;
}

}  // namespace prefopt::detail
