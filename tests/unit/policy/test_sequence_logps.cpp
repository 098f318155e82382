// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <string>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/fixed_policy.h"
#include "support/logps_oracle.h"

namespace prefopt::test_sequence_logps {
using namespace testing_support;

TEST_CASE("sequence_logps: completion tokens are read one position before them", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor logits = random_normal({2, 4, 5}, at::kDouble, 8).requires_grad_(true);
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 5);
  const SequenceLogps out =
      sequence_logps(policy, batch, {.by_products = ByProducts::all(), .reduction = {}});

  const at::Tensor all = logits.detach().log_softmax(2);
  const auto at_position = [&](int s, int t, int token) { return all[s][t][token].item<double>(); };
  const std::vector<double> expected{at_position(0, 0, 1), at_position(0, 1, 2),
                                     at_position(0, 2, 3), at_position(1, 1, 4)};
  for (std::int64_t i = 0; i < 4; ++i) {
    CHECK(out.token_logps[i].item<double>() ==
          Approx(expected[static_cast<std::size_t>(i)]).epsilon(1e-12));
  }
  CHECK(out.logps.scalar_type() == at::kDouble);
  CHECK(out.logps[0].item<double>() ==
        Approx(expected[0] + expected[1] + expected[2]).epsilon(1e-12));
  CHECK(out.logps[1].item<double>() == Approx(expected[3]).epsilon(1e-12));
  CHECK(at::equal(out.lens, at::tensor({3, 1}, at::kLong)));
  CHECK(at::equal(out.row_to_sequence, at::tensor({0, 0, 0, 1}, at::kLong)));
  CHECK(out.by_products.entropy.size(0) == 4);

  // Only the four positions have a gradient, and each sequence only its own.
  out.logps[1].backward();
  at::Tensor touched = logits.grad().abs().sum(2).gt(0);
  CHECK(touched[1][1].item<bool>());
  CHECK(touched.sum().item<std::int64_t>() == 1);
}

TEST_CASE("sequence_logps: hidden states and their logits give the same", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor hidden = random_normal({2, 4, 3}, at::kFloat, 9);
  const at::Tensor weight = random_normal({5, 3}, at::kFloat, 10);
  FixedPolicy opened({.hidden = hidden, .logits = {}}, weight, 5);
  FixedPolicy closed({.hidden = {}, .logits = hidden.matmul(weight.t())}, {}, 5);
  const SequenceLogps a = sequence_logps(opened, batch);
  const SequenceLogps b = sequence_logps(closed, batch);
  CHECK(a.token_logps.scalar_type() == at::kFloat);
  CHECK(at::allclose(a.token_logps, b.token_logps, 0, 1e-6));
  CHECK(at::allclose(a.logps, b.logps, 0, 1e-6));
}

TEST_CASE("sequence_logps: float32 tokens are summed in float64", "[policy]") {
  // 4097 equal log-probs of -log 3: in float32 the sum would lose its last digits.
  const std::int64_t length = 4097;
  const std::vector<std::int64_t> prompt{0}, completion(static_cast<std::size_t>(length), 1);
  FixedPolicy policy({.hidden = {}, .logits = at::zeros({1, length + 1, 3})}, {}, 3);
  const SequenceLogps out = sequence_logps(policy, make_batch({{prompt, completion}}));
  const double one = out.token_logps[0].item<double>();
  CHECK(out.logps.item<double>() == Approx(static_cast<double>(length) * one).epsilon(1e-12));
}

