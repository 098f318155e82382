// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Qwen 3 with routed experts (2505.09388), in all layers or in some.
class Qwen3Moe final : public Family {
 public:
  Qwen3Moe()
      : Family({.model_type = "qwen3_moe",
                .architecture = "Qwen3MoeForCausalLM",
                .gguf = "qwen3moe",
                .has_window = true,
                .max_position_embeddings = 32768}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit(
        {{"qk_norm", options.qk_norm, true},
         {"attention_output_bias", options.attention_output_bias, options.attention_bias}});
  }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    const FamilyFields fields(options, where);
    const StrictConfig& config = fields.config();
    ModelSpec spec = plain_spec(options, where);
    ExpertSpec experts =
        read_experts(config, {.count_name = "num_experts", .count = 128, .chosen = 8});
    experts.width = config.size("moe_intermediate_size", 768);
    experts.normalized = config.flag("norm_topk_prob", false);
    const std::int64_t step = config.size("decoder_sparse_step", 1);
    const Json* named = config.find("mlp_only_layers");
    const bool has_dense = named && !named->empty();
    const std::vector<std::int64_t> dense =
        has_dense ? config.tokens("mlp_only_layers") : std::vector<std::int64_t>();
    for (std::int64_t i = 0; i < options.num_hidden_layers; ++i) {
      const bool is_dense = std::find(dense.begin(), dense.end(), i) != dense.end();
      if (!is_dense && (i + 1) % step == 0) {
        spec.layers[static_cast<std::size_t>(i)].experts = experts;
      }
    }
    spec.router_loss = read_router_loss(config);
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    options.qk_norm = true;
    read_attention_bias(config, options);
    keep_fields(config, kept(), options);
    keep_router_loss(config, options);
    read_window_of_all(config, config.flag("use_sliding_window", false), /*absent=*/4096, options);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
    config["use_sliding_window"] = options.sliding_window > 0;
    if (options.sliding_window > 0) config["sliding_window"] = options.sliding_window;
  }
  std::vector<std::string_view> understood() const override {
    std::vector<std::string_view> names = kept();
    names.push_back("output_router_logits");
    return names;
  }
  std::vector<RequiredValue> required() const override { return router_required_values(); }

  // llama.cpp's weights of the chosen experts add up to 1, and all layers have experts.
  void read_gguf(const GgufFields& fields, DecoderOptions& options) const override {
    options.qk_norm = true;
    read_gguf_experts(fields, "num_experts", options);
    set_family_field(options, "norm_topk_prob", true);
    constexpr std::string_view kWidth = "expert_feed_forward_length";
    if (!fields.has(kWidth)) fields.fail(fields.key(kWidth), "none");
    set_family_field(options, "moe_intermediate_size", fields.integer(kWidth));
  }
  void write_gguf(const ModelSpec& spec, GgufFieldWriter& fields) const override {
    write_gguf_experts(spec, fields);
    fields.integer("expert_feed_forward_length", experts_of(spec).width);
  }
  std::vector<std::string_view> gguf_understood() const override {
    return {"expert_count", "expert_used_count", "expert_feed_forward_length"};
  }

 private:
  static std::vector<std::string_view> kept() {
    return {"num_experts",    "num_local_experts",   "num_experts_per_tok", "moe_intermediate_size",
            "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",     "router_aux_loss_coef"};
  }
};

}  // namespace

const Family& qwen3_moe_family() {
  static const Qwen3Moe family;
  return family;
}

}  // namespace prefopt::detail
