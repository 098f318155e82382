// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_kl.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/fixed_policy.h"
#include "support/logps_oracle.h"

namespace prefopt::test_sequence_kl {
namespace {

using namespace testing_support;

// The formula on whole tensors of logits [2, 4, V].
at::Tensor dense_kl(const at::Tensor& logits, const at::Tensor& ref_logits) {
  const at::Tensor p = ref_logits.softmax(2);
  const at::Tensor rows = (p * (ref_logits.log_softmax(2) - logits.log_softmax(2))).sum(2);
  return at::stack({rows[0].narrow(0, 0, 3).sum(), rows[1][1]});
}

}  // namespace

TEST_CASE("sequence_kl equals the formula, value and gradients", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor ref_logits = random_normal({2, 4, 5}, at::kDouble, 1);
  FixedPolicy reference({.hidden = {}, .logits = ref_logits}, {}, 5);
  const at::Tensor upstream = at::tensor({0.3, -1.7}, at::kDouble);

  SECTION("from logits") {
    const at::Tensor logits = random_normal({2, 4, 5}, at::kDouble, 2).requires_grad_(true);
    FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 5);
    const at::Tensor kl = sequence_kl(policy, reference, batch);
    const at::Tensor expected = dense_kl(logits, ref_logits);
    CHECK(at::allclose(kl, expected, 1e-12, 1e-14));
    const at::Tensor got = torch::autograd::grad({kl}, {logits}, {upstream})[0];
    CHECK(at::allclose(got, torch::autograd::grad({expected}, {logits}, {upstream})[0], 1e-12,
                       1e-14));
  }
  SECTION("from hidden states and a head") {
    const at::Tensor hidden = random_normal({2, 4, 3}, at::kDouble, 3).requires_grad_(true);
    const at::Tensor weight = random_normal({5, 3}, at::kDouble, 4).requires_grad_(true);
    FixedPolicy policy({.hidden = hidden, .logits = {}}, weight, 5);
    const at::Tensor kl = sequence_kl(policy, reference, batch);
    const at::Tensor expected = dense_kl(hidden.matmul(weight.t()), ref_logits);
    CHECK(at::allclose(kl, expected, 1e-12, 1e-14));
    const auto got = torch::autograd::grad({kl}, {hidden, weight}, {upstream});
    const auto wanted = torch::autograd::grad({expected}, {hidden, weight}, {upstream});
    CHECK(at::allclose(got[0], wanted[0], 1e-12, 1e-14));
    CHECK(at::allclose(got[1], wanted[1], 1e-12, 1e-14));
  }
  SECTION("from a head with a bias and a transform, on both sides") {
    const at::Tensor hidden = random_normal({2, 4, 3}, at::kDouble, 3).requires_grad_(true);
    const at::Tensor weight = random_normal({5, 3}, at::kDouble, 4).requires_grad_(true);
    const at::Tensor bias = random_normal({5}, at::kDouble, 5).requires_grad_(true);
    const auto [scale, softcap, temperature] =
        GENERATE(LogitTransform{0.7, 1.5, 0.8}, LogitTransform{2, 0, 1.3});
    FixedPolicy policy({.hidden = hidden, .logits = {}}, weight, 5);
    policy.output_head.bias = bias;
    policy.output_head.transform = {scale, softcap, temperature};
    const at::Tensor theirs = random_normal({2, 4, 3}, at::kDouble, 6);
    FixedPolicy other({.hidden = theirs, .logits = {}}, weight.detach(), 5);
    other.output_head.transform = {.scale = 0.5, .softcap = 2};
    const at::Tensor raw = scale * (hidden.matmul(weight.t()) + bias);
    const at::Tensor logits = (softcap == 0 ? raw : softcap * (raw / softcap).tanh()) / temperature;
    const at::Tensor kl = sequence_kl(policy, other, batch);
    const at::Tensor expected =
        dense_kl(logits, 2 * (0.25 * theirs.matmul(weight.detach().t())).tanh());
    CHECK(at::allclose(kl, expected, 1e-12, 1e-14));
    const auto got = torch::autograd::grad({kl}, {hidden, weight, bias}, {upstream});
    const auto wanted = torch::autograd::grad({expected}, {hidden, weight, bias}, {upstream});
    for (std::size_t i = 0; i < 3; ++i) CHECK(at::allclose(got[i], wanted[i], 1e-12, 1e-14));
  }
}

