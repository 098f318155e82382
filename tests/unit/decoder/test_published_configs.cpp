// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>

#include "decoder/decoder_config.h"
#include "decoder/families/family.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt::test_published_configs {
namespace {

using detail::LayerSpec;
using detail::ModelSpec;
using nlohmann::json;

ModelSpec spec_of(const json& config) {
  const testing_support::TempDir dir;
  testing_support::put(dir.file("config.json"), config.dump());
  const DecoderOptions options = detail::read_decoder_config(dir.file("config.json")).options;
  return detail::family_named(options.family, "test").spec(options, "test");
}

void refuse(const json& config, const std::string& text) {
  const testing_support::TempDir dir;
  const std::string path = dir.file("config.json");
  testing_support::put(path, config.dump());
  CHECK_THROWS_TEXT(detail::read_decoder_config(path), CheckpointError,
                    path + ": expected " + text);
}

/// The sizes of the models, but for the number of layers.
json base(const std::string& model_type, int layers) {
  return {{"model_type", model_type},  {"num_hidden_layers", layers},
          {"vocab_size", 64},          {"hidden_size", 3072},
          {"intermediate_size", 128},  {"num_attention_heads", 24},
          {"num_key_value_heads", 8},  {"attention_dropout", 0.0},
          {"use_cache", true},         {"transformers_version", "4.51.0"},
          {"torch_dtype", "bfloat16"}, {"initializer_range", 0.02},
          {"rms_norm_eps", 1e-6},      {"bos_token_id", 1},
          {"eos_token_id", {1, 2}},    {"attention_bias", false}};
}

}  // namespace

TEST_CASE("published configs: Gemma 2 and 3", "[decoder]") {
  json config = base("gemma2", 4);
  config.update({{"head_dim", 256},
                 {"hidden_act", "gelu_pytorch_tanh"},
                 {"hidden_activation", "gelu_pytorch_tanh"},
                 {"cache_implementation", "hybrid"},
                 {"attn_logit_softcapping", 50.0},
                 {"final_logit_softcapping", 30.0},
                 {"query_pre_attn_scalar", 144},
                 {"max_position_embeddings", 8192},
                 {"rope_theta", 10000.0},
                 {"sliding_window", 4096}});
  ModelSpec spec = spec_of(config);
  CHECK(spec.tied_head);
  CHECK(spec.logits.softcap == 30);
  CHECK(spec.layers[0].attention_softcap == 50);
  CHECK(spec.layers[0].query_scale == Approx(1.0 / 12));
  CHECK(spec.layers[0].window == 4096);
  CHECK(spec.layers[1].window == 0);
  config["hidden_activation"] = "gelu";
  refuse(config, R"(hidden_activation to be "gelu_pytorch_tanh", got "gelu")");

  config = base("gemma3_text", 7);
  config.update({{"head_dim", 256},
                 {"hidden_activation", "gelu_pytorch_tanh"},
                 {"cache_implementation", "hybrid"},
                 {"attn_logit_softcapping", nullptr},
                 {"final_logit_softcapping", nullptr},
                 {"query_pre_attn_scalar", 256},
                 {"rope_local_base_freq", 10000},
                 {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}},
                 {"rope_theta", 1000000},
                 {"sliding_window", 512},
                 {"sliding_window_pattern", 6}});
  spec = spec_of(config);
  CHECK(spec.layers[4].window == 512);
  CHECK(spec.layers[5].window == 0);
  CHECK(spec.layers[6].window == 512);
  CHECK(spec.ropes.at(0).factor == 8);
  CHECK(spec.ropes.at(0).theta == 1000000);
  CHECK(spec.ropes.at(1).theta == 10000);
  CHECK(spec.ropes.at(1).type == detail::RopeType::kDefault);
  config["attn_logit_softcapping"] = 50.0;
  refuse(config, "attn_logit_softcapping to be null, got 50.0");
}

TEST_CASE("published configs: Phi-4-mini, SmolLM 3, OLMo 3", "[decoder]") {
  json config = base("phi3", 2);
  const std::vector<double> factors(48, 1.5);
  config.update({{"auto_map", {{"AutoModelForCausalLM", "modeling_phi3.Phi3ForCausalLM"}}},
                 {"embd_pdrop", 0.0},
                 {"full_attn_mod", 1},
                 {"interpolate_factor", 1},
                 {"lm_head_bias", false},
                 {"mlp_bias", false},
                 {"max_position_embeddings", 131072},
                 {"original_max_position_embeddings", 4096},
                 {"partial_rotary_factor", 0.75},
                 {"resid_pdrop", 0.0},
                 {"rope_scaling",
                  {{"long_factor", factors}, {"short_factor", factors}, {"type", "longrope"}}},
                 {"rope_theta", 10000.0},
                 {"sliding_window", 262144},
                 {"tie_word_embeddings", true}});
  ModelSpec spec = spec_of(config);
  CHECK(spec.layers[0].fused);
  CHECK(spec.layers[1].window == 262144);
  CHECK(spec.ropes.at(0).context == 4096);
  CHECK(spec.ropes.at(0).turned(128) == 96);
  CHECK(spec.ropes.at(0).attention_factor == Approx(std::sqrt(1 + 5.0 / 12)));
  config["rope_scaling"]["long_factor"].push_back(1);
  refuse(config, "48 numbers in short_factor and long_factor, got 49");

  config = base("smollm3", 4);
  config.update({{"layer_types", std::vector<std::string>(4, "full_attention")},
                 {"max_window_layers", 28},
                 {"mlp_bias", false},
                 {"no_rope_layer_interval", 4},
                 {"no_rope_layers", {1, 1, 1, 0}},
                 {"pretraining_tp", 2},
                 {"rope_theta", 5000000.0},
                 {"sliding_window", nullptr},
                 {"use_sliding_window", false}});
  spec = spec_of(config);
  CHECK(spec.layers[2].rope == 0);
  CHECK(spec.layers[3].rope == LayerSpec::kNoRope);

  config = base("olmo3", 4);
  config.update({{"rope_scaling",
                  {{"attention_factor", 1.2079441541679836},
                   {"beta_fast", 32.0},
                   {"beta_slow", 1.0},
                   {"factor", 8.0},
                   {"original_max_position_embeddings", 8192},
                   {"rope_type", "yarn"}}},
                 {"max_position_embeddings", 65536},
                 {"rope_theta", 500000},
                 {"sliding_window", 4096}});
  spec = spec_of(config);
  CHECK(spec.layers[0].window == 4096);
  CHECK(spec.layers[3].window == 0);
  CHECK(spec.ropes.at(0).attention_factor == 1.2079441541679836);
  CHECK(spec.ropes.at(1).type == detail::RopeType::kDefault);
  CHECK(spec.layers[0].norms == detail::NormPlaces{.before = false, .after = true});
  config["rope_theta"] = 10000;
  refuse(config,
         "rope_theta 500000, or others in rope_parameters of both types of layers, got "
         "10000");
}

