// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/memory_limit.h"
#include "support/temp_dir.h"

namespace prefopt::test_bad_adapters {
namespace {

using nlohmann::json;
using testing_support::put;

// Wide enough that an adapter of the highest rank would take more memory than the test may have.
const DecoderOptions kShape{.vocab_size = 3,
                            .hidden_size = 512,
                            .intermediate_size = 4,
                            .num_hidden_layers = 1,
                            .num_attention_heads = 2,
                            .num_key_value_heads = 1};
const std::string kA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const std::string kB = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

json good_config() {
  return {{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 4}, {"target_modules", {"q_proj"}}};
}

SafetensorsFile good_tensors() {
  return {.tensors = {{kA, at::zeros({2, 512})}, {kB, at::zeros({512, 2})}}, .metadata = {}};
}

struct BadConfig {
  std::string text;
  std::string error;  // behind the path of adapter_config.json
};

std::vector<BadConfig> bad_configs() {
  const auto with = [](const char* key, const json& value) {
    json config = good_config();
    config[key] = value;
    return config.dump();
  };
  const auto without = [](const char* key) {
    json config = good_config();
    config.erase(key);
    return config.dump();
  };
  const std::string strange = ": expected fields that this decoder understands, got ";
  return {
      {"[]", ": expected an object, got list"},
      {"null", ": expected an object, got null"},
      {R"({"r":1,"r":1})", ": expected JSON, got the key 'r' twice"},
      {R"({"r":)" + std::string(64, '[') + std::string(64, ']') + "}",
       ": expected JSON, got nesting deeper than 64 levels"},
      {without("peft_type"), R"(: expected peft_type to be "LORA", got none)"},
      {with("peft_type", 7), R"(: expected peft_type to be "LORA", got 7)"},
      {with("bias", json::array()),
       ": expected bias to be one of 'none', 'all', 'lora_only', got []"},
      {with("use_qalora", true), strange + "'use_qalora': true"},
      {with("trainable_token_indices", {1, 2}), strange + "'trainable_token_indices': [1,2]"},
      {with("layer_replication", {{0, 1}}), strange + "'layer_replication': [[0,1]]"},
      {with("target_parameters", std::vector<std::string>(200, "experts")),
       strange + "'target_parameters': " +
           json(std::vector<std::string>(200, "experts")).dump().substr(0, 300) + "…"},
      {with("ensure_weight_tying", 1), ": expected ensure_weight_tying to be true or false, got 1"},
      {with("init_lora_weights", 1),
       ": expected init_lora_weights that leave the model's weights as they are, or pissa or "
       "olora, got 1; convert the adapter in PEFT (save_pretrained with "
       "path_initial_model_for_weight_conversion), or merge it there"},
      {with("modules_to_save", "lm_head"),
       R"(: expected modules_to_save to be a list of texts, got "lm_head")"},
      {with("modules_to_save", {"nothing"}),
       ".modules_to_save: expected ends of names of the model's modules, got 'nothing'"},
      {with("modules_to_save", {"_proj"}),
       ".modules_to_save: expected modules that are not targets as well, got "
       "'model.layers.0.self_attn.q_proj'"},
      {with("rank_pattern", {{"q_proj", "4"}}),
       R"(.rank_pattern: expected ranks in [1, 65536], got 'q_proj': "4")"},
      {with("rank_pattern", 4), ".rank_pattern: expected an object of numbers, got 4"},
      {with("alpha_pattern", {{"q_proj", 0}}),
       ".alpha_pattern: expected numbers > 0, got 'q_proj': 0"},
      {with("layers_to_transform", 1.5),
       ".layers_to_transform: expected a layer's number or a list of them, got 1.5"},
      {with("layers_to_transform", 7),
       R"(.target_modules: expected names of modules that the model has, got ["q_proj"])"},
      {with("layers_pattern", "h"),
       ".layers_to_transform: expected layers, as there is a layers_pattern, got none"},
      {with("exclude_modules", 4),
       ".exclude_modules: expected a list of texts, or a text with a pattern, got 4"},
      {with("exclude_modules", {"self_attn.q_proj"}),
       R"(.target_modules: expected names of modules that the model has, got ["q_proj"])"},
      {with("use_dora", 1), ": expected use_dora to be true or false, got 1"},
      {with("lora_bias", "q"), R"(: expected lora_bias to be true or false, got "q")"},
      {without("r"), ": expected r, got none"},
      {without("lora_alpha"), ": expected lora_alpha, got none"},
      {without("target_modules"), ": expected target_modules, got none"},
      {with("r", 0), ": expected r in [1, 65536], got 0"},
      {with("r", 65537), ": expected r in [1, 65536], got 65537"},
      {with("r", 1.5), ": expected r to be a whole number, got 1.5"},
      {with("r", UINT64_MAX),
       ": expected r to be a number of at most 64 bits, got 18446744073709551615"},
      {with("lora_alpha", -1), ": expected lora_alpha > 0, got -1"},
      {with("use_rslora", 1), ": expected use_rslora to be true or false, got 1"},
      {with("target_modules", {1}),
       ".target_modules: expected a list of texts, or a text with a pattern, got [1]"},
      {with("target_modules", "q_proj"),
       R"(.target_modules: expected names of modules that the model has, got "q_proj")"},
      {with("target_modules", ".*norm"),
       ".target_modules: expected linear maps and embeddings only, got "
       "'model.layers.0.input_layernorm'"},
      {with("target_modules", "(?s).*q_proj"),
       ".target_modules: expected a pattern of what Python's re and PCRE2 read alike, got "
       "'(?s).*q_' at 0 of '(?s).*q_proj'; letters, '.', [...], (...), (?:...), (?=...), (?!...), "
       "|, ^, $, *, +, ?, {m,n}, and \\ in front of d, w, s, b or a sign are"},
      {with("target_modules", json::array()),
       ".target_modules: expected at least one name, got none"},
  };
}

struct BadTensors {
  json config = good_config();
  SafetensorsFile tensors;
  std::string error;  // behind the path of adapter_model.safetensors
};

std::vector<BadTensors> bad_tensors() {
  const auto shaped = [](const at::Tensor& a, const at::Tensor& b) {
    return SafetensorsFile{.tensors = {{kA, a}, {kB, b}}, .metadata = {}};
  };
  const auto expects = [](const std::string& name, const std::string& shape,
                          const std::string& got) {
    return ": tensor '" + name + "': expected shape " + shape + " of a floating dtype, got " + got +
           "; is the adapter for another model?";
  };
  const auto with = [](const char* key, const json& value) {
    json config = good_config();
    config[key] = value;
    return config;
  };
  const auto misses = [](const std::string& name) {
    return ": expected tensor '" + name +
           "', got none of that name; is the adapter for another model?";
  };
  SafetensorsFile copied = good_tensors(), resized = good_tensors();
  const std::string kHead = "base_model.model.lm_head.weight";
  copied.tensors.emplace_back(kHead, at::full({3, 512}, 9.0));
  resized.tensors.emplace_back(kHead, at::zeros({5, 512}));
  const std::string not_own = ": tensor '" + kHead +
                              "': expected the values under the adapter in this model, got others; "
                              "was it made over another "
                              "one?";
  json highest_rank = good_config();
  highest_rank["r"] = 65536;
  SafetensorsFile more = good_tensors();
  more.tensors.emplace_back("extra", at::zeros({1}));
  const at::Tensor b = at::zeros({512, 2});
  return {
      {highest_rank, good_tensors(), expects(kA, "[65536, 512]", "[2, 512] of Float")},
      {good_config(), shaped(at::zeros({512, 2}), b), expects(kA, "[2, 512]", "[512, 2] of Float")},
      {good_config(), shaped(at::zeros({1024}), b), expects(kA, "[2, 512]", "[1024] of Float")},
      {good_config(), shaped(at::zeros({2, 512}), at::zeros({512, 0})),
       expects(kB, "[512, 2]", "[512, 0] of Float")},
      {good_config(), shaped(at::zeros({2, 512}, at::kInt), b),
       expects(kA, "[2, 512]", "[2, 512] of Int")},
      {with("rank_pattern", {{"q_proj", 4}}), good_tensors(),
       expects(kA, "[4, 512]", "[2, 512] of Float")},
      {with("use_dora", true), good_tensors(),
       misses("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector")},
      {with("lora_bias", true), good_tensors(),
       misses("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias")},
      {with("modules_to_save", {"embed_tokens"}), good_tensors(),
       misses("base_model.model.model.embed_tokens.weight")},
      {with("modules_to_save", {"lm_head"}), resized,
       expects(kHead, "[3, 512]", "[5, 512] of Float")},
      {with("target_modules", {"q_proj", "embed_tokens"}), good_tensors(),
       misses("base_model.model.model.embed_tokens.lora_embedding_A")},
      {with("target_modules", "all-linear"), good_tensors(),
       misses("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight")},
      {good_config(), copied, not_own},
      {good_config(), resized, not_own},
      {good_config(),
       {},
       ": expected tensor '" + kA + "', got none of that name; is the adapter for another model?"},
      {good_config(), more,
       ": expected the tensors of adapter_config.json's targets only, got 'extra'; is the adapter "
       "for another model?"},
  };
}

}  // namespace

TEST_CASE("bad adapter files are refused by name, and cost no memory", "[decoder]") {
  const testing_support::TempDir dir;
  const std::string config_path = dir.file("adapter_config.json");
  const std::string tensors_path = dir.file("adapter_model.safetensors");
  Decoder decoder(kShape);
  std::size_t refused = 0;
  const auto check_refused = [&](const std::string& error) {
    const testing_support::MemoryLimit limit;
    CHECK_THROWS_TEXT(decoder.load_adapter(dir.path()), CheckpointError, error);
    CHECK_FALSE(decoder.adapter());
    ++refused;
  };

  write_safetensors(tensors_path, good_tensors());
  for (const auto& [text, error] : bad_configs()) {
    put(config_path, text);
    check_refused(config_path + error);
  }
  for (const auto& [config, tensors, error] : bad_tensors()) {
    put(config_path, config.dump());
    write_safetensors(tensors_path, tensors);
    check_refused(tensors_path + error);
  }
  put(tensors_path, "short");
  check_refused(tensors_path + ": expected at least 8 bytes, got 5");
  testing_support::report_count("bad adapters refused", refused);

  write_safetensors(tensors_path, good_tensors());
  put(config_path, good_config().dump());
  decoder.load_adapter(dir.path());
  CHECK(decoder.adapter());
}

}  // namespace prefopt::test_bad_adapters
