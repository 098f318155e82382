// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <map>
#include <set>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_moving_reference {
namespace {

using testing_support::TempDir;
using Numbers = std::vector<double>;

/// A model of one table, which gives the logits of the next token; under two names if `tied`.
class TablePolicy final : public Policy {
 public:
  explicit TablePolicy(at::Tensor table, bool tied = false)
      : table_(std::move(table)), tied_(tied) {}

  PolicyOutput forward(const TokenBatch& batch) override {
    return {.hidden = {}, .logits = torch::embedding(table_, batch.input_ids)};
  }
  std::int64_t vocab_size() const override { return table_.size(0); }
  std::vector<NamedParameter> named_parameters() const override {
    if (tied_) return {{"table", table_}, {"head", table_}};
    return {{"table", table_}};
  }
  std::shared_ptr<Policy> frozen_copy() const override {
    return std::make_shared<TablePolicy>(table_.detach().clone(), tied_);
  }

  void set(double value) { table_.detach().fill_(value); }

 private:
  at::Tensor table_;
  bool tied_;
};

std::shared_ptr<TablePolicy> table_policy(double value, bool tied = false) {
  return std::make_shared<TablePolicy>(
      torch::full({3, 3}, value, torch::kDouble).requires_grad_(true), tied);
}

/// The value of all numbers of a TablePolicy's table.
double value_of(MovingReference& reference) {
  const at::Tensor table = reference.policy()->named_parameters().front().value;
  REQUIRE(table.eq(table[0][0]).all().item<bool>());
  return table[0][0].item<double>();
}

/// The reference's value after each step, while the policy goes through `path`.
Numbers follow(const MovingReferenceOptions& options, const Numbers& path, double start = 0) {
  const auto policy = table_policy(start);
  MovingReference reference(*policy, options);
  Numbers values;
  for (std::size_t i = 0; i < path.size(); ++i) {
    policy->set(path[i]);
    reference.after_step(*policy, static_cast<std::int64_t>(i) + 1);
    values.push_back(value_of(reference));
  }
  return values;
}

void check_close(const Numbers& values, const Numbers& expected) {
  REQUIRE(values.size() == expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    INFO("step " << i + 1);
    CHECK(values[i] == Approx(expected[i]).epsilon(1e-14).margin(1e-14));
  }
}

const DecoderOptions kShape{.vocab_size = 11,
                            .hidden_size = 8,
                            .intermediate_size = 12,
                            .num_hidden_layers = 2,
                            .num_attention_heads = 2,
                            .num_key_value_heads = 1,
                            .attention_bias = true,
                            .initializer_range = 0.4};

std::shared_ptr<Decoder> make_decoder(at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(1);
  auto decoder = std::make_shared<Decoder>(kShape);
  decoder->to(dtype);
  return decoder;
}

/// As an optimizer would.
void move_policy(Decoder& decoder) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder.named_parameters()) {
    if (value.requires_grad()) value.add_(torch::randn(value.sizes(), value.options()), 0.1);
  }
}

/// Weights in float64, by name.
std::map<std::string, at::Tensor> weights_of(const Policy& policy) {
  std::map<std::string, at::Tensor> weights;
  for (const auto& [name, value] : policy.named_parameters()) {
    weights[name] = value.detach().to(at::kDouble).clone();
  }
  return weights;
}

const TokenBatch& batch() {
  static const TokenBatch kBatch =
      make_pair_batch({{.prompt = {1, 2, 3}, .chosen = {4, 5}, .rejected = {6, 7, 8}},
                       {.prompt = {9}, .chosen = {10, 0, 1}, .rejected = {2}}});
  return kBatch;
}

at::Tensor logits_of(Policy& policy) {
  const at::NoGradGuard no_grad;
  return policy.forward(batch()).hidden.matmul(policy.head().weight.t());
}

