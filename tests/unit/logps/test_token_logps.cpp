// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/irparser.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <thread>

#include "logps/operators.h"
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::test_token_logps {
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

constexpr double kLog2 = std::numbers::ln2;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const TokenLogpsOptions kEverything{
    .by_products = ByProducts::all(), .transform = {}, .mask = {}, .dtype = {}};

TokenLogpsOptions with(const LogitTransform& transform) {
  return {.by_products = ByProducts::all(), .transform = transform, .mask = {}, .dtype = {}};
}

const std::vector<LogitTransform> kTransforms{
    {},
    {.scale = 0.5, .temperature = 2.5},
    {.scale = 1.5, .softcap = 3, .temperature = 0.7},
    {.scale = -1},
};

std::string name_of(const LogitTransform& t) {
  return "scale " + std::to_string(t.scale) + ", softcap " + std::to_string(t.softcap) +
         ", temperature " + std::to_string(t.temperature);
}

/// Rows on which a careless softmax fails, one logit a column in float32.
at::Tensor hostile_logits(std::int64_t vocab_size) {
  at::Tensor rows = at::zeros({6, vocab_size});
  rows[1].fill_(-7.25);           // all equal
  rows[2][vocab_size / 2] = 1e4;  // one that leaves nothing to the others
  rows[3].copy_(random_normal({vocab_size}, at::kFloat, 3));
  rows[3].slice(0, 0, vocab_size, 2).fill_(-kInfinity);  // every other one masked
  rows[3][vocab_size > 1 ? 1 : 0] = 2;
  rows[4].copy_(random_normal({vocab_size}, at::kFloat, 4) * 40);
  rows[5].copy_(random_normal({vocab_size}, at::kFloat, 5) - 1e4);
  return rows;
}

}  // namespace

TEST_CASE("token_logps: values by hand", "[logps]") {
  // softmax of log 1, log 2, log 5: 1/8, 2/8, 5/8. An added constant changes nothing.
  const at::Tensor row = at::tensor({0.0, kLog2, std::log(5.0)}, at::kDouble);
  const at::Tensor logits = at::stack({row, row + 1000, row - 1000, row});
  const at::Tensor targets = at::tensor({0, 1, 2, 2}, at::kLong);
  const TokenLogps out = token_logps(logits, targets, kEverything);

  const std::vector<double> expected{-3 * kLog2, -2 * kLog2, std::log(0.625), std::log(0.625)};
  const double entropy = 3 * kLog2 / 8 + 2 * kLog2 / 4 - 0.625 * std::log(0.625);
  for (std::int64_t i = 0; i < 4; ++i) {
    CHECK(out.logps[i].item<double>() ==
          Approx(expected[static_cast<std::size_t>(i)]).epsilon(1e-12));
    CHECK(out.by_products.entropy[i].item<double>() == Approx(entropy).epsilon(1e-12));
    CHECK(out.by_products.log_sum_p_squared[i].item<double>() ==
          Approx(std::log(30.0 / 64)).epsilon(1e-12));
  }
  CHECK(out.by_products.mean_logit[1].item<double>() ==
        Approx(1000 + (kLog2 + std::log(5.0)) / 3).epsilon(1e-12));
  CHECK(out.by_products.logsumexp[2].item<double>() ==
        Approx(-1000 + std::log(8.0)).epsilon(1e-12));
  CHECK(at::equal(out.by_products.is_top1, targets.eq(2)));
}

TEST_CASE("token_logps: every SIMD target agrees with float64 softmax", "[logps]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t vocab : {1, 3, 31, 257, 2048, 2049, 50257}) {
      for (const LogitTransform& transform : kTransforms) {
        INFO(simd_name(target) << ", vocabulary " << vocab << ", " << name_of(transform));
        const at::Tensor targets = random_targets(5, vocab, 7);
        const at::Tensor wide = random_normal({5, vocab}, at::kDouble, 8) * 3;
        check_against_oracle(token_logps(wide, targets, with(transform)),
                             logps_oracle(wide, targets, transform), 1e-12);
        const at::Tensor single = wide.to(at::kFloat);
        check_against_oracle(token_logps(single, targets, with(transform)),
                             logps_oracle(single, targets, transform), 1e-6);
      }
    }
  }
}

