// SPDX-License-Identifier: Apache-2.0
// The gradient of log-prob, entropy and logsumexp together.
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "logps/operators.h"
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::test_row_gradient {
namespace {

using testing_support::finite_differences;
using testing_support::logps_oracle;
using testing_support::random_normal;
using testing_support::random_targets;
using testing_support::relative_error;
using testing_support::simd_name;
using testing_support::simd_targets;
using testing_support::SimdTarget;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr DifferentiableByProducts kBoth{.logsumexp = true, .entropy = true};

/// Upstream gradients [rows] of the three outputs.
struct Upstream {
  at::Tensor logps, entropy, logsumexp;

  explicit Upstream(std::int64_t rows, std::uint64_t seed = 71)
      : logps(random_normal({rows}, at::kDouble, seed)),
        entropy(random_normal({rows}, at::kDouble, seed + 1)),
        logsumexp(random_normal({rows}, at::kDouble, seed + 2)) {}

  at::Tensor value(const TokenLogps& of) const {
    return (of.logps * logps + of.by_products.entropy * entropy +
            of.by_products.logsumexp * logsumexp)
        .sum();
  }
};

const std::vector<LogitTransform> kMaps{
    {},
    {.scale = 0.5, .temperature = 2.5},
    {.scale = 1.5, .softcap = 3, .temperature = 0.7},
};

/// A head, which of its inputs need a gradient, and rows that count.
struct Head {
  at::Tensor hidden, weight, bias, targets, mask;

  at::Tensor raw_logits() const {
    const at::Tensor raw = hidden.matmul(weight.t());
    return bias.defined() ? raw + bias : raw;
  }
  std::vector<at::Tensor> differentiable() const {
    std::vector<at::Tensor> result;
    for (const at::Tensor* input : {&hidden, &weight, &bias}) {
      if (input->defined() && input->requires_grad()) result.push_back(*input);
    }
    return result;
  }
};

Head make_head(std::int64_t rows, std::int64_t width, std::int64_t vocab, at::ScalarType dtype,
               bool has_bias, bool weight_grad = true) {
  Head head;
  head.hidden = random_normal({rows, width}, dtype, 61).requires_grad_(true);
  head.weight = random_normal({vocab, width}, dtype, 62).requires_grad_(weight_grad);
  if (has_bias) head.bias = random_normal({vocab}, dtype, 63).requires_grad_(weight_grad);
  head.targets = random_targets(rows, vocab, 64);
  return head;
}

LinearTokenLogpsOptions options_of(const Head& head, const LogitTransform& transform,
                                   HeadPath path = HeadPath::kAutomatic) {
  LinearTokenLogpsOptions options;
  options.transform = transform;
  options.bias = head.bias;
  options.mask = head.mask;
  options.path = path;
  options.differentiable = kBoth;
  return options;
}

std::vector<at::Tensor> gradients(const Head& head, const LinearTokenLogpsOptions& options,
                                  const Upstream& upstream) {
  const TokenLogps out = linear_token_logps(head.hidden, head.weight, head.targets, options);
  return torch::autograd::grad({upstream.value(out)}, head.differentiable());
}

/// By the definitions, in float64 and through ATen's own derivatives.
std::vector<at::Tensor> expected_gradients(const Head& head, const LogitTransform& transform,
                                           const Upstream& upstream) {
  Head wide = head;
  for (at::Tensor* input : {&wide.hidden, &wide.weight, &wide.bias}) {
    if (!input->defined()) continue;
    *input = input->detach().to(at::kDouble).requires_grad_(input->requires_grad());
  }
  const TokenLogps out = logps_oracle(wide.raw_logits(), head.targets, transform);
  return torch::autograd::grad({upstream.value(out)}, wide.differentiable());
}

}  // namespace

TEST_CASE("row gradient: figures of a row in numpy", "[logps]") {
  // misc.row_gradient of golden/policy_gradient.json, float64.
  const at::Tensor logits = at::tensor({0.3, -1.0, 0.7, 0.1}, at::kDouble).view({1, 4});
  const at::Tensor targets = at::tensor({2}, at::kLong);
  const at::Tensor expected =
      at::tensor({-0.0570436669734222, -0.0353219708313128, 0.448208989955103, -0.0558433521503683},
                 at::kDouble);
  const auto check = [&](const TokenLogps& out, const at::Tensor& of) {
    CHECK(out.logps.item<double>() == Approx(-0.876224787385367).epsilon(1e-13));
    CHECK(out.by_products.entropy.item<double>() == Approx(1.25426261003848).epsilon(1e-13));
    CHECK(out.by_products.logsumexp.item<double>() == Approx(1.57622478738537).epsilon(1e-13));
    const at::Tensor value =
        0.5 * out.logps - 0.2 * out.by_products.entropy + 0.3 * out.by_products.logsumexp;
    CHECK(at::allclose(torch::autograd::grad({value.sum()}, {of})[0].view(-1), expected, 1e-12,
                       1e-14));
  };
  const at::Tensor leaf = logits.clone().requires_grad_(true);
  TokenLogpsOptions options;
  options.differentiable = kBoth;
  check(token_logps(leaf, targets, options), leaf);
  // The same row as hidden states under the identity.
  const at::Tensor hidden = logits.clone().requires_grad_(true);
  for (const HeadPath path : {HeadPath::kAutomatic, HeadPath::kKeepLogits, HeadPath::kRecompute}) {
    INFO(to_string(path));
    LinearTokenLogpsOptions linear;
    linear.differentiable = kBoth;
    linear.path = path;
    check(linear_token_logps(hidden, at::eye(4, at::kDouble), targets, linear), hidden);
  }
}

TEST_CASE("row gradient: of logits by finite differences", "[logps]") {
  const Upstream upstream(4);
  const at::Tensor targets = at::tensor({0, 6, 3, 3}, at::kLong);
  for (const LogitTransform& transform : kMaps) {
    for (const bool masked : {false, true}) {
      TokenLogpsOptions options;
      options.transform = transform;
      options.differentiable = kBoth;
      if (masked) options.mask = at::tensor({1, 0, 1, 1}, at::kInt).to(at::kBool);
      const at::Tensor logits = random_normal({4, 7}, at::kDouble, 15).requires_grad_(true);
      const auto value = [&](const at::Tensor& x) {
        return upstream.value(token_logps(x, targets, options));
      };
      const at::Tensor expected =
          finite_differences([&](const at::Tensor& x) { return value(x).item<double>(); }, logits);
      INFO("softcap " << transform.softcap << ", masked " << masked);
      const at::Tensor got = torch::autograd::grad({value(logits)}, {logits})[0];
      CHECK(at::allclose(got, expected, 1e-6, 1e-9));
      if (masked) CHECK(got[1].abs().max().item<double>() == 0);
      options.overwrite_logits = true;
      CHECK(at::equal(torch::autograd::grad({value(logits * 1)}, {logits})[0], got));
    }
  }
}

TEST_CASE("row gradient: of a head by finite differences on every path", "[logps]") {
  const Upstream upstream(4);
  for (const LogitTransform& transform : kMaps) {
    for (const bool has_bias : {false, true}) {
      Head head = make_head(4, 3, 30, at::kDouble, has_bias);
      if (has_bias) head.mask = at::tensor({1, 1, 0, 1}, at::kInt).to(at::kBool);
      const auto value = [&](const Head& at_head) {
        const at::NoGradGuard no_grad;
        TokenLogps out = logps_oracle(at_head.raw_logits(), head.targets, transform);
        if (head.mask.defined()) {
          for (at::Tensor* of :
               {&out.logps, &out.by_products.entropy, &out.by_products.logsumexp}) {
            *of = of->masked_fill(head.mask.logical_not(), 0);
          }
        }
        return upstream.value(out).item<double>();
      };
      std::vector<at::Tensor> expected;
      for (at::Tensor Head::*part : {&Head::hidden, &Head::weight, &Head::bias}) {
        if (!(head.*part).defined()) continue;
        expected.push_back(finite_differences(
            [&](const at::Tensor& x) {
              Head other = head;
              other.*part = x;
              return value(other);
            },
            head.*part));
      }
      for (const HeadPath path :
           {HeadPath::kAutomatic, HeadPath::kKeepLogits, HeadPath::kRecompute}) {
        INFO(to_string(path) << ", softcap " << transform.softcap << ", bias " << has_bias);
        const auto got = gradients(head, options_of(head, transform, path), upstream);
        REQUIRE(got.size() == expected.size());
        for (std::size_t i = 0; i < got.size(); ++i) {
          CHECK(at::allclose(got[i], expected[i], 1e-6, 1e-8));
        }
        Head of_hidden = head;
        of_hidden.weight = head.weight.detach();
        if (has_bias) of_hidden.bias = head.bias.detach();
        const auto alone = gradients(of_hidden, options_of(of_hidden, transform, path), upstream);
        CHECK(at::allclose(alone[0], expected[0], 1e-6, 1e-8));
      }
    }
  }
}

TEST_CASE("row gradient: every SIMD target, width and dtype agrees with float64", "[logps]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const std::int64_t vocab : {1, 31, 2053}) {
        for (const LogitTransform& transform : kMaps) {
          INFO(simd_name(target) << ", " << c10::toString(dtype) << ", vocabulary " << vocab
                                 << ", softcap " << transform.softcap);
          const Upstream upstream(5);
          const at::Tensor targets = random_targets(5, vocab, 7);
          const at::Tensor logits =
              (random_normal({5, vocab}, at::kDouble, 8) * 3).to(dtype).requires_grad_(true);
          const at::Tensor wide = logits.detach().to(at::kDouble).requires_grad_(true);
          TokenLogpsOptions options;
          options.transform = transform;
          options.differentiable = kBoth;
          const at::Tensor got = torch::autograd::grad(
              {upstream.value(token_logps(logits, targets, options))}, {logits})[0];
          const at::Tensor expected = torch::autograd::grad(
              {upstream.value(logps_oracle(wide, targets, transform))}, {wide})[0];
          CHECK(got.scalar_type() == dtype);
          const double tolerance = dtype == at::kDouble  ? 1e-12
                                   : dtype == at::kFloat ? 5e-6
                                   : dtype == at::kHalf  ? 5e-4
                                                         : 4e-3;
          CHECK(relative_error(got, expected) <= tolerance);
        }
      }
    }
    const LogitTransform transform{.scale = 0.7, .softcap = 5, .temperature = 1.3};
    const Upstream upstream(70);
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      const Head head = make_head(70, 33, 290, dtype, /*has_bias=*/true);
      const auto expected = expected_gradients(head, transform, upstream);
      for (const HeadPath path : {HeadPath::kKeepLogits, HeadPath::kRecompute}) {
        INFO(simd_name(target) << ", " << c10::toString(dtype) << ", " << to_string(path));
        const auto got = gradients(head, options_of(head, transform, path), upstream);
        for (std::size_t i = 0; i < got.size(); ++i) {
          CHECK(got[i].scalar_type() == dtype);
          CHECK(relative_error(got[i], expected[i]) <= (dtype == at::kDouble  ? 1e-11
                                                        : dtype == at::kFloat ? 2e-5
                                                                              : 4e-3));
        }
      }
    }
  }
}

