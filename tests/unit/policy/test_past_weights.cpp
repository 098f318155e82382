// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/past_weights.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/policy/weight_snapshot.h"
#include "support/bigram_policy.h"
#include "support/errors.h"

namespace prefopt::test_past_weights {
namespace {

using namespace testing_support;

std::shared_ptr<Decoder> decoder_of(at::ScalarType dtype = at::kFloat, bool adapted = false) {
  torch::manual_seed(1);
  auto decoder = std::make_shared<Decoder>(DecoderOptions{.vocab_size = 11,
                                                          .hidden_size = 8,
                                                          .intermediate_size = 12,
                                                          .num_hidden_layers = 2,
                                                          .num_attention_heads = 2,
                                                          .num_key_value_heads = 1,
                                                          .initializer_range = 0.4});
  if (adapted) decoder->add_adapter({.r = 2, .lora_alpha = 4});
  decoder->to(dtype);
  return decoder;
}

/// As an optimizer would.
void move_policy(Policy& policy) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : policy.named_parameters()) {
    if (value.requires_grad()) value.add_(torch::randn(value.sizes(), value.options()), 0.1);
  }
}

at::Tensor logps_of(Policy& policy) {
  static const TokenBatch kBatch =
      make_pair_batch({{.prompt = {1, 2, 3}, .chosen = {4, 5}, .rejected = {6, 7, 8}},
                       {.prompt = {9}, .chosen = {10, 0, 1}, .rejected = {2}}});
  const at::NoGradGuard no_grad;
  return sequence_logps(policy, kBatch).logps;
}

using State = std::vector<std::pair<std::string, at::Tensor>>;

/// Writes a saved state into the tensors of another one, as a resumed run does.
void load(const State& own, const State& saved) {
  REQUIRE(own.size() == saved.size());
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < own.size(); ++i) {
    REQUIRE(own[i].first == saved[i].first);
    REQUIRE(own[i].second.sizes() == saved[i].second.sizes());
    own[i].second.copy_(saved[i].second);
  }
}

State copy_of(const State& state) {
  State copy;
  for (const auto& [name, value] : state) copy.emplace_back(name, value.clone());
  return copy;
}

TEST_CASE("weight snapshot: restored weights are those that were taken", "[policy]") {
  const bool adapted = GENERATE(false, true);
  const auto dtype = GENERATE(at::kFloat, at::kDouble, at::kBFloat16);
  const auto policy = decoder_of(dtype, adapted);
  move_policy(*policy);
  const at::Tensor before = logps_of(*policy);
  WeightSnapshot snapshot(*policy);
  move_policy(*policy);
  const at::Tensor after = logps_of(*policy);
  REQUIRE_FALSE(at::equal(after, before));
  {
    const BorrowedWeights borrowed(*policy, snapshot);
    CHECK(at::equal(logps_of(*policy), before));
  }
  CHECK(at::equal(logps_of(*policy), after));

  // A frozen copy takes them as well.
  const auto copy = policy->frozen_copy();
  snapshot.restore(*copy);
  CHECK(at::equal(logps_of(*copy), before));
  snapshot.take(*policy);
  snapshot.restore(*copy);
  CHECK(at::equal(logps_of(*copy), after));
  // Of an adapter, the adapter alone.
  const auto state = snapshot.state();
  const auto is_lora = [](const auto& item) {
    return item.first.find("lora") != std::string::npos;
  };
  CHECK(std::all_of(state.begin(), state.end(), is_lora) == adapted);
}

TEST_CASE("weight snapshot: of another policy it is refused, and changes nothing", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  const auto other = decoder_of();
  const at::Tensor before = logps_of(*other);
  const WeightSnapshot snapshot(*policy);
  CHECK_THROWS_TEXT(snapshot.restore(*other), ConfigError,
                    "weight snapshot: expected a policy whose 'table' is [5, 5], got none; it is "
                    "of another policy");
  CHECK(at::equal(logps_of(*other), before));
  policy->set_requires_grad(false);
  CHECK_THROWS_TEXT(
      WeightSnapshot(*policy), ConfigError,
      "weight snapshot: expected a policy with parameters that require a gradient, got none");
}

TEST_CASE("extrapolation: a step further along the last one", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  const WeightSnapshot previous(*policy);
  const at::Tensor first = policy->table().detach().clone();
  move_policy(*policy);
  const at::Tensor second = policy->table().detach().clone();
  extrapolate_weights(*policy, previous, 0);
  CHECK(policy->table().equal(second));
  extrapolate_weights(*policy, previous, 0.3);
  CHECK(at::allclose(policy->table(), second + (second - first) * 0.3, 0, 1e-15));

  for (const double alpha : {-0.1, 1.0, kNan}) {
    CHECK_THROWS_TEXT(extrapolate_weights(*policy, previous, alpha), ConfigError,
                      fmt::format("extrapolation: expected alpha in [0, 1), got {}", alpha));
  }
  const auto adapted = decoder_of(at::kFloat, /*adapted=*/true);
  CHECK_THROWS_TEXT(
      extrapolate_weights(*adapted, WeightSnapshot(*adapted), 0.3), ConfigError,
      "extrapolation: expected weights without adapters, got one of "
      "'model.layers.0.self_attn.q_proj.weight'; a sum of two adapters is none of the same rank");
  const auto narrow = decoder_of(at::kBFloat16);
  CHECK_THROWS_AS(extrapolate_weights(*narrow, WeightSnapshot(*narrow), 0.3), ConfigError);
}

