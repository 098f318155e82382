// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt::test_families {
namespace {

using namespace testing_support;
using nlohmann::json;
using Tokens = std::vector<std::int64_t>;

const std::string kFamilies = PREFOPT_TEST_DATA_DIR "/families/";

/// What transformers gave (tests/data/families/make_families.py).
const json& recorded() {
  static const json all = json::parse(bytes_of(kFamilies + "expected.json"));
  return all;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& item : recorded()["models"].items()) names.push_back(item.key());
  return names;
}

std::vector<TokenRow> rows() {
  std::vector<TokenRow> rows;
  for (const json& row : recorded()["rows"]) {
    rows.push_back({.prompt = row["prompt"].get<Tokens>(),
                    .chosen = row["chosen"].get<Tokens>(),
                    .rejected = row["rejected"].get<Tokens>()});
  }
  return rows;
}

/// Token log-probs in the order of a pair batch: all chosen ones, then all rejected ones.
at::Tensor expected_logps(const json& record) {
  std::vector<double> all;
  for (const char* side : {"chosen", "rejected"}) {
    for (const json& row : record["logps"]) {
      for (const json& value : row[side]) all.push_back(value);
    }
  }
  return at::tensor(all, at::kDouble);
}

/// 1 for each chosen token, −1/2 for each rejected one.
at::Tensor token_weights() {
  std::vector<double> weights;
  for (const TokenRow& row : rows()) weights.insert(weights.end(), row.chosen.size(), 1.0);
  for (const TokenRow& row : rows()) weights.insert(weights.end(), row.rejected.size(), -0.5);
  return at::tensor(weights, at::kDouble);
}

TokenBatch batch_of(bool packed) {
  TokenBatch batch = make_pair_batch(rows());
  REQUIRE(batch.packed != nullptr);
  if (!packed) batch.packed.reset();
  return batch;
}

double worst(const at::Tensor& got, const at::Tensor& expected) {
  REQUIRE(got.sizes() == expected.sizes());
  return (got.to(at::kDouble) - expected).abs().max().item<double>();
}

at::Tensor logps_of(Decoder& decoder, bool packed) {
  const at::NoGradGuard no_grad;
  return sequence_logps(decoder, batch_of(packed)).token_logps;
}

using Gradients = std::map<std::string, at::Tensor>;

Gradients gradients_of(Decoder& decoder, bool packed) {
  for (const auto& [name, value] : decoder.named_parameters()) value.mutable_grad().reset();
  const at::Tensor logps = sequence_logps(decoder, batch_of(packed)).token_logps;
  (logps.to(at::kDouble) * token_weights()).sum().backward();
  Gradients gradients;
  for (const auto& [name, value] : decoder.named_parameters()) {
    if (!value.requires_grad()) continue;
    REQUIRE(value.grad().defined());
    gradients[name] = value.grad().clone();
  }
  return gradients;
}

/// Norm, first, middle and last entry.
std::vector<double> summary(const at::Tensor& gradient) {
  const at::Tensor flat = gradient.to(at::kDouble).flatten();
  const std::int64_t size = flat.size(0);
  std::vector<double> numbers{flat.norm().item<double>()};
  for (const std::int64_t i : {std::int64_t{0}, size / 2, size - 1}) {
    numbers.push_back(flat[i].item<double>());
  }
  return numbers;
}

std::string here_from_file(std::string name) {
  const std::vector<std::pair<std::string, std::string>> renamed = {{".block_sparse_moe.", ".mlp."},
                                                                    {".w1.", ".gate_proj."},
                                                                    {".w2.", ".down_proj."},
                                                                    {".w3.", ".up_proj."}};
  for (const auto& [from, to] : renamed) {
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  }
  return name;
}

void check_gradients(const Gradients& gradients, const json& expected) {
  CHECK(gradients.size() == expected.size());
  for (const auto& item : expected.items()) {
    INFO(item.key());
    const auto found = gradients.find(here_from_file(item.key()));
    REQUIRE(found != gradients.end());
    const auto numbers = summary(found->second);
    const auto wanted = item.value().get<std::vector<double>>();
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      CHECK(std::abs(numbers[i] - wanted[i]) < 1e-6 * (1 + wanted[0]));
    }
  }
}

