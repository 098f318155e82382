// SPDX-License-Identifier: Apache-2.0

// Steps on a device whose memory the host cannot touch (support/pretend_device.h), against those of
// the CPU.

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "math/sliced_weight.h"
#include "prefopt/data/controlled_task.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/decoder/value_head.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/train/trainer.h"
#include "support/catch.h"
#include "support/forwarding_ranks.h"
#include "support/logps_oracle.h"
#include "support/pretend_device.h"
#include "support/temp_dir.h"
#include "train/optimizer.h"

namespace prefopt {
namespace {

using namespace testing_support;

const DecoderOptions kShape = {.vocab_size = 13,
                               .hidden_size = 12,
                               .intermediate_size = 10,
                               .num_hidden_layers = 2,
                               .num_attention_heads = 2,
                               .num_key_value_heads = 1,
                               .initializer_range = 0.4};

std::vector<TokenRow> rows() {
  std::vector<TokenRow> rows = {
      {.prompt = {1, 2, 3}, .chosen = {5, 6, 7}, .rejected = {5, 6, 8, 9}},
      {.prompt = {7}, .chosen = {2, 3}, .rejected = {4}},
      {.prompt = {4, 4, 9}, .chosen = {1}, .rejected = {12, 11, 10}},
      {.prompt = {1, 2, 3}, .chosen = {11}, .rejected = {5, 6}}};
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].columns[Column::kLabel] = i % 2 == 0 ? 1 : 0;
  }
  return rows;
}

std::shared_ptr<Decoder> fresh(at::ScalarType dtype, at::Device device, int seed = 3) {
  torch::manual_seed(seed);
  auto decoder = std::make_shared<Decoder>(kShape);
  decoder->to(dtype);
  decoder->to(device);
  return decoder;
}

TrainerOptions options_of(OptimizerOptions optimizer = {}) {
  optimizer.learning_rate = 0.01;
  optimizer.schedule = Schedule::kConstant;
  TrainerOptions options;
  options.micro_batch_size = 2;
  options.optimizer = optimizer;
  options.sampling = {.max_new_tokens = 3, .eos_id = 2, .seed = 11};
  return options;
}

struct Trained {
  std::vector<double> losses, norms;
  std::vector<std::pair<std::string, at::Tensor>> weights;
};

struct Setup {
  std::string loss = R"({"type": "dpo"})";
  OptimizerOptions optimizer = {};
  at::ScalarType dtype = at::kDouble;
};

Trained train(const Setup& setup, at::Device device) {
  const auto policy = fresh(setup.dtype, device);
  const Loss loss = make_loss(setup.loss);
  const auto reference = loss.requirements().reference()
                             ? make_frozen_reference(fresh(setup.dtype, device, 8))
                             : nullptr;
  Trainer trainer(policy, reference, loss, options_of(setup.optimizer));
  Trained trained;
  for (int step = 0; step < 2; ++step) {
    const Metrics metrics = trainer.step(rows());
    trained.losses.push_back(metric(metrics, "loss"));
    trained.norms.push_back(metric(metrics, "grad_norm"));
  }
  for (const auto& [name, value] : policy->named_parameters()) {
    trained.weights.emplace_back(name, value.detach().cpu().to(at::kDouble));
  }
  return trained;
}

void check_equal(const Trained& got, const Trained& expected, double most) {
  for (std::size_t i = 0; i < expected.losses.size(); ++i) {
    CHECK(got.losses[i] == Approx(expected.losses[i]).epsilon(most).margin(most));
    CHECK(got.norms[i] == Approx(expected.norms[i]).epsilon(most).margin(most));
  }
  for (std::size_t i = 0; i < expected.weights.size(); ++i) {
    INFO(expected.weights[i].first);
    CHECK(relative_error(got.weights[i].second, expected.weights[i].second) <= most);
  }
}

}  // namespace

