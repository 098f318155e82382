// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <nlohmann/json.hpp>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_adapter {
namespace {

using nlohmann::json;
using testing_support::TempDir;

const DecoderOptions kShape{.vocab_size = 11,
                            .hidden_size = 8,
                            .intermediate_size = 12,
                            .num_hidden_layers = 2,
                            .num_attention_heads = 2,
                            .num_key_value_heads = 1,
                            .initializer_range = 0.4};

std::shared_ptr<Decoder> make_decoder(std::uint64_t seed = 1) {
  torch::manual_seed(seed);
  return std::make_shared<Decoder>(kShape);
}

at::Tensor logps_of(Decoder& decoder) {
  const at::NoGradGuard no_grad;
  const TokenBatch batch =
      make_pair_batch({{.prompt = {1, 2, 3}, .chosen = {4, 5}, .rejected = {6, 7, 8}}});
  return sequence_logps(decoder, batch).logps;
}

void move_adapter(Decoder& decoder) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder.named_parameters()) {
    if (value.requires_grad()) value.normal_(0, 0.2);
  }
}

json read_json(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file);
}

void write_json(const std::string& path, const json& value) { std::ofstream(path) << value; }

/// W of a map and its adapter, by name.
at::Tensor parameter(const Decoder& decoder, const std::string& name) {
  for (const auto& each : decoder.named_parameters()) {
    if (each.name == name) return each.value.detach();
  }
  throw std::runtime_error(name);
}

}  // namespace

TEST_CASE("adapter: a fresh one changes nothing and is all that is trained", "[decoder]") {
  const auto decoder = make_decoder();
  const at::Tensor before = logps_of(*decoder);
  const std::size_t weights = decoder->named_parameters().size();
  decoder->add_adapter({.r = 3, .target_modules = {"q_proj", "down_proj"}});
  CHECK(logps_of(*decoder).equal(before));
  const auto parameters = decoder->named_parameters();
  REQUIRE(parameters.size() == weights + 2 * 2 * 2);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    CHECK(parameters[i].value.requires_grad() == (i >= weights));
  }
  const at::Tensor a =
      parameter(*decoder, "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight");
  const at::Tensor b =
      parameter(*decoder, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
  CHECK(a.sizes() == at::IntArrayRef({3, 12}));
  CHECK(b.sizes() == at::IntArrayRef({8, 3}));
  CHECK(a.abs().max().item<double>() <= 1 / std::sqrt(12.0));
  CHECK(a.abs().max().item<double>() > 0.1);
  CHECK(b.count_nonzero().item<std::int64_t>() == 0);
}

TEST_CASE("adapter: fresh ones of every kind change nothing yet", "[decoder]") {
  const std::vector<LoraOptions> kinds = {
      {.r = 2, .init_lora_weights = R"("gaussian")"},
      {.r = 2, .target_modules = {"embed_tokens", "lm_head", "v_proj"}},
      {.r = 2, .target_modules = {"embed_tokens", "lm_head", "v_proj"}, .use_dora = true},
      {.r = 2, .target_modules = ModuleNames::matching("all-linear"), .lora_bias = true},
      {.r = 2, .target_modules = ModuleNames::matching(R"(.*\.[qk]_proj)"), .bias = LoraBias::kAll},
      {.r = 2, .rank_pattern = R"({"q_proj": 3})", .alpha_pattern = R"({"1.mlp.*": 1})"},
      {.r = 2, .modules_to_save = {"embed_tokens", "norm"}},
      {.r = 2, .modules_to_save = {"lm_head"}}};
  for (const LoraOptions& options : kinds) {
    INFO(options_to_json(options));
    const auto decoder = make_decoder();
    const at::Tensor before = logps_of(*decoder);
    decoder->add_adapter(options);
    CHECK(at::allclose(logps_of(*decoder), before, 1e-6, 1e-6));
    CHECK(logps_of(*decoder->without_adapter()).equal(before));
    std::int64_t trained = 0;
    for (const auto& [name, value] : decoder->named_parameters()) {
      CHECK(value.requires_grad() == name.starts_with("base_model."));
      trained += value.requires_grad() ? 1 : 0;
    }
    CHECK(trained > 0);
    move_adapter(*decoder);
    CHECK_FALSE(at::allclose(logps_of(*decoder), before, 1e-3, 1e-3));
    // Each tensor has a part in the result.
    const TokenBatch batch =
        make_pair_batch({{.prompt = {1, 2, 3}, .chosen = {4, 5}, .rejected = {6, 7, 8}}});
    sequence_logps(*decoder, batch).logps.sum().backward();
    for (const auto& [name, value] : decoder->named_parameters()) {
      if (value.requires_grad()) CHECK(value.grad().count_nonzero().item<std::int64_t>() > 0);
    }
    CHECK(options_to_json(options_from_json<LoraOptions>(options_to_json(options), "lora")) ==
          options_to_json(options));
  }
}