TEST_CASE("published configs: experts", "[decoder]") {
  json config = base("qwen3_moe", 2);
  config.update({{"decoder_sparse_step", 1},
                 {"head_dim", 128},
                 {"max_window_layers", 48},
                 {"mlp_only_layers", json::array()},
                 {"moe_intermediate_size", 768},
                 {"norm_topk_prob", true},
                 {"num_experts", 128},
                 {"num_experts_per_tok", 8},
                 {"output_router_logits", false},
                 {"router_aux_loss_coef", 0.001},
                 {"sliding_window", nullptr},
                 {"use_sliding_window", false}});
  CHECK(spec_of(config).layers[1].experts ==
        detail::ExpertSpec{.count = 128, .chosen = 8, .width = 768, .normalized = true});
  CHECK(spec_of(config).router_loss == 0);
  config["output_router_logits"] = true;
  CHECK(spec_of(config).router_loss == 0.001);
  config["router_aux_loss_coef"] = -0.5;
  refuse(config, "router_aux_loss_coef of at least 0, got -0.5");
  config.erase("router_aux_loss_coef");
  CHECK(spec_of(config).router_loss == 0.001);
  config["output_router_logits"] = "yes";
  refuse(config, "output_router_logits to be true or false, got \"yes\"");
  config["output_router_logits"] = false;
  config["num_experts_per_tok"] = 129;
  refuse(config, "num_experts_per_tok of at most 128, the experts, got 129");

  config = base("mixtral", 2);
  config.update({{"num_local_experts", 8},
                 {"num_experts_per_tok", 2},
                 {"output_router_logits", false},
                 {"router_aux_loss_coef", 0.02},
                 {"sliding_window", nullptr},
                 {"rope_theta", 1000000.0}});
  CHECK(spec_of(config).layers[0].experts ==
        detail::ExpertSpec{.count = 8, .chosen = 2, .width = 128, .normalized = true});
  config["router_jitter_noise"] = 0.1;
  refuse(config, "router_jitter_noise to be 0, got 0.1");
}

TEST_CASE("published configs: what no family computes is refused", "[decoder]") {
  json config = base("granite", 2);
  config["embedding_multiplier"] = 0;
  refuse(config, "embedding_multiplier above 0, got 0");
  config = base("olmo2", 2);
  config["sliding_window"] = 4096;
  refuse(config, "sliding_window to be null, got 4096");
  config = base("llama", 2);
  const auto refuse_rope = [&](const json& rope, const std::string& text) {
    json changed = config;
    changed["rope_parameters"] = rope;
    refuse(changed, text);
  };
  refuse_rope({{"rope_type", "linear"}, {"factor", 0.5}}, "a rotary factor of at least 1, got 0.5");
  refuse_rope({{"rope_type", "yarn"}, {"factor", 2}, {"beta_fast", 1}, {"beta_slow", 2}},
              "beta_fast of at least beta_slow, which is above 0, got 1");
  refuse_rope({{"rope_type", "yarn"}, {"factor", 2}, {"truncate", 1}},
              "rope_parameters with truncate true or false, got "
              R"({"factor":2,"rope_type":"yarn","truncate":1})");
  refuse_rope({{"rope_type", "longrope"}, {"short_factor", {1}}, {"long_factor", "1"}},
              "rope_parameters with long_factor, a list of numbers, got "
              R"({"long_factor":"1","rope_type":"longrope","short_factor":[1]})");
  refuse_rope({{"rope_type", "default"}, {"partial_rotary_factor", 0.5}},
              "partial_rotary_factor to be 1, got 0.5");
  refuse_rope({{"rope_type", "dynamic"}, {"factor", 2.0}, {"alpha", 1000}},
              R"(rope_parameters of rope_type "dynamic" without alpha, got )"
              R"({"alpha":1000,"factor":2.0,"rope_type":"dynamic"})");
}

}  // namespace prefopt::test_published_configs