TEST_CASE("row gradient: what the budget does not keep gives the same bits", "[logps]") {
  const Head head = make_head(64, 16, 100000, at::kFloat, /*has_bias=*/false);
  const Upstream upstream(64);
  LinearTokenLogpsOptions options = options_of(head, {});
  const auto kept = gradients(head, options, upstream);
  const HeadWork work{.rows = 64,
                      .hidden_size = 16,
                      .vocab_size = 100000,
                      .hidden_grad = true,
                      .weight_grad = true,
                      .by_product_grad = true};
  const std::int64_t all = plan_head(work).bytes;
  options.budget_bytes = all / 2 + plan_head(work, all, HeadPath::kRecompute).bytes / 2;
  const HeadPlan plan = plan_head(work, options.budget_bytes);
  CHECK(plan.kept_vocab > 20000);
  CHECK(plan.kept_vocab < 80000);
  const auto mixed = gradients(head, options, upstream);
  CHECK(at::equal(mixed[0], kept[0]));
  CHECK(at::equal(mixed[1], kept[1]));
}

TEST_CASE("row gradient: the kernels and plain ATen are two ways to the same", "[logps]") {
  const at::Tensor factors = random_normal({kernels::kAllFactors, 6}, at::kDouble, 27);
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const double tolerance = dtype == at::kFloat ? 2e-6 : 1e-12;
    const at::Tensor raw = (random_normal({6, 1000}, at::kDouble, 24) * 3).to(dtype);
    raw[1].slice(0, 0, 1000, 2).fill_(-kInfinity);
    at::Tensor targets = random_targets(6, 1000, 25);
    targets[1] = 3;
    targets[2] = kIgnoredTarget;
    for (const LogitTransform& t : kMaps) {
      const at::Tensor logsumexp = kCpuLogps.token_logps(
          raw, targets, t.scale, t.softcap, t.temperature, false, {})[kernels::kLogsumexp];
      const auto back = [&](const LogpsOperators& operators) {
        const at::Tensor out = at::empty_like(raw);
        operators.token_logps_backward(factors, raw, targets, logsumexp.contiguous(), t.scale,
                                       t.softcap, t.temperature, out);
        return out;
      };
      const at::Tensor a = back(kCpuLogps), b = back(kAtenLogps);
      CHECK(a.isfinite().all().item<bool>());
      CHECK(at::allclose(a, b, 10 * tolerance, tolerance));
      CHECK(a[2].abs().max().item<double>() == 0);
    }
  }

  const at::NoGradGuard no_grad;
  const Head head = make_head(20, 12, 333, at::kDouble, /*has_bias=*/true);
  const at::Tensor of_rows = random_normal({kernels::kAllFactors, 20}, at::kDouble, 28);
  // 64 MiB keep all logits; half of what they and their gradient take keeps none in plain ATen.
  for (const std::int64_t budget : {std::int64_t{1} << 26, std::int64_t{20} * 333 * 8 * 3 / 2}) {
    for (const HeadPath path : {HeadPath::kAutomatic, HeadPath::kRecompute}) {
      for (const at::Tensor& given : {of_rows, of_rows.slice(0, 0, kernels::kLogpFactors)}) {
        INFO(to_string(path) << ", " << budget << ", " << given.size(0));
        const auto both = [&](const LogpsOperators& operators, std::int64_t budget_bytes) {
          const auto way = static_cast<std::int64_t>(path);
          const auto [statistics, kept] = operators.linear_token_logps(
              head.hidden, head.weight, head.bias, head.targets, 0.8, 4, 1.5, true, true, true,
              /*by_product_grad=*/true, way, budget_bytes);
          const auto [h, w, b] = operators.linear_token_logps_backward(
              given, head.hidden, head.weight, head.bias, head.targets,
              statistics[kernels::kLogsumexp].contiguous(), kept, 0.8, 4, 1.5, true, true,
              /*by_product_grad=*/true, true, true, true, way, budget_bytes);
          return std::vector<at::Tensor>{h, w, b};
        };
        const auto a = both(kCpuLogps, std::int64_t{1} << 26), b = both(kAtenLogps, budget);
        for (std::size_t i = 0; i < a.size(); ++i) CHECK(at::allclose(a[i], b[i], 1e-11, 1e-11));
      }
    }
  }
}