TEST_CASE("extrapolation: rounds of a log-linear policy add up as in the paper", "[policy]") {
  // 4.10 of the specification: π̂ ∝ π_ref e^{c r/β} with c = 1, 2.5, 4.25, 6.125 at α 0.5, where a
  // round adds r/β to the logits of its reference, the last extrapolated iterate.
  const auto policy = std::make_shared<BigramPolicy>(at::zeros({kVocab, kVocab}, at::kDouble),
                                                     at::zeros({kVocab}, at::kDouble));
  policy->set_requires_grad(true);
  const at::Tensor reward = torch::tensor({0.1, -0.4, 0.7, 0.0, 0.3}, at::kDouble);
  std::vector<double> multiples;
  WeightSnapshot last(*policy);  // π̂_1 = π_1 = π_ref
  for (int round = 0; round < 4; ++round) {
    policy->bias().detach().add_(reward);
    const WeightSnapshot present(*policy);
    multiples.push_back((policy->bias()[2] / reward[2]).item<double>());
    extrapolate_weights(*policy, last, 0.5);
    last = present;
  }
  const std::vector<double> expected{1, 2.5, 4.25, 6.125};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(multiples[i] == Approx(expected[i]).epsilon(1e-14));
  }
}

TEST_CASE("past weights: the newest ones are kept, oldest first", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  PastWeights past(*policy, 3);
  CHECK(past.size() == 0);
  CHECK_THROWS_TEXT(past.pick(0, 0), ConfigError,
                    "past weights: expected at least one snapshot to pick from, got none");
  const auto restored = [&](std::int64_t i) {
    const auto copy = policy->frozen_copy();
    past.at(i).restore(*copy);
    return copy->named_parameters().front().value[0][0].item<double>();
  };
  for (int number = 0; number < 5; ++number) {
    policy->table().detach().fill_(number);
    past.add(*policy);
    CHECK(past.size() == std::min(number + 1, 3));
    for (std::int64_t i = 0; i < past.size(); ++i) {
      CHECK(restored(i) == static_cast<double>(number + 1 - past.size() + i));
    }
  }
  CHECK_THROWS_TEXT(past.at(3), ConfigError, "past weights: expected a place in [0, 3), got 3");
  CHECK_THROWS_TEXT(PastWeights(*policy, 0), ConfigError,
                    "past weights: expected keep of at least 1, got 0");
}

TEST_CASE("past weights: picks are even, and depend on seed and round alone", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  PastWeights past(*policy, 4);
  for (int i = 0; i < 4; ++i) past.add(*policy);
  std::map<std::int64_t, double> counts;
  constexpr int kRounds = 4000;
  for (int round = 0; round < kRounds; ++round) ++counts[past.pick(7, round)];
  double chi_square = 0;
  for (std::int64_t i = 0; i < 4; ++i) {
    const double mean = kRounds / 4.0;
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  CHECK(chi_square < 16.27);  // 3 degrees of freedom, one case in 1000
  CHECK(chi_square > 0.02);
  CHECK(past.pick(7, 5) == past.pick(7, 5));
  int equal = 0;
  for (int round = 0; round < 400; ++round) equal += past.pick(7, round) == past.pick(8, round);
  CHECK(equal < 200);
}

TEST_CASE("random past reference: a past policy in each round", "[policy]") {
  const bool adapted = GENERATE(false, true);
  const auto policy = decoder_of(at::kFloat, adapted);
  move_policy(*policy);
  RandomPastReference reference(*policy, 3, /*seed=*/5);
  PastWeights expected_past(*policy, 3);
  bool some_are_old = false;
  for (std::int64_t round = 0; round < 8; ++round) {
    const at::Tensor present = logps_of(*policy);
    expected_past.add(*policy);
    reference.start_round(*policy, round);
    CHECK(at::equal(logps_of(*policy), present));
    const std::int64_t place = expected_past.pick(5, round);
    some_are_old = some_are_old || place + 1 < expected_past.size();
    {
      const BorrowedWeights borrowed(*policy, expected_past.at(place));
      const auto merged = policy->merged_copy();
      CHECK(at::equal(logps_of(*reference.policy()), logps_of(*merged)));
    }
    move_policy(*policy);
    reference.after_step(*policy, round + 1);  // it does not follow steps
  }
  CHECK(some_are_old);
  CHECK(reference.is_normalized());
}

TEST_CASE("random past reference: resumed, it goes through the same policies", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  RandomPastReference straight(*policy, 3, 5);
  std::vector<at::Tensor> weights;
  for (std::int64_t round = 0; round < 4; ++round) {
    straight.start_round(*policy, round);
    move_policy(*policy);
  }
  const State saved = copy_of(straight.state());
  const at::Tensor at_break = policy->table().detach().clone();

  // A run that begins again and loads the state.
  const auto again = std::make_shared<BigramPolicy>(1);
  RandomPastReference resumed(*again, 3, 5);
  load(resumed.state(), saved);
  const auto table_of = [](RandomPastReference& reference) {
    return reference.policy()->named_parameters().front().value;
  };
  CHECK(table_of(resumed).equal(table_of(straight)));
  for (std::int64_t round = 4; round < 9; ++round) {
    again->table().detach().copy_(policy->table().detach());
    again->bias().detach().copy_(policy->bias().detach());
    straight.start_round(*policy, round);
    resumed.start_round(*again, round);
    CHECK(table_of(resumed).equal(table_of(straight)));
    move_policy(*policy);
  }
  // Without the state it would not.
  const auto other = std::make_shared<BigramPolicy>(1);
  RandomPastReference unloaded(*other, 3, 5);
  CHECK_FALSE(table_of(unloaded).equal(at_break));
  CHECK_FALSE(table_of(unloaded).equal(table_of(straight)));
}

}  // namespace
}  // namespace prefopt::test_past_weights