TEST_CASE("sequence_logps: wrong batches and outputs are refused", "[policy]") {
  FixedPolicy policy({.hidden = {}, .logits = at::zeros({2, 4, 5})}, {}, 5);
  const auto check = [&](auto&& change, auto error, const std::string& text) {
    TokenBatch batch = small_batch();
    change(batch);
    CHECK_THROWS_TEXT(sequence_logps(policy, batch), decltype(error),
                      "sequence_logps: expected " + text);
  };
  check([](TokenBatch& b) { b.input_ids = at::zeros({4}, at::kLong); }, ShapeError(""),
        "input_ids [S, T], got [4]");
  check([](TokenBatch& b) { b.input_ids = b.input_ids.to(at::kInt); }, DtypeError(""),
        "input_ids of dtype Long, got Int");
  check(
      [](TokenBatch& b) {
        b.attention_mask = at::ones({2, 3}, at::kBool);
      },
      ShapeError(""), "attention_mask [2, 4], got [2, 3]");
  check([](TokenBatch& b) { b.completion_mask = b.completion_mask.to(at::kFloat); }, DtypeError(""),
        "completion_mask of dtype Bool, got Float");
  check([](TokenBatch& b) { b.completion_lens = at::zeros({3}, at::kLong); }, ShapeError(""),
        "completion_lens [2], got [3]");
  check([](TokenBatch& b) { b.input_ids = at::Tensor(); }, ShapeError(""),
        "input_ids [S, T], got none");
  check([](TokenBatch& b) { b.completion_mask = at::Tensor(); }, ShapeError(""),
        "completion_mask [2, 4], got none");
  // A completion token in the first column is predicted by nothing.
  check(
      [](TokenBatch& b) { b.completion_mask[0][0] = true, b.completion_lens[0] = 4; },
      ShapeError(""),
      "completion_mask to hold the 5 tokens of completion_lens after the first column, sequence by "
      "sequence, got 4");

  FixedPolicy neither({}, {}, 5);
  CHECK_THROWS_TEXT(sequence_logps(neither, small_batch()), ShapeError,
                    "sequence_logps: expected hidden or logits of the policy, got neither");
  FixedPolicy both({.hidden = at::zeros({2, 4, 3}), .logits = at::zeros({2, 4, 5})}, {}, 5);
  CHECK_THROWS_TEXT(sequence_logps(both, small_batch()), ShapeError,
                    "sequence_logps: expected hidden or logits of the policy, got both");
  FixedPolicy short_output({.hidden = {}, .logits = at::zeros({2, 3, 5})}, {}, 5);
  CHECK_THROWS_TEXT(sequence_logps(short_output, small_batch()), ShapeError,
                    "sequence_logps: expected logits [2, 4, n] of the policy, got [2, 3, 5]");
}

TEST_CASE("sequence_logps: mean, and less weight for a tail", "[policy]") {
  const TokenBatch batch = small_batch();
  FixedPolicy policy({.hidden = {}, .logits = random_normal({2, 4, 5}, at::kDouble, 11)}, {}, 5);
  const at::Tensor tokens = sequence_logps(policy, batch).token_logps;
  const auto token = [&](int i) { return tokens[i].item<double>(); };

  const at::Tensor mean =
      sequence_logps(policy, batch,
                     {.by_products = {}, .reduction = {.mean = true, .overlap_lens = {}}})
          .logps;
  CHECK(mean[0].item<double>() == Approx((token(0) + token(1) + token(2)) / 3).epsilon(1e-12));
  CHECK(mean[1].item<double>() == Approx(token(3)).epsilon(1e-12));

  // Completions of 3 and 1 tokens: the tail of the longer one is its last two.
  const SequenceReduction tail{.tail_weight = 0.25, .overlap_lens = at::tensor({1, 1}, at::kLong)};
  const at::Tensor cut =
      sequence_logps(policy, batch, {.by_products = {}, .reduction = tail}).logps;
  CHECK(cut[0].item<double>() == Approx(token(0) + 0.25 * (token(1) + token(2))).epsilon(1e-12));
  CHECK(cut[1].item<double>() == Approx(token(3)).epsilon(1e-12));

  SequenceReduction wrong{.overlap_lens = at::tensor({1, 1, 1}, at::kLong)};
  CHECK_THROWS_TEXT(sequence_logps(policy, batch, {.by_products = {}, .reduction = wrong}),
                    ShapeError, "sequence_logps: expected overlap_lens [2], got [3]");
  wrong.overlap_lens = at::tensor({1, 1}, at::kInt);
  CHECK_THROWS_TEXT(sequence_logps(policy, batch, {.by_products = {}, .reduction = wrong}),
                    DtypeError, "sequence_logps: expected int64 overlap_lens, got Int");
}

