// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "decoder/families/family.h"
#include "decoder/layer_spec.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::test_layer_spec {
namespace {

using detail::LayerSpec;
using detail::ModelSpec;

DecoderOptions three_layers() {
  DecoderOptions options;
  options.num_hidden_layers = 3;
  options.head_dim = 16;
  options.rms_norm_eps = 1e-3;
  return options;
}

ModelSpec spec_of(const std::string& family, const DecoderOptions& options) {
  return detail::family_named(family, "test").spec(options, "test");
}

std::vector<std::int64_t> windows(const ModelSpec& spec) {
  std::vector<std::int64_t> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.window);
  return windows;
}

}  // namespace

TEST_CASE("layer spec: the first families have Llama's but for biases and norms", "[decoder]") {
  DecoderOptions options = three_layers();
  options.qk_norm = true;
  options.sliding_window = 7;
  const ModelSpec spec = spec_of("qwen3", options);
  REQUIRE(spec.layers.size() == 3);
  CHECK(spec.layers[0].query_key_norm == detail::QueryKeyNorm::kHead);
  CHECK(spec.layers[0].query_scale == 0.25);
  CHECK(windows(spec) == std::vector<std::int64_t>{7, 7, 7});
  CHECK(spec.layers[0].norm.eps == 1e-3);
  CHECK(spec.norm.eps == 1e-3);
  CHECK(spec.embedding_scale == 1);
  CHECK(spec.logits.scale == 1);
  CHECK(spec.logits.softcap == 0);
  CHECK(spec.tied_head);
  CHECK_FALSE(spec.layers[0].mlp_bias);
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    CHECK((spec_of(family, options).layers == spec.layers));
  }
}

TEST_CASE("layer spec: layers of two kinds", "[decoder]") {
  DecoderOptions options = three_layers();
  options.sliding_window = 5;
  detail::set_sliding_layers({true, false, true}, options);
  CHECK(windows(spec_of("qwen2", options)) == std::vector<std::int64_t>{5, 0, 5});

  detail::set_rope_pair(options, {.full = {.theta = 300}, .sliding = {.theta = 30}});
  const ModelSpec spec = spec_of("gemma3_text", options);
  CHECK(spec.layers[0].rope == 1);
  CHECK(spec.layers[1].rope == 0);
  CHECK(spec.ropes.at(0).theta == 300);
  CHECK(spec.ropes.at(1).theta == 30);
}

TEST_CASE("layer spec: limits of a sequence", "[decoder]") {
  ModelSpec spec{.layers = {}, .ropes = {{}, {.type = detail::RopeType::kDynamic, .context = 9}}};
  CHECK(spec.longest() == 9);
  CHECK(spec.rope_boundary() == 0);
  spec.ropes = {{.type = detail::RopeType::kLongrope, .context = 8},
                {.type = detail::RopeType::kLongrope, .context = 6}};
  CHECK(spec.longest() == 0);
  CHECK(spec.rope_boundary() == 6);
}

TEST_CASE("layer spec: fields of a family are an object of the right types", "[decoder]") {
  DecoderOptions options = three_layers();
  options.family = "gemma2";
  options.family_fields = "[]";
  CHECK_THROWS_TEXT(Decoder(options), ConfigError, "family_fields: expected an object, got []");
  options.family_fields = R"({"query_pre_attn_scalar": 0})";
  CHECK_THROWS_TEXT(Decoder(options), CheckpointError,
                    "decoder: expected query_pre_attn_scalar above 0, got 0");
  options.family_fields = R"({"layer_types": ["full_attention"]})";
  CHECK_THROWS_TEXT(Decoder(options), CheckpointError,
                    "decoder: expected layer_types of 3 layers, got 1");
}

}  // namespace prefopt::test_layer_spec