at::Tensor logps_of(Policy& policy) {
  const at::NoGradGuard no_grad;
  return sequence_logps(policy, batch()).logps;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace

TEST_CASE("moving reference: soft and hard updates by hand", "[policy]") {
  const Numbers path{1, 2, 4, 3, -1, 6};
  // 0 -> 0 + (2 - 0) / 4 -> 0.5 + (3 - 0.5) / 4 -> 1.125 + (6 - 1.125) / 4
  CHECK(follow({.alpha = 0.25, .update_steps = 2}, path) ==
        Numbers{0, 0.5, 0.5, 1.125, 1.125, 2.34375});
  CHECK(follow({.alpha = 0.5, .update_steps = 1}, path) ==
        Numbers{0.5, 1.25, 2.625, 2.8125, 0.90625, 3.453125});
  const Numbers hard{0, 0, 4, 4, 4, 6};
  CHECK(follow({.rule = MovingRule::kHard, .update_steps = 3}, path) == hard);
  CHECK(follow({.alpha = 1, .update_steps = 3}, path) == hard);
}

TEST_CASE("moving reference: an update between steps", "[policy]") {
  const auto policy = table_policy(0);
  MovingReference last(*policy, {.rule = MovingRule::kHard, .update_steps = kNeverUpdate});
  MovingReference average(*policy, {.alpha = 0.25, .update_steps = 1});
  policy->set(4);
  for (std::int64_t step = 1; step <= 2; ++step) {
    last.after_step(*policy, step);
    average.after_step(*policy, step);
  }
  CHECK(value_of(last) == 0);
  CHECK(value_of(average) == 1.75);
  last.update_now(*policy);
  average.update_now(*policy);
  CHECK(value_of(last) == 4);
  CHECK(value_of(average) == 2.3125);
  MovingReference bema(*policy, {.rule = MovingRule::kBema});
  CHECK_THROWS_TEXT(
      bema.update_now(*policy), ConfigError,
      "moving reference: expected the rule soft or hard for an update between steps, got bema");
}

TEST_CASE("moving reference: BEMA by its formula", "[policy]") {
  const MovingReferenceOptions options{.rule = MovingRule::kBema,
                                       .update_steps = 2,
                                       .ema_power = 0.7,
                                       .bias_power = 0.4,
                                       .lag = 3,
                                       .multiplier = 0.5,
                                       .min_ema_multiplier = GENERATE(0.0, 0.35),
                                       .update_after = GENERATE(0, 1, 2)};
  const Numbers path{1, 2, 4, 3, -1, 6, 5, 5};
  const double begin =
      options.update_after == 0 ? 0.25 : path[static_cast<std::size_t>(options.update_after) - 1];
  double average = begin;
  double value = 0.25;
  Numbers expected;
  for (int t = 1; t <= 8; ++t) {
    const double now = path[static_cast<std::size_t>(t) - 1];
    if (t > options.update_after && (t - options.update_after) % 2 == 0) {
      const double age = 3 + 0.5 * t;
      const double beta = std::max(std::pow(age, -0.7), options.min_ema_multiplier);
      average = (1 - beta) * average + beta * now;
      value = average + std::pow(age, -0.4) * (now - begin);
    }
    expected.push_back(value);
  }
  check_close(follow(options, path, 0.25), expected);
}

TEST_CASE("moving reference: what TRL's callbacks make of the same steps", "[policy]") {
  // TRL 1.16.0, BEMACallback and SyncRefModelCallback, on one parameter of float64.
  const Numbers path{1, 2, 4, 3, -1, 6, 5, 5};
  check_close(follow({.alpha = 0.6, .update_steps = 3}, path, 0.25),
              {0.25, 0.25, 2.5, 2.5, 2.5, 4.6, 4.6, 4.6});
  check_close(follow({.rule = MovingRule::kBema, .update_steps = 1}, path, 0.25),
              {0.9404164489462068, 1.9806734713039686, 4.016509334473244, 3.7219478831828168,
               0.5721255198179687, 5.7770494971855975, 5.782334934358863, 6.202584181192517});
  check_close(follow({.rule = MovingRule::kBema,
                      .update_steps = 2,
                      .ema_power = 0.7,
                      .bias_power = 0.4,
                      .lag = 3,
                      .multiplier = 0.5,
                      .min_ema_multiplier = 0.35,
                      .update_after = 3},
                     path, 0.25),
              {0.25, 0.25, 0.25, 0.25, -0.2782785990648362, -0.2782785990648362, 3.6854711572115146,
               3.6854711572115146});
}

TEST_CASE("moving reference: BEMA starts late where its first step had no update", "[policy]") {
  const auto policy = table_policy(0);
  MovingReference reference(
      *policy,
      {.rule = MovingRule::kBema, .update_steps = 2, .ema_power = 0, .lag = 1, .update_after = 2});
  const auto step = [&](double value, std::int64_t number) {
    policy->set(value);
    reference.after_step(*policy, number);
    return value_of(reference);
  };
  CHECK(step(1, 1) == 0);
  CHECK(step(5, 3) == 0);  // no call for step 2
  // The power 0 makes the average the policy itself; t + lag = 5, and 7 two steps on.
  CHECK(step(6, 4) == Approx(6 + std::pow(5, -0.2) * (6 - 5)).epsilon(1e-14));
  CHECK(step(8, 6) == Approx(8 + std::pow(7, -0.2) * (8 - 5)).epsilon(1e-14));
}

TEST_CASE("moving reference: all weights of a decoder follow", "[policy]") {
  const auto policy = make_decoder(at::kDouble);
  MovingReference reference(*policy, {.alpha = 0.3, .update_steps = 1});
  auto expected = weights_of(*policy);
  for (std::int64_t step = 1; step <= 3; ++step) {
    move_policy(*policy);
    const auto now = weights_of(*policy);
    reference.after_step(*policy, step);
    for (auto& [name, value] : expected) value = 0.7 * value + 0.3 * now.at(name);
    const auto own = weights_of(*reference.policy());
    REQUIRE(own.size() == expected.size());
    for (const auto& [name, value] : own) {
      INFO(name);
      CHECK(largest_difference(value, expected.at(name)) < 1e-14);
    }
  }
  CHECK(largest_difference(logps_of(*policy), reference.sequence_logps(batch())) > 0.01);
}

TEST_CASE("moving reference: after a hard update it is the policy, bit for bit", "[policy]") {
  const auto policy = make_decoder();
  MovingReference reference(*policy, {.rule = MovingRule::kHard, .update_steps = 1});
  CHECK(reference.sequence_logps(batch()).equal(logps_of(*policy)));
  move_policy(*policy);
  CHECK_FALSE(reference.sequence_logps(batch()).equal(logps_of(*policy)));
  reference.after_step(*policy, 1);
  const SequenceLogps live = sequence_logps(*policy, batch());
  CHECK(reference.sequence_logps(batch()).equal(live.logps));
  CHECK(reference.token_logps(batch()).equal(live.token_logps));
  CHECK_FALSE(reference.sequence_logps(batch()).requires_grad());
  for (const auto& [name, value] : reference.policy()->named_parameters()) {
    CHECK_FALSE(value.requires_grad());
  }
}

TEST_CASE("moving reference: a policy that stands still moves nothing", "[policy]") {
  const auto rule = GENERATE(MovingRule::kSoft, MovingRule::kBema);
  const bool lora = GENERATE(false, true);
  const auto policy = make_decoder();
  if (lora) policy->add_adapter({.r = 2});
  MovingReference reference(*policy, {.rule = rule, .alpha = 0.3, .update_steps = 1});
  for (std::int64_t step = 1; step <= 3; ++step) reference.after_step(*policy, step);
  CHECK(reference.sequence_logps(batch()).equal(logps_of(*policy)));
}

TEST_CASE("moving reference: a tied weight moves once", "[policy]") {
  const auto policy = table_policy(1, /*tied=*/true);
  MovingReference reference(*policy, {.alpha = 0.25, .update_steps = 1});
  policy->set(5);
  reference.after_step(*policy, 1);
  CHECK(value_of(reference) == 2);
}

TEST_CASE("moving reference: narrow weights lose no small step", "[policy]") {
  // A step of bfloat16 at 1 is 1/128; the first update is 1/400 and would be lost by itself.
  const auto policy = table_policy(1.5);
  const auto start = std::make_shared<TablePolicy>(torch::ones({3, 3}, torch::kBFloat16));
  MovingReference reference(start, *policy, {.alpha = 0.005, .update_steps = 1});
  for (std::int64_t step = 1; step <= 100; ++step) reference.after_step(*policy, step);
  const double exact = 1.5 - 0.5 * std::pow(0.995, 100);
  CHECK(value_of(reference) == Approx(exact).margin(1.0 / 256));
  CHECK(start->named_parameters().front().value.scalar_type() == at::kBFloat16);
}

TEST_CASE("moving reference: with an adapter it is the exact mix of merged weights", "[policy]") {
  const bool rslora = GENERATE(false, true);
  const auto policy = make_decoder();
  policy->add_adapter({.r = 4,
                       .lora_alpha = 6,
                       .use_rslora = rslora,
                       .target_modules = {"q_proj", "o_proj", "down_proj"}});
  MovingReference reference(*policy, {.alpha = 0.3, .update_steps = 1});
  const auto base = policy->without_adapter();
  CHECK(reference.sequence_logps(batch()).equal(logps_of(*base)));

  const double scale = rslora ? 6 / 2.0 : 6 / 4.0;
  const auto plain = weights_of(*base);
  auto mix = plain;
  for (std::int64_t step = 1; step <= 3; ++step) {
    move_policy(*policy);
    reference.after_step(*policy, step);
    const auto now = weights_of(*policy);
    for (const char* map : {"self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"}) {
      for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
        const std::string name = std::string(layer) + map;
        const at::Tensor product = now.at("base_model.model." + name + ".lora_B.weight")
                                       .mm(now.at("base_model.model." + name + ".lora_A.weight"));
        const at::Tensor merged = plain.at(name + ".weight") + scale * product;
        at::Tensor& value = mix.at(name + ".weight");
        value = 0.7 * value + 0.3 * merged;
      }
    }
  }
  const auto dense = make_decoder();
  for (const auto& [name, value] : dense->named_parameters()) value.detach().copy_(mix.at(name));
  CHECK(largest_difference(logits_of(*dense), logits_of(*base)) > 0.1);
  CHECK(largest_difference(logits_of(*reference.policy()), logits_of(*dense)) < 1e-5);
  CHECK(largest_difference(reference.sequence_logps(batch()), logps_of(*dense)) < 1e-5);
}

