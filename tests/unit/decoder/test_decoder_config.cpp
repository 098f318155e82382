// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "decoder/decoder_config.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt::test_decoder_config {
namespace {

using nlohmann::json;
using testing_support::TempDir;

json sizes() {
  return {{"vocab_size", 11},          {"hidden_size", 16},        {"intermediate_size", 10},
          {"num_hidden_layers", 2},    {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"sliding_window", nullptr}, {"rope_theta", 1000000.0}};
}

/// As in the configs of Qwen2.5-0.5B and Qwen3-0.6B, with other sizes.
json qwen(const std::string& model_type) {
  json config = sizes();
  config.update({{"model_type", model_type},
                 {"head_dim", 6},
                 {"max_window_layers", 21},
                 {"sliding_window", 32768},
                 {"use_sliding_window", false}});
  return config;
}

/// As in the config of Llama-3.2-1B.
json llama3_scaling() {
  return {{"factor", 32.0},
          {"high_freq_factor", 4.0},
          {"low_freq_factor", 1.0},
          {"original_max_position_embeddings", 8192},
          {"rope_type", "llama3"}};
}

DecoderOptions read(const json& config) {
  const TempDir dir;
  testing_support::put(dir.file("config.json"), config.dump());
  return detail::read_decoder_config(dir.file("config.json")).options;
}

void refuse(const json& config, const std::string& text) {
  const TempDir dir;
  const std::string path = dir.file("config.json");
  testing_support::put(path, config.dump());
  CHECK_THROWS_TEXT(detail::read_decoder_config(path), CheckpointError,
                    path + ": expected " + text);
}

}  // namespace

TEST_CASE("decoder config: biases and norms of the families", "[decoder]") {
  const auto check = [](const json& config, bool bias, bool output_bias, bool qk_norm) {
    INFO(config.dump());
    const DecoderOptions options = read(config);
    CHECK(options.attention_bias == bias);
    CHECK(options.attention_output_bias == output_bias);
    CHECK(options.qk_norm == qk_norm);
  };
  json config = sizes();
  config["model_type"] = "mistral";
  check(config, false, false, false);
  config["attention_bias"] = false;
  check(config, false, false, false);
  config["model_type"] = "llama";
  check(config, false, false, false);
  config["attention_bias"] = true;
  check(config, true, true, false);

  config = qwen("qwen2");
  config.erase("head_dim");
  check(config, true, false, false);
  CHECK(read(config).head_dim == 4);
  config["attention_bias"] = true;
  check(config, true, false, false);

  config = qwen("qwen3");
  check(config, false, false, true);
  config["attention_bias"] = true;
  check(config, true, true, true);
  CHECK(read(config).head_dim == 6);
  config.erase("head_dim");
  CHECK(read(config).head_dim == 128);
}

TEST_CASE("decoder config: what a family does not have is refused", "[decoder]") {
  json config = qwen("qwen2");
  config["attention_bias"] = false;
  refuse(config, "attention_bias to be true in qwen2, got false");
  config = qwen("qwen3");
  config["num_experts"] = 8;
  refuse(config, "num_experts to be 0, got 8");
  for (const char* type : {"mistral", "qwen2", "qwen3"}) {
    config = qwen(type);
    config.erase("num_key_value_heads");
    refuse(config, "num_key_value_heads, got none");
  }
  config = qwen("mistral");
  config["attention_bias"] = true;
  refuse(config, "attention_bias to be false in mistral, got true");
}