TEST_CASE("token_logps: a vocabulary of 151936", "[logps]") {
  const at::Tensor logits = random_normal({2, 151936}, at::kFloat, 9) * 4;
  const at::Tensor targets = at::tensor({0, 151935}, at::kLong);
  check_against_oracle(token_logps(logits, targets, kEverything), logps_oracle(logits, targets),
                       1e-6);
}

TEST_CASE("token_logps: hostile rows have exact values and gradients", "[logps]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t vocab : {1, 31, 4099}) {
      for (const std::int64_t of_all : {std::int64_t{0}, vocab - 1}) {
        INFO(simd_name(target) << ", vocabulary " << vocab << ", target " << of_all);
        const at::Tensor logits = hostile_logits(vocab).requires_grad_(true);
        const at::Tensor wide = logits.detach().to(at::kDouble).requires_grad_(true);
        const at::Tensor targets = at::full({6}, of_all, at::kLong);
        const TokenLogps out = token_logps(logits, targets, kEverything);
        const TokenLogps expected = logps_oracle(wide, targets);
        check_against_oracle(out, expected, 1e-6);
        const at::Tensor cotangent = random_normal({6}, at::kFloat, 10);
        const at::Tensor grad = torch::autograd::grad({out.logps}, {logits}, {cotangent})[0];
        const at::Tensor reference =
            torch::autograd::grad({expected.logps}, {wide}, {cotangent.to(at::kDouble)})[0];
        CHECK(at::allclose(grad.to(at::kDouble), reference, 1e-5, 1e-7, /*equal_nan=*/true));
      }
    }
  }
}

TEST_CASE("token_logps: what is no number stays none", "[logps]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    INFO(simd_name(target));
    for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      at::Tensor logits = at::zeros({3, 100}, dtype);
      logits[0][50] = std::numeric_limits<float>::quiet_NaN();
      logits[1][99] = kInfinity;
      const at::Tensor logps =
          token_logps(logits, at::tensor({0, 0, 0}, at::kLong)).logps.to(at::kDouble);
      CHECK(std::isnan(logps[0].item<double>()));
      CHECK_FALSE(std::isfinite(logps[1].item<double>()));
      CHECK(logps[2].item<double>() == Approx(-std::log(100.0)).epsilon(1e-6));
    }
  }
}

TEST_CASE("token_logps: a token that cannot come", "[logps]") {
  const at::Tensor logits = at::tensor({0.0f, 0.0f, -kInfinity}).unsqueeze(0);
  const TokenLogps out = token_logps(logits, at::tensor({0}, at::kLong), kEverything);
  CHECK(out.logps.item<float>() == Approx(-kLog2));
  CHECK(out.by_products.entropy.item<float>() == Approx(kLog2));
  CHECK(out.by_products.mean_logit.item<float>() == -kInfinity);
  CHECK(token_logps(logits, at::tensor({2}, at::kLong)).logps.item<float>() == -kInfinity);
}

TEST_CASE("token_logps: narrow logits are summed in float32", "[logps]") {
  const at::Tensor exact = random_normal({6, 300}, at::kDouble, 1);
  const at::Tensor targets = at::arange(6, at::kLong) * 50;
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      const at::Tensor narrow = exact.to(dtype).requires_grad_(true);
      const TokenLogps out = token_logps(narrow, targets, kEverything);
      CHECK(out.logps.scalar_type() == at::kFloat);
      CHECK(out.by_products.entropy.scalar_type() == at::kFloat);
      check_against_oracle(out, logps_oracle(narrow.detach(), targets), 2e-6);
      // The gradient is rounded once to the dtype of the logits.
      const at::Tensor grad = torch::autograd::grad({out.logps.sum()}, {narrow})[0];
      CHECK(grad.scalar_type() == dtype);
      const at::Tensor wide = narrow.detach().to(at::kFloat).requires_grad_(true);
      const at::Tensor expected =
          torch::autograd::grad({token_logps(wide, targets).logps.sum()}, {wide})[0];
      INFO(simd_name(target) << ", " << c10::toString(dtype));
      CHECK(at::equal(grad, expected.to(dtype)));
    }
  }
}