TEST_CASE("training on a device: steps of losses are the CPU's", "[train][device]") {
  // With a reference; over prompts; over whole steps; other rows' completions; whole distributions;
  // fresh samples.
  const std::string loss = GENERATE(
      R"({"type": "dpo"})", R"({"type": "orpo", "nll_over_prompt": true})", R"({"type": "aot"})",
      R"({"type": "kto"})", R"({"type": "tdpo"})", R"({"type": "hypo", "num_samples": 2})");
  INFO(loss);
  const Setup setup{.loss = loss};
  check_equal(train(setup, pretend_device()), train(setup, at::kCPU), 1e-8);
}

TEST_CASE("training on a device: optimizers are the CPU's", "[train][device]") {
  const OptimizerOptions optimizer = GENERATE(
      OptimizerOptions{.max_grad_norm = 0.5}, OptimizerOptions{.type = OptimizerType::kAdafactor},
      OptimizerOptions{.type = OptimizerType::kRmsprop, .rmsprop_momentum = 0.5},
      OptimizerOptions{.state_dtype = StateDtype::kBFloat16});
  INFO(static_cast<int>(optimizer.type));
  const Setup setup{.optimizer = optimizer, .dtype = at::kFloat};
  check_equal(train(setup, pretend_device()), train(setup, at::kCPU), 2e-3);
}

TEST_CASE("training on a device: bfloat16 weights have float32 masters", "[train][device]") {
  const auto masters = GENERATE(Masters::kFloat32, Masters::kStochastic);
  const Setup narrow{.optimizer = {.masters = masters}, .dtype = at::kBFloat16};
  const Trained there = train(narrow, pretend_device());
  const Trained here = train({.dtype = at::kFloat}, at::kCPU);
  for (std::size_t i = 0; i < here.losses.size(); ++i) {
    CHECK(there.losses[i] == Approx(here.losses[i]).margin(0.05));
    CHECK(std::isfinite(there.norms[i]));
  }
  const auto policy = fresh(at::kBFloat16, pretend_device());
  Trainer trainer(policy, make_frozen_reference(fresh(at::kBFloat16, pretend_device(), 8)),
                  make_loss(R"({"type": "dpo"})"), options_of({.masters = masters}));
  trainer.step(rows());
  bool has_master = false;
  for (const auto& [name, value] : trainer.state()) {
    if (name.find("master.") == std::string::npos) continue;
    has_master = true;
    CHECK(value.scalar_type() == at::kFloat);
    CHECK(value.device() == pretend_device());
  }
  CHECK(has_master == (masters == Masters::kFloat32));
}

TEST_CASE("training on a device: the host waits twice a step", "[train][device]") {
  struct Case {
    std::string loss;
    at::ScalarType dtype = at::kFloat;
    bool has_adapter = false;
  };
  const auto [loss, dtype, has_adapter] =
      GENERATE(Case{R"({"type": "dpo"})"}, Case{R"({"type": "dpo"})", at::kBFloat16},
               Case{R"({"type": "dpo"})", at::kBFloat16, true}, Case{R"({"type": "sft"})"},
               Case{R"({"type": "kto"})"}, Case{R"({"type": "simpo"})"});
  INFO(loss << (has_adapter ? ", adapter" : ""));
  const auto policy = fresh(dtype, pretend_device());
  if (has_adapter) policy->add_adapter({.r = 2});
  const Loss made = make_loss(loss);
  const auto reference = made.requirements().reference()
                             ? make_frozen_reference(fresh(dtype, pretend_device(), 8))
                             : nullptr;
  Trainer trainer(policy, reference, made, options_of());
  trainer.step(rows());
  take_waits();
  trainer.step(rows());
  const std::vector<std::string> waits = take_waits();
  std::string list;
  for (const std::string& wait : waits) list += wait + "; ";
  INFO(list);
  CHECK(waits.size() <= 2);  // the gradient's norm, and all metrics at once
  CHECK_FALSE(waits.empty());
}

/// A rank whose slices are the whole weights.
class LoneGatherer final : public ForwardingRanks, public detail::WeightGatherer {
 public:
  LoneGatherer() : ForwardingRanks(one_process()) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  at::Tensor gather(const at::Tensor& own) override { return ForwardingRanks::gather(own); }
  void add(const std::shared_ptr<detail::WeightUnit>& /*unit*/) override {}
  void gather(detail::WeightUnit& unit) override { unit.put(0, 0, unit.row()); }
};