TEST_CASE("sequence_kl on a packed stream equals that of padded sequences", "[policy]") {
  DecoderOptions options;
  options.vocab_size = 37;
  options.hidden_size = 16;
  options.intermediate_size = 32;
  options.num_hidden_layers = 2;
  options.num_attention_heads = 2;
  options.num_key_value_heads = 1;
  at::manual_seed(1);
  const auto policy = std::make_shared<Decoder>(options);
  const auto reference = std::make_shared<Decoder>(options);
  TokenBatch batch = small_batch();
  REQUIRE(batch.packed != nullptr);
  REQUIRE(policy->packs());
  const at::Tensor packed = sequence_kl(*policy, *reference, batch).detach();
  batch.packed = nullptr;
  CHECK(at::allclose(packed, sequence_kl(*policy, *reference, batch).detach(), 1e-5, 1e-6));
  CHECK(sequence_kl(*policy, *policy, batch).abs().max().item<double>() == 0);
}

TEST_CASE("sequence_kl: a token that cannot come adds nothing", "[policy]") {
  const auto dtype = GENERATE(at::kDouble, at::kFloat);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const TokenBatch batch = small_batch();
  const at::Tensor ref_logits = random_normal({2, 4, 5}, dtype, 1);
  ref_logits.select(2, 3).fill_(-kInfinity);
  const at::Tensor values = random_normal({2, 4, 5}, dtype, 2);
  // Masked by both models, or by the reference alone.
  const bool by_both = GENERATE(true, false);
  CAPTURE(by_both);
  if (by_both) values.select(2, 3).fill_(-kInfinity);
  const at::Tensor logits = values.requires_grad_(true);
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 5);
  FixedPolicy reference({.hidden = {}, .logits = ref_logits}, {}, 5);
  const at::Tensor kl = sequence_kl(policy, reference, batch);
  const at::Tensor gradient =
      torch::autograd::grad({kl}, {logits}, {at::tensor({0.3, -1.7}, at::kDouble)})[0];

  const auto expected = [&](std::int64_t s, std::int64_t t) {
    const auto log_sum = [&](const at::Tensor& of) {
      double sum = 0;
      for (std::int64_t v = 0; v < 5; ++v) sum += std::exp(of[s][t][v].item<double>());
      return std::log(sum);
    };
    double sum = 0;
    for (const std::int64_t v : {0, 1, 2, 4}) {
      const double ref = ref_logits[s][t][v].item<double>() - log_sum(ref_logits);
      sum += std::exp(ref) * (ref - (logits[s][t][v].item<double>() - log_sum(logits)));
    }
    return sum;
  };
  const double precision = dtype == at::kDouble ? 1e-12 : 2e-6;
  CHECK(kl[0].item<double>() ==
        Approx(expected(0, 0) + expected(0, 1) + expected(0, 2)).epsilon(precision));
  CHECK(kl[1].item<double>() == Approx(expected(1, 1)).epsilon(precision));
  CHECK(gradient.isfinite().all().item<bool>());
  if (by_both) CHECK(gradient.select(2, 3).abs().max().item<double>() == 0);
  CHECK(sequence_kl(reference, reference, batch).equal(at::zeros({2}, at::kDouble)));
}