TEST_CASE("adapter: without zeros it changes something at once", "[decoder]") {
  const auto decoder = make_decoder();
  const at::Tensor before = logps_of(*decoder);
  decoder->add_adapter({.r = 4, .target_modules = {"k_proj"}, .init_lora_weights = "false"});
  CHECK_FALSE(logps_of(*decoder).equal(before));
  const at::Tensor b =
      parameter(*decoder, "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight");
  CHECK(b.abs().max().item<double>() <= 1 / std::sqrt(4.0));
  CHECK(b.abs().max().item<double>() > 0.1);
}

TEST_CASE("adapter: merged it is W + scale B A", "[decoder]") {
  const bool rslora = GENERATE(false, true);
  const auto decoder = make_decoder();
  decoder->add_adapter({.r = 4, .lora_alpha = 6, .use_rslora = rslora});
  move_adapter(*decoder);
  const at::Tensor with_adapter = logps_of(*decoder);
  const std::string name = "model.layers.0.self_attn.v_proj";
  const at::Tensor weight = parameter(*decoder, name + ".weight").clone();
  const at::Tensor product =
      parameter(*decoder, "base_model.model." + name + ".lora_B.weight")
          .mm(parameter(*decoder, "base_model.model." + name + ".lora_A.weight"));
  const auto base = decoder->without_adapter();
  const at::Tensor without = logps_of(*base);

  decoder->merge_adapter();
  CHECK_FALSE(decoder->adapter());
  CHECK(at::allclose(logps_of(*decoder), with_adapter, 1e-5, 1e-5));
  const double scale = rslora ? 6 / 2.0 : 6 / 4.0;
  CHECK(at::allclose(parameter(*decoder, name + ".weight"), weight + scale * product, 1e-5, 1e-6));
  // The model without the adapter shared the weights, and keeps them.
  CHECK(logps_of(*base).equal(without));
  for (const auto& each : decoder->named_parameters()) CHECK(each.value.requires_grad());
}

TEST_CASE("adapter: what is saved comes back", "[decoder]") {
  const TempDir dir;
  const auto decoder = make_decoder();
  decoder->add_adapter({.r = 2, .lora_alpha = 5, .use_rslora = true, .target_modules = {"k_proj"}});
  move_adapter(*decoder);
  decoder->save_adapter(dir.path());

  const json config = read_json(dir.path() + "/adapter_config.json");
  CHECK(config["peft_type"] == "LORA");
  CHECK(config["task_type"] == "CAUSAL_LM");
  CHECK(config["r"] == 2);
  CHECK(config["target_modules"] == json{"k_proj"});
  CHECK(config["base_model_name_or_path"] == nullptr);

  const auto other = make_decoder();
  other->load_adapter(dir.path());
  CHECK(logps_of(*other).equal(logps_of(*decoder)));
  REQUIRE(other->adapter());
  CHECK(other->adapter()->lora_alpha == 5);
  CHECK(other->adapter()->use_rslora);
}