TEST_CASE("row gradient: another device takes the ATen fallback", "[logps]") {
  const at::Tensor hidden = at::zeros({3, 5}).to(at::kMeta).requires_grad_(true);
  const at::Tensor weight = at::zeros({7, 5}).to(at::kMeta);
  const at::Tensor targets = at::zeros({3}, at::kLong).to(at::kMeta);
  LinearTokenLogpsOptions options;
  options.differentiable = kBoth;
  const TokenLogps out = linear_token_logps(hidden, weight, targets, options);
  const at::Tensor value = out.by_products.entropy.sum() + out.by_products.logsumexp.sum();
  CHECK(torch::autograd::grad({value}, {hidden})[0].sizes() == hidden.sizes());
}

TEST_CASE("row gradient: by-products are in the graph only when asked for", "[logps]") {
  const Head head = make_head(5, 4, 50, at::kFloat, /*has_bias=*/false);
  LinearTokenLogpsOptions options;
  options.by_products = {.logsumexp = true, .entropy = true};
  options.differentiable.entropy = true;
  const TokenLogps out = linear_token_logps(head.hidden, head.weight, head.targets, options);
  CHECK(out.logps.requires_grad());
  CHECK(out.by_products.entropy.requires_grad());
  CHECK_FALSE(out.by_products.logsumexp.requires_grad());
  options.by_products = {};
  options.differentiable = {.logsumexp = true};
  const TokenLogps other = linear_token_logps(head.hidden, head.weight, head.targets, options);
  CHECK(other.by_products.logsumexp.requires_grad());
  CHECK_FALSE(other.by_products.entropy.defined());
  CHECK(at::equal(other.by_products.logsumexp, out.by_products.logsumexp));
  // logsumexp of a sum of hidden states alone is what softmax averages.
  const at::Tensor p = at::softmax(head.hidden.matmul(head.weight.t()), 1);
  const at::Tensor got =
      torch::autograd::grad({other.by_products.logsumexp.sum()}, {head.hidden})[0];
  CHECK(at::allclose(got, p.matmul(head.weight), 1e-5, 1e-6));

  const at::NoGradGuard no_grad;
  CHECK_FALSE(linear_token_logps(head.hidden, head.weight, head.targets, options)
                  .by_products.logsumexp.requires_grad());
}

