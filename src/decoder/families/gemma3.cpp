// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// The language model of Gemma 3 (2503.19786): Gemma 2 with norms of query and key heads in place
/// of the caps, and other rotary positions in the layers that slide.
class Gemma3 final : public Family {
 public:
  Gemma3()
      : Family({.model_type = "gemma3_text",
                .architecture = "Gemma3ForCausalLM",
                .gguf = "gemma3",
                .gguf_norms_add_one = true,
                .gguf_slides = true,
                .sliding_rope_theta = kLocalTheta,
                .has_window = true,
                .head_dim = 256,
                .max_position_embeddings = 131072,
                .rope_theta = 1000000,
                .tie_word_embeddings = true}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit(
        {{"qk_norm", options.qk_norm, true},
         {"attention_output_bias", options.attention_output_bias, options.attention_bias}});
  }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    ModelSpec spec = gemma_spec(options, where);
    spec.logits.softcap = FamilyFields(options, where).softcap("final_logit_softcapping");
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    options.qk_norm = true;
    read_attention_bias(config, options);
    keep_fields(config, {"query_pre_attn_scalar", "final_logit_softcapping"}, options);
    const std::int64_t pattern = config.size("sliding_window_pattern", 6);
    read_windows(
        config, [&](std::int64_t layer) { return (layer + 1) % pattern != 0; },
        /*absent=*/4096, options);
  }
  void read_rope(const StrictConfig& config, DecoderOptions& options) const override {
    set_rope_pair(options, read_rope_pair(config, rope_defaults(config, traits.rope_theta, options),
                                          config.number("rope_local_base_freq", kLocalTheta)));
  }
  void write(const DecoderOptions& options, Json& config) const override {
    write_gemma(options, config);
  }
  std::vector<std::string_view> understood() const override {
    return {"query_pre_attn_scalar", "final_logit_softcapping", "sliding_window_pattern",
            "_sliding_window_pattern", "rope_local_base_freq"};
  }
  void read_gguf(const GgufFields& fields, DecoderOptions& options) const override {
    options.qk_norm = true;
    constexpr std::string_view kSoftcap = "final_logit_softcapping";
    if (fields.has(kSoftcap)) set_family_field(options, kSoftcap, fields.real(kSoftcap));
    read_gguf_gemma(/*layers_of_27b=*/62, [](std::int64_t i) { return (i + 1) % 6 != 0; }, options);
  }
  void write_gguf(const ModelSpec& spec, GgufFieldWriter& fields) const override {
    if (spec.logits.softcap > 0) fields.real("final_logit_softcapping", spec.logits.softcap);
    fields.real("rope.freq_base_swa", spec.ropes.back().theta);
  }
  std::vector<std::string_view> gguf_understood() const override {
    return {"final_logit_softcapping", "rope.freq_base_swa"};
  }
  std::vector<GgufPart> gguf_parts() const override {
    return {{"ffn_norm", "pre_feedforward_layernorm"}};
  }
  std::vector<RequiredValue> required() const override {
    std::vector<RequiredValue> required = gemma_required_values();
    required.push_back({"attn_logit_softcapping", nullptr});  // transformers reads it nowhere
    return required;
  }

 private:
  static constexpr double kLocalTheta = 10000;
};

}  // namespace

const Family& gemma3_family() {
  static const Gemma3 family;
  return family;
}

}  // namespace prefopt::detail
