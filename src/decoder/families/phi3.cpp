// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Phi-3 (2404.14219), Phi-3.5 and Phi-4: Llama with fused matrices, a share of each head rotated,
/// and long contexts by LongRoPE (2402.13753).
class Phi3 final : public Family {
 public:
  Phi3()
      : Family({.model_type = "phi3",
                .architecture = "Phi3ForCausalLM",
                .gguf = "phi3",
                .has_partial_rotary = true,
                .has_window = true,
                .needs_key_value_heads = false,
                .max_position_embeddings = 4096,
                .rms_norm_eps = 1e-5}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit(
        {{"qk_norm", options.qk_norm, false}, {"attention_bias", options.attention_bias, false}});
  }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    ModelSpec spec = plain_spec(options, where);
    for (LayerSpec& layer : spec.layers) layer.fused = true;
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    expect_attention_bias(config, false, traits.model_type);
    read_window_of_all(config, /*used=*/true, /*absent=*/0, options);
  }

  // transformers' class has an original_max_position_embeddings of 4096 even where the config has
  // none, and takes the names "su" and "yarn" of older configs for longrope.
  void read_rope(const StrictConfig& config, DecoderOptions& options) const override {
    RopeDefaults defaults = rope_defaults(config, traits.rope_theta, options);
    defaults.may_be_partial = true;
    if (defaults.original_longest == 0) defaults.original_longest = 4096;
    Json renamed = Json::object();
    for (const char* name : {"rope_scaling", "rope_parameters", "rope_theta"}) {
      if (const Json* value = config.find(name)) renamed[name] = *value;
    }
    for (Json& group : renamed) {
      for (const char* name : {"type", "rope_type"}) {
        const bool is_older = group.is_object() && (group.value(name, Json()) == "su" ||
                                                    group.value(name, Json()) == "yarn");
        if (is_older) group[name] = "longrope";
      }
    }
    const RopeSpec rope = read_one_rope(StrictConfig(renamed, config.path()), defaults);
    if (rope.type != RopeType::kDefault && rope.type != RopeType::kLongrope) {
      config.fail(R"(a rope_type of "default" or "longrope" in phi3)", "another one");
    }
    set_rope(options, rope);
  }

  void write(const DecoderOptions& options, Json& config) const override {
    config["sliding_window"] =
        options.sliding_window > 0 ? Json(options.sliding_window) : Json(nullptr);
    const RopeSpec rope = rope_of(options, FamilyFields(options, "decoder"));
    if (rope.type == RopeType::kLongrope) {
      config["original_max_position_embeddings"] = rope.context;
    }
  }
  // auto_map names an older copy of what transformers has itself.
  std::vector<std::string_view> understood() const override {
    return {"partial_rotary_factor", "auto_map"};
  }
  std::vector<RequiredValue> required() const override {
    return {{"full_attn_mod", 1}, {"interpolate_factor", 1}};
  }

  std::vector<GgufPart> gguf_parts() const override { return {{"ffn_up", "mlp.gate_up_proj"}}; }
  void write_gguf(const ModelSpec& spec, GgufFieldWriter& fields) const override {
    const RopeSpec& rope = spec.ropes.front();
    if (rope.type == RopeType::kLongrope) {
      fields.real("rope.scaling.attn_factor", rope.attention_factor);
    }
  }
  std::vector<std::string_view> gguf_understood() const override {
    return {"rope.scaling.attn_factor"};
  }
};

}  // namespace

const Family& phi3_family() {
  static const Phi3 family;
  return family;
}

}  // namespace prefopt::detail