TEST_CASE("moving reference: only weights with an adapter are its own", "[policy]") {
  const auto policy = make_decoder(at::kBFloat16);
  policy->add_adapter({.r = 2, .target_modules = {"v_proj", "up_proj"}});
  MovingReference reference(*policy, {.rule = MovingRule::kHard, .update_steps = 1});
  std::map<std::string, at::Tensor> shared;
  for (const auto& [name, value] : policy->named_parameters()) shared[name] = value;
  std::set<std::string> own;
  for (const auto& [name, value] : reference.policy()->named_parameters()) {
    if (value.const_data_ptr() == shared.at(name).const_data_ptr()) continue;
    own.insert(name);
    // An adapter's changes are too small for the eight bits of the weights that they are added to.
    CHECK(value.scalar_type() == at::kFloat);
  }
  CHECK(own == std::set<std::string>{
                   "model.layers.0.self_attn.v_proj.weight", "model.layers.0.mlp.up_proj.weight",
                   "model.layers.1.self_attn.v_proj.weight", "model.layers.1.mlp.up_proj.weight"});
  std::size_t states = 0;
  for (const auto& [name, value] : reference.state()) {
    CHECK(own.contains(name.substr(std::string("value.").size())));
    ++states;
  }
  CHECK(states == own.size());

  const at::Tensor weight = shared.at("model.layers.0.self_attn.v_proj.weight");
  const at::Tensor before = weight.clone();
  move_policy(*policy);
  reference.after_step(*policy, 1);
  CHECK(weight.equal(before));
  CHECK(largest_difference(reference.sequence_logps(batch()), logps_of(*policy)) < 1e-4);
}

