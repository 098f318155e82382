// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "logps/operators.h"
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::test_linear_token_logps {
namespace {

using testing_support::check_against_oracle;
using testing_support::finite_differences;
using testing_support::logps_oracle;
using testing_support::random_normal;
using testing_support::random_targets;
using testing_support::relative_error;
using testing_support::simd_name;
using testing_support::simd_targets;
using testing_support::SimdTarget;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A head with its inputs, and which of them need a gradient.
struct Case {
  std::int64_t rows, hidden_size, vocab_size;
  at::ScalarType dtype = at::kFloat;
  bool has_bias = false;
  LogitTransform transform = {};
  bool hidden_grad = true, weight_grad = true;
};

struct Inputs {
  at::Tensor hidden, weight, bias, targets, cotangent;

  explicit Inputs(const Case& c)
      : hidden(random_normal({c.rows, c.hidden_size}, c.dtype, 1)),
        weight(random_normal({c.vocab_size, c.hidden_size}, c.dtype, 2)),
        targets(random_targets(c.rows, c.vocab_size, 4)),
        cotangent(random_normal({c.rows}, at::kFloat, 5)) {
    if (c.has_bias) bias = random_normal({c.vocab_size}, c.dtype, 3);
    hidden.requires_grad_(c.hidden_grad);
    weight.requires_grad_(c.weight_grad);
    if (c.has_bias) bias.requires_grad_(c.weight_grad);
  }

  std::vector<at::Tensor> differentiable() const {
    std::vector<at::Tensor> result;
    for (const at::Tensor* input : {&hidden, &weight, &bias}) {
      if (input->defined() && input->requires_grad()) result.push_back(*input);
    }
    return result;
  }
};

struct Result {
  TokenLogps out;
  std::vector<at::Tensor> grads;
};

LinearTokenLogpsOptions options_of(const Case& c, const Inputs& in, HeadPath path) {
  LinearTokenLogpsOptions options;
  options.by_products = ByProducts::all();
  options.transform = c.transform;
  options.bias = in.bias;
  options.path = path;
  return options;
}

Result differentiate(const Inputs& in, TokenLogps out) {
  const auto inputs = in.differentiable();
  Result result{std::move(out), {}};
  if (!inputs.empty()) {
    result.grads = torch::autograd::grad({result.out.logps}, inputs,
                                         {in.cotangent.to(result.out.logps.scalar_type())});
  }
  return result;
}

Result run(const Inputs& in, const LinearTokenLogpsOptions& options) {
  return differentiate(in, linear_token_logps(in.hidden, in.weight, in.targets, options));
}

Result oracle(const Case& c, const Inputs& in) {
  const auto wide = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.detach().to(at::kDouble).requires_grad_(tensor.requires_grad())
                            : at::Tensor();
  };
  Inputs exact = in;
  exact.hidden = wide(in.hidden);
  exact.weight = wide(in.weight);
  exact.bias = wide(in.bias);
  at::Tensor raw = exact.hidden.matmul(exact.weight.t());
  if (exact.bias.defined()) raw = raw + exact.bias;
  return differentiate(exact, logps_oracle(raw, in.targets, c.transform));
}

void check_same(const Result& got, const Result& expected, double tolerance) {
  check_against_oracle(got.out, expected.out, tolerance);
  REQUIRE(got.grads.size() == expected.grads.size());
  for (std::size_t i = 0; i < got.grads.size(); ++i) {
    INFO("gradient " << i);
    CHECK(got.grads[i].sizes() == expected.grads[i].sizes());
    CHECK(relative_error(got.grads[i], expected.grads[i]) <= 10 * tolerance);
  }
}

const std::vector<HeadPath> kPathsWithWeight{HeadPath::kAutomatic, HeadPath::kKeepLogits,
                                             HeadPath::kRecompute};
const std::vector<HeadPath> kPathsFrozen{HeadPath::kAutomatic, HeadPath::kFrozenHead,
                                         HeadPath::kKeepLogits, HeadPath::kRecompute};

/// Budget that keeps about half of the vocabulary, so that both ways meet in one call.
std::int64_t half_budget(const Case& c) {
  const HeadWork work{.rows = c.rows,
                      .hidden_size = c.hidden_size,
                      .vocab_size = c.vocab_size,
                      .float64 = c.dtype == at::kDouble,
                      .narrow_weight = false,
                      .hidden_grad = c.hidden_grad,
                      .weight_grad = c.weight_grad};
  const std::int64_t least = plan_head(work, std::int64_t{1} << 40, HeadPath::kRecompute).bytes;
  const std::int64_t most = plan_head(work, std::int64_t{1} << 40, HeadPath::kKeepLogits).bytes;
  return (least + most) / 2;
}

}  // namespace