TEST_CASE("decoder config: a window that is used", "[decoder]") {
  json config = qwen("qwen3");
  CHECK(read(config).sliding_window == 0);  // use_sliding_window is false
  config["use_sliding_window"] = true;
  CHECK(read(config).sliding_window == 0);  // max_window_layers is 21
  config["max_window_layers"] = 1;
  CHECK(read(config).sliding_window == 32768);
  CHECK(read(config).family_fields == R"({"layer_types":["full_attention","sliding_attention"]})");
  config["max_window_layers"] = 0;
  CHECK(read(config).sliding_window == 32768);
  CHECK(read(config).family_fields == "{}");
  config["use_sliding_window"] = false;
  config["layer_types"] = {"full_attention", "sliding_attention"};
  CHECK(read(config).sliding_window == 32768);
  CHECK(read(qwen("mistral")).sliding_window == 32768);

  // A model of a GGUF file is written with its window.
  DecoderOptions options;
  options.sliding_window = 512;
  options = detail::checked_decoder_options(options, "test");
  const json written = json::parse(detail::make_decoder_config(options).dump());
  CHECK(written["model_type"] == "mistral");
  CHECK(read(written).sliding_window == 512);
  options.family = "llama";
  options.attention_bias = true;
  options = detail::checked_decoder_options(options, "test");
  CHECK(read(json::parse(detail::make_decoder_config(options).dump())).sliding_window == 512);

  // And Mistral without a window as Mistral.
  json config_without = sizes();
  config_without["model_type"] = "mistral";
  const json rewritten = json::parse(detail::make_decoder_config(read(config_without)).dump());
  CHECK(rewritten["model_type"] == "mistral");
  CHECK(rewritten["sliding_window"].is_null());
  CHECK(read(rewritten).sliding_window == 0);
}

TEST_CASE("decoder config: the family is stored", "[decoder]") {
  json config = sizes();
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    config["model_type"] = type;
    CHECK(read(config).family == type);
  }
  const auto stored = [](auto&& change) {
    DecoderOptions options{.hidden_size = 16, .num_attention_heads = 4, .num_key_value_heads = 2};
    change(options);
    return detail::checked_decoder_options(options, "test").family;
  };
  CHECK(stored([](DecoderOptions&) {}) == "llama");
  CHECK(stored([](DecoderOptions& o) { o.qk_norm = true; }) == "qwen3");
  CHECK(stored([](DecoderOptions& o) { o.attention_bias = true; }) == "qwen2");
  CHECK(stored([](DecoderOptions& o) { o.sliding_window = 9; }) == "mistral");
  CHECK(stored([](DecoderOptions& o) { o.family = "mistral"; }) == "mistral");
  CHECK_THROWS_TEXT(stored([](DecoderOptions& o) { o.family = "qwen2"; }), ConfigError,
                    "test: expected options that the family 'qwen2' has, got attention_bias false");
  CHECK_THROWS_TEXT(stored([](DecoderOptions& o) { o.family = "qwen"; }), ConfigError,
                    "test: expected family to be 'llama', 'mistral', 'qwen2', 'qwen3', 'granite', "
                    "'smollm3', 'phi3', 'gemma2', 'gemma3_text', 'olmo2', 'olmo3', 'mixtral' or "
                    "'qwen3_moe', got 'qwen'; did you mean 'qwen2'?");
}

TEST_CASE("decoder config: texts and hashes from before the family was stored", "[decoder]") {
  const DecoderOptions options{.vocab_size = 5,
                               .hidden_size = 8,
                               .intermediate_size = 6,
                               .num_hidden_layers = 1,
                               .num_attention_heads = 2,
                               .num_key_value_heads = 1};
  const auto made = [&](const std::string& family, bool qk_norm = false) {
    DecoderOptions changed = options;
    changed.family = family;
    changed.qk_norm = qk_norm;
    torch::manual_seed(1);
    return Decoder(changed);
  };
  const std::string text =
      R"({"vocab_size":5,"hidden_size":8,"intermediate_size":6,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,)"
      R"("max_position_embeddings":2048,"rms_norm_eps":1e-05,"rope_theta":10000.0,)"
      R"("rope_scaling_factor":1.0,"rope_low_freq_factor":1.0,"rope_high_freq_factor":4.0,)"
      R"("rope_original_max_position_embeddings":8192,"attention_bias":false,)"
      R"("attention_output_bias":false,"qk_norm":false,"tie_word_embeddings":true,)"
      R"("initializer_range":0.02,"bos_token_id":-1,"eos_token_id":-1,"pad_token_id":-1})";
  CHECK(made("llama").config() == text);
  CHECK(options_to_json(made("llama").options()) == text);
  CHECK(made("mistral").config() == text);
  CHECK(content_hash(made("mistral")) == content_hash(made("llama")));
  CHECK(made("qwen3", true).config() == made("llama", true).config());

  // An option that the others do not imply is kept.
  CHECK(options_from_json<DecoderOptions>(text, "test").family == "llama");
  const std::string named = options_to_json(made("mistral").options());
  CHECK(json::parse(named)["family"] == "mistral");
  CHECK(options_from_json<DecoderOptions>(named, "test").family == "mistral");
  const std::string implied = options_to_json(made("qwen3", true).options());
  CHECK_FALSE(json::parse(implied).contains("family"));
}