TEST_CASE("adapter: the file names its model, and targets in order", "[decoder]") {
  const TempDir dir;
  make_decoder()->save(dir.file("model"));
  const auto decoder = Decoder::load(dir.file("model"));
  decoder->add_adapter({.r = 2, .target_modules = {"v_proj", "down_proj", "k_proj"}});
  decoder->save_adapter(dir.file("adapter"));
  const json config = read_json(dir.file("adapter") + "/adapter_config.json");
  CHECK(config["base_model_name_or_path"] == dir.file("model"));
  CHECK(config["target_modules"] == json({"down_proj", "k_proj", "v_proj"}));
}

TEST_CASE("adapter: the padded forward takes one on narrow weights", "[decoder]") {
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const auto decoder = make_decoder();
    decoder->to(dtype);
    decoder->add_adapter({.r = 2, .lora_alpha = 4});
    move_adapter(*decoder);
    const std::vector<std::int64_t> prompt{1, 2}, completion{3};
    const auto batch = make_batch({{.prompt = prompt, .completion = completion}});
    const at::Tensor packed = decoder->forward_packed(*batch.packed);
    const PolicyOutput padded = decoder->forward(batch);
    CHECK(padded.hidden.scalar_type() == dtype);
    const at::Tensor last = padded.hidden[0][1].to(at::kFloat);
    CHECK((packed[0].to(at::kFloat) - last).abs().max().item<double>() < 0.3);
    padded.hidden.to(at::kFloat).sum().backward();
    for (const auto& each : decoder->named_parameters()) {
      if (each.value.requires_grad()) CHECK(each.value.grad().defined());
    }
  }
}

TEST_CASE("adapter: its scale is part of the key of cached log-probs", "[decoder]") {
  const TempDir dir;
  const auto owner = make_decoder();
  owner->add_adapter({.r = 2, .lora_alpha = 4});
  move_adapter(*owner);
  owner->save_adapter(dir.path());
  const auto hash = [&] {
    const auto decoder = make_decoder();
    decoder->load_adapter(dir.path());
    return content_hash(*decoder);
  };
  const std::string first = hash();
  CHECK(hash() == first);
  json config = read_json(dir.path() + "/adapter_config.json");
  for (const auto& [name, value] :
       {std::pair<const char*, json>{"lora_alpha", 5.0}, {"use_rslora", true}}) {
    json changed = config;
    changed[name] = value;
    write_json(dir.path() + "/adapter_config.json", changed);
    CHECK(hash() != first);
  }
}