TEST_CASE("sequence_kl adds up over the vocabulary in float64", "[policy]") {
  // Two float32 models that hardly differ: a KL of 1e-6 is a small difference of sums near 1.
  constexpr std::int64_t kTokens = 5000;
  const at::Tensor ref_logits = random_normal({2, 4, kTokens}, at::kFloat, 5);
  const at::Tensor logits = ref_logits + 1e-3 * random_normal({2, 4, kTokens}, at::kFloat, 6);
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, kTokens);
  FixedPolicy reference({.hidden = {}, .logits = ref_logits}, {}, kTokens);
  const at::Tensor expected = dense_kl(logits.to(at::kDouble), ref_logits.to(at::kDouble));
  CHECK(at::allclose(sequence_kl(policy, reference, small_batch()), expected, 1e-9, 0));
}

TEST_CASE("token_kl: figures of a row in numpy", "[policy]") {
  // misc.row_gradient of golden/policy_gradient.json, float64.
  const at::Tensor logits =
      at::tensor({0.3, -1.0, 0.7, 0.1}, at::kDouble).expand({1, 2, 4}).clone();
  logits.requires_grad_(true);
  const at::Tensor theirs = at::tensor({0.0, 0.5, -0.2, 0.4}, at::kDouble).expand({1, 2, 4});
  const std::vector<std::int64_t> prompt{0}, completion{2};
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 4);
  FixedPolicy reference({.hidden = {}, .logits = theirs}, {}, 4);
  const at::Tensor kl = token_kl(policy, reference, make_batch({{prompt, completion}}));
  REQUIRE(kl.sizes() == at::IntArrayRef({1}));
  CHECK(kl.item<double>() == Approx(0.300837869610524).epsilon(1e-13));
  const at::Tensor expected =
      at::tensor({0.00675318494003898, -0.135068636175215, 0.259885627006875, -0.131570175771699},
                 at::kDouble);
  const at::Tensor got = torch::autograd::grad({kl.sum()}, {logits})[0][0];
  CHECK(at::allclose(got[0], expected, 1e-12, 1e-14));
  CHECK(got[1].abs().max().item<double>() == 0);
}

TEST_CASE("token_kl equals the formula in both directions, value and gradients", "[policy]") {
  TokenBatch batch = small_batch();
  batch.token_weights = at::tensor({0.5, 0.0, 2.0, 3.0}, at::kDouble);  // not its business
  const auto direction = GENERATE(KlDirection::kUnderPolicy, KlDirection::kUnderReference);
  const double temperature = GENERATE(1.0, 0.6);
  const auto [scale, softcap, own] = GENERATE(LogitTransform{}, LogitTransform{0.7, 1.5, 0.8});
  const bool has_hidden = GENERATE(true, false);
  const at::Tensor hidden = random_normal({2, 4, 3}, at::kDouble, 3).requires_grad_(true);
  const at::Tensor weight = random_normal({5, 3}, at::kDouble, 4).requires_grad_(true);
  const at::Tensor bias = random_normal({5}, at::kDouble, 5).requires_grad_(true);
  const at::Tensor raw = scale * (hidden.matmul(weight.t()) + bias);
  const at::Tensor logits = (softcap == 0 ? raw : softcap * (raw / softcap).tanh()) / own;
  const at::Tensor ref_logits = random_normal({2, 4, 5}, at::kDouble, 1);
  FixedPolicy of_hidden({.hidden = hidden, .logits = {}}, weight, 5);
  of_hidden.output_head.bias = bias;
  of_hidden.output_head.transform = {scale, softcap, own};
  FixedPolicy of_logits({.hidden = {}, .logits = logits}, {}, 5);
  FixedPolicy reference({.hidden = {}, .logits = ref_logits}, {}, 5);
  Policy& policy = has_hidden ? of_hidden : of_logits;

  const at::Tensor log_p = (logits / temperature).log_softmax(2);
  const at::Tensor log_r = (ref_logits / temperature).log_softmax(2);
  const bool under_policy = direction == KlDirection::kUnderPolicy;
  const at::Tensor rows =
      (under_policy ? log_p.exp() * (log_p - log_r) : log_r.exp() * (log_r - log_p)).sum(2);
  const at::Tensor expected = at::cat({rows[0].narrow(0, 0, 3), rows[1].narrow(0, 1, 1)});
  const at::Tensor upstream = at::tensor({0.3, -1.7, 0.4, 2.0}, at::kDouble);
  const auto wanted = torch::autograd::grad({expected}, {hidden, weight, bias}, {upstream}, true);
  // All rows at once, and one at a time.
  for (const std::int64_t budget : {std::int64_t{1} << 20, std::int64_t{64} * 5}) {
    const at::Tensor kl =
        token_kl(policy, reference, batch,
                 {.direction = direction, .temperature = temperature, .budget_bytes = budget});
    CHECK(kl.scalar_type() == at::kDouble);
    CHECK(at::allclose(kl, expected, 1e-12, 1e-14));
    const auto got = torch::autograd::grad({kl}, {hidden, weight, bias}, {upstream}, true);
    for (std::size_t i = 0; i < 3; ++i) CHECK(at::allclose(got[i], wanted[i], 1e-12, 1e-14));
  }
  // By differences, without anybody's derivative.
  if (has_hidden && under_policy) {
    const at::NoGradGuard no_grad;
    const at::Tensor numeric = finite_differences(
        [&](const at::Tensor& x) {
          FixedPolicy moved({.hidden = x, .logits = {}}, weight, 5);
          moved.output_head = of_hidden.output_head;
          return (token_kl(moved, reference, batch, {.temperature = temperature}) * upstream)
              .sum()
              .item<double>();
        },
        hidden);
    CHECK(at::allclose(wanted[0], numeric, 1e-6, 1e-9));
  }
}

