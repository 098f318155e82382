// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Qwen 3 (2505.09388): Llama with norms of query and key heads.
class Qwen3 final : public Family {
 public:
  Qwen3()
      : Family({.model_type = "qwen3",
                .architecture = "Qwen3ForCausalLM",
                .gguf = "qwen3",
                .has_window = true,
                .told_by_options = true,
                .head_dim = 128}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit(
        {{"qk_norm", options.qk_norm, true},
         {"attention_output_bias", options.attention_output_bias, options.attention_bias}});
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_optional_windows(config, options);
    read_attention_bias(config, options);
    options.qk_norm = true;
  }

  void read_gguf(const GgufFields&, DecoderOptions& options) const override {
    options.qk_norm = true;
  }

  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
    write_optional_window(options, config);
  }
};

}  // namespace

const Family& qwen3_family() {
  static const Qwen3 family;
  return family;
}

}  // namespace prefopt::detail
