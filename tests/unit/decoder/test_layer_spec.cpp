// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <string>
#include <vector>

#include "decoder/families/family.h"
#include "decoder/layer_spec.h"
#include "decoder/network.h"
#include "decoder/packed_layer.h"
#include "decoder/packed_session.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using detail::ModelSpec;

struct Unsupported {
  std::function<void(detail::LayerSpec&)> change;
  std::string text;
};

const std::vector<Unsupported> kUnsupported = {
    {[](auto& layer) { layer.norm = detail::NormKind::kLayer; }, "norm rms, got layer"},
    {[](auto& layer) { layer.norm_adds_one = true; }, "norm_adds_one false, got true"},
    {[](auto& layer) { layer.post_norms = true; }, "post_norms false, got true"},
    {[](auto& layer) { layer.activation = detail::Activation::kGelu; },
     "activation silu, got gelu"},
    {[](auto& layer) { layer.activation = detail::Activation::kGeluTanh; },
     "activation silu, got gelu_tanh"},
    {[](auto& layer) { layer.attention_softcap = 50; }, "attention_softcap 0, got 50"},
    {[](auto& layer) { layer.rope = detail::RopeKind::kNeighbours; },
     "rope halves, got neighbours"},
    {[](auto& layer) { layer.rope = detail::RopeKind::kNone; }, "rope halves, got none"},
    {[](auto& layer) { layer.partial_rotary = 0.5; }, "partial_rotary 1, got 0.5"},
};

/// Llama but for a change of the spec.
class ChangedLlama final : public detail::Family {
 public:
  explicit ChangedLlama(const Unsupported& change)
      : Family({.model_type = "changed", .architecture = "Changed"}), change_(change) {}
  std::string misfit(const DecoderOptions&) const override { return ""; }
  ModelSpec spec(const DecoderOptions& options) const override {
    ModelSpec spec = detail::plain_spec(options);
    change_.change(spec.layer);
    return spec;
  }
  void read(const detail::StrictConfig&, DecoderOptions&) const override {}
  void write(const DecoderOptions&, detail::Json&) const override {}

 private:
  const Unsupported& change_;
};

}  // namespace

TEST_CASE("layer spec: an executor refuses what it does not compute", "[decoder]") {
  CHECK_NOTHROW(detail::check_padded_spec({}, "test"));
  CHECK_NOTHROW(detail::check_packed_spec({}, "test"));
  CHECK_NOTHROW(detail::check_session_spec({}, "test"));
  for (const Unsupported& unsupported : kUnsupported) {
    ModelSpec spec;
    unsupported.change(spec.layer);
    const std::string text = "test: expected " + unsupported.text + "; ";
    CHECK_THROWS_TEXT(detail::check_padded_spec(spec, "test"), ConfigError,
                      text + "the padded forward computes no other");
    CHECK_THROWS_TEXT(detail::check_packed_spec(spec, "test"), ConfigError,
                      text + "the packed forward computes no other");
    CHECK_THROWS_TEXT(detail::check_session_spec(spec, "test"), ConfigError,
                      text + "decoding computes no other");
  }
}

TEST_CASE("layer spec: no model is made that an executor refuses", "[decoder]") {
  for (const Unsupported& unsupported : kUnsupported) {
    const ChangedLlama family(unsupported);
    const detail::AddedFamily added(family);
    DecoderOptions options{.hidden_size = 8, .num_hidden_layers = 1, .num_attention_heads = 2};
    options.num_key_value_heads = 2;
    options.family = "changed";
    CHECK_THROWS_TEXT(
        Decoder(options), ConfigError,
        "decoder: expected " + unsupported.text + "; the padded forward computes no other");
  }
}

TEST_CASE("layer spec: the built-in families have Llama's but for biases and norms", "[decoder]") {
  DecoderOptions options;
  options.head_dim = 16;
  options.qk_norm = true;
  options.sliding_window = 7;
  options.rms_norm_eps = 1e-3;
  const ModelSpec spec = detail::family_named("qwen3", "test").spec(options);
  CHECK(spec.layer.query_key_norm);
  CHECK(spec.layer.query_scale == 0.25);
  CHECK(spec.layer.window == 7);
  CHECK(spec.layer.norm_eps == 1e-3);
  CHECK(spec.embedding_scale == 1);
  CHECK(spec.logits.scale == 1);
  CHECK(spec.logits.softcap == 0);
  CHECK(spec.tied_head);
  CHECK_FALSE(spec.layer.mlp_bias);
  for (const detail::Family* family : detail::families()) {
    CHECK(family->spec(options).layer == spec.layer);
  }
}

}  // namespace prefopt