TEST_CASE("linear_token_logps: every path, SIMD target and shape agrees with float64", "[logps]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const Case& c : std::vector<Case>{
             {.rows = 1, .hidden_size = 5, .vocab_size = 7},
             {.rows = 9, .hidden_size = 17, .vocab_size = 1},
             {.rows = 5, .hidden_size = 3, .vocab_size = 257},
             {.rows = 50, .hidden_size = 33, .vocab_size = 1000, .has_bias = true},
             {.rows = 70,
             .hidden_size = 64,
             .vocab_size = 290,
             .transform = {.scale = 0.7, .softcap = 5, .temperature = 1.3}},
             {.rows = 13,
             .hidden_size = 20,
             .vocab_size = 300,
             .dtype = at::kDouble,
             .has_bias = true,
             .transform = {.scale = 1.1, .softcap = 4, .temperature = 0.9}},
         }) {
      const Inputs in(c);
      const Result expected = oracle(c, in);
      const double tolerance = c.dtype == at::kDouble ? 1e-12 : 2e-6;
      for (const HeadPath path : kPathsWithWeight) {
        INFO(simd_name(target) << ", " << to_string(path) << ", " << c.rows << " x "
                               << c.hidden_size << " x " << c.vocab_size);
        check_same(run(in, options_of(c, in, path)), expected, tolerance);
      }
    }
  }
}

TEST_CASE("linear_token_logps: a frozen head gives hidden the same gradient", "[logps]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const Case& c : std::vector<Case>{
             {.rows = 40, .hidden_size = 24, .vocab_size = 700, .weight_grad = false},
             {.rows = 11,
             .hidden_size = 10,
             .vocab_size = 200,
             .dtype = at::kDouble,
             .has_bias = true,
             .transform = {.scale = 0.8, .softcap = 6, .temperature = 1.2},
             .weight_grad = false},
         }) {
      const Inputs in(c);
      const Result expected = oracle(c, in);
      for (const HeadPath path : kPathsFrozen) {
        INFO(simd_name(target) << ", " << to_string(path));
        check_same(run(in, options_of(c, in, path)), expected,
                   c.dtype == at::kDouble ? 1e-12 : 2e-6);
      }
    }
  }
}

TEST_CASE("linear_token_logps: only the head needs a gradient, or only its bias", "[logps]") {
  const Case c{
      .rows = 20, .hidden_size = 16, .vocab_size = 250, .has_bias = true, .hidden_grad = false};
  Inputs in(c);
  check_same(run(in, options_of(c, in, HeadPath::kAutomatic)), oracle(c, in), 2e-6);
  in.weight.requires_grad_(false);
  const Result bias_only = run(in, options_of(c, in, HeadPath::kAutomatic));
  CHECK(bias_only.grads.size() == 1);
  check_same(bias_only, oracle(c, in), 2e-6);
}

TEST_CASE("linear_token_logps: gradients are those of finite differences on every path",
          "[logps]") {
  const Case c{.rows = 4,
               .hidden_size = 3,
               .vocab_size = 100,
               .dtype = at::kDouble,
               .has_bias = true,
               .transform = {.scale = 0.9, .softcap = 3, .temperature = 1.1}};
  const Inputs in(c);
  const auto value = [&](const at::Tensor& hidden, const at::Tensor& weight,
                         const at::Tensor& bias) {
    const at::NoGradGuard no_grad;
    const at::Tensor raw = hidden.matmul(weight.t()) + bias;
    return logps_oracle(raw, in.targets, c.transform).logps.mul(in.cotangent).sum().item<double>();
  };
  const std::vector<at::Tensor> expected{
      finite_differences([&](const at::Tensor& x) { return value(x, in.weight, in.bias); },
                         in.hidden),
      finite_differences([&](const at::Tensor& x) { return value(in.hidden, x, in.bias); },
                         in.weight),
      finite_differences([&](const at::Tensor& x) { return value(in.hidden, in.weight, x); },
                         in.bias)};
  for (const HeadPath path : kPathsWithWeight) {
    INFO(to_string(path));
    const Result result = run(in, options_of(c, in, path));
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(at::allclose(result.grads[i], expected[i], 1e-6, 1e-8));
    }
  }
  Inputs frozen = in;
  frozen.weight = in.weight.detach();
  frozen.bias = in.bias.detach();
  const Result result = run(frozen, options_of(c, frozen, HeadPath::kFrozenHead));
  CHECK(at::allclose(result.grads[0], expected[0], 1e-6, 1e-8));
}

