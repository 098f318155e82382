// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::test_peft_adapters {
namespace {

using nlohmann::json;
using testing_support::read_text;
using testing_support::TempDir;

const std::string kFolder = PREFOPT_TEST_DATA_DIR "/adapters/";

/// A PEFT adapter, and what PEFT 0.21.2 computes with it, by tools/make_adapter_cases.
struct Case {
  std::string name, base;
  std::vector<double> logps;
  std::map<std::string, std::vector<double>> gradients;

  std::string folder() const { return kFolder + name; }
  std::shared_ptr<Decoder> model(const char* dtype = "float64") const {
    auto model = Decoder::load(kFolder + base, dtype);
    model->load_adapter(folder());
    return model;
  }
};

const json& recorded() {
  static const json kRecorded = json::parse(read_text(kFolder + "expected.json"));
  return kRecorded;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto& [name, value] : recorded()["cases"].items()) {
    cases.push_back({name, value["base"], value["logps"], {}});
    if (value.contains("gradients")) cases.back().gradients = value["gradients"];
  }
  return cases;
}

Case case_named(const std::string& name) {
  for (const Case& each : all_cases()) {
    if (each.name == name) return each;
  }
  throw std::runtime_error(name);
}

/// The recorded sequences, each behind its first token.
TokenBatch batch_of_sequences() {
  static const std::vector<std::vector<std::int64_t>> kTokens = recorded()["sequences"];
  std::vector<TokenSequence> sequences;
  for (const auto& tokens : kTokens) {
    const std::span<const std::int64_t> all(tokens);
    sequences.push_back({.prompt = all.first(1), .completion = all.subspan(1)});
  }
  return make_batch(sequences);
}

at::Tensor logps_of(Decoder& model, bool packed = true) {
  TokenBatch batch = batch_of_sequences();
  if (!packed) batch.packed.reset();
  return sequence_logps(model, batch).token_logps.to(at::kDouble);
}

double difference(const at::Tensor& logps, const std::vector<double>& expected) {
  return (logps.detach() - at::tensor(expected, at::kDouble)).abs().max().item<double>();
}

std::map<std::string, at::Tensor> parameters_of(const Decoder& model) {
  std::map<std::string, at::Tensor> parameters;
  for (const auto& [name, value] : model.named_parameters()) parameters[name] = value;
  return parameters;
}

std::set<std::string> tensors_of(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& [name, value] :
       read_safetensors(folder + "/adapter_model.safetensors").tensors) {
    names.insert(name);
  }
  return names;
}

/// Lets the adapter make a tied head and embedding differ, or leaves them.
bool has_place_for_merged(const Case& test) { return test.name != "lora-bias-alone"; }

}  // namespace

TEST_CASE("peft adapters: log-probs are PEFT's, by every executor", "[decoder]") {
  const auto cases = all_cases();
  REQUIRE(cases.size() == 23);
  for (const Case& test : cases) {
    INFO(test.name);
    const auto model = test.model();
    const auto base = model->without_adapter();
    CHECK(difference(logps_of(*model), test.logps) < 1e-5);
    CHECK(difference(logps_of(*model, /*packed=*/false), test.logps) < 1e-5);
    CHECK(difference(logps_of(*base), test.logps) > 1e-3);
    CHECK(logps_of(*base).equal(logps_of(*Decoder::load(kFolder + test.base, "float64"))));

    const std::vector<std::int64_t> tokens = recorded()["sequences"][0];
    const auto session = model->start_decoding({{tokens[0]}});
    at::Tensor logits = session->prefill();
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      const double logp = logits.log_softmax(-1)[0][tokens[i]].item<double>();
      CHECK(std::abs(logp - test.logps[i - 1]) < 1e-5);
      logits = session->append(at::tensor({tokens[i]}));
    }
  }
}

TEST_CASE("peft adapters: gradients are PEFT's", "[decoder]") {
  std::size_t compared = 0;
  for (const Case& test : all_cases()) {
    if (test.gradients.empty()) continue;
    const bool packed = GENERATE(true, false);
    const auto model = test.model();
    const at::Tensor logps = logps_of(*model, packed);
    const at::Tensor weights = at::sin(1 + at::arange(logps.numel(), at::kDouble));
    (weights * logps).sum().backward();
    auto parameters = parameters_of(*model);
    std::size_t trained = 0;
    for (const auto& [name, value] : parameters) trained += value.requires_grad() ? 1 : 0;
    CHECK(trained == test.gradients.size());
    for (const auto& [name, expected] : test.gradients) {
      INFO(test.name << " " << name);
      REQUIRE(parameters[name].defined());
      at::Tensor grad = parameters[name].grad();
      if (!grad.defined()) grad = at::zeros_like(parameters[name]);
      grad = grad.flatten();
      const at::Tensor along = at::cos(at::arange(grad.numel(), at::kDouble));
      CHECK(std::abs(grad.norm().item<double>() - expected[0]) < 1e-5 * (1 + expected[0]));
      CHECK(std::abs((grad * along).sum().item<double>() - expected[1]) < 1e-5 * (1 + expected[0]));
      ++compared;
    }
  }
  CHECK(compared > 200);
}

