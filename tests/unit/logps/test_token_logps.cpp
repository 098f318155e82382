// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numbers>

#include "prefopt/error.h"
#include "prefopt/logps/sequence_logps.h"
#include "prefopt/logps/token_logps.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

constexpr double kLog2 = std::numbers::ln2;

at::Tensor random(std::vector<std::int64_t> shape, at::ScalarType dtype, std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::kDouble).to(dtype);
}

/// Gives the logits it was made with, or hidden states and a head, whatever the tokens.
class FixedPolicy final : public Policy {
 public:
  FixedPolicy(PolicyOutput output, at::Tensor weight, std::int64_t vocab_size)
      : output_(std::move(output)), weight_(std::move(weight)), vocab_size_(vocab_size) {}

  PolicyOutput forward(const TokenBatch&) override { return output_; }
  OutputHead head() const override { return {weight_}; }
  std::int64_t vocab_size() const override { return vocab_size_; }
  std::vector<NamedParameter> named_parameters() const override { return {}; }

 private:
  PolicyOutput output_;
  at::Tensor weight_;
  std::int64_t vocab_size_;
};

/// Prompts of 1 and 2 tokens, completions of 3 and 1.
TokenBatch small_batch() {
  const std::vector<std::int64_t> prompt_a{4}, completion_a{1, 2, 3}, prompt_b{0, 1},
      completion_b{4};
  return make_batch({{prompt_a, completion_a}, {prompt_b, completion_b}});
}

}  // namespace

TEST_CASE("token_logps: values by hand", "[logps]") {
  // softmax of log 1, log 2, log 5: 1/8, 2/8, 5/8. An added constant changes nothing.
  const at::Tensor row = at::tensor({0.0, kLog2, std::log(5.0)}, at::kDouble);
  const at::Tensor logits = at::stack({row, row + 1000, row - 1000, row});
  const at::Tensor targets = at::tensor({0, 1, 2, 2}, at::kLong);
  const TokenLogps out = token_logps(logits, targets, /*by_products=*/true);

  const std::vector<double> expected{-3 * kLog2, -2 * kLog2, std::log(0.625), std::log(0.625)};
  const double entropy = 3 * kLog2 / 8 + 2 * kLog2 / 4 - 0.625 * std::log(0.625);
  for (std::int64_t i = 0; i < 4; ++i) {
    CHECK(out.logps[i].item<double>() ==
          Approx(expected[static_cast<std::size_t>(i)]).epsilon(1e-12));
    CHECK(out.by_products.entropy[i].item<double>() == Approx(entropy).epsilon(1e-12));
  }
  CHECK(out.by_products.mean_logit[1].item<double>() ==
        Approx(1000 + (kLog2 + std::log(5.0)) / 3).epsilon(1e-12));
  CHECK(at::equal(out.by_products.is_top1, targets.eq(2)));
}

TEST_CASE("token_logps: a token that cannot come", "[logps]") {
  const at::Tensor logits = at::tensor({0.0f, 0.0f, -INFINITY}).unsqueeze(0);
  const TokenLogps out = token_logps(logits, at::tensor({0}, at::kLong), true);
  CHECK(out.logps.item<float>() == Approx(-kLog2));
  CHECK(out.by_products.entropy.item<float>() == Approx(kLog2));
  CHECK(token_logps(logits, at::tensor({2}, at::kLong)).logps.item<float>() == -INFINITY);
}

TEST_CASE("token_logps: narrow logits are summed in float32", "[logps]") {
  const at::Tensor exact = random({6, 300}, at::kDouble, 1);
  const at::Tensor targets = at::arange(6, at::kLong) * 50;
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    const at::Tensor narrow = exact.to(dtype);
    const TokenLogps out = token_logps(narrow, targets, true);
    CHECK(out.logps.scalar_type() == at::kFloat);
    CHECK(out.by_products.entropy.scalar_type() == at::kFloat);
    const at::Tensor expected = token_logps(narrow.to(at::kDouble), targets).logps;
    CHECK(expected.scalar_type() == at::kDouble);
    CHECK(at::allclose(out.logps.to(at::kDouble), expected, 0, 2e-6));
  }
}