TEST_CASE("sequence_logps: tokens may count more or less than others", "[policy]") {
  TokenBatch batch = small_batch();
  FixedPolicy policy({.hidden = {}, .logits = random_normal({2, 4, 5}, at::kDouble, 12)}, {}, 5);
  const at::Tensor tokens = sequence_logps(policy, batch).token_logps;
  const auto token = [&](int i) { return tokens[i].item<double>(); };
  batch.token_weights = at::tensor({0.5, 0.0, 2.0, 3.0}, at::kDouble);

  const SequenceLogps weighted = sequence_logps(policy, batch);
  CHECK(at::equal(weighted.token_logps, tokens));
  CHECK(weighted.logps[0].item<double>() == Approx(0.5 * token(0) + 2 * token(2)).epsilon(1e-12));
  CHECK(weighted.logps[1].item<double>() == Approx(3 * token(3)).epsilon(1e-12));
  // With the weight of a tail they multiply; a mean is still over the number of tokens.
  const SequenceReduction tail{.tail_weight = 0.25, .overlap_lens = at::tensor({1, 1}, at::kLong)};
  CHECK(reduce_tokens(tokens, weighted, tail)[0].item<double>() ==
        Approx(0.5 * token(0) + 0.5 * token(2)).epsilon(1e-12));
  CHECK(reduce_tokens(tokens, weighted, {.mean = true, .overlap_lens = {}})[0].item<double>() ==
        Approx((0.5 * token(0) + 2 * token(2)) / 3).epsilon(1e-12));

  batch.token_weights = at::ones({3}, at::kDouble);
  CHECK_THROWS_TEXT(sequence_logps(policy, batch), ShapeError,
                    "sequence_logps: expected token_weights [4], got [3]");
  batch.token_weights = at::ones({4}, at::kFloat);
  CHECK_THROWS_TEXT(sequence_logps(policy, batch), DtypeError,
                    "sequence_logps: expected token_weights of dtype Double, got Float");
}

TEST_CASE("sequence_logps: at a temperature, log_softmax of the logits divided by it", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor hidden = random_normal({2, 4, 3}, at::kDouble, 13).requires_grad_(true);
  const at::Tensor weight = random_normal({5, 3}, at::kDouble, 14);
  const double temperature = GENERATE(0.6, 1.7);
  const LogitTransform own = GENERATE(LogitTransform{}, LogitTransform{0.7, 1.5, 0.8});
  const at::Tensor raw = own.scale * hidden.matmul(weight.t());
  const at::Tensor logits =
      (own.softcap == 0 ? raw : own.softcap * (raw / own.softcap).tanh()) / own.temperature;
  const at::Tensor all = (logits / temperature).log_softmax(2);
  const at::Tensor expected = at::stack({all[0][0][1], all[0][1][2], all[0][2][3], all[1][1][4]});

  SequenceLogpsOptions options;
  options.temperature = temperature;
  options.by_products.entropy = true;
  FixedPolicy of_hidden({.hidden = hidden, .logits = {}}, weight, 5);
  of_hidden.output_head.transform = own;
  FixedPolicy of_logits({.hidden = {}, .logits = logits}, {}, 5);
  of_logits.output_head.transform = own;  // its logits have gone through it
  const at::Tensor upstream = at::tensor({0.3, -1.7, 0.4, 2.0}, at::kDouble);
  const at::Tensor wanted = torch::autograd::grad({expected}, {hidden}, {upstream}, true)[0];
  for (FixedPolicy* policy : {&of_hidden, &of_logits}) {
    const SequenceLogps got = sequence_logps(*policy, batch, options);
    CHECK(at::allclose(got.token_logps, expected, 1e-12, 1e-14));
    const at::Tensor gradient =
        torch::autograd::grad({got.token_logps}, {hidden}, {upstream}, true)[0];
    CHECK(at::allclose(gradient, wanted, 1e-12, 1e-14));
    const at::Tensor first = all[0][0].detach();
    CHECK(got.by_products.entropy[0].item<double>() ==
          Approx(-(first.exp() * first).sum().item<double>()).epsilon(1e-12));
  }
}