TEST_CASE("token_logps: float64 log-probs of float32 logits", "[logps]") {
  const at::Tensor logits = random_normal({4, 500}, at::kFloat, 12);
  const at::Tensor targets = random_targets(4, 500, 13);
  TokenLogpsOptions options = kEverything;
  options.dtype = at::kDouble;
  const TokenLogps out = token_logps(logits, targets, options);
  CHECK(out.logps.scalar_type() == at::kDouble);
  CHECK(out.by_products.logsumexp.scalar_type() == at::kDouble);
  check_against_oracle(out, logps_oracle(logits, targets), 1e-6);
}

TEST_CASE("token_logps: the gradient is that of finite differences", "[logps]") {
  const at::Tensor targets = at::tensor({0, 6, 3, 3}, at::kLong);
  const at::Tensor cotangent = random_normal({4}, at::kDouble, 14);
  for (const LogitTransform& transform : kTransforms) {
    INFO(name_of(transform));
    const at::Tensor logits = random_normal({4, 7}, at::kDouble, 15).requires_grad_(true);
    const auto weighted = [&](const at::Tensor& x) {
      return token_logps(x, targets, with(transform)).logps.mul(cotangent).sum();
    };
    const at::Tensor grad = torch::autograd::grad({weighted(logits)}, {logits})[0];
    const at::Tensor expected =
        finite_differences([&](const at::Tensor& x) { return weighted(x).item<double>(); }, logits);
    CHECK(at::allclose(grad, expected, 1e-6, 1e-9));
  }
}

TEST_CASE("token_logps: by-products have no gradient and come only when asked for", "[logps]") {
  const at::Tensor logits = random_normal({2, 7}, at::kFloat, 2).requires_grad_(true);
  const at::Tensor targets = at::tensor({0, 6}, at::kLong);
  const TokenByProducts all = token_logps(logits, targets, kEverything).by_products;
  for (const at::Tensor* one :
       {&all.logsumexp, &all.entropy, &all.mean_logit, &all.is_top1, &all.log_sum_p_squared}) {
    CHECK(one->sizes() == at::IntArrayRef({2}));
    CHECK_FALSE(one->requires_grad());
  }
  const TokenByProducts none = token_logps(logits, targets).by_products;
  CHECK_FALSE(none.logsumexp.defined());
  CHECK_FALSE(none.entropy.defined());
  CHECK_FALSE(none.mean_logit.defined());
  CHECK_FALSE(none.is_top1.defined());
  CHECK_FALSE(none.log_sum_p_squared.defined());
  TokenLogpsOptions options;
  options.by_products.is_top1 = true;
  const TokenByProducts one = token_logps(logits, targets, options).by_products;
  CHECK(one.is_top1.defined());
  CHECK_FALSE(one.entropy.defined());
}

TEST_CASE("token_logps: the number of threads changes no bit", "[logps]") {
  const at::Tensor logits = random_normal({37, 5000}, at::kFloat, 16).requires_grad_(true);
  const at::Tensor targets = random_targets(37, 5000, 17);
  const auto run = [&] {
    const at::Tensor logps = token_logps(logits, targets).logps;
    return std::pair(logps.detach(), torch::autograd::grad({logps.sum()}, {logits})[0]);
  };
  const int before = at::get_num_threads();
  const auto first = run();
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    const auto other = run();
    CHECK(at::equal(first.first, other.first));
    CHECK(at::equal(first.second, other.second));
  }
  at::set_num_threads(before);
}

TEST_CASE("token_logps: rows outside of the mask cost nothing", "[logps]") {
  at::Tensor values = random_normal({5, 9}, at::kFloat, 18);
  values[1].fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor logits = values.requires_grad_(true);
  // The target of a row that is left out may be anything.
  const at::Tensor targets = at::tensor({3, -100, 8, 999, 0}, at::kLong);
  const at::Tensor mask = at::tensor({1, 0, 1, 0, 1}, at::kInt).to(at::kBool);
  TokenLogpsOptions options = kEverything;
  options.mask = mask;
  const TokenLogps out = token_logps(logits, targets, options);
  const at::Tensor rows = at::tensor({0, 2, 4}, at::kLong);
  TokenLogps selected{.logps = out.logps.detach().index_select(0, rows), .by_products = {}};
  selected.by_products.entropy = out.by_products.entropy.index_select(0, rows);
  check_against_oracle(
      selected, logps_oracle(logits.detach().index_select(0, rows), targets.index_select(0, rows)),
      1e-6);
  for (const int row : {1, 3}) {
    CHECK(out.logps[row].item<float>() == 0);
    CHECK(out.by_products.entropy[row].item<float>() == 0);
    CHECK(out.by_products.log_sum_p_squared[row].item<float>() == 0);
    CHECK_FALSE(out.by_products.is_top1[row].item<bool>());
  }
  const at::Tensor grad = torch::autograd::grad({out.logps.sum()}, {logits})[0];
  CHECK(at::equal(grad.abs().sum(1).gt(0), mask));
}

