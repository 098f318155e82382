// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Mixtral (2401.04088): Mistral with routed experts. Its GGUF files are Llama's.
class Mixtral final : public Family {
 public:
  Mixtral()
      : Family({.model_type = "mixtral",
                .architecture = "MixtralForCausalLM",
                .gguf_written = "llama",
                .has_window = true,
                .max_position_embeddings = 131072,
                .rms_norm_eps = 1e-5,
                .rope_theta = 1000000}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit({{"qk_norm", options.qk_norm, false},
                         {"attention_bias", options.attention_bias, false},
                         {"attention_output_bias", options.attention_output_bias, false}});
  }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    const FamilyFields fields(options, where);
    ModelSpec spec = plain_spec(options, where);
    ExpertSpec experts =
        read_experts(fields.config(), {.count_name = "num_local_experts", .count = 8, .chosen = 2});
    experts.width = options.intermediate_size;
    for (LayerSpec& layer : spec.layers) layer.experts = experts;
    spec.router_loss = read_router_loss(fields.config());
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    expect_attention_bias(config, false, traits.model_type);
    keep_fields(config, kept(), options);
    keep_router_loss(config, options);
    read_window_of_all(config, /*used=*/true, /*absent=*/0, options);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    config["sliding_window"] =
        options.sliding_window > 0 ? Json(options.sliding_window) : Json(nullptr);
  }
  std::vector<std::string_view> understood() const override {
    std::vector<std::string_view> names = kept();
    names.push_back("output_router_logits");
    return names;
  }
  std::vector<RequiredValue> required() const override { return router_required_values(); }
  void read_gguf(const GgufFields& fields, DecoderOptions& options) const override {
    read_gguf_experts(fields, "num_local_experts", options);
  }
  void write_gguf(const ModelSpec& spec, GgufFieldWriter& fields) const override {
    write_gguf_experts(spec, fields);
  }
  std::vector<std::string_view> gguf_understood() const override {
    return {"expert_count", "expert_used_count"};
  }
  std::vector<TensorName> tensor_names() const override {
    return {{".mlp.gate.", ".block_sparse_moe.gate."},
            {".mlp.experts.", ".block_sparse_moe.experts."},
            {".gate_proj.", ".w1."},
            {".down_proj.", ".w2."},
            {".up_proj.", ".w3."}};
  }

 private:
  static std::vector<std::string_view> kept() {
    return {"num_local_experts", "num_experts_per_tok", "router_aux_loss_coef"};
  }
};

}  // namespace

const Family& mixtral_family() {
  static const Mixtral family;
  return family;
}

}  // namespace prefopt::detail
