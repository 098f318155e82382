// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/losses/pair/reward_bt.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/reward_models.h"
#include "support/temp_dir.h"

namespace prefopt::test_reward_model {
namespace {

using namespace testing_support;
using nlohmann::json;

const DecoderOptions kShape{.vocab_size = 40,
                            .hidden_size = 16,
                            .intermediate_size = 24,
                            .num_hidden_layers = 2,
                            .num_attention_heads = 2,
                            .num_key_value_heads = 1,
                            .max_position_embeddings = 64,
                            .pad_token_id = 2};

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor wide = values.detach().contiguous();
  return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

std::vector<double> scores(RewardModel& model, const std::vector<TokenRow>& rows) {
  const at::NoGradGuard no_grad;
  return numbers(model.rewards(rows));
}

/// A folder with a changed config.json.
void copy_with(const std::string& from, const std::string& to, const json& changes) {
  std::filesystem::create_directories(to);
  std::filesystem::copy(from + "/model.safetensors", to + "/model.safetensors");
  json config = json::parse(read_text(from + "/config.json"));
  config.update(changes);
  write_text(to + "/config.json", config.dump());
}

TEST_CASE("reward model: rewards and gradients that transformers gives", "[decoder]") {
  const std::string family = GENERATE("llama", "qwen3");
  CAPTURE(family);
  const json& golden = reward_goldens()[family];
  const auto rows = reward_rows();
  for (const std::string dtype : {"float64", "float32"}) {
    CAPTURE(dtype);
    const auto model = RewardModel::load(kRewardModels + family, dtype);
    CHECK_FALSE(model->has_fresh_head());
    const at::Tensor rewards = model->rewards(rows);
    const auto got = numbers(rewards);
    const double margin = dtype == "float64" ? 2e-6 : 2e-5;  // rotary angles are float32 in both
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CAPTURE(i);
      CHECK(got[i] == Approx(golden["chosen"][i].get<double>()).margin(margin));
      CHECK(got[rows.size() + i] == Approx(golden["rejected"][i].get<double>()).margin(margin));
    }

    const auto count = static_cast<std::int64_t>(rows.size());
    std::vector<double> margins;
    for (const TokenRow& row : rows) margins.push_back(row.columns[Column::kMargin]);
    PairLogps in;
    in.chosen_logps = rewards.narrow(0, 0, count);
    in.rejected_logps = rewards.narrow(0, count, count);
    in.margins = at::tensor(margins, at::kDouble);
    RewardBtOptions options;
    options.center_rewards_coefficient = reward_goldens()["center_rewards_coefficient"];
    options.pair.margin_scale = 1;
    const LossOutput out = RewardBtLoss(options)(in);
    CHECK(out.loss.item<double>() == Approx(golden["loss"].get<double>()).epsilon(margin));
    out.loss.backward();
    for (const auto& [name, value] : model->named_parameters()) {
      CAPTURE(name);
      REQUIRE(golden["grad_norms"].contains(name));
      CHECK(value.grad().norm().item<double>() ==
            Approx(golden["grad_norms"][name].get<double>()).epsilon(10 * margin));
    }
    const auto head = numbers(model->named_parameters().back().value.grad().to(at::kDouble));
    for (std::size_t i = 0; i < head.size(); ++i) {
      CHECK(head[i] == Approx(golden["grad_score"][i].get<double>()).margin(10 * margin));
    }
  }
}

TEST_CASE("reward model: a reward does not depend on what is scored with it", "[decoder]") {
  const std::string family = GENERATE("llama", "qwen3");
  const auto model = RewardModel::load(kRewardModels + family);
  const auto rows = reward_rows();
  const auto together = scores(*model, rows);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto alone = scores(*model, {rows[i]});
    CHECK(alone[0] == together[i]);
    CHECK(alone[1] == together[rows.size() + i]);
    // Apart from the other completion of its prompt as well.
    CHECK(numbers(model->rewards({TokenSequence{rows[i].prompt, rows[i].rejected}}))[0] ==
          alone[1]);
  }
  const std::vector<TokenRow> reversed(rows.rbegin(), rows.rend());
  CHECK(scores(*model, reversed)[0] == together[rows.size() - 1]);
}