TEST_CASE("moving reference: weights that are trained next to an adapter move too", "[policy]") {
  const auto policy = make_decoder(at::kDouble);
  policy->add_adapter({.r = 2, .target_modules = {"v_proj"}});
  policy->set_requires_grad(true);
  MovingReference reference(*policy, {.rule = MovingRule::kHard, .update_steps = 1});
  const at::Tensor before = reference.sequence_logps(batch());
  move_policy(*policy);
  CHECK(reference.sequence_logps(batch()).equal(before));
  reference.after_step(*policy, 1);
  CHECK(largest_difference(reference.sequence_logps(batch()), logps_of(*policy)) < 1e-12);
}

TEST_CASE("moving reference: continues from a saved state, bit for bit", "[policy]") {
  const TempDir dir;
  const auto rule = GENERATE(MovingRule::kSoft, MovingRule::kHard, MovingRule::kBema);
  const bool narrow = GENERATE(false, true);
  const std::int64_t stop = GENERATE(1, 2, 5);  // before, at and after the start of BEMA
  const MovingReferenceOptions options{
      .rule = rule, .alpha = 0.1, .update_steps = 2, .lag = 1, .update_after = 2};
  const auto policy = make_decoder();
  const auto start = [&] {
    const auto copy = make_decoder(narrow ? at::kBFloat16 : at::kFloat);
    copy->set_requires_grad(false);
    return copy;
  };
  MovingReference first(start(), *policy, options);
  std::int64_t step = 1;
  for (; step <= stop; ++step) {
    move_policy(*policy);
    first.after_step(*policy, step);
  }
  const std::string path = dir.file("state.safetensors");
  write_safetensors(path, {.tensors = first.state(), .metadata = {}});
  MovingReference second(start(), *policy, options);
  if (stop == 5) CHECK_FALSE(second.sequence_logps(batch()).equal(first.sequence_logps(batch())));
  second.load_state(read_safetensors(path).tensors);
  for (; step <= stop + 4; ++step) {
    move_policy(*policy);
    first.after_step(*policy, step);
    second.after_step(*policy, step);
    CHECK(second.sequence_logps(batch()).equal(first.sequence_logps(batch())));
  }
  const auto expected = first.state();
  const auto state = second.state();
  REQUIRE(state.size() == expected.size());
  for (std::size_t i = 0; i < state.size(); ++i) {
    INFO(state[i].first);
    CHECK(state[i].first == expected[i].first);
    CHECK(state[i].second.equal(expected[i].second));
  }
}