TEST_CASE("decoder config: Llama 3's rotary scaling", "[decoder]") {
  json config = sizes();
  config.update({{"model_type", "llama"}, {"head_dim", 6}});
  CHECK(read(config).rope_scaling_factor == 1);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    config[name] = llama3_scaling();
    const DecoderOptions options = read(config);
    CHECK(options.rope_theta == 1000000);
    CHECK(options.rope_scaling_factor == 32);
    CHECK(options.rope_low_freq_factor == 1);
    CHECK(options.rope_high_freq_factor == 4);
    CHECK(options.rope_original_max_position_embeddings == 8192);
  }
  config["rope_parameters"]["factor"] = 8;
  refuse(config,
         "rope_parameters that agree with rope_scaling, got " + config["rope_parameters"].dump());
  config.erase("rope_parameters");

  const auto refuse_with = [&](const char* field, const json& value, const std::string& text) {
    json changed = config;
    changed["rope_scaling"][field] = value;
    refuse(changed, text + changed["rope_scaling"].dump());
  };
  refuse_with("factor", "8", "rope_scaling with a number factor, got ");
  refuse_with("beta_fast", 32, R"(rope_scaling of rope_type "llama3" without beta_fast, got )");
  refuse_with("type", "linear", "rope_scaling of one type, got ");
  config["rope_scaling"]["original_max_position_embeddings"] = 0.5;
  refuse(config, "original_max_position_embeddings to be a whole number, got 0.5");
  config["rope_scaling"] = llama3_scaling();
  config["rope_scaling"]["factor"] = 0.5;
  refuse(config, "rope_scaling_factor >= 1, got 0.5");
  config["rope_scaling"] = llama3_scaling();
  config["rope_scaling"]["low_freq_factor"] = 4;
  refuse(config, "rope_high_freq_factor above rope_low_freq_factor, got 4 and 4");
  config["rope_scaling"] = {{"rope_type", "default"}, {"factor", 8.0}};
  refuse(config, R"(rope_scaling of rope_type "default" without factor, got )" +
                     config["rope_scaling"].dump());
}

TEST_CASE("decoder config: what is written for a fresh model is read back", "[decoder]") {
  const auto check = [](auto&& change, const std::string& model_type) {
    DecoderOptions options{.hidden_size = 16, .num_attention_heads = 4, .num_key_value_heads = 2};
    change(options);
    options = detail::checked_decoder_options(options, "test");
    const detail::Json config = detail::make_decoder_config(options);
    CHECK(config["model_type"] == model_type);
    CHECK(options_to_json(read(json::parse(config.dump()))) == options_to_json(options));
  };
  check([](DecoderOptions&) {}, "llama");
  check([](DecoderOptions& o) { o.attention_bias = true; }, "qwen2");
  check([](DecoderOptions& o) { o.attention_bias = o.attention_output_bias = true; }, "llama");
  check([](DecoderOptions& o) { o.qk_norm = true; }, "qwen3");
  check([](DecoderOptions& o) { o.qk_norm = o.attention_bias = o.attention_output_bias = true; },
        "qwen3");
  check(
      [](DecoderOptions& o) {
        o.rope_scaling_factor = 32;
        o.rope_low_freq_factor = 2;
        o.rope_high_freq_factor = 5;
        o.rope_original_max_position_embeddings = 100;
      },
      "llama");
}

}  // namespace prefopt::test_decoder_config