TEST_CASE("training on a device: slices of weights are whole where they are read",
          "[train][device]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const bool has_adapter = GENERATE(false, true);
  const auto gradients = [&](const std::shared_ptr<Ranks>& ranks) {
    const auto policy = fresh(dtype, pretend_device());
    if (has_adapter) policy->add_adapter({.r = 2, .init_lora_weights = "false"});
    if (ranks) policy->keep_slices(ranks);
    const TokenBatch batch = make_pair_batch(rows(), /*rejected=*/true).to(pretend_device());
    sequence_logps(*policy, batch).logps.sum().backward();
    std::vector<at::Tensor> all;
    for (const auto& [name, value] : policy->named_parameters()) {
      if (value.grad().defined()) all.push_back(value.grad().cpu());
    }
    return all;
  };
  const auto whole = gradients(nullptr);
  const auto sliced = gradients(std::make_shared<LoneGatherer>());
  CHECK_FALSE(whole.empty());
  REQUIRE(sliced.size() == whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) CHECK(sliced[i].equal(whole[i]));
}

TEST_CASE("training on a device: a state crosses to another one", "[train][device]") {
  const auto trainer_on = [](at::Device device, std::shared_ptr<Decoder>& policy) {
    policy = fresh(at::kDouble, device);
    return std::make_unique<Trainer>(policy, make_frozen_reference(fresh(at::kDouble, device, 8)),
                                     make_loss(R"({"type": "dpo"})"), options_of());
  };
  const bool to_cpu = GENERATE(true, false);
  const at::Device from = to_cpu ? pretend_device() : at::Device(at::kCPU);
  const at::Device to = to_cpu ? at::Device(at::kCPU) : pretend_device();
  std::shared_ptr<Decoder> first, second, whole;
  const TempDir dir;
  const auto before = trainer_on(from, first);
  before->step(rows());
  before->step(rows());
  before->save_policy(dir.path());
  const auto after = trainer_on(to, second);
  after->load_policy(dir.path());
  after->load_state(before->state());
  after->step(rows());
  const auto expected = trainer_on(at::kCPU, whole);
  for (int i = 0; i < 3; ++i) expected->step(rows());
  const auto got_weights = second->named_parameters(), weights = whole->named_parameters();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    INFO(weights[i].name);
    CHECK(got_weights[i].value.device() == to);
    CHECK(relative_error(got_weights[i].value.detach().cpu(), weights[i].value.detach()) < 1e-8);
  }
}

TEST_CASE("training on a device: cached and moving references", "[train][device]") {
  const auto losses = [](at::Device device, bool moving) {
    const TempDir dir;
    const auto policy = fresh(at::kDouble, device);
    std::shared_ptr<Reference> reference;
    if (moving) {
      reference = std::make_shared<MovingReference>(fresh(at::kDouble, device, 8), *policy,
                                                    MovingReferenceOptions{.update_steps = 1});
    } else {
      reference = std::make_shared<CachedReference>(fresh(at::kDouble, device, 8), dir.path(),
                                                    CacheLevel::kToken);
    }
    Trainer trainer(policy, reference, make_loss(R"({"type": "dpo"})"), options_of());
    std::vector<double> result;
    for (int i = 0; i < 3; ++i) result.push_back(metric(trainer.step(rows()), "loss"));
    result.push_back(metric(trainer.evaluate(rows()), "loss"));
    return result;
  };
  const bool moving = GENERATE(false, true);
  const auto there = losses(pretend_device(), moving), here = losses(at::kCPU, moving);
  for (std::size_t i = 0; i < here.size(); ++i) CHECK(there[i] == Approx(here[i]).epsilon(1e-9));
}

TEST_CASE("training on a device: a reward model", "[train][device]") {
  const auto losses = [](at::Device device) {
    torch::manual_seed(5);
    const auto model = std::make_shared<RewardModel>(kShape);
    model->to(at::kDouble);
    model->to(device);
    Trainer trainer(model, nullptr, make_loss(R"({"type": "reward_bt"})"), options_of());
    std::vector<double> result;
    for (int i = 0; i < 3; ++i) result.push_back(metric(trainer.step(rows()), "loss"));
    return result;
  };
  const auto there = losses(pretend_device()), here = losses(at::kCPU);
  for (std::size_t i = 0; i < here.size(); ++i) CHECK(there[i] == Approx(here[i]).epsilon(1e-9));
}