TEST_CASE("peft adapters: merged, they are models of the same log-probs", "[decoder]") {
  const TempDir dir;
  for (const Case& test : all_cases()) {
    INFO(test.name);
    const auto model = test.model();
    if (!has_place_for_merged(test)) {
      const std::string error =
          "decoder: expected maps with a bias to merge the adapter's lora_bias into, got one "
          "without 'model.layers.0.mlp.down_proj.bias'";
      CHECK_THROWS_TEXT(model->merged_decoder(), ConfigError, error);
      CHECK_THROWS_TEXT(model->merge_adapter(), ConfigError, error);
      CHECK(model->adapter());
      continue;
    }
    const auto copy = model->merged_decoder();
    CHECK_FALSE(copy->adapter());
    CHECK(difference(logps_of(*copy), test.logps) < 1e-5);
    const auto base = model->without_adapter();
    const at::Tensor before = logps_of(*base);
    model->merge_adapter();
    CHECK(difference(logps_of(*model), test.logps) < 1e-5);
    CHECK(logps_of(*base).equal(before));  // it shares what is not written to
    for (const char* dtype : {"float64", "float32", "bfloat16"}) {
      const auto narrow = test.model(dtype);
      narrow->merge_adapter();
      narrow->save(dir.file(test.name));
      const auto exported = Decoder::load(dir.file(test.name));
      CHECK(logps_of(*exported).equal(logps_of(*narrow)));
      const std::string name(dtype);
      const double bound = name == "float64" ? 1e-5 : name == "float32" ? 1e-4 : 0.3;
      CHECK(difference(logps_of(*exported), test.logps) < bound);
      const bool is_tied = exported->options().tie_word_embeddings;
      const json config = json::parse(read_text(dir.file(test.name) + "/config.json"));
      CHECK(config["tie_word_embeddings"] == is_tied);
      if (test.name.ends_with("-tied")) CHECK_FALSE(is_tied);
    }
  }
}

TEST_CASE("peft adapters: what is written is read as it was, under PEFT's names", "[decoder]") {
  const TempDir dir;
  for (const Case& test : all_cases()) {
    INFO(test.name);
    const auto model = test.model();
    model->save_adapter(dir.path());
    const auto again = model->with_adapter(dir.path());
    CHECK(logps_of(*again).equal(logps_of(*model)));
    CHECK(content_hash(*again) == content_hash(*model));
    // PEFT repeats the weights under the adapter of an embedding and a head.
    std::set<std::string> names = tensors_of(test.folder());
    std::erase_if(names,
                  [](const std::string& name) { return name.ends_with("base_layer.weight"); });
    CHECK(tensors_of(dir.path()) == names);
    json config = json::parse(read_text(dir.path() + "/adapter_config.json"));
    json given = json::parse(read_text(test.folder() + "/adapter_config.json"));
    CHECK(config["base_model_name_or_path"] == kFolder + test.base);
    const bool doubles = test.name.starts_with("pissa") || test.name.starts_with("olora");
    for (const char* key : {"base_model_name_or_path", "init_lora_weights"}) config.erase(key);
    if (given["target_modules"].is_array()) {
      std::sort(given["target_modules"].begin(), given["target_modules"].end());
    }
    if (given["exclude_modules"].is_array()) {
      std::sort(config["exclude_modules"].begin(), config["exclude_modules"].end());
      std::sort(given["exclude_modules"].begin(), given["exclude_modules"].end());
    }
    for (const auto& [key, value] : config.items()) {
      INFO(key);
      const bool differs = doubles && (key == "r" || key == "lora_alpha" || key == "rank_pattern");
      if (!differs) CHECK(value == given[key]);
    }
  }
}

TEST_CASE("peft adapters: load_weights takes what save wrote, in place", "[decoder]") {
  const TempDir dir;
  for (const Case& test : all_cases()) {
    INFO(test.name);
    const auto model = test.model("float32");
    model->save(dir.path());
    const auto other = test.model("float32");
    const at::Tensor before = logps_of(*model).detach();
    {
      const at::NoGradGuard no_grad;
      for (const auto& [name, value] : other->named_parameters()) {
        if (value.requires_grad()) value.add_(0.1);
      }
    }
    CHECK_FALSE(logps_of(*other).equal(before));
    other->load_weights(dir.path());
    CHECK(logps_of(*other).equal(before));
  }
}

TEST_CASE("peft adapters: a moving reference follows what the adapter makes", "[decoder]") {
  for (const Case& test : all_cases()) {
    if (!has_place_for_merged(test)) continue;
    INFO(test.name);
    const auto model = test.model();
    MovingReference reference(*model, {.rule = MovingRule::kHard, .update_steps = 1});
    {
      const at::NoGradGuard no_grad;
      for (const auto& [name, value] : model->named_parameters()) {
        if (value.requires_grad()) value.mul_(1.1);
      }
    }
    const at::NoGradGuard no_grad;
    const at::Tensor moved = sequence_logps(*model, batch_of_sequences()).logps;
    CHECK_FALSE(at::allclose(reference.sequence_logps(batch_of_sequences()), moved, 0, 1e-3));
    reference.after_step(*model, 1);
    CHECK(at::allclose(reference.sequence_logps(batch_of_sequences()), moved, 0, 1e-9));
  }
}