TEST_CASE("sequence_logps: a packed stream at a temperature", "[policy]") {
  at::manual_seed(2);
  Decoder policy({.vocab_size = 13,
                  .hidden_size = 16,
                  .intermediate_size = 24,
                  .num_hidden_layers = 1,
                  .num_attention_heads = 2,
                  .num_key_value_heads = 1,
                  .initializer_range = 0.5});
  policy.to(at::kDouble);
  TokenBatch batch = small_batch();
  REQUIRE(batch.packed != nullptr);
  const at::NoGradGuard no_grad;
  const OutputHead head = policy.head();
  const at::Tensor all =
      (policy.forward(batch).hidden.matmul(head.weight.t()) / 0.7).log_softmax(2);
  const at::Tensor expected = at::stack({all[0][0][1], all[0][1][2], all[0][2][3], all[1][1][4]});
  SequenceLogpsOptions options;
  options.temperature = 0.7;
  CHECK(at::allclose(sequence_logps(policy, batch, options).token_logps, expected, 1e-10, 1e-12));
  batch.packed = nullptr;
  CHECK(at::allclose(sequence_logps(policy, batch, options).token_logps, expected, 1e-10, 1e-12));
}

TEST_CASE("sequence_logps: the entropy of a packed stream has the padded one's gradient",
          "[policy]") {
  at::manual_seed(3);
  Decoder policy({.vocab_size = 13,
                  .hidden_size = 16,
                  .intermediate_size = 24,
                  .num_hidden_layers = 1,
                  .num_attention_heads = 2,
                  .num_key_value_heads = 1,
                  .initializer_range = 0.5});
  policy.to(at::kDouble);
  // Two completions that begin alike share the row of their first token.
  const std::vector<std::int64_t> prompt{1, 2}, first{7, 8, 9}, second{7, 5};
  TokenBatch batch = make_batch({{prompt, first}, {prompt, second}});
  REQUIRE(batch.packed != nullptr);
  std::vector<at::Tensor> trained;
  for (const auto& parameter : policy.named_parameters()) trained.push_back(parameter.value);
  SequenceLogpsOptions options;
  options.differentiable.entropy = true;
  const at::Tensor upstream = at::tensor({0.3, -1.7, 0.4, 2.0, 0.6}, at::kDouble);
  const auto gradients = [&] {
    const SequenceLogps out = sequence_logps(policy, batch, options);
    return torch::autograd::grad({out.by_products.entropy * upstream + out.token_logps}, trained,
                                 {at::ones({5}, at::kDouble)});
  };
  const auto packed = gradients();
  batch.packed = nullptr;
  const auto padded = gradients();
  for (std::size_t i = 0; i < packed.size(); ++i) {
    CHECK(at::allclose(packed[i], padded[i], 1e-9, 1e-11));
  }
}

TEST_CASE("sequence_logps: a temperature that divides nothing is refused", "[policy]") {
  FixedPolicy policy({.hidden = {}, .logits = at::zeros({2, 4, 5})}, {}, 5);
  SequenceLogpsOptions options;
  const auto check = [&](double temperature, const std::string& got) {
    options.temperature = temperature;
    CHECK_THROWS_TEXT(sequence_logps(policy, small_batch(), options), ConfigError,
                      "sequence_logps: expected temperature > 0, got " + got);
  };
  check(0, "0");
  check(-0.5, "-0.5");
  check(std::numeric_limits<double>::infinity(), "inf");
  check(std::numeric_limits<double>::quiet_NaN(), "nan");
}