TEST_CASE("adapter: one that does not fit is refused and leaves the model as it was", "[decoder]") {
  const TempDir dir;
  const std::string config_path = dir.path() + "/adapter_config.json";
  const std::string tensors_path = dir.path() + "/adapter_model.safetensors";
  const auto owner = make_decoder();
  owner->add_adapter({.r = 2, .target_modules = {"q_proj"}});
  owner->save_adapter(dir.path());
  const json config = read_json(config_path);
  const auto decoder = make_decoder();
  const auto check_refused = [&](const std::string& text) {
    const at::Tensor before = logps_of(*decoder);
    CHECK_THROWS_TEXT(decoder->load_adapter(dir.path()), CheckpointError, text);
    CHECK_FALSE(decoder->adapter());
    CHECK(logps_of(*decoder).equal(before));
    for (const auto& each : decoder->named_parameters()) CHECK(each.value.requires_grad());
  };
  const auto with = [&](const char* key, const json& value) {
    json changed = config;
    changed[key] = value;
    write_json(config_path, changed);
  };

  SECTION("another kind") {
    with("peft_type", "IA3");
    check_refused(config_path + R"(: expected peft_type to be "LORA", got "IA3")");
  }
  SECTION("a field that would change results") {
    with("use_qalora", true);
    check_refused(config_path +
                  ": expected fields that this decoder understands, got 'use_qalora': true");
  }
  SECTION("an initialization that changed the weights under it") {
    for (const char* how : {"pissa_niter_16", "corda", "loftq", "lora_ga", "of_tomorrow"}) {
      with("init_lora_weights", how);
      check_refused(config_path +
                    ": expected init_lora_weights that leave the model's weights as they are, or "
                    "pissa or olora, got \"" +
                    how +
                    "\"; convert the adapter in PEFT (save_pretrained with "
                    "path_initial_model_for_weight_conversion), or merge it there");
    }
    for (const json& how : {json(true), json(false), json(), json("gaussian"), json("eva")}) {
      with("init_lora_weights", how);
      const auto other = make_decoder();
      CHECK_NOTHROW(other->load_adapter(dir.path()));
    }
  }
  SECTION("a bias") {
    with("bias", "most");
    check_refused(config_path +
                  ": expected bias to be one of 'none', 'all', 'lora_only', got 'most'");
  }
  SECTION("no rank") {
    json changed = config;
    changed.erase("r");
    write_json(config_path, changed);
    check_refused(config_path + ": expected r, got none");
  }
  SECTION("a target that no layer has") {
    with("target_modules", json{"qkv"});
    check_refused(config_path +
                  ".target_modules: expected names of modules that the model has, got [\"qkv\"]");
  }
  SECTION("a tensor less than its config says") {
    with("target_modules", json{"q_proj", "v_proj"});
    check_refused(tensors_path +
                  ": expected tensor "
                  "'base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight', got none of "
                  "that name; is the adapter for another model?");
  }
  SECTION("a tensor of another shape") {
    with("r", 3);
    check_refused(tensors_path +
                  ": tensor 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight': "
                  "expected shape [3, 8] of a floating dtype, got [2, 8] of Float; is the adapter "
                  "for another model?");
  }
  SECTION("a tensor more than its config says") {
    SafetensorsFile file = read_safetensors(tensors_path);
    file.tensors.emplace_back("extra", at::zeros({1}));
    write_safetensors(tensors_path, file);
    check_refused(tensors_path +
                  ": expected the tensors of adapter_config.json's targets only, got 'extra'; is "
                  "the adapter for another model?");
  }
}

TEST_CASE("adapter: calls that need or refuse one say so", "[decoder]") {
  const auto decoder = make_decoder();
  CHECK_THROWS_TEXT(decoder->merge_adapter(), ConfigError,
                    "decoder: expected an adapter to merge, got a model without one");
  CHECK_THROWS_TEXT(decoder->without_adapter(), ConfigError,
                    "decoder: expected an adapter to leave out, got a model without one");
  CHECK_THROWS_TEXT(decoder->save_adapter("nowhere"), ConfigError,
                    "decoder: expected an adapter to save, got a model without one");
  CHECK_THROWS_TEXT(decoder->add_adapter({.target_modules = {}}), ConfigError,
                    "lora.target_modules: expected at least one name, got none");
  const auto check_refused = [&](const LoraOptions& options, const std::string& error) {
    CHECK_THROWS_TEXT(decoder->add_adapter(options), ConfigError, error);
    CHECK_FALSE(decoder->adapter());
  };
  check_refused({.target_modules = {"q_proj", "qkv"}},
                "lora.target_modules: expected names of modules that the model has, got 'qkv'");
  check_refused({.target_modules = {"q_proj"}, .rank_pattern = R"({"w_proj": 2})"},
                "lora.rank_pattern: expected names of modules that the model has, got 'w_proj'");
  check_refused(
      {.init_lora_weights = R"("pissa")"},
      "lora.init_lora_weights: expected true, false or \"gaussian\", got \"pissa\"; of the "
      "others the adapter alone would not tell what they did to the model's weights");
  check_refused({.target_modules = {"embed_tokens"}, .lora_bias = true},
                "lora.lora_bias: expected false with an embedding as target, got true");
  check_refused({.modules_to_save = {"score"}},
                "lora.modules_to_save: expected ends of names of the model's modules, got 'score'");
  CHECK_THROWS_TEXT(decoder->add_adapter({.r = 0}), ConfigError,
                    "lora: expected r in [1, 65536], got 0");
  decoder->add_adapter({});
  CHECK_THROWS_TEXT(decoder->add_adapter({}), ConfigError,
                    "decoder: expected a model without an adapter, got one that has an adapter");
}

}  // namespace prefopt::test_adapter