TEST_CASE("training on a device: objectives on rollouts are the CPU's", "[train][device]") {
  const std::string config =
      GENERATE(R"({"type": "grpo"})", R"({"type": "dapo", "entropy_coefficient": 0.3})",
               R"({"type": "policy_gradient", "rule": {"kind": "vespo"}, "level": "token",
          "aggregation": "group_token_mean"})");
  INFO(config);
  std::vector<TokenRow> rollouts;
  for (const std::int64_t group : {0, 0, 1, 1}) {
    const auto at = static_cast<double>(rollouts.size());
    TokenRow row{.prompt = {group + 1, 3}, .chosen = {2, 5, 7}, .rejected = {}};
    row.chosen[0] += std::ssize(rollouts);
    row.rollout = {.group = group,
                   .advantages = {0.5 - at, 0.5 - at, 0.5 - at},
                   .old_logps = {-2.1, -2.5 + 0.1 * at, -3},
                   .ref_logps = {-2.2, -2.4, -2.9},
                   .sampler_logps = {-2, -2.6, -3.1}};
    rollouts.push_back(std::move(row));
  }
  const auto results = [&](at::Device device) {
    Trainer trainer(fresh(at::kDouble, device), nullptr, make_token_objective(config),
                    options_of());
    std::vector<double> numbers;
    for (int step = 0; step < 2; ++step) {
      const Metrics metrics = trainer.step(rollouts);
      numbers.push_back(metric(metrics, "loss"));
      numbers.push_back(metric(metrics, "grad_norm"));
    }
    return numbers;
  };
  const auto there = results(pretend_device()), here = results(at::kCPU);
  for (std::size_t i = 0; i < here.size(); ++i) {
    CHECK(there[i] == Approx(here[i]).epsilon(1e-8).margin(1e-10));
  }
}

TEST_CASE("training on a device: bfloat16 learns what float32 learns", "[train][device][.long]") {
  // Mean loss of the last 10 of 50 steps; float32 says how much the seed of the weights matters.
  const TempDir dir;
  ControlledTask({.seed = 5}).write_preferences(dir.file("pairs.jsonl"), 200);
  const auto tokenizer = make_tokenizer("byte");
  const auto all = load_dataset(dir.file("pairs.jsonl"), *tokenizer, {}, {}).pairs;
  const auto last_losses = [&](at::ScalarType dtype, int seed, at::Device device) {
    torch::manual_seed(seed);
    const auto policy = std::make_shared<Decoder>(DecoderOptions{.hidden_size = 32,
                                                                 .intermediate_size = 64,
                                                                 .num_hidden_layers = 2,
                                                                 .num_attention_heads = 4,
                                                                 .num_key_value_heads = 2});
    policy->to(dtype);
    policy->to(device);
    TrainerOptions options = options_of();
    options.optimizer.learning_rate = 1e-3;
    options.micro_batch_size = 8;
    Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                    make_loss(R"({"type": "dpo"})"), options);
    double sum = 0;
    for (std::size_t step = 0; step < 50; ++step) {
      const auto first = all.begin() + static_cast<std::ptrdiff_t>(step * 8 % 192);
      const double loss = metric(trainer.step({first, first + 8}), "loss");
      if (step >= 40) sum += loss / 10;
    }
    return sum;
  };
  std::vector<double> of_seeds;
  for (const int seed : {1, 2, 3}) of_seeds.push_back(last_losses(at::kFloat, seed, at::kCPU));
  const auto [least, most] = std::minmax_element(of_seeds.begin(), of_seeds.end());
  const double narrow = last_losses(at::kBFloat16, 1, pretend_device());
  INFO("float32 " << of_seeds[0] << " " << of_seeds[1] << " " << of_seeds[2] << ", bfloat16 "
                  << narrow);
  CHECK(*most < std::log(2.0));  // something was learned
  CHECK(std::abs(narrow - of_seeds[0]) <= *most - *least);
}

}  // namespace prefopt
