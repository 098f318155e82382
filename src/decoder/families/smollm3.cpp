// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/text.h"
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// SmolLM 3: Llama with layers that rotate nothing, every fourth one unless the config says more.
class Smollm3 final : public Family {
 public:
  Smollm3()
      : Family({.model_type = "smollm3",
                .architecture = "SmolLM3ForCausalLM",
                .gguf = "smollm3",
                .gguf_neighbours = true,
                .has_window = true,
                .needs_key_value_heads = false,
                .max_position_embeddings = 32768,
                .rope_theta = 2000000,
                .tie_word_embeddings = true}) {}

  std::string misfit(const DecoderOptions& options) const override { return llama_misfit(options); }

  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    const FamilyFields fields(options, where);
    ModelSpec spec = plain_spec(options, where);
    const std::vector<bool> rotated = rotated_layers(fields.config(), options);
    for (std::size_t i = 0; i < rotated.size(); ++i) {
      if (!rotated[i]) spec.layers[i].rope = LayerSpec::kNoRope;
      spec.layers[i].mlp_bias = fields.config().flag("mlp_bias", false);
    }
    return spec;
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_attention_bias(config, options);
    keep_fields(config, {"no_rope_layers", "no_rope_layer_interval", "mlp_bias"}, options);
    const std::vector<bool> rotated = rotated_layers(config, options);
    const bool used = config.flag("use_sliding_window", false);
    read_windows(
        config, [&](std::int64_t i) { return used && !rotated[static_cast<std::size_t>(i)]; },
        /*absent=*/0, options);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
    write_layer_windows(options, config);
    config["use_sliding_window"] = options.sliding_window > 0;
  }
  std::vector<std::string_view> understood() const override {
    return {"no_rope_layers", "no_rope_layer_interval", "mlp_bias", "pretraining_tp"};
  }

 private:
  // no_rope_layers has 1 for a layer that rotates.
  static std::vector<bool> rotated_layers(const StrictConfig& config,
                                          const DecoderOptions& options) {
    const std::int64_t interval = config.size("no_rope_layer_interval", 4);
    const Json* flags = config.find("no_rope_layers");
    const auto is_flag = [](const Json& flag) { return flag == 0 || flag == 1; };
    const bool fits =
        !flags || (flags->is_array() && std::ssize(*flags) >= options.num_hidden_layers &&
                   std::all_of(flags->begin(), flags->end(), is_flag));
    if (!fits) config.fail("no_rope_layers with 0 or 1 for each layer", shown_json(*flags));
    std::vector<bool> rotated;
    for (std::int64_t i = 0; i < options.num_hidden_layers; ++i) {
      rotated.push_back(flags ? (*flags)[static_cast<std::size_t>(i)] == 1
                              : (i + 1) % interval != 0);
    }
    return rotated;
  }
};

}  // namespace

const Family& smollm3_family() {
  static const Smollm3 family;
  return family;
}

}  // namespace prefopt::detail
