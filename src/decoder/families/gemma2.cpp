// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Gemma 2 (2408.00118): norms by 1 + weight on both sides of attention and feed-forward, windows
/// in every other layer, soft-caps of scores and logits, GeGLU.
class Gemma2 final : public Family {
 public:
  Gemma2()
      : Family({.model_type = "gemma2",
                .architecture = "Gemma2ForCausalLM",
                .gguf = "gemma2",
                .gguf_norms_add_one = true,
                .gguf_slides = true,
                .has_window = true,
                .head_dim = 256,
                .max_position_embeddings = 8192,
                .tie_word_embeddings = true}) {}

  std::string misfit(const DecoderOptions& options) const override { return llama_misfit(options); }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    const FamilyFields fields(options, where);
    ModelSpec spec = gemma_spec(options, where);
    spec.logits.softcap = fields.softcap("final_logit_softcapping");
    for (LayerSpec& layer : spec.layers) {
      layer.attention_softcap = fields.softcap("attn_logit_softcapping");
    }
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_attention_bias(config, options);
    keep_fields(config, understood(), options);
    // Present as null, the caps are off; absent, they are transformers' defaults.
    if (!config.names("attn_logit_softcapping")) {
      set_family_field(options, "attn_logit_softcapping", 50);
    }
    if (!config.names("final_logit_softcapping")) {
      set_family_field(options, "final_logit_softcapping", 30);
    }
    read_windows(config, slides, /*absent=*/4096, options);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    write_gemma(options, config);
    for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping"}) {
      config[name] = nullptr;
    }
  }
  std::vector<std::string_view> understood() const override {
    return {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"};
  }
  std::vector<RequiredValue> required() const override { return gemma_required_values(); }

  // Where the file says nothing, llama.cpp's defaults hold.
  void read_gguf(const GgufFields& fields, DecoderOptions& options) const override {
    const auto read = [&](std::string_view name, double absent) {
      set_family_field(options, name, fields.has(name) ? fields.real(name) : absent);
    };
    read("attn_logit_softcapping", 50);
    read("final_logit_softcapping", 30);
    if (options.sliding_window == 0) options.sliding_window = 4096;
    read_gguf_gemma(/*layers_of_27b=*/46, slides, options);
  }
  void write_gguf(const ModelSpec& spec, GgufFieldWriter& fields) const override {
    const double of_scores = spec.layers.front().attention_softcap;
    if (of_scores > 0) fields.real("attn_logit_softcapping", of_scores);
    if (spec.logits.softcap > 0) fields.real("final_logit_softcapping", spec.logits.softcap);
  }
  std::vector<std::string_view> gguf_understood() const override {
    return {"attn_logit_softcapping", "final_logit_softcapping"};
  }
  std::vector<GgufPart> gguf_parts() const override {
    return {{"ffn_norm", "pre_feedforward_layernorm"}};
  }

 private:
  static bool slides(std::int64_t layer) { return layer % 2 == 0; }
};

}  // namespace

const Family& gemma2_family() {
  static const Gemma2 family;
  return family;
}

}  // namespace prefopt::detail