TEST_CASE("reward model: the token that is scored", "[decoder]") {
  at::manual_seed(3);
  RewardModel model(kShape);
  const std::vector<std::int64_t> prompt{5, 6, 7}, text{8, 9}, with_pads{8, 9, 2, 2}, pads{2}, none;
  const auto reward = [&](const std::vector<std::int64_t>& completion) {
    return numbers(model.rewards({TokenSequence{prompt, completion}}))[0];
  };
  CHECK(reward(text) == reward(with_pads));
  CHECK(reward(pads) == reward(none));
  CHECK(reward(text) != reward(none));
  const std::vector<std::int64_t> padded_prompt{2, 2};
  CHECK(std::isfinite(numbers(model.rewards({TokenSequence{padded_prompt, pads}}))[0]));

  // Without a pad token every token counts.
  DecoderOptions shape = kShape;
  shape.pad_token_id = -1;
  at::manual_seed(3);
  RewardModel plain(shape);
  CHECK(plain.pad_token() == -1);
  const auto of = [&](const std::vector<std::int64_t>& completion) {
    return numbers(plain.rewards({TokenSequence{prompt, completion}}))[0];
  };
  CHECK(of(text) == reward(text));
  CHECK(of(with_pads) != of(text));
  plain.set_pad_token(2);
  CHECK(of(with_pads) == of(text));
  CHECK_THROWS_TEXT(plain.set_pad_token(40), ConfigError,
                    "reward model: expected a pad token in [0, 40), got 40");
}

TEST_CASE("reward model: a folder that transformers loads", "[decoder]") {
  const TempDir dir;
  const std::string family = GENERATE("llama", "qwen3");
  const auto model = RewardModel::load(kRewardModels + family);
  model->save(dir.path());
  const json config = json::parse(read_text(dir.file("config.json")));
  CHECK(config == json::parse(read_text(kRewardModels + family + "/config.json")));
  CHECK(is_reward_model(dir.path()));
  const auto back = RewardModel::load(dir.path());
  CHECK(content_hash(*back) == content_hash(*model));
  CHECK(scores(*back, reward_rows()) == scores(*model, reward_rows()));
  CHECK(content_hash(*model->frozen_copy()) == content_hash(*model));

  // Of a language model, with a fresh head from the default generator.
  Decoder(kShape).save(dir.file("lm"));
  CHECK_FALSE(is_reward_model(dir.file("lm")));
  const auto start = [&] {
    at::manual_seed(11);
    return RewardModel::load(dir.file("lm"), "keep", ScoreHead::kFreshIfNone);
  };
  const auto fresh = start();
  CHECK(fresh->has_fresh_head());
  CHECK(content_hash(*fresh) == content_hash(*start()));
  fresh->save(dir.file("rm"));
  const json made = json::parse(read_text(dir.file("rm/config.json")));
  CHECK(made["architectures"] == json::array({"LlamaForSequenceClassification"}));
  CHECK(made["id2label"] == json{{"0", "LABEL_0"}});
  CHECK(made["label2id"] == json{{"LABEL_0", 0}});
  CHECK(made["pad_token_id"] == 2);
  const SafetensorsFile file = read_safetensors(dir.file("rm/model.safetensors"));
  CHECK(file.tensors.back().first == "score.weight");
  CHECK(content_hash(*RewardModel::load(dir.file("rm"))) == content_hash(*fresh));
}

TEST_CASE("reward model: an adapter with its score head", "[decoder]") {
  const TempDir dir;
  at::manual_seed(5);
  Decoder(kShape).save(dir.file("lm"));
  const auto model = RewardModel::load(dir.file("lm"), "keep", ScoreHead::kFreshIfNone);
  model->add_adapter({.r = 2});
  {
    const at::NoGradGuard no_grad;
    for (const auto& [name, value] : model->named_parameters()) {
      if (value.requires_grad()) value.add_(0.1);
    }
  }
  std::vector<std::string> trained;
  for (const auto& weight : model->trained_weights()) trained.push_back(weight.name);
  CHECK(trained.size() == 2 * 7 + 1);
  CHECK(trained.back() == "score.weight");
  model->save(dir.file("adapter"));
  const json config = json::parse(read_text(dir.file("adapter/adapter_config.json")));
  CHECK(config["task_type"] == "SEQ_CLS");
  CHECK(config["modules_to_save"] == json::array({"score"}));
  CHECK(is_reward_model(dir.file("adapter")));

  std::vector<TokenRow> rows = reward_rows();
  for (TokenRow& row : rows) {
    for (auto* part : {&row.prompt, &row.chosen, &row.rejected}) {
      for (auto& id : *part) id %= kShape.vocab_size;
    }
  }
  const auto expected = scores(*model, rows);
  CHECK(scores(*RewardModel::load(dir.file("adapter")), rows) == expected);
  auto again = RewardModel::load(dir.file("lm"), "keep", ScoreHead::kFreshIfNone);
  CHECK(scores(*again, rows) != expected);
  again->add_adapter({.r = 2});
  again->load_weights(dir.file("adapter"));
  CHECK(scores(*again, rows) == expected);

  // On the weights of a policy, which has an adapter itself.
  const auto policy = Decoder::load(dir.file("lm"));
  CHECK_FALSE(RewardModel::is_on(dir.file("adapter"), "keep", *policy));  // it trains them
  policy->add_adapter({.r = 3, .modules_to_save = {"lm_head"}});
  CHECK(RewardModel::is_on(dir.file("adapter"), "keep", *policy));
  CHECK_FALSE(RewardModel::is_on(dir.file("adapter"), "bfloat16", *policy));
  CHECK_FALSE(RewardModel::is_on(dir.file("lm"), "keep", *policy));
  const auto shared = RewardModel::on(*policy, dir.file("adapter"));
  CHECK(scores(*shared, rows) == expected);
  std::map<std::string, at::Tensor> of_policy;
  for (const auto& [name, value] : policy->named_parameters()) of_policy[name] = value;
  std::size_t same = 0;
  for (const auto& [name, value] : shared->body().named_parameters()) {
    if (name.starts_with("base_model.")) continue;
    CHECK(of_policy[name].data_ptr() == value.data_ptr());
    ++same;
  }
  CHECK(same > 10);

  // Of a language model, and for one.
  Decoder lm(kShape);
  lm.add_adapter({.r = 2});
  lm.save(dir.file("lm-adapter"));
  auto base = RewardModel::load(dir.file("lm"), "keep", ScoreHead::kFreshIfNone);
  check_throws_part<CheckpointError>(
      [&] { (void)base->load_adapter(dir.file("lm-adapter")); },
      dir.file("lm-adapter") + ": expected an adapter of a reward model");
  check_throws_part<CheckpointError>(
      [&] { Decoder::load(dir.file("lm"))->load_adapter(dir.file("adapter")); },
      ".modules_to_save: expected ends of names of the model's modules, got 'score'");
}

