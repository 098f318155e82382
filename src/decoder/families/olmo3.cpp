// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// OLMo 3 (2512.13961): OLMo 2 with windows in three of four layers, whose rotary positions are
/// never stretched.
class Olmo3 final : public Family {
 public:
  Olmo3()
      : Family({.model_type = "olmo3",
                .architecture = "Olmo3ForCausalLM",
                .has_window = true,
                .needs_key_value_heads = false,
                .rms_norm_eps = 1e-5,
                .rope_theta = kTheta}) {}

  std::string misfit(const DecoderOptions& options) const override { return olmo_misfit(options); }
  ModelSpec spec(const DecoderOptions& options, std::string_view where) const override {
    return olmo_spec(options, where);
  }
  void read(const StrictConfig& config, DecoderOptions& options) const override {
    options.qk_norm = true;
    read_attention_bias(config, options);
    read_windows(
        config, [](std::int64_t layer) { return (layer + 1) % 4 != 0; }, /*absent=*/4096, options);
  }
  void read_rope(const StrictConfig& config, DecoderOptions& options) const override {
    const RopePair ropes =
        read_rope_pair(config, rope_defaults(config, traits.rope_theta, options), kTheta);
    // transformers gives a rope_theta outside of the groups to the layers that see all alone.
    if (const double theta = config.number("rope_theta", kTheta); theta != kTheta) {
      config.fail("rope_theta 500000, or others in rope_parameters of both types of layers",
                  fmt::format("{}", theta));
    }
    set_rope_pair(options, ropes);
  }
  void write(const DecoderOptions& options, Json& config) const override {
    config["attention_bias"] = options.attention_bias;
    write_layer_windows(options, config);
  }

 private:
  static constexpr double kTheta = 500000;
};

}  // namespace

const Family& olmo3_family() {
  static const Olmo3 family;
  return family;
}

}  // namespace prefopt::detail