TEST_CASE("peft adapters: rewards are PEFT's", "[decoder]") {
  const TempDir dir;
  const auto model = RewardModel::load(kFolder + "qwen2", "float64", ScoreHead::kFreshIfNone);
  model->load_adapter(kFolder + "reward");
  const std::vector<std::vector<std::int64_t>> tokens = recorded()["sequences"];
  const auto rewards_of = [&](RewardModel& scored) {
    const at::NoGradGuard no_grad;
    return scored.rewards(
        {{.prompt = tokens[0], .completion = {}}, {.prompt = tokens[1], .completion = {}}});
  };
  const at::Tensor rewards = rewards_of(*model);
  CHECK(difference(rewards, recorded()["rewards"]) < 1e-5);
  model->save(dir.path());
  std::set<std::string> names = tensors_of(kFolder + "reward");
  CHECK(tensors_of(dir.path()) == names);
  CHECK(rewards_of(*RewardModel::load(dir.path(), "float64")).equal(rewards));
  const auto merged = std::dynamic_pointer_cast<RewardModel>(model->frozen_copy());
  merged->body().merge_adapter();
  CHECK(difference(rewards_of(*merged), recorded()["rewards"]) < 1e-5);
  CHECK(merged->body().options().tie_word_embeddings);
}

TEST_CASE("peft adapters: tied weights stay as PEFT computes them, or are refused", "[decoder]") {
  const TempDir dir;
  const Case test = case_named("embedding-tied");
  const auto adapter = Decoder::load(kFolder + test.base);
  adapter->load_adapter(test.folder());
  adapter->save_adapter(dir.path());
  json config = json::parse(read_text(dir.path() + "/adapter_config.json"));
  config["ensure_weight_tying"] = true;
  testing_support::write_text(dir.path() + "/adapter_config.json", config.dump());
  CHECK_THROWS_TEXT(
      adapter->with_adapter(dir.path()), CheckpointError,
      dir.path() +
          "/adapter_config.json: expected ensure_weight_tying false for an adapter of "
          "a tied embedding or head, got true; merge the adapter in PEFT");
  // Where neither is touched, there is nothing to tie.
  const auto plain = Decoder::load(kFolder + "qwen2");
  plain->add_adapter({.r = 2});
  plain->save_adapter(dir.path());
  config = json::parse(read_text(dir.path() + "/adapter_config.json"));
  config["ensure_weight_tying"] = true;
  testing_support::write_text(dir.path() + "/adapter_config.json", config.dump());
  CHECK(plain->with_adapter(dir.path())->adapter());
}

TEST_CASE("peft adapters: several share one set of weights", "[decoder]") {
  const auto policy = Decoder::load(kFolder + "llama");
  policy->load_adapter(case_named("dora-ends").folder());
  const auto reference = policy->with_adapter(case_named("saved").folder());
  const auto copy = policy->frozen_adapter_copy();
  const auto of_policy = parameters_of(*policy);
  for (const auto& model : {reference, copy, policy->without_adapter()}) {
    std::size_t shared = 0;
    for (const auto& [name, value] : parameters_of(*model)) {
      const auto found = of_policy.find(name);
      if (name.starts_with("base_model.")) {
        CHECK((found == of_policy.end() || found->second.data_ptr() != value.data_ptr()));
        continue;
      }
      CHECK_FALSE(value.requires_grad());
      CHECK(found->second.data_ptr() == value.data_ptr());
      ++shared;
    }
    CHECK(shared == 21);
  }
  CHECK(difference(logps_of(*policy), case_named("dora-ends").logps) < 1e-4);
  CHECK(difference(logps_of(*reference), case_named("saved").logps) < 1e-4);
  CHECK(logps_of(*copy).equal(logps_of(*policy)));
  for (const auto& [name, value] : parameters_of(*copy)) CHECK_FALSE(value.requires_grad());
}

TEST_CASE("peft adapters: narrow weights train under every kind", "[decoder]") {
  for (const Case& test : all_cases()) {
    INFO(test.name);
    for (const char* dtype : {"bfloat16", "float16"}) {
      const auto model = test.model(dtype);
      const at::Tensor logps = logps_of(*model);
      CHECK(difference(logps, test.logps) < 0.5);
      logps.sum().backward();
      for (const auto& [name, value] : model->named_parameters()) {
        CHECK(value.grad().defined() == value.requires_grad());
      }
      // Decoding computes the same as the stream.
      const std::vector<std::int64_t> tokens = recorded()["sequences"][0];
      const at::Tensor logits = model->start_decoding({{tokens[0]}})->prefill();
      const double first = logits.log_softmax(-1)[0][tokens[1]].item<double>();
      CHECK(std::abs(first - logps[0].item<double>()) < 1e-3);
    }
  }
}

}  // namespace prefopt::test_peft_adapters