TEST_CASE("row gradient: without a gradient of by-products it is the log-prob's, bit for bit",
          "[logps]") {
  const Head head = make_head(9, 8, 300, at::kFloat, /*has_bias=*/true);
  const LogitTransform transform{.scale = 1.5, .softcap = 3, .temperature = 0.7};
  const at::Tensor cotangent = random_normal({9}, at::kFloat, 5);
  LinearTokenLogpsOptions options = options_of(head, transform);
  options.differentiable = {};
  const auto expected = torch::autograd::grad(
      {linear_token_logps(head.hidden, head.weight, head.targets, options).logps},
      head.differentiable(), {cotangent});
  options.differentiable = kBoth;
  for (const bool is_zero : {false, true}) {
    const TokenLogps out = linear_token_logps(head.hidden, head.weight, head.targets, options);
    at::Tensor value = (out.logps * cotangent).sum();
    if (is_zero) {
      value = value + 0 * out.by_products.entropy.sum() + 0 * out.by_products.logsumexp.sum();
    }
    const auto got = torch::autograd::grad({value}, head.differentiable());
    for (std::size_t i = 0; i < 3; ++i) CHECK(at::equal(got[i], expected[i]));
  }
  // A row whose entropy has no gradient next to one that has.
  const at::Tensor logits = random_normal({2, 500}, at::kFloat, 6).requires_grad_(true);
  const at::Tensor targets = random_targets(2, 500, 7);
  TokenLogpsOptions of_rows;
  of_rows.differentiable.entropy = true;
  const TokenLogps out = token_logps(logits, targets, of_rows);
  const at::Tensor mixed =
      torch::autograd::grad({out.logps.sum() + out.by_products.entropy[1]}, {logits})[0];
  const at::Tensor alone =
      torch::autograd::grad({token_logps(logits, targets).logps.sum()}, {logits})[0];
  CHECK(at::equal(mixed[0], alone[0]));
  CHECK_FALSE(at::equal(mixed[1], alone[1]));
}