TEST_CASE("token_logps: strided, transposed and overlapping logits", "[logps]") {
  const at::Tensor targets = at::tensor({2, 0, 4}, at::kLong);
  const at::Tensor whole = random_normal({6, 10}, at::kFloat, 19);
  const std::vector<at::Tensor> views{whole.slice(0, 0, 6, 2), whole.slice(0, 0, 3).slice(1, 2, 9),
                                      whole.t().slice(0, 1, 4), whole[1].expand({3, 10}),
                                      whole.slice(0, 0, 3).slice(1, 0, 10, 2)};
  for (const at::Tensor& view : views) {
    INFO(view.sizes() << " with strides " << view.strides());
    const at::Tensor logits = view.detach().requires_grad_(true);
    check_against_oracle(token_logps(logits, targets, kEverything),
                         logps_oracle(view.contiguous(), targets), 1e-6);
    const at::Tensor grad =
        torch::autograd::grad({token_logps(logits, targets).logps.sum()}, {logits})[0];
    CHECK(at::allclose(grad, at::one_hot(targets, view.size(1)) - view.softmax(1), 0, 1e-6));
  }
}

TEST_CASE("token_logps: overwriting takes the logits' own memory", "[logps]") {
  const at::Tensor leaf = random_normal({4, 300}, at::kFloat, 20).requires_grad_(true);
  const at::Tensor targets = random_targets(4, 300, 21);
  const at::Tensor cotangent = random_normal({4}, at::kFloat, 22);
  TokenLogpsOptions options;
  options.overwrite_logits = true;
  const auto expected =
      torch::autograd::grad({token_logps(leaf, targets).logps}, {leaf}, {cotangent})[0];

  SECTION("the gradient is the same and lies where the logits were") {
    const at::Tensor logits = leaf * 1;
    const at::Tensor logps = token_logps(logits, targets, options).logps;
    const at::Tensor grad = torch::autograd::grad({logps}, {logits}, {cotangent})[0];
    CHECK(at::equal(grad, expected));
    CHECK(grad.data_ptr() == logits.data_ptr());
  }
  SECTION("it continues to what made the logits") {
    const at::Tensor logits = leaf * 2;
    token_logps(logits, targets, options).logps.backward(cotangent);
    const at::Tensor wide = leaf.detach().requires_grad_(true);
    const at::Tensor reference =
        torch::autograd::grad({token_logps(wide * 2, targets).logps}, {wide}, {cotangent})[0];
    CHECK(at::equal(leaf.grad(), reference));
  }
  SECTION("who saved the logits is told") {
    const at::Tensor logits = leaf * 1;
    const at::Tensor other = logits.square().sum();
    token_logps(logits, targets, options).logps.backward(cotangent);
    CHECK_THROWS_AS(other.backward(), c10::Error);
  }
  SECTION("a second backward pass is told") {
    const at::Tensor logits = leaf * 1;
    const at::Tensor logps = token_logps(logits, targets, options).logps.sum();
    logps.backward({}, /*retain_graph=*/true);
    CHECK_THROWS_AS(logps.backward(), c10::Error);
  }
  SECTION("a leaf is refused") {
    CHECK_THROWS_TEXT(token_logps(leaf, targets, options), ConfigError,
                      "token_logps: expected computed logits for overwrite_logits, got a leaf; its "
                      "values are not the operator's to overwrite");
  }
  SECTION("overlapping rows get memory of their own") {
    const at::Tensor row = leaf[0] * 1;
    const at::Tensor logits = row.expand({4, 300});
    const at::Tensor kept = row.detach().clone();
    torch::autograd::grad({token_logps(logits, targets, options).logps.sum()}, {logits});
    CHECK(at::equal(row.detach(), kept));
  }
}

