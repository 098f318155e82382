// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// OLMo 2 (2501.00656): norms behind attention and feed-forward alone, and of all queries and all
/// keys of a token as one vector.
class Olmo2 final : public Family {
 public:
  Olmo2()
      : Family({.model_type = "olmo2",
                .architecture = "Olmo2ForCausalLM",
                .gguf = "olmo2",
                .needs_key_value_heads = false,
                .rms_norm_eps = 1e-5}) {}

  std::string misfit(const DecoderOptions& options) const override { return olmo_misfit(options); }
  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    return olmo_spec(options, where);
  }
  void read(const StrictConfig& config, DecoderOptions& options) const override {
    options.qk_norm = true;
    read_attention_bias(config, options);
    read_window_of_all(config, /*used=*/false, /*absent=*/0, options);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
  }
  // transformers computes no window in this family, whatever the field says.
  std::vector<RequiredValue> required() const override { return {{"sliding_window", nullptr}}; }

  void read_gguf(const GgufFields& fields, DecoderOptions& options) const override {
    options.qk_norm = true;
    if (options.sliding_window == 0) return;
    fields.fail("an olmo2 decoder without attention.sliding_window, which OLMo 3 has",
                fmt::format("{}", options.sliding_window));
  }
  std::vector<GgufPart> gguf_parts() const override {
    return {{"post_attention_norm", "post_attention_layernorm"}};
  }
};

}  // namespace

const Family& olmo2_family() {
  static const Olmo2 family;
  return family;
}

}  // namespace prefopt::detail