TEST_CASE("linear_token_logps: what the budget does not keep is computed again", "[logps]") {
  const Case c{.rows = 64, .hidden_size = 16, .vocab_size = 100000};
  const Inputs in(c);
  LinearTokenLogpsOptions options = options_of(c, in, HeadPath::kAutomatic);
  const Result kept = run(in, options);
  options.budget_bytes = half_budget(c);
  const HeadPlan plan = plan_head({.rows = 64,
                                   .hidden_size = 16,
                                   .vocab_size = 100000,
                                   .hidden_grad = true,
                                   .weight_grad = true},
                                  options.budget_bytes);
  CHECK(plan.path == HeadPath::kRecompute);
  CHECK(plan.kept_vocab > 20000);
  CHECK(plan.kept_vocab < 80000);
  CHECK(plan.gemms > 3.1);
  CHECK(plan.gemms < 3.9);
  // The same blocks are multiplied in the same order: not one bit differs.
  const Result mixed = run(in, options);
  CHECK(at::equal(mixed.out.logps, kept.out.logps));
  CHECK(at::equal(mixed.grads[0], kept.grads[0]));
  CHECK(at::equal(mixed.grads[1], kept.grads[1]));
}

TEST_CASE("linear_token_logps: rows in several tiles", "[logps]") {
  // More rows than a tile takes, and again with a budget that makes tiles small.
  const Case c{.rows = 2500, .hidden_size = 8, .vocab_size = 500};
  const Inputs in(c);
  const Result expected = oracle(c, in);
  check_same(run(in, options_of(c, in, HeadPath::kAutomatic)), expected, 2e-6);
  LinearTokenLogpsOptions options = options_of(c, in, HeadPath::kAutomatic);
  options.budget_bytes = 520 << 10;
  const HeadPlan plan = plan_head(
      {.rows = 2500, .hidden_size = 8, .vocab_size = 500, .hidden_grad = true, .weight_grad = true},
      options.budget_bytes);
  CHECK_FALSE(plan.packs_once);
  CHECK(plan.tile_rows < 1024);
  check_same(run(in, options), expected, 2e-6);

  Inputs frozen = in;
  frozen.weight = in.weight.detach();
  Case frozen_case = c;
  frozen_case.weight_grad = false;
  check_same(run(frozen, options_of(frozen_case, frozen, HeadPath::kFrozenHead)),
             oracle(frozen_case, frozen), 2e-6);
}