TEST_CASE("token_kl adds up to sequence_kl, bit for bit", "[policy]") {
  TokenBatch batch = small_batch();
  FixedPolicy policy({.hidden = {}, .logits = random_normal({2, 4, 50}, at::kDouble, 1)}, {}, 50);
  FixedPolicy reference({.hidden = {}, .logits = random_normal({2, 4, 50}, at::kDouble, 2)}, {},
                        50);
  const at::Tensor tokens =
      token_kl(policy, reference, batch, {.direction = KlDirection::kUnderReference});
  const at::Tensor sequences = sequence_kl(policy, reference, batch);
  CHECK(sequences[0].item<double>() ==
        tokens[0].item<double>() + tokens[1].item<double>() + tokens[2].item<double>());
  CHECK(sequences[1].item<double>() == tokens[3].item<double>());
  // The other direction is the same of the two exchanged.
  CHECK(at::equal(token_kl(reference, policy, batch), tokens));
}

TEST_CASE("token_kl on a packed stream, and as float32 where the model is", "[policy]") {
  const DecoderOptions options{.vocab_size = 37,
                               .hidden_size = 16,
                               .intermediate_size = 32,
                               .num_hidden_layers = 2,
                               .num_attention_heads = 2,
                               .num_key_value_heads = 1,
                               .initializer_range = 0.5};
  at::manual_seed(1);
  const auto policy = std::make_shared<Decoder>(options);
  const auto reference = std::make_shared<Decoder>(options);
  TokenBatch batch = small_batch();
  REQUIRE(batch.packed != nullptr);
  const auto of_all = [&] {
    const at::Tensor kl = token_kl(*policy, *reference, batch);
    CHECK(kl.scalar_type() == at::kFloat);
    std::vector<at::Tensor> trained;
    for (const auto& parameter : policy->named_parameters()) trained.push_back(parameter.value);
    std::vector<at::Tensor> result = torch::autograd::grad({kl.square().sum()}, trained);
    result.push_back(kl.detach());
    return result;
  };
  const auto packed = of_all();
  batch.packed = nullptr;
  const auto padded = of_all();
  CHECK(padded.back().min().item<double>() > 1e-3);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    // Sums of either layout round differently: against the largest entry, not each by itself.
    const double scale = padded[i].abs().max().item<double>();
    CHECK((packed[i] - padded[i]).abs().max().item<double>() <= 1e-4 * scale);
  }
  CHECK(token_kl(*policy, *policy, batch).abs().max().item<double>() == 0);
}