TEST_CASE("token_logps: a graph may be gone through twice, but not differentiated twice",
          "[logps]") {
  const at::Tensor logits = random_normal({2, 7}, at::kDouble, 23).requires_grad_(true);
  const at::Tensor logps = token_logps(logits, at::tensor({1, 2}, at::kLong)).logps.sum();
  const auto once = torch::autograd::grad({logps}, {logits}, {}, /*retain_graph=*/true)[0];
  CHECK(at::equal(torch::autograd::grad({logps}, {logits}, {}, true)[0], once));
  CHECK_THROWS_TEXT(torch::autograd::grad({logps}, {logits}, {}, true, /*create_graph=*/true),
                    ConfigError,
                    "token_logps: expected a first derivative, got create_graph; there is no "
                    "second one");
}

TEST_CASE("token_logps: results share no memory with each other or the graph", "[logps]") {
  const at::Tensor logits = random_normal({2, 7}, at::kDouble, 33).requires_grad_(true);
  const at::Tensor targets = at::tensor({1, 2}, at::kLong);
  const TokenLogps out = token_logps(logits, targets, kEverything);
  const at::Tensor logps = out.logps.detach().clone();
  out.by_products.logsumexp.zero_();
  out.by_products.entropy.zero_();
  CHECK(at::equal(out.logps, logps));
  const at::Tensor grad = torch::autograd::grad({out.logps.sum()}, {logits})[0];
  CHECK(at::allclose(grad, at::one_hot(targets, 7) - logits.detach().softmax(1), 0, 1e-12));
}

TEST_CASE("token_logps: no rows", "[logps]") {
  const at::Tensor logits = at::zeros({0, 7}).requires_grad_(true);
  const TokenLogps out = token_logps(logits, at::zeros({0}, at::kLong), kEverything);
  CHECK(out.logps.sizes() == at::IntArrayRef({0}));
  CHECK(out.by_products.entropy.sizes() == at::IntArrayRef({0}));
  CHECK(torch::autograd::grad({out.logps.sum()}, {logits})[0].sizes() == logits.sizes());
}

TEST_CASE("token_logps: the kernels and plain ATen are two ways to the same", "[logps]") {
  const at::Tensor logits = random_normal({6, 1000}, at::kFloat, 24) * 3;
  at::Tensor targets = random_targets(6, 1000, 25);
  targets[2] = kIgnoredTarget;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const double tolerance = dtype == at::kFloat ? 1e-6 : 1e-12;
    for (const LogitTransform& t : kTransforms) {
      INFO(name_of(t));
      const at::Tensor raw = logits.to(dtype);
      at::Tensor grad_a = at::empty_like(raw), grad_b = at::empty_like(raw);
      const auto run = [&](const LogpsOperators& operators, at::Tensor& unit) {
        return operators.token_logps(raw, targets, t.scale, t.softcap, t.temperature, true, unit);
      };
      const at::Tensor a = run(kCpuLogps, grad_a), b = run(kAtenLogps, grad_b);
      CHECK(at::allclose(a, b, tolerance, tolerance));
      CHECK(at::allclose(grad_a, grad_b, 10 * tolerance, tolerance));
      const at::Tensor cotangent = random_normal({6}, at::kDouble, 26);
      const auto back = [&](const LogpsOperators& operators, at::Tensor& out) {
        operators.token_logps_backward(cotangent.unsqueeze(0), raw, targets,
                                       a[kernels::kLogsumexp].contiguous(), t.scale, t.softcap,
                                       t.temperature, out);
      };
      back(kCpuLogps, grad_a);
      back(kAtenLogps, grad_b);
      CHECK(at::allclose(grad_a, grad_b, 10 * tolerance, tolerance));
    }
  }
}