TEST_CASE("sequence_logps: entropy and logsumexp have a gradient when asked for", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor hidden = random_normal({2, 4, 3}, at::kDouble, 15).requires_grad_(true);
  const at::Tensor weight = random_normal({5, 3}, at::kDouble, 16).requires_grad_(true);
  const at::Tensor logits = hidden.matmul(weight.t());
  const at::Tensor z = logits / 0.7;
  const at::Tensor all = z.log_softmax(2);
  const auto of_rows = [](const at::Tensor& of) {
    return at::stack({of[0][0], of[0][1], of[0][2], of[1][1]});
  };
  const at::Tensor entropy = of_rows(-(all.exp() * all).sum(2));
  const at::Tensor logsumexp = of_rows(z.logsumexp(2));
  const at::Tensor tokens = at::stack({all[0][0][1], all[0][1][2], all[0][2][3], all[1][1][4]});
  const at::Tensor weights = at::tensor({0.3, -1.7, 0.4, 2.0}, at::kDouble);
  const auto value = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
    return (weights * a + 0.1 * b - weights.flip(0) * c).sum();
  };
  const auto wanted = torch::autograd::grad({value(tokens, entropy, logsumexp)}, {hidden, weight},
                                            {}, /*retain_graph=*/true);
  FixedPolicy of_hidden({.hidden = hidden, .logits = {}}, weight, 5);
  FixedPolicy of_logits({.hidden = {}, .logits = logits}, {}, 5);
  SequenceLogpsOptions options;
  options.temperature = 0.7;
  options.differentiable = {.logsumexp = true, .entropy = true};
  for (FixedPolicy* policy : {&of_hidden, &of_logits}) {
    const SequenceLogps got = sequence_logps(*policy, batch, options);
    CHECK(at::allclose(got.by_products.entropy, entropy, 1e-12, 1e-14));
    const auto gradient = torch::autograd::grad(
        {value(got.token_logps, got.by_products.entropy, got.by_products.logsumexp)},
        {hidden, weight}, {}, /*retain_graph=*/true);
    for (std::size_t i = 0; i < 2; ++i) CHECK(at::allclose(gradient[i], wanted[i], 1e-12, 1e-14));
  }
  options.differentiable = {};
  options.by_products.entropy = true;
  CHECK_FALSE(sequence_logps(of_hidden, batch, options).by_products.entropy.requires_grad());
}

TEST_CASE("sequence_logps: the head's bias and transform", "[policy]") {
  const TokenBatch batch = small_batch();
  const at::Tensor hidden = random_normal({2, 4, 3}, at::kDouble, 3).requires_grad_(true);
  const at::Tensor weight = random_normal({5, 3}, at::kDouble, 4).requires_grad_(true);
  const at::Tensor bias = random_normal({5}, at::kDouble, 5).requires_grad_(true);
  FixedPolicy policy({.hidden = hidden, .logits = {}}, weight, 5);
  policy.output_head.bias = bias;
  policy.output_head.transform = {.scale = 0.7, .softcap = 1.5, .temperature = 0.8};
  const at::Tensor logits = 1.5 * (0.7 * (hidden.matmul(weight.t()) + bias) / 1.5).tanh() / 0.8;
  FixedPolicy opened({.hidden = {}, .logits = logits}, {}, 5);
  const at::Tensor got = sequence_logps(policy, batch).logps;
  const at::Tensor expected = sequence_logps(opened, batch).logps;
  CHECK(at::allclose(got, expected, 1e-12, 1e-14));
  const at::Tensor upstream = at::tensor({0.3, -1.7}, at::kDouble);
  const auto of = torch::autograd::grad({got}, {hidden, weight, bias}, {upstream});
  const auto wanted = torch::autograd::grad({expected}, {hidden, weight, bias}, {upstream});
  for (std::size_t i = 0; i < 3; ++i) CHECK(at::allclose(of[i], wanted[i], 1e-12, 1e-14));

  // Decoding without a cache gives the same logits: the prompts are as long as small_batch's.
  const at::NoGradGuard no_grad;
  const at::Tensor next = policy.start_decoding({{4, 1, 2, 3}, {0, 1}})->prefill();
  CHECK(at::allclose(next, at::stack({logits[0][3], logits[1][1]}), 1e-12, 1e-14));
}

}  // namespace prefopt::test_sequence_logps
