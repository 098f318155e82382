// SPDX-License-Identifier: Apache-2.0
#include <torch/types.h>

#include <string>
#include <vector>

#include "decoder/model_shape.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/tiny_llama.h"

namespace prefopt::test_model_shape {
namespace {

using detail::ModelShape;

/// Whether a model and its shape have the same tensors, and the shape's take no memory.
void check_same(const Decoder& model, const ModelShape& shape) {
  const auto expected = model.named_parameters();
  const auto parameters = shape.parameters();
  REQUIRE(parameters.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(expected[i].name);
    CHECK(parameters[i].name == expected[i].name);
    CHECK(parameters[i].value.sizes() == expected[i].value.sizes());
    CHECK(parameters[i].value.scalar_type() == expected[i].value.scalar_type());
    CHECK(parameters[i].value.requires_grad() == expected[i].value.requires_grad());
    CHECK(parameters[i].value.storage().nbytes() <= 8);
  }
}

DecoderOptions sizes(const std::string& family, std::int64_t layers = 2) {
  return {.family = family,
          .vocab_size = 13,
          .hidden_size = 12,
          .intermediate_size = 10,
          .num_hidden_layers = layers,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 6};
}

}  // namespace

TEST_CASE("model shape: the tensors of a fresh decoder, without memory", "[decoder]") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const bool ties : {true, false}) {
      DecoderOptions options = sizes("llama");
      options.attention_bias = true;
      options.tie_word_embeddings = ties;
      Decoder model(options);
      model.to(dtype);
      check_same(model, ModelShape(options, dtype));
    }
  }
}

TEST_CASE("model shape: with adapters of every kind", "[decoder]") {
  const std::vector<LoraOptions> adapters = {
      {.r = 3},
      {.r = 2, .target_modules = {"q_proj"}, .layers_to_transform = "[1]"},
      {.r = 2, .target_modules = {"o_proj"}, .use_dora = true},
      {.r = 2, .target_modules = {"v_proj"}, .lora_bias = true},
      {.r = 2, .rank_pattern = R"({"v_proj": 5})", .modules_to_save = {"norm"}},
      {.r = 4, .target_modules = {"embed_tokens", "lm_head", "up_proj"}}};
  for (const LoraOptions& adapter : adapters) {
    CAPTURE(options_to_json(adapter));
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      Decoder model(sizes("llama"));
      model.to(dtype);
      model.add_adapter(adapter);
      ModelShape shape(sizes("llama"), dtype);
      shape.add_adapter(adapter);
      check_same(model, shape);
    }
  }
}

TEST_CASE("model shape: of folders and GGUF files of all families", "[decoder]") {
  const std::string data = PREFOPT_TEST_DATA_DIR;
  for (const std::string& path :
       {testing_support::kPolicy, data + "/gguf/tiny-qwen2.gguf", data + "/families/phi3",
        data + "/families/gemma2", data + "/families/mixtral", data + "/families/qwen3_moe",
        data + "/families/olmo2", data + "/families/qwen3"}) {
    CAPTURE(path);
    for (const std::string dtype : {"keep", "bfloat16", "float64"}) {
      check_same(*Decoder::load(path, dtype), ModelShape::read(path, dtype));
    }
  }
}

TEST_CASE("model shape: errors are those of the model", "[decoder]") {
  CHECK_THROWS_TEXT(ModelShape::read("nowhere", "float32"), CheckpointError,
                    "nowhere/config.json: expected a readable file, got No such file or directory");
  CHECK_THROWS_TEXT(ModelShape(sizes("llama", 0), at::kFloat), ConfigError,
                    "decoder: expected num_hidden_layers in [1, 4096], got 0");
  const auto seen = [](const LoraOptions& adapter) {
    ModelShape shape(sizes("llama"), at::kFloat);
    shape.add_adapter(adapter);
    return shape.seen();
  };
  CHECK_THROWS_TEXT(
      seen({.r = 2, .target_modules = {"q_proj"}, .use_dora = true}), ConfigError,
      "model.lora: expected low-rank products of linear maps, got use_dora on "
      "'model.layers.0.self_attn.q_proj'; a plan does not count what makes a whole matrix");
  CHECK_THROWS_TEXT(
      seen({.r = 2, .target_modules = {"lm_head"}}), ConfigError,
      "model.lora: expected low-rank products of linear maps, got an adapter on 'lm_head'; a "
      "plan does not count what makes a whole matrix");
}

}  // namespace prefopt::test_model_shape