TEST_CASE("row gradient: tokens that cannot come and sure ones", "[logps]") {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const at::Tensor logits = (random_normal({3, 300}, at::kDouble, 16)).to(dtype);
    logits[0].slice(0, 0, 300, 2).fill_(-kInfinity);
    logits[1][7] = 60;
    logits[2].fill_(2.5);  // the most entropy: its gradient is 0
    logits.requires_grad_(true);
    TokenLogpsOptions options;
    options.differentiable = kBoth;
    const TokenLogps out = token_logps(logits, at::tensor({1, 7, 7}, at::kLong), options);
    const at::Tensor of_entropy =
        torch::autograd::grad({out.by_products.entropy.sum()}, {logits}, {}, true)[0];
    CHECK(of_entropy.isfinite().all().item<bool>());
    CHECK(of_entropy[0].slice(0, 0, 300, 2).abs().max().item<double>() == 0);
    CHECK(of_entropy[1].abs().max().item<double>() < 1e-20);
    CHECK(of_entropy[2].abs().max().item<double>() < (dtype == at::kDouble ? 1e-15 : 1e-8));
    // Without the masked half, the same row.
    const at::Tensor half = logits.detach()[0].slice(0, 1, 300, 2).unsqueeze(0).to(at::kDouble);
    half.requires_grad_(true);
    const at::Tensor expected = torch::autograd::grad(
        {logps_oracle(half, at::tensor({0}, at::kLong)).by_products.entropy.sum()}, {half})[0];
    CHECK(relative_error(of_entropy[0].slice(0, 1, 300, 2), expected[0]) <=
          (dtype == at::kDouble ? 1e-12 : 5e-6));
  }
}