TEST_CASE("linear_token_logps: hostile logits", "[logps]") {
  // Hidden states pick columns of the weight, and the bias masks entries of the vocabulary.
  const std::int64_t vocab = 400;
  at::Tensor weight = random_normal({vocab, 4}, at::kFloat, 6);
  weight.select(1, 1).fill_(0);
  weight[vocab / 2][2] = 1e4;
  at::Tensor bias = at::zeros({vocab});
  bias.slice(0, 10, vocab, 3).fill_(-kInfinity);
  const at::Tensor hidden = at::tensor({1.f, 0.f, 0.f,  0.f,   // plain
                                        0.f, 1.f, 0.f,  0.f,   // all logits equal
                                        0.f, 0.f, 1.f,  0.f,   // one at 1e4
                                        0.f, 0.f, -1.f, 40.f,  // one at -1e4, the others wide
                                        0.f, 0.f, 0.f,  0.f})
                                .view({5, 4});
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t of_all : {std::int64_t{0}, vocab - 1, vocab / 2 + 1}) {
      const auto grads_of = [&](at::ScalarType dtype, auto&& logps_of) {
        const at::Tensor h = hidden.to(dtype).detach().clone().requires_grad_(true);
        const at::Tensor w = weight.to(dtype).detach().clone().requires_grad_(true);
        const at::Tensor logps = logps_of(h, w, bias.to(dtype));
        auto grads = torch::autograd::grad({logps.sum()}, {h, w});
        grads.push_back(logps.detach());
        return grads;
      };
      const at::Tensor targets = at::full({5}, of_all, at::kLong);
      const auto expected =
          grads_of(at::kDouble, [&](const at::Tensor& h, const at::Tensor& w, const at::Tensor& b) {
            return logps_oracle(h.matmul(w.t()) + b, targets).logps;
          });
      for (const HeadPath path : kPathsWithWeight) {
        INFO(simd_name(target) << ", target " << of_all << ", " << to_string(path));
        const auto got = grads_of(
            at::kFloat, [&](const at::Tensor& h, const at::Tensor& w, const at::Tensor& b) {
              LinearTokenLogpsOptions options;
              options.bias = b;
              options.path = path;
              return linear_token_logps(h, w, targets, options).logps;
            });
        CHECK(at::allclose(got[2].to(at::kDouble), expected[2], 2e-6, 2e-6));
        CHECK(relative_error(got[0], expected[0]) <= 1e-5);
        CHECK(relative_error(got[1], expected[1]) <= 1e-5);
      }
    }
  }
}

TEST_CASE("linear_token_logps: low precisions are widened and multiplied in float32", "[logps]") {
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const Case c{
        .rows = 30, .hidden_size = 40, .vocab_size = 500, .dtype = dtype, .has_bias = true};
    const Inputs in(c);
    const Result expected = oracle(c, in);
    for (const HeadPath path : kPathsWithWeight) {
      INFO(c10::toString(dtype) << ", " << to_string(path));
      const Result got = run(in, options_of(c, in, path));
      check_against_oracle(got.out, expected.out, 2e-6);
      CHECK(got.out.logps.scalar_type() == at::kFloat);
      for (std::size_t i = 0; i < 3; ++i) {
        // Computed in float32, rounded once.
        CHECK(got.grads[i].scalar_type() == dtype);
        CHECK(relative_error(got.grads[i], expected.grads[i]) <= 4e-3);
      }
    }
    Inputs frozen = in;
    frozen.weight = in.weight.detach();
    frozen.bias = in.bias.detach();
    const Result got = run(frozen, options_of(c, frozen, HeadPath::kFrozenHead));
    CHECK(got.grads[0].scalar_type() == dtype);
    CHECK(relative_error(got.grads[0], expected.grads[0]) <= 4e-3);
  }
}

TEST_CASE("linear_token_logps: a narrow head under wide hidden states", "[logps]") {
  const Case c{.rows = 10, .hidden_size = 12, .vocab_size = 150};
  Inputs in(c);
  in.weight = in.weight.detach().to(at::kBFloat16);
  const Result got = run(in, options_of(c, in, HeadPath::kAutomatic));
  CHECK(got.grads[0].scalar_type() == at::kFloat);
  check_same(got, oracle(c, in), 2e-6);
}

TEST_CASE("linear_token_logps: the number of threads changes no bit", "[logps]") {
  // Several tiles of the vocabulary, and more threads than a tile has blocks.
  const Case c{.rows = 600, .hidden_size = 12, .vocab_size = 4000};
  const Inputs in(c);
  Inputs frozen = in;
  frozen.weight = in.weight.detach();
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Result one = run(in, options_of(c, in, HeadPath::kAutomatic));
  const Result one_frozen = run(frozen, options_of(c, frozen, HeadPath::kFrozenHead));
  for (const int threads : {2, 3, 20}) {
    at::set_num_threads(threads);
    const Result other = run(in, options_of(c, in, HeadPath::kAutomatic));
    CHECK(at::equal(other.out.logps, one.out.logps));
    CHECK(at::equal(other.grads[0], one.grads[0]));
    CHECK(at::equal(other.grads[1], one.grads[1]));
    const Result other_frozen = run(frozen, options_of(c, frozen, HeadPath::kFrozenHead));
    CHECK(at::equal(other_frozen.grads[0], one_frozen.grads[0]));
  }
  at::set_num_threads(before);
}

