// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Qwen 2 and 2.5 (2407.10671): Llama with biases of query, key and value.
class Qwen2 final : public Family {
 public:
  Qwen2()
      : Family({.model_type = "qwen2",
                .architecture = "Qwen2ForCausalLM",
                .gguf = "qwen2",
                .has_window = true,
                .told_by_options = true}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit({{"qk_norm", options.qk_norm, false},
                         {"attention_bias", options.attention_bias, true},
                         {"attention_output_bias", options.attention_output_bias, false}});
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_optional_windows(config, options);
    options.attention_bias = true;
    expect_attention_bias(config, true, traits.model_type);
  }

  void read_gguf(const GgufFields&, DecoderOptions& options) const override {
    options.attention_bias = true;
  }

  void write(const DecoderOptions& options, Json& config) const override {
    write_optional_window(options, config);
  }
};

}  // namespace

const Family& qwen2_family() {
  static const Qwen2 family;
  return family;
}

}  // namespace prefopt::detail
