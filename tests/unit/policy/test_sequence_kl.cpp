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

namespace prefopt {
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

TEST_CASE("sequence_kl refuses another vocabulary", "[policy]") {
  FixedPolicy policy({.hidden = {}, .logits = at::zeros({2, 4, 5})}, {}, 5);
  FixedPolicy reference({.hidden = {}, .logits = at::zeros({2, 4, 6})}, {}, 6);
  CHECK_THROWS_TEXT(sequence_kl(policy, reference, small_batch()), ShapeError,
                    "sequence_kl: expected a reference with 5 tokens, got 6");
}

}  // namespace prefopt