TEST_CASE("linear_token_logps: only the gradients that are asked for", "[logps]") {
  const Case c{.rows = 7, .hidden_size = 5, .vocab_size = 120};
  const Inputs in(c);
  const LinearTokenLogpsOptions options = options_of(c, in, HeadPath::kAutomatic);
  const Result all = run(in, options);
  const at::Tensor logps = linear_token_logps(in.hidden, in.weight, in.targets, options).logps;
  // Freezing after the forward pass changes nothing.
  in.weight.requires_grad_(false);
  const at::Tensor of_hidden = torch::autograd::grad({logps}, {in.hidden}, {in.cotangent})[0];
  CHECK(at::equal(of_hidden, all.grads[0]));
}

TEST_CASE("linear_token_logps: with and without a graph give the same bits", "[logps]") {
  const Case c{.rows = 33, .hidden_size = 20, .vocab_size = 900};
  const Inputs in(c);
  const LinearTokenLogpsOptions options = options_of(c, in, HeadPath::kAutomatic);
  const TokenLogps kept = linear_token_logps(in.hidden, in.weight, in.targets, options);
  const TokenLogps frozen = linear_token_logps(in.hidden, in.weight.detach(), in.targets, options);
  const at::NoGradGuard no_grad;
  const TokenLogps plain = linear_token_logps(in.hidden, in.weight, in.targets, options);
  CHECK_FALSE(plain.logps.requires_grad());
  CHECK(at::equal(plain.logps, kept.logps));
  CHECK(at::equal(plain.logps, frozen.logps));
}

TEST_CASE("linear_token_logps: a mask leaves rows out of the head", "[logps]") {
  const Case c{.rows = 6, .hidden_size = 8, .vocab_size = 50};
  Inputs in(c);
  in.targets[1] = 777;
  const at::Tensor mask = at::tensor({1, 0, 1, 1, 0, 1}, at::kInt).to(at::kBool);
  const at::Tensor rows = at::tensor({0, 2, 3, 5}, at::kLong);
  LinearTokenLogpsOptions options = options_of(c, in, HeadPath::kAutomatic);
  options.mask = mask;
  const Result got = run(in, options);
  options.mask = at::Tensor();
  const TokenLogps selected = linear_token_logps(in.hidden.index_select(0, rows), in.weight,
                                                 in.targets.index_select(0, rows), options);
  CHECK(at::equal(got.out.logps.index_select(0, rows), selected.logps));
  CHECK(at::equal(got.out.by_products.entropy.index_select(0, rows), selected.by_products.entropy));
  CHECK(at::equal(got.out.logps.eq(0), mask.logical_not()));
  CHECK_FALSE(got.out.by_products.is_top1[1].item<bool>());
  CHECK(at::equal(got.grads[0].abs().sum(1).gt(0), mask));

  options.mask = at::zeros({6}, at::kBool);
  CHECK(run(in, options).grads[1].abs().sum().item<float>() == 0);
}

TEST_CASE("linear_token_logps: strided and overlapping inputs", "[logps]") {
  const at::Tensor targets = random_targets(6, 30, 7);
  const at::Tensor hidden = random_normal({12, 10}, at::kFloat, 8);
  const at::Tensor weight = random_normal({8, 30}, at::kFloat, 9);
  const at::Tensor h = hidden.slice(0, 0, 12, 2).slice(1, 1, 9);
  CHECK(at::allclose(linear_token_logps(h, weight.t(), targets).logps,
                     logps_oracle(h.matmul(weight), targets).logps.to(at::kFloat), 0, 2e-6));
  const at::Tensor same = hidden[0].slice(0, 0, 8).expand({6, 8});
  CHECK(at::allclose(linear_token_logps(same, weight.t(), targets).logps,
                     logps_oracle(same.matmul(weight), targets).logps.to(at::kFloat), 0, 2e-6));
}

TEST_CASE("linear_token_logps: no rows", "[logps]") {
  for (const HeadPath path : kPathsWithWeight) {
    const Case c{.rows = 0, .hidden_size = 3, .vocab_size = 7};
    const Inputs in(c);
    const Result got = run(in, options_of(c, in, path));
    CHECK(got.out.logps.sizes() == at::IntArrayRef({0}));
    CHECK(got.out.by_products.is_top1.sizes() == at::IntArrayRef({0}));
    CHECK(got.grads[0].sizes() == at::IntArrayRef({0, 3}));
    CHECK(at::equal(got.grads[1], at::zeros({7, 3})));
  }
}