TEST_CASE("reward model: what it is not", "[decoder]") {
  const TempDir dir;
  const std::string llama = kRewardModels + "llama";
  check_throws_part<CheckpointError>(
      [&] { (void)Decoder::load(llama); },
      llama +
          ": expected a language model, got a reward model, with the tensor "
          "'score.weight'");
  Decoder(kShape).save(dir.file("lm"));
  check_throws_part<CheckpointError>(
      [&] { (void)RewardModel::load(dir.file("lm")); },
      dir.file("lm") +
          ": expected a reward model, with the tensor 'score.weight', "
          "got none of that name; prefopt train");
  copy_with(llama, dir.file("two"), {{"id2label", {{"0", "bad"}, {"1", "good"}}}});
  check_throws_part<CheckpointError>(
      [&] { (void)RewardModel::load(dir.file("two")); },
      dir.file("two/config.json") + ": expected id2label of one label, the reward");
  copy_with(llama, dir.file("three"), {{"num_labels", 3}});
  check_throws_part<CheckpointError>(
      [&] { (void)RewardModel::load(dir.file("three")); },
      dir.file("three/config.json") + ": expected num_labels of one label, the reward, got 3");
  copy_with(llama, dir.file("wide"), json::object());
  SafetensorsFile file = read_safetensors(llama + "/model.safetensors");
  for (auto& [name, tensor] : file.tensors) {
    if (name == "score.weight") tensor = tensor.repeat({2, 1});
  }
  write_safetensors(dir.file("wide/model.safetensors"), file);
  check_throws_part<CheckpointError>([&] { (void)RewardModel::load(dir.file("wide")); },
                                     "tensor 'score.weight': expected shape [1, 16], got [2, 16]");

  RewardModel model(kShape);
  const TokenBatch batch = make_pair_batch(reward_rows());
  check_throws_part<ConfigError>(
      [&] { (void)model.forward(batch); },
      "policy: expected a model that predicts tokens, got a reward model");
  check_throws_part<ConfigError>(
      [&] {
        (void)model.start_decoding({{1, 2}});
      },
      "got a reward model");
  check_throws_part<ShapeError>([&] { (void)model.rewards(std::vector<TokenSequence>()); },
                                "expected at least one sequence");
  CHECK_THROWS_AS(model.rewards(reward_rows()), DataError);  // ids above the vocabulary

  // Another tokenizer than the policy's.
  const auto byte = open_tokenizer("byte", "");
  check_throws_part<ConfigError>([&] { (void)load_reward_model(llama, *byte); },
                                 llama + ": expected a reward model of at least the 259 tokens");
  copy_with(llama, dir.file("other"), json::object());
  std::filesystem::copy(PREFOPT_TEST_DATA_DIR "/tokenizers/gpt2/tokenizer.json",
                        dir.file("other/tokenizer.json"));
  check_throws_part<ConfigError>([&] { (void)load_reward_model(dir.file("other"), *byte); },
                                 dir.file("other") +
                                     ": expected a reward model that tokenizes as the policy's "
                                     "byte does, got one by which ");
}

}  // namespace
}  // namespace prefopt::test_reward_model
