// SPDX-License-Identifier: Apache-2.0
#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Mistral 7B (2310.06825): Llama without biases, with a window. Its GGUF files are Llama's.
class Mistral final : public Family {
 public:
  Mistral()
      : Family({.model_type = "mistral",
                .architecture = "MistralForCausalLM",
                .gguf_written = "llama",
                .has_window = true,
                .told_by_options = true}) {}

  std::string misfit(const DecoderOptions& options) const override {
    return first_misfit({{"qk_norm", options.qk_norm, false},
                         {"attention_bias", options.attention_bias, false},
                         {"attention_output_bias", options.attention_output_bias, false}});
  }

  void read(const StrictConfig& config, DecoderOptions& options) const override {
    read_window_of_all(config, /*used=*/true, /*absent=*/4096, options);
    expect_attention_bias(config, false, traits.model_type);
  }

  void write(const DecoderOptions& options, Json& config) const override {
    const std::int64_t window = options.sliding_window;
    config["sliding_window"] = window > 0 ? Json(window) : Json(nullptr);
  }
};

}  // namespace

const Family& mistral_family() {
  static const Mistral family;
  return family;
}

}  // namespace prefopt::detail