TEST_CASE("row gradient: asking costs no product, and a frozen head cannot", "[logps]") {
  HeadWork work{.rows = 384, .hidden_size = 576, .vocab_size = 49152, .hidden_grad = true};
  CHECK(plan_head(work).path == HeadPath::kFrozenHead);
  const double gemms = plan_head(work).gemms;
  work.by_product_grad = true;
  CHECK(plan_head(work).path == HeadPath::kKeepLogits);
  CHECK(plan_head(work).gemms == gemms);
  work.weight_grad = true;
  HeadWork plain = work;
  plain.by_product_grad = false;
  CHECK(plan_head(work).path == HeadPath::kKeepLogits);
  CHECK(plan_head(work).gemms == plan_head(plain).gemms);
  CHECK(plan_head(work).gemms == 3);
  // A column more for each token, and nothing of the size of the logits.
  CHECK(plan_head(work).bytes - plan_head(plain).bytes < 384 * 100);
  CHECK(plan_head(work, 32 << 20).bytes <= 32 << 20);

  const std::string text =
      "linear_token_logps: expected keep_logits or recompute, got frozen_head; its gradient is "
      "built in the forward pass, for log-probs alone, and entropy or logsumexp requires one";
  work.weight_grad = false;
  CHECK_THROWS_TEXT(plan_head(work, 1 << 30, HeadPath::kFrozenHead), ConfigError, text);
  const Head head = make_head(3, 4, 20, at::kFloat, /*has_bias=*/false, /*weight_grad=*/false);
  for (const DifferentiableByProducts& asked :
       {DifferentiableByProducts{.entropy = true}, DifferentiableByProducts{.logsumexp = true}}) {
    LinearTokenLogpsOptions options = options_of(head, {}, HeadPath::kFrozenHead);
    options.differentiable = asked;
    CHECK_THROWS_TEXT(linear_token_logps(head.hidden, head.weight, head.targets, options),
                      ConfigError, text);
    const at::NoGradGuard no_grad;  // where nothing has a gradient, every path is the same
    CHECK_NOTHROW(linear_token_logps(head.hidden, head.weight, head.targets, options));
  }
}

TEST_CASE("row gradient: a graph may be gone through twice, but not differentiated twice",
          "[logps]") {
  const Head head = make_head(3, 4, 20, at::kDouble, /*has_bias=*/false);
  const Upstream upstream(3);
  const at::Tensor value = upstream.value(
      linear_token_logps(head.hidden, head.weight, head.targets, options_of(head, {})));
  const auto once = torch::autograd::grad({value}, {head.hidden}, {}, /*retain_graph=*/true)[0];
  CHECK(at::equal(torch::autograd::grad({value}, {head.hidden}, {}, true)[0], once));
  CHECK_THROWS_TEXT(torch::autograd::grad({value}, {head.hidden}, {}, true, /*create_graph=*/true),
                    ConfigError,
                    "linear_token_logps: expected a first derivative, got create_graph; there is "
                    "no second one");
  TokenLogpsOptions options;
  options.differentiable.entropy = true;
  const at::Tensor logits = random_normal({3, 20}, at::kDouble, 9).requires_grad_(true);
  const at::Tensor entropy = token_logps(logits, head.targets, options).by_products.entropy.sum();
  CHECK_THROWS_TEXT(
      torch::autograd::grad({entropy}, {logits}, {}, true, /*create_graph=*/true), ConfigError,
      "token_logps: expected a first derivative, got create_graph; there is no second one");
}

}  // namespace prefopt::test_row_gradient