TEST_CASE("token_logps: the gradient is one-hot minus softmax", "[logps]") {
  const at::Tensor logits = random({5, 7}, at::kDouble, 2).requires_grad_(true);
  const at::Tensor targets = at::tensor({0, 6, 3, 3, 1}, at::kLong);
  const at::Tensor weights = random({5}, at::kDouble, 3);
  const TokenLogps out = token_logps(logits, targets, true);
  CHECK_FALSE(out.by_products.entropy.requires_grad());
  CHECK_FALSE(out.by_products.mean_logit.requires_grad());
  out.logps.mul(weights).sum().backward();
  const at::Tensor expected =
      (at::one_hot(targets, 7) - logits.detach().softmax(1)) * weights.unsqueeze(1);
  CHECK(at::allclose(logits.grad(), expected, 0, 1e-14));
}

TEST_CASE("token_logps: no rows, and by-products only when asked for", "[logps]") {
  const TokenLogps out = token_logps(at::zeros({0, 7}), at::zeros({0}, at::kLong));
  CHECK(out.logps.sizes() == at::IntArrayRef({0}));
  CHECK_FALSE(out.by_products.entropy.defined());
  const TokenLogps linear =
      linear_token_logps(at::zeros({0, 3}), at::zeros({7, 3}), at::zeros({0}, at::kLong), true);
  CHECK(linear.logps.sizes() == at::IntArrayRef({0}));
  CHECK(linear.by_products.is_top1.sizes() == at::IntArrayRef({0}));
}

TEST_CASE("token_logps: wrong input is refused", "[logps]") {
  const at::Tensor logits = at::zeros({3, 7});
  const at::Tensor targets = at::zeros({3}, at::kLong);
  CHECK_THROWS_TEXT(token_logps(logits.to(at::kLong), targets), DtypeError,
                    "token_logps: expected floating logits, got Long");
  CHECK_THROWS_TEXT(token_logps(logits, targets.to(at::kInt)), DtypeError,
                    "token_logps: expected int64 targets, got Int");
  CHECK_THROWS_TEXT(token_logps(at::zeros({2, 3, 7}), targets), ShapeError,
                    "token_logps: expected logits [rows, vocab], got [2, 3, 7]");
  CHECK_THROWS_TEXT(token_logps(at::zeros({3, 0}), targets), ShapeError,
                    "token_logps: expected logits [rows, vocab], got [3, 0]");
  CHECK_THROWS_TEXT(token_logps(logits, at::zeros({4}, at::kLong)), ShapeError,
                    "token_logps: expected targets [3], got [4]");
  CHECK_THROWS_TEXT(token_logps(logits, targets.unsqueeze(1)), ShapeError,
                    "token_logps: expected targets [3], got [3, 1]");
  CHECK_THROWS_TEXT(token_logps(logits, at::tensor({0, 1, 999}, at::kLong)), DataError,
                    "token_logps: expected targets in [0, 7), got 999 at row 2");
  CHECK_THROWS_TEXT(token_logps(logits, at::tensor({0, -1, 0}, at::kLong)), DataError,
                    "token_logps: expected targets in [0, 7), got -1 at row 1");
  CHECK_THROWS_TEXT(token_logps(logits, targets.to(at::kMeta)), DeviceError,
                    "token_logps: expected targets on cpu, got meta");
}

TEST_CASE("linear_token_logps: equals token_logps of the product", "[logps]") {
  const at::Tensor hidden = random({9, 5}, at::kDouble, 4).requires_grad_(true);
  const at::Tensor weight = random({11, 5}, at::kDouble, 5).requires_grad_(true);
  const at::Tensor targets = at::arange(9, at::kLong);
  const TokenLogps out = linear_token_logps(hidden, weight, targets, true);
  const TokenLogps expected = token_logps(hidden.matmul(weight.t()), targets, true);
  CHECK(at::allclose(out.logps, expected.logps, 0, 1e-14));
  CHECK(at::allclose(out.by_products.entropy, expected.by_products.entropy, 0, 1e-14));
  CHECK(at::allclose(out.by_products.mean_logit, expected.by_products.mean_logit, 0, 1e-14));
  CHECK(at::equal(out.by_products.is_top1, expected.by_products.is_top1));
  const auto grads = torch::autograd::grad({out.logps.sum()}, {hidden, weight});
  const auto expected_grads = torch::autograd::grad({expected.logps.sum()}, {hidden, weight});
  CHECK(at::allclose(grads[0], expected_grads[0], 0, 1e-13));
  CHECK(at::allclose(grads[1], expected_grads[1], 0, 1e-13));
}