TEST_CASE("linear_token_logps: the kernels and plain ATen are two ways to the same", "[logps]") {
  const Case c{.rows = 20,
               .hidden_size = 12,
               .vocab_size = 333,
               .dtype = at::kDouble,
               .has_bias = true,
               .transform = {.scale = 0.8, .softcap = 4, .temperature = 1.5}};
  const Inputs in(c);
  const at::NoGradGuard no_grad;
  const at::Tensor cotangent = in.cotangent.to(at::kDouble);
  for (const HeadPath path : kPathsWithWeight) {
    INFO(to_string(path));
    const auto both = [&](const LogpsOperators& operators) {
      const auto [statistics, kept] = operators.linear_token_logps(
          in.hidden, in.weight, in.bias, in.targets, 0.8, 4, 1.5, true, true, true,
          /*by_product_grad=*/false, static_cast<std::int64_t>(path), 1 << 26);
      const auto [h, w, b] = operators.linear_token_logps_backward(
          cotangent.unsqueeze(0), in.hidden, in.weight, in.bias, in.targets,
          statistics[kernels::kLogsumexp].contiguous(), kept, 0.8, 4, 1.5, true, true,
          /*by_product_grad=*/false, true, true, true, static_cast<std::int64_t>(path), 1 << 26);
      return std::vector<at::Tensor>{statistics, h, w, b};
    };
    const auto a = both(kCpuLogps), b = both(kAtenLogps);
    for (std::size_t i = 0; i < a.size(); ++i) CHECK(at::allclose(a[i], b[i], 1e-11, 1e-11));
  }
  const auto frozen = [&](const LogpsOperators& operators) {
    return std::get<1>(operators.linear_token_logps(
        in.hidden, in.weight, in.bias, in.targets, 0.8, 4, 1.5, false, true, false, false,
        static_cast<std::int64_t>(HeadPath::kAutomatic), 1 << 26));
  };
  CHECK(at::allclose(frozen(kCpuLogps), frozen(kAtenLogps), 1e-11, 1e-11));
}

TEST_CASE("linear_token_logps: another device takes the ATen fallback", "[logps]") {
  // The meta device computes nothing, but every operator has to be there for it.
  const at::Tensor hidden = at::zeros({3, 5}).to(at::kMeta).requires_grad_(true);
  const at::Tensor weight = at::zeros({7, 5}).to(at::kMeta);
  const at::Tensor targets = at::zeros({3}, at::kLong).to(at::kMeta);
  const at::Tensor logps = linear_token_logps(hidden, weight, targets).logps;
  CHECK(logps.is_meta());
  CHECK(torch::autograd::grad({logps.sum()}, {hidden})[0].sizes() == hidden.sizes());
}

TEST_CASE("linear_token_logps: not differentiated twice", "[logps]") {
  const Case c{.rows = 2, .hidden_size = 3, .vocab_size = 7};
  const Inputs in(c);
  const at::Tensor logps = linear_token_logps(in.hidden, in.weight, in.targets).logps.sum();
  const auto once = torch::autograd::grad({logps}, {in.hidden}, {}, /*retain_graph=*/true)[0];
  CHECK(at::equal(torch::autograd::grad({logps}, {in.hidden}, {}, true)[0], once));
  CHECK_THROWS_TEXT(torch::autograd::grad({logps}, {in.hidden}, {}, true, /*create_graph=*/true),
                    ConfigError,
                    "linear_token_logps: expected a first derivative, got create_graph; there is "
                    "no second one");
}

