// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Llama 1 to 3 (2302.13971, 2407.21783), and what took over its form: SmolLM, TinyLlama, Yi.
class Llama final : public Family {
 public:
  Llama()
      : Family({.model_type = "llama",
                .architecture = "LlamaForCausalLM",
                .gguf = "llama",
                .gguf_neighbours = true,
                .told_by_options = true,
                .needs_key_value_heads = false}) {}

  std::string misfit(const DecoderOptions& options) const override { return llama_misfit(options); }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_attention_bias(config, options);
    read_window_of_all(config, /*used=*/false, /*absent=*/0, options);
  }

  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
    config["mlp_bias"] = false;
    config["pretraining_tp"] = 1;
  }

  // transformers computes no window in this family, whatever the field says.
  std::vector<RequiredValue> required() const override { return {{"sliding_window", nullptr}}; }
};

}  // namespace

const Family& llama_family() {
  static const Llama family;
  return family;
}

}  // namespace prefopt::detail