TEST_CASE("moving reference: another reference's state is refused and changes nothing",
          "[policy]") {
  const auto policy = table_policy(1);
  const MovingReferenceOptions bema{.rule = MovingRule::kBema, .update_steps = 1};
  MovingReference reference(*policy, bema);
  using State = std::vector<std::pair<std::string, at::Tensor>>;
  const auto refuse = [&](const auto& change, const std::string& text) {
    State state;
    for (const auto& [name, value] : reference.state()) state.emplace_back(name, value + 1);
    change(state);
    CHECK_THROWS_TEXT(
        reference.load_state(state), CheckpointError,
        "moving reference: " + text + "; was the state saved with another policy or rule?");
    CHECK(value_of(reference) == 1);
  };
  refuse([](State& state) { state.pop_back(); },
         "expected tensor 'started' to be [] of Long, got none");
  refuse(
      [](State& state) {
        state[0].second = torch::zeros({3, 2}, torch::kDouble);
      },
      "expected tensor 'value.table' to be [3, 3] of Double, got [3, 2] of Double");
  refuse(
      [](State& state) {
        state[1].second = torch::zeros({3, 3});
      },
      "expected tensor 'average.table' to be [3, 3] of Double, got [3, 3] of Float");
  refuse([](State& state) { state.emplace_back("extra", torch::zeros({1})); },
         "expected its own tensors only, got 'extra'");
  CHECK_THROWS_TEXT(MovingReference(*policy).load_state(reference.state()), CheckpointError,
                    "moving reference: expected its own tensors only, got 'average.table'; was the "
                    "state saved with another policy or rule?");
}