/// All linear maps that take an adapter: experts do not.
std::vector<std::string> targets_of(const std::string& name) {
  if (name == "phi3") return {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"};
  if (name == "mixtral" || name == "qwen3_moe") return {"q_proj", "k_proj", "v_proj", "o_proj"};
  return {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
}

/// A folder with the model's weights and a changed config. Null takes a field away.
std::string changed_model(const TempDir& dir, const std::string& name, const json& changes) {
  json config = json::parse(bytes_of(kFamilies + name + "/config.json"));
  for (const auto& item : changes.items()) {
    if (item.value().is_null()) {
      config.erase(item.key());
    } else {
      config[item.key()] = item.value();
    }
  }
  put(dir.file("config.json"), config.dump());
  std::filesystem::copy_file(kFamilies + name + "/model.safetensors",
                             dir.file("model.safetensors"));
  return dir.path();
}

}  // namespace

TEST_CASE("families: log-probs and gradients of transformers, packed and padded", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const json& record = recorded()["models"][name];
  const auto decoder = Decoder::load(kFamilies + name, "float64");
  const at::Tensor expected = expected_logps(record);
  for (const bool packed : {true, false}) {
    INFO(packed);
    CHECK(worst(logps_of(*decoder, packed), expected) < 1e-8);
    check_gradients(gradients_of(*decoder, packed), record["gradients"]);
  }
  // As it is trained: bfloat16 weights, float32 in between.
  CHECK(worst(logps_of(*Decoder::load(kFamilies + name), true), expected) < 1e-4);
}

TEST_CASE("families: variants of a config", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  for (const json& variant : recorded()["models"][name]["variants"]) {
    INFO(name << " " << variant["changes"].dump());
    const TempDir dir;
    const auto decoder = Decoder::load(changed_model(dir, name, variant["changes"]), "float64");
    const at::Tensor expected = expected_logps(variant);
    CHECK(worst(logps_of(*decoder, true), expected) < 1e-8);
    CHECK(worst(logps_of(*decoder, false), expected) < 1e-8);
    // Other results, other key of a cache.
    const bool is_other = worst(expected, expected_logps(recorded()["models"][name])) > 0;
    if (is_other) {
      CHECK(content_hash(*decoder) != content_hash(*Decoder::load(kFamilies + name, "float64")));
    }
    // The files of a fresh model say the same.
    CHECK(options_to_json(options_from_json<DecoderOptions>(
              options_to_json(decoder->options()), "test")) == options_to_json(decoder->options()));
  }
}

TEST_CASE("families: a target that is experts is refused, but for the default list", "[decoder]") {
  for (const char* name : {"mixtral", "qwen3_moe"}) {
    CHECK_NOTHROW(Decoder::load(kFamilies + name)->add_adapter({}));
  }
  CHECK_THROWS_AS(Decoder::load(kFamilies + "mixtral")
                      ->add_adapter({.target_modules = {"q_proj", "gate_proj"}}),
                  ConfigError);
}

TEST_CASE("families: checkpointing changes no bit", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const auto decoder = Decoder::load(kFamilies + name, "float32");
  const Gradients kept = gradients_of(*decoder, true);
  for (const Checkpointing checkpointing : {Checkpointing::kSelective, Checkpointing::kFull}) {
    decoder->set_checkpointing(checkpointing);
    for (const auto& [key, gradient] : gradients_of(*decoder, true)) {
      INFO(key);
      CHECK(at::equal(gradient, kept.at(key)));
    }
  }
  CHECK(decoder->activation_bytes(1, Checkpointing::kNone) >=
        decoder->activation_bytes(1, Checkpointing::kFull));
}

TEST_CASE("families: decoding gives the log-probs of the whole sequence", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const auto decoder = Decoder::load(kFamilies + name, "float64");
  const json& record = recorded()["models"][name]["logps"];
  std::vector<Tokens> prompts;
  std::vector<TokenRow> all = rows();
  for (const TokenRow& row : all) prompts.push_back(row.prompt);
  const auto session = decoder->start_decoding(prompts);
  std::vector<std::size_t> live{0, 1, 2};
  at::Tensor logits = session->prefill();
  for (std::size_t step = 0; !live.empty(); ++step) {
    const at::Tensor logps = logits.log_softmax(-1);
    std::vector<std::int64_t> kept, tokens;
    std::vector<std::size_t> still;
    for (std::size_t i = 0; i < live.size(); ++i) {
      const Tokens& said = all[live[i]].chosen;
      const auto at = static_cast<std::int64_t>(i);
      // Phi-3's frequencies are those of the whole row once the sequence is beyond 11 tokens.
      const std::size_t length = all[live[i]].prompt.size() + step;
      const std::size_t whole = all[live[i]].prompt.size() + said.size();
      if (name != "phi3" || (length <= 11) == (whole <= 11)) {
        CHECK(std::abs(logps[at][said[step]].item<double>() -
                       record[live[i]]["chosen"][step].get<double>()) < 1e-7);
      }
      if (step + 1 == said.size()) continue;
      kept.push_back(at);
      tokens.push_back(said[step]);
      still.push_back(live[i]);
    }
    if (kept.empty()) break;
    live = still;
    session->keep(kept);
    logits = session->append(at::tensor(tokens, at::kLong));
  }
}

TEST_CASE("families: a model is written as it was read", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const auto decoder = Decoder::load(kFamilies + name);
  const TempDir dir;
  decoder->save(dir.path());
  CHECK(json::parse(bytes_of(dir.file("config.json"))) ==
        json::parse(bytes_of(kFamilies + name + "/config.json")));
  const auto before = read_safetensors(kFamilies + name + "/model.safetensors").tensors;
  const auto after = read_safetensors(dir.file("model.safetensors")).tensors;
  REQUIRE(before.size() == after.size());
  std::map<std::string, at::Tensor> written(after.begin(), after.end());
  for (const auto& [key, tensor] : before) {
    INFO(key);
    REQUIRE(written.contains(key));
    CHECK(at::equal(written[key], tensor));
  }
  CHECK(content_hash(*Decoder::load(dir.path())) == content_hash(*decoder));

  // Of the options alone: the same config, in what changes results.
  Decoder fresh(decoder->options());
  fresh.save(dir.path());
  CHECK(Decoder::load(dir.path())->config() == decoder->config());
}

TEST_CASE("families: adapters", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const auto decoder = Decoder::load(kFamilies + name, "float64");
  torch::manual_seed(5);
  decoder->add_adapter({.r = 2, .lora_alpha = 3, .target_modules = targets_of(name)});
  {
    const at::NoGradGuard no_grad;
    for (const auto& [key, value] : decoder->named_parameters()) {
      if (value.requires_grad()) value.normal_(0, 0.3);
    }
  }
  const Gradients packed = gradients_of(*decoder, true);
  const Gradients padded = gradients_of(*decoder, false);
  REQUIRE(!packed.empty());
  for (const auto& [key, gradient] : packed) {
    INFO(key);
    CHECK(gradient.abs().max().item<double>() > 0);
    CHECK(at::allclose(gradient, padded.at(key), 1e-7, 1e-9));
  }
  const at::Tensor logps = logps_of(*decoder, true);
  CHECK(worst(logps_of(*decoder, false), logps) < 1e-10);
  const TempDir dir;
  decoder->save_adapter(dir.path());
  const auto other = Decoder::load(kFamilies + name, "float64");
  other->load_adapter(dir.path());
  CHECK(at::equal(logps_of(*other, true), logps));
  other->merge_adapter();
  CHECK(worst(logps_of(*other, true), logps) < 1e-10);
}

TEST_CASE("families: reward models", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const auto model = RewardModel::load(kFamilies + name, "float64", ScoreHead::kFreshIfNone);
  const std::vector<TokenRow> all = rows();
  const std::vector<TokenSequence> sequences = {
      {.prompt = all[0].prompt, .completion = all[0].chosen},
      {.prompt = all[2].prompt, .completion = all[2].chosen}};
  const at::NoGradGuard no_grad;
  const at::Tensor rewards = model->rewards(sequences);
  const TempDir dir;
  model->save(dir.path());
  CHECK(at::equal(RewardModel::load(dir.path())->rewards(sequences), rewards));
}

}  // namespace prefopt::test_families