TEST_CASE("token_logps: works inside TorchScript", "[logps]") {
  // The graph that a scripted call of torch.ops.prefopt.token_logps becomes.
  auto graph = std::make_shared<torch::jit::Graph>();
  torch::jit::parseIR(R"IR(
graph(%hidden : Tensor, %weight : Tensor, %targets : Tensor):
  %one : float = prim::Constant[value=1.]()
  %zero : float = prim::Constant[value=0.]()
  %two : float = prim::Constant[value=2.]()
  %none : NoneType = prim::Constant()
  %no : bool = prim::Constant[value=0]()
  %budget : int = prim::Constant[value=1000000]()
  %path : str = prim::Constant[value="recompute"]()
  %a : Tensor, %a_statistics : Tensor = prefopt::linear_token_logps(%hidden, %weight, %targets, %none, %one, %zero, %one, %none, %no, %budget, %path)
  %b : Tensor, %b_statistics : Tensor = prefopt::token_logps(%hidden, %targets, %one, %zero, %two, %none, %no, %no)
  %both : (Tensor, Tensor) = prim::TupleConstruct(%a, %b)
  return (%both))IR",
                      graph.get());
  torch::jit::GraphFunction function("logps", graph, nullptr);
  // Hidden states of as many entries as the vocabulary serve as logits too.
  const at::Tensor targets = at::tensor({0, 6, 3}, at::kLong);
  const at::Tensor hidden = random_normal({3, 7}, at::kDouble, 27).requires_grad_(true);
  const at::Tensor weight = random_normal({7, 7}, at::kDouble, 28);
  torch::jit::Stack stack{hidden, weight, targets};
  function.run(stack);
  const auto expected = [&](const at::Tensor& x) {
    return logps_oracle(x.matmul(weight.t()), targets).logps.sum() +
           logps_oracle(x, targets, {.temperature = 2}).logps.sum();
  };
  const auto& both = stack[0].toTupleRef().elements();
  const at::Tensor sum = both[0].toTensor().sum() + both[1].toTensor().sum();
  CHECK(sum.item<double>() == Approx(expected(hidden).item<double>()).epsilon(1e-12));
  const at::Tensor grad = torch::autograd::grad({sum}, {hidden})[0];
  CHECK(at::allclose(grad, torch::autograd::grad({expected(hidden)}, {hidden})[0], 0, 1e-12));
}

TEST_CASE("token_logps: several threads of the caller's own", "[logps]") {
  const at::Tensor logits = random_normal({8, 3000}, at::kFloat, 30);
  const at::Tensor targets = random_targets(8, 3000, 31);
  const at::Tensor expected = token_logps(logits, targets).logps;
  std::vector<at::Tensor> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] { result = token_logps(logits, targets).logps; });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) CHECK(at::equal(result, expected));
}

TEST_CASE("token_logps: wrong input is refused", "[logps]") {
  const at::Tensor logits = at::zeros({3, 7});
  const at::Tensor targets = at::zeros({3}, at::kLong);
  CHECK_THROWS_TEXT(token_logps(logits.to(at::kLong), targets), DtypeError,
                    "token_logps: expected logits of float32, float64, bfloat16 or float16, got "
                    "Long");
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
  CHECK_THROWS_TEXT(token_logps(logits, targets, with({.temperature = 0})), ConfigError,
                    "token_logps: expected temperature > 0, got 0");
  CHECK_THROWS_TEXT(token_logps(logits, targets, with({.softcap = -1})), ConfigError,
                    "token_logps: expected softcap >= 0, got -1");
  CHECK_THROWS_TEXT(token_logps(logits, targets, with({.scale = kInfinity})), ConfigError,
                    "token_logps: expected scale finite, got inf");
  TokenLogpsOptions options;
  options.dtype = at::kHalf;
  CHECK_THROWS_TEXT(token_logps(logits, targets, options), ConfigError,
                    "token_logps: expected dtype float32 or float64, got Half");
  options = {};
  options.mask = at::ones({3}, at::kBool);
  CHECK_THROWS_TEXT(token_logps(logits, at::tensor({0, -1, 0}, at::kLong), options), DataError,
                    "token_logps: expected targets in [0, 7), got -1 at row 1");
  options.mask = at::ones({2}, at::kBool);
  CHECK_THROWS_TEXT(token_logps(logits, targets, options), ShapeError,
                    "token_logps: expected mask [3], got [2]");
  options.mask = at::ones({3}, at::kInt);
  CHECK_THROWS_TEXT(token_logps(logits, targets, options), DtypeError,
                    "token_logps: expected mask of bool, got Int");
}

}  // namespace prefopt::test_token_logps