TEST_CASE("moving reference: misuse is refused", "[policy]") {
  const auto policy = table_policy(1);
  CHECK_THROWS_TEXT(MovingReference(*policy, {.alpha = 0}), ConfigError,
                    "moving reference: expected alpha in (0, 1], got 0");
  CHECK_THROWS_TEXT(MovingReference(*policy, {.alpha = 1.5}), ConfigError,
                    "moving reference: expected alpha in (0, 1], got 1.5");
  CHECK_THROWS_TEXT(MovingReference(*policy, {.update_steps = 0}), ConfigError,
                    "moving reference: expected update_steps >= 1, got 0");
  CHECK_THROWS_TEXT(MovingReference(*policy, {.rule = MovingRule::kBema, .lag = 0}), ConfigError,
                    "moving reference: expected lag >= 1, got 0");
  CHECK_THROWS_TEXT(MovingReference(nullptr, *policy), ConfigError,
                    "moving reference: expected a policy to start from, got none");
  CHECK_THROWS_TEXT(MovingReference(policy, *policy), ConfigError,
                    "moving reference: expected a start with own weights, got the policy's "
                    "'table'; merged_copy() makes one");
  const TablePolicy small(torch::zeros({2, 2}, torch::kDouble).requires_grad_(true));
  CHECK_THROWS_TEXT(MovingReference(small.frozen_copy(), *policy), ConfigError,
                    "moving reference: expected weight 'table' of the start to be [3, 3], got [2, "
                    "2]");
  const auto decoder = make_decoder();
  CHECK_THROWS_TEXT(
      MovingReference(policy->frozen_copy(), *decoder), ConfigError,
      "moving reference: expected weight 'model.embed_tokens.weight' of the start to be [11, 8], "
      "got none");
  CHECK_THROWS_TEXT(
      MovingReference(*decoder->frozen_copy()), ConfigError,
      "moving reference: expected a policy with weights that require a gradient, got none");
  decoder->add_adapter({.r = 2, .target_modules = {"q_proj"}});
  CHECK_THROWS_TEXT(MovingReference(decoder->without_adapter(), *decoder), ConfigError,
                    "moving reference: expected a start with own weights, got the policy's "
                    "'model.layers.0.self_attn.q_proj.weight'; merged_copy() makes one");

  MovingReference reference(*policy, {.update_steps = 1});
  CHECK_THROWS_TEXT(reference.after_step(small, 1), ConfigError,
                    "moving reference: expected weight 'table' of the policy to be [3, 3], got [2, "
                    "2]");
  CHECK_THROWS_TEXT(reference.after_step(*decoder, 1), ConfigError,
                    "moving reference: expected the policy that it was made for, with 1 trained "
                    "weights, got one with 2");
  CHECK(value_of(reference) == 1);
}

TEST_CASE("moving reference: options take TRL's names", "[policy]") {
  const auto soft = options_from_json<MovingReferenceOptions>(
      R"({"ref_model_mixup_alpha": 0.9, "ref_model_sync_steps": 64})", "update");
  CHECK(soft.rule == MovingRule::kSoft);
  CHECK(soft.alpha == 0.9);
  CHECK(soft.update_steps == 64);
  const auto bema = options_from_json<MovingReferenceOptions>(
      R"({"rule": "bema", "update_freq": 400, "ema_power": 0.4, "bias_power": 0.3, "lag": 20,
          "update_after": 5, "multiplier": 2, "min_ema_multiplier": 0.1})",
      "update");
  CHECK(bema.rule == MovingRule::kBema);
  CHECK(bema.update_steps == 400);
  CHECK(bema.ema_power == 0.4);
  CHECK(bema.bias_power == 0.3);
  CHECK(bema.lag == 20);
  CHECK(bema.update_after == 5);
  CHECK(bema.multiplier == 2);
  CHECK(bema.min_ema_multiplier == 0.1);
}

}  // namespace prefopt::test_moving_reference