TEST_CASE("linear_token_logps: many logits are taken in chunks that grad mode does not change",
          "[logps]") {
  // 2^24 logits at once and 70001 a row: chunks of 239 rows.
  const at::Tensor hidden = random({500, 2}, at::kFloat, 6);
  const at::Tensor weight = random({70001, 2}, at::kFloat, 7);
  const at::Tensor targets = at::arange(500, at::kLong) * 140;
  const TokenLogps with_graph =
      linear_token_logps(hidden.detach().clone().requires_grad_(true), weight, targets, true);
  const at::NoGradGuard no_grad;
  const TokenLogps out = linear_token_logps(hidden, weight, targets, true);
  CHECK(at::equal(out.logps, with_graph.logps));
  CHECK(at::equal(out.by_products.entropy, with_graph.by_products.entropy));
  for (const std::int64_t row : {0, 238, 239, 477, 478, 499}) {
    const at::Tensor logits = weight.to(at::kDouble).mv(hidden[row].to(at::kDouble));
    const double expected =
        (logits[targets[row].item<std::int64_t>()] - logits.logsumexp(0)).item<double>();
    CHECK(out.logps[row].item<double>() == Approx(expected).margin(1e-5));
    CHECK(out.by_products.mean_logit[row].item<double>() ==
          Approx(logits.mean().item<double>()).margin(1e-5));
  }
}

TEST_CASE("linear_token_logps: wrong input is refused", "[logps]") {
  const at::Tensor hidden = at::zeros({3, 5});
  const at::Tensor weight = at::zeros({7, 5});
  const at::Tensor targets = at::zeros({3}, at::kLong);
  CHECK_THROWS_TEXT(linear_token_logps(hidden.to(at::kInt), weight, targets), DtypeError,
                    "linear_token_logps: expected floating hidden, got Int");
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight.to(at::kDouble), targets), DtypeError,
                    "linear_token_logps: expected weight of dtype Float as hidden, got Double");
  CHECK_THROWS_TEXT(linear_token_logps(at::zeros({3, 1, 5}), weight, targets), ShapeError,
                    "linear_token_logps: expected hidden [rows, H], got [3, 1, 5]");
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight.t(), targets), ShapeError,
                    "linear_token_logps: expected weight [vocab, 5], got [5, 7]");
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight.to(at::kMeta), targets), DeviceError,
                    "linear_token_logps: expected weight on cpu, got meta");
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight, at::tensor({0, 7, 0}, at::kLong)), DataError,
                    "linear_token_logps: expected targets in [0, 7), got 7 at row 1");
}

TEST_CASE("sequence_logps: completion tokens are read one position before them", "[logps]") {
  const TokenBatch batch = small_batch();
  const at::Tensor logits = random({2, 4, 5}, at::kDouble, 8).requires_grad_(true);
  FixedPolicy policy({.hidden = {}, .logits = logits}, {}, 5);
  const SequenceLogps out = sequence_logps(policy, batch, /*by_products=*/true);

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

TEST_CASE("sequence_logps: hidden states and their logits give the same", "[logps]") {
  const TokenBatch batch = small_batch();
  const at::Tensor hidden = random({2, 4, 3}, at::kFloat, 9);
  const at::Tensor weight = random({5, 3}, at::kFloat, 10);
  FixedPolicy opened({.hidden = hidden, .logits = {}}, weight, 5);
  FixedPolicy closed({.hidden = {}, .logits = hidden.matmul(weight.t())}, {}, 5);
  const SequenceLogps a = sequence_logps(opened, batch);
  const SequenceLogps b = sequence_logps(closed, batch);
  CHECK(a.token_logps.scalar_type() == at::kFloat);
  CHECK(at::allclose(a.token_logps, b.token_logps, 0, 1e-6));
  CHECK(at::allclose(a.logps, b.logps, 0, 1e-6));
}

TEST_CASE("sequence_logps: float32 tokens are summed in float64", "[logps]") {
  // 4097 equal log-probs of -log 3: in float32 the sum would lose its last digits.
  const std::int64_t length = 4097;
  const std::vector<std::int64_t> prompt{0}, completion(static_cast<std::size_t>(length), 1);
  FixedPolicy policy({.hidden = {}, .logits = at::zeros({1, length + 1, 3})}, {}, 3);
  const SequenceLogps out = sequence_logps(policy, make_batch({{prompt, completion}}));
  const double one = out.token_logps[0].item<double>();
  CHECK(out.logps.item<double>() == Approx(static_cast<double>(length) * one).epsilon(1e-12));
}

TEST_CASE("sequence_logps: wrong batches and outputs are refused", "[logps]") {
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
  check([](TokenBatch& b) { b.completion_mask[0][0] = true, b.completion_lens[0] = 4; },
        ShapeError(""),
        "completion_mask to hold the 5 tokens of completion_lens after the first column, got 4");

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

}  // namespace prefopt