TEST_CASE("plan_head: chooses by gradients and budget", "[logps]") {
  HeadWork work{.rows = 384, .hidden_size = 576, .vocab_size = 49152};
  CHECK(plan_head(work).path == HeadPath::kForwardOnly);
  CHECK(plan_head(work).gemms == 1);
  work.hidden_grad = true;
  CHECK(plan_head(work).path == HeadPath::kFrozenHead);
  CHECK(plan_head(work).gemms == 2);
  work.weight_grad = true;
  const HeadPlan keep = plan_head(work);
  CHECK(keep.path == HeadPath::kKeepLogits);
  CHECK(keep.gemms == 3);
  CHECK(keep.kept_vocab == 49152);
  CHECK(keep.bytes > std::int64_t{384} * 49152 * 4);
  CHECK(keep.bytes < std::int64_t{384} * 49152 * 4 * 5 / 4);
  const std::int64_t budget = 32 << 20;
  const HeadPlan bounded = plan_head(work, budget);
  CHECK(bounded.path == HeadPath::kRecompute);
  CHECK(bounded.bytes <= budget);
  CHECK(bounded.bytes > budget * 9 / 10);
  CHECK(plan_head(work, budget, HeadPath::kRecompute).kept_vocab == 0);
  CHECK(plan_head(work, budget, HeadPath::kRecompute).gemms == 4);
  CHECK(bounded.text().starts_with("recompute: 3."));
  // Many rows: still within 64 MiB.
  work.rows = 8192;
  CHECK(plan_head(work, 64 << 20).bytes <= 64 << 20);
}

TEST_CASE("plan_head: what cannot be is refused", "[logps]") {
  HeadWork work{
      .rows = 64, .hidden_size = 8, .vocab_size = 100, .hidden_grad = true, .weight_grad = true};
  CHECK_THROWS_TEXT(
      plan_head(work, 1 << 20, HeadPath::kForwardOnly), ConfigError,
      "linear_token_logps: expected a path with a gradient, got forward_only; hidden, "
      "weight or bias requires one");
  CHECK_THROWS_TEXT(
      plan_head(work, 1 << 20, HeadPath::kFrozenHead), ConfigError,
      "linear_token_logps: expected keep_logits or recompute, got frozen_head; weight "
      "or bias requires a gradient");
  const std::int64_t least = plan_head(work, 1 << 30, HeadPath::kRecompute).bytes;
  const std::string tile = " for 64 rows of hidden size 8 in the smallest tiles, got 100";
  try {
    plan_head(work, 100);
    FAIL("no error");
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    CHECK(text.starts_with("linear_token_logps: expected budget_bytes >= "));
    CHECK(text.ends_with(tile));
    // The number it names is enough.
    const std::int64_t named = std::stoll(text.substr(text.find(">= ") + 3));
    CHECK(named <= least);
    CHECK(plan_head(work, named).bytes <= named);
    CHECK_THROWS_AS(plan_head(work, named - 1), ConfigError);
  }
  try {
    plan_head(work, 100, HeadPath::kKeepLogits);
    FAIL("no error");
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    CHECK(text.ends_with(" for keep_logits, got 100"));
    const std::int64_t named = std::stoll(text.substr(text.find(">= ") + 3));
    CHECK(plan_head(work, named, HeadPath::kKeepLogits).bytes == named);
    CHECK(plan_head(work, named).path == HeadPath::kKeepLogits);
  }
}

TEST_CASE("linear_token_logps: wrong input is refused", "[logps]") {
  const at::Tensor hidden = at::zeros({3, 5});
  const at::Tensor weight = at::zeros({7, 5});
  const at::Tensor targets = at::zeros({3}, at::kLong);
  CHECK_THROWS_TEXT(linear_token_logps(hidden.to(at::kInt), weight, targets), DtypeError,
                    "linear_token_logps: expected hidden of float32, float64, bfloat16 or float16, "
                    "got Int");
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight.to(at::kInt), targets), DtypeError,
                    "linear_token_logps: expected weight of float32, float64, bfloat16 or float16, "
                    "got Int");
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
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight, at::tensor({0, -1, 0}, at::kLong)),
                    DataError, "linear_token_logps: expected targets in [0, 7), got -1 at row 1");
  LinearTokenLogpsOptions options;
  options.bias = at::zeros({6});
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight, targets, options), ShapeError,
                    "linear_token_logps: expected bias [7], got [6]");
  options.bias = at::zeros({7}, at::kDouble);
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight, targets, options), DtypeError,
                    "linear_token_logps: expected bias of dtype Float as hidden, got Double");
  options = {};
  options.mask = at::ones({4}, at::kBool);
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight, targets, options), ShapeError,
                    "linear_token_logps: expected mask [3], got [4]");
  options = {};
  options.budget_bytes = 10;
  CHECK_THROWS_AS(linear_token_logps(hidden, weight, targets, options), ConfigError);
}

}  // namespace prefopt::test_linear_token_logps