TEST_CASE("token_kl: tokens that cannot come", "[policy]") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const TokenBatch batch = small_batch();
  const at::Tensor logits = random_normal({2, 4, 5}, at::kDouble, 2);
  logits.select(2, 3).fill_(-kInfinity);  // the policy never says 3; the reference may
  const bool by_both = GENERATE(true, false);
  const at::Tensor ref_logits = random_normal({2, 4, 5}, at::kDouble, 1);
  if (by_both) ref_logits.select(2, 3).fill_(-kInfinity);
  logits.requires_grad_(true);
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 5);
  FixedPolicy reference({.hidden = {}, .logits = ref_logits}, {}, 5);
  const at::Tensor kl = token_kl(policy, reference, batch);
  const at::Tensor gradient = torch::autograd::grad({kl.sum()}, {logits})[0];
  CHECK(gradient.isfinite().all().item<bool>());
  CHECK(gradient.select(2, 3).abs().max().item<double>() == 0);
  const at::Tensor others = at::tensor({0, 1, 2, 4}, at::kLong);
  const at::Tensor log_p = logits.detach()[1][1].index_select(0, others).log_softmax(0);
  const at::Tensor log_r = ref_logits[1][1].log_softmax(0).index_select(0, others);
  CHECK(kl[3].item<double>() ==
        Approx((log_p.exp() * (log_p - log_r)).sum().item<double>()).epsilon(1e-12));
  if (!by_both) {
    CHECK(token_kl(reference, policy, batch).isinf().all().item<bool>());
  }
}

TEST_CASE("token_kl: wrong options and second derivatives are refused", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor logits = random_normal({2, 4, 5}, at::kDouble, 2).requires_grad_(true);
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 5);
  FixedPolicy reference({.hidden = {}, .logits = random_normal({2, 4, 5}, at::kDouble, 3)}, {}, 5);
  CHECK_THROWS_TEXT(token_kl(policy, reference, batch, {.temperature = 0}), ConfigError,
                    "token_kl: expected temperature > 0, got 0");
  CHECK_THROWS_TEXT(token_kl(policy, reference, batch, {.budget_bytes = 319}), ConfigError,
                    "token_kl: expected budget_bytes >= 320 for a row of 5 tokens, got 319");
  FixedPolicy wider({.hidden = {}, .logits = at::zeros({2, 4, 6})}, {}, 6);
  CHECK_THROWS_TEXT(token_kl(policy, wider, batch), ShapeError,
                    "token_kl: expected a reference with 5 tokens, got 6");
  const std::string text =
      ": expected a first derivative, got create_graph; there is no second one";
  CHECK_THROWS_TEXT(torch::autograd::grad({token_kl(policy, reference, batch).sum()}, {logits}, {},
                                          true, /*create_graph=*/true),
                    ConfigError, "token_kl" + text);
  CHECK_THROWS_TEXT(torch::autograd::grad({sequence_kl(policy, reference, batch).sum()}, {logits},
                                          {}, true, /*create_graph=*/true),
                    ConfigError, "sequence_kl" + text);
}

TEST_CASE("sequence_kl refuses another vocabulary", "[policy]") {
  FixedPolicy policy({.hidden = {}, .logits = at::zeros({2, 4, 5})}, {}, 5);
  FixedPolicy reference({.hidden = {}, .logits = at::zeros({2, 4, 6})}, {}, 6);
  CHECK_THROWS_TEXT(sequence_kl(policy, reference, small_batch()), ShapeError,
                    "sequence_kl: expected a reference with 5 tokens, got 6");
}

}  // namespace prefopt::test_sequence_kl
