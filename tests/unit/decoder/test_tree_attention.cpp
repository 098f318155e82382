// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <random>

#include "decoder/tree_attention.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/logps_oracle.h"
#include "support/sdpa_attention.h"
#include "support/simd.h"

namespace prefopt::test_tree_attention {
namespace {

using prefopt::testing_support::finite_differences;
using prefopt::testing_support::random_normal;
using prefopt::testing_support::relative_error;
using prefopt::testing_support::sdpa_attention;
using prefopt::testing_support::sdpa_attention_backward;
using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

using Blocks = std::vector<AttentionBlock>;

struct Heads {
  std::int64_t query, kv, dim;
};

struct Inputs {
  at::Tensor query, key, value, cotangent;
  double scale;

  Inputs to(at::ScalarType dtype) const {
    return {query.to(dtype), key.to(dtype), value.to(dtype), cotangent.to(dtype), scale};
  }
};

/// As many rows as the blocks speak of.
Inputs random_inputs(const Blocks& blocks, Heads heads, std::uint64_t seed) {
  std::int64_t queries = 0, keys = 0;
  for (const AttentionBlock& b : blocks) {
    queries = std::max(queries, b.query + b.length);
    keys = std::max({keys, b.key + b.length, b.prefix + b.prefix_length});
  }
  return {random_normal({queries, heads.query, heads.dim}, at::kDouble, seed),
          random_normal({keys, heads.kv, heads.dim}, at::kDouble, seed + 1),
          random_normal({keys, heads.kv, heads.dim}, at::kDouble, seed + 2),
          random_normal({queries, heads.query, heads.dim}, at::kDouble, seed + 3),
          1 / std::sqrt(static_cast<double>(heads.dim))};
}

/// visible[i, j]: query i sees key j, one of the last `window` that its block shows it.
at::Tensor visible(const Blocks& blocks, std::int64_t queries, std::int64_t keys,
                   std::int64_t window) {
  at::Tensor mask = at::zeros({queries, keys}, at::kBool);
  auto at = mask.accessor<bool, 2>();
  for (const AttentionBlock& b : blocks) {
    for (std::int64_t i = 0; i < b.length; ++i) {
      std::vector<std::int64_t> shown;
      for (std::int64_t j = 0; j < b.prefix_length; ++j) shown.push_back(b.prefix + j);
      for (std::int64_t j = -b.past; j <= i; ++j) shown.push_back(b.key + j);
      const std::int64_t unseen = window == 0 ? 0 : std::ssize(shown) - window;
      for (std::int64_t j = std::max<std::int64_t>(unseen, 0); j < std::ssize(shown); ++j) {
        at[b.query + i][shown[static_cast<std::size_t>(j)]] = true;
      }
    }
  }
  return mask;
}

struct Everything {
  at::Tensor output, logsumexp;
  AttentionGradients gradients;
};

/// The masked softmax by its definition, and its gradients by autograd.
Everything formula(const Inputs& in, const Blocks& blocks, const AttentionLimits& limits = {}) {
  const auto leaf = [](const at::Tensor& x) {
    return x.to(at::kDouble).detach().clone().requires_grad_();
  };
  const at::Tensor q = leaf(in.query), k = leaf(in.key), v = leaf(in.value);
  const std::int64_t groups = q.size(1) / k.size(1);
  const at::Tensor hidden = visible(blocks, q.size(0), k.size(0), limits.window).logical_not();
  at::Tensor scores = at::einsum("ihd,jhd->hij", {q, k.repeat_interleave(groups, 1)}) * in.scale;
  if (limits.softcap > 0) scores = limits.softcap * (scores / limits.softcap).tanh();
  scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const at::Tensor output =
      at::einsum("hij,jhd->ihd", {at::softmax(scores, -1), v.repeat_interleave(groups, 1)});
  const auto grads = torch::autograd::grad({output}, {q, k, v}, {in.cotangent.to(at::kDouble)});
  return {output.detach(), at::logsumexp(scores, -1).detach(), {grads[0], grads[1], grads[2]}};
}

Everything ours(const Inputs& in, const Blocks& blocks, const AttentionLimits& limits = {}) {
  const AttentionResult result =
      tree_attention(in.query, in.key, in.value, blocks, in.scale, limits);
  return {result.output, result.logsumexp,
          tree_attention_backward(in.cotangent, in.query, in.key, in.value, result, blocks,
                                  in.scale, limits)};
}

void check_equal(const Everything& got, const Everything& expected) {
  CHECK(at::equal(got.output, expected.output));
  CHECK(at::equal(got.logsumexp, expected.logsumexp));
  CHECK(at::equal(got.gradients.query, expected.gradients.query));
  CHECK(at::equal(got.gradients.key, expected.gradients.key));
  CHECK(at::equal(got.gradients.value, expected.gradients.value));
}

void check_close(const Everything& got, const Everything& expected, double tolerance,
                 double gradient_tolerance) {
  const auto check = [](const char* name, const at::Tensor& a, const at::Tensor& b, double most) {
    INFO(name << ", relative error " << relative_error(a, b));
    CHECK(a.sizes() == b.sizes());
    CHECK(relative_error(a, b) <= most);
  };
  check("output", got.output, expected.output, tolerance);
  check("logsumexp", got.logsumexp, expected.logsumexp, tolerance);
  check("query's gradient", got.gradients.query, expected.gradients.query, gradient_tolerance);
  check("key's gradient", got.gradients.key, expected.gradients.key, gradient_tolerance);
  check("value's gradient", got.gradients.value, expected.gradients.value, gradient_tolerance);
}

void check_close(const Everything& got, const Everything& expected, double tolerance) {
  check_close(got, expected, tolerance, tolerance);
}

/// One block a sequence.
Blocks sequences(const std::vector<std::int64_t>& lengths) {
  Blocks blocks;
  std::int64_t row = 0;
  for (const std::int64_t length : lengths) {
    blocks.push_back({row, row, length, 0, 0});
    row += length;
  }
  return blocks;
}

/// A prompt and its branches, from row `first` of both streams on.
Blocks tree(std::int64_t first, std::int64_t prompt, const std::vector<std::int64_t>& branches) {
  Blocks blocks{{first, first, prompt, 0, 0}};
  std::int64_t row = first + prompt;
  for (const std::int64_t length : branches) {
    blocks.push_back({row, row, length, first, prompt});
    row += length;
  }
  return blocks;
}

/// Groups that share prompts of up to 70 rows; some queries of prompts are left out, branches share
/// a part of their prompt only, may be empty, and stand in any order.
Blocks random_blocks(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto up_to = [&](std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(0, most)(random);
  };
  Blocks blocks;
  std::int64_t query = 0, key = 0;
  for (std::int64_t group = 0; group < 3; ++group) {
    const std::int64_t prompt = up_to(70), first = key, pruned = up_to(prompt);
    blocks.push_back({query, key + pruned, prompt - pruned, key, pruned});
    query += prompt - pruned;
    key += prompt;
    const std::int64_t branches = up_to(3);
    for (std::int64_t i = 0; i < branches; ++i) {
      const std::int64_t length = up_to(50), past = up_to(9), skipped = up_to(prompt / 2);
      key += past;
      blocks.push_back({query, key, length, first + skipped, up_to(prompt - skipped), past});
      query += length;
      key += length;
    }
  }
  std::shuffle(blocks.begin(), blocks.end(), random);
  return blocks;
}

}  // namespace

TEST_CASE("tree_attention: agrees with a masked softmax", "[decoder]") {
  const Heads heads = GENERATE(Heads{2, 2, 8}, Heads{3, 1, 64}, Heads{8, 1, 7}, Heads{6, 2, 128});
  const auto check = [&](const char* what, const Blocks& blocks) {
    INFO(what << ", " << heads.query << "/" << heads.kv << " heads of " << heads.dim);
    const Inputs in = random_inputs(blocks, heads, 1);
    const Everything expected = formula(in, blocks);
    check_close(ours(in, blocks), expected, 1e-12);
    check_close(ours(in.to(at::kFloat), blocks), expected, 2e-6);
  };
  check("sequences", sequences({1, 37, 16, 2, 130}));
  check("a pair", tree(0, 45, {29, 34}));
  check("short branches", tree(0, 19, {1, 1, 2, 0, 3}));
  check("a prompt's last row", Blocks{{0, 20, 1, 0, 20}, {1, 21, 10, 0, 21}, {11, 31, 7, 0, 21}});
  check("decoding", Blocks{{0, 24, 1, 0, 21, 3}, {1, 40, 1, 0, 21, 0}, {2, 69, 1, 0, 21, 19}});
  for (std::uint64_t seed = 0; seed < 6; ++seed) check("random", random_blocks(seed));
}

TEST_CASE("tree_attention: windows and soft-caps", "[decoder]") {
  const Heads heads = GENERATE(Heads{2, 2, 8}, Heads{8, 1, 7});
  // A window of one key, some that cut tiles and prefixes, and one that holds all.
  const AttentionLimits limits =
      GENERATE(AttentionLimits{1, 0}, AttentionLimits{5, 0.7}, AttentionLimits{48, 0},
               AttentionLimits{100, 30}, AttentionLimits{1000, 0}, AttentionLimits{0, 0.7});
  const auto check = [&](const char* what, const Blocks& blocks) {
    INFO(what << ", window " << limits.window << ", soft-cap " << limits.softcap);
    const Inputs in = random_inputs(blocks, heads, 3);
    const Everything expected = formula(in, blocks, limits);
    check_close(ours(in, blocks, limits), expected, 1e-12);
    // Gradients of scores vanish where one key is seen.
    check_close(ours(in.to(at::kFloat), blocks, limits), expected, 4e-6, 2e-5);
  };
  check("sequences", sequences({1, 37, 2, 150}));
  check("a pair", tree(0, 45, {29, 34}));
  check("decoding", Blocks{{0, 24, 1, 0, 21, 3}, {1, 40, 1, 0, 21, 0}, {2, 69, 1, 0, 21, 19}});
  check("random", random_blocks(2));
}

TEST_CASE("tree_attention: gradients are those of finite differences", "[decoder]") {
  const Blocks blocks{{0, 3, 4, 0, 3}, {4, 9, 3, 1, 6, 2}, {7, 12, 1, 0, 7}};
  const Inputs in = random_inputs(blocks, {4, 2, 5}, 11);
  const Everything got = ours(in, blocks);
  const auto check = [&](const at::Tensor& x, const at::Tensor& gradient, const auto& with) {
    const at::Tensor expected = finite_differences(
        [&](const at::Tensor& changed) {
          const Inputs at = with(changed);
          return (tree_attention(at.query, at.key, at.value, blocks, at.scale).output *
                  at.cotangent)
              .sum()
              .template item<double>();
        },
        x);
    CHECK(relative_error(gradient, expected) <= 1e-8);
  };
  check(in.query, got.gradients.query, [&](const at::Tensor& x) {
    return Inputs{x, in.key, in.value, in.cotangent, in.scale};
  });
  check(in.key, got.gradients.key, [&](const at::Tensor& x) {
    return Inputs{in.query, x, in.value, in.cotangent, in.scale};
  });
  check(in.value, got.gradients.value, [&](const at::Tensor& x) {
    return Inputs{in.query, in.key, x, in.cotangent, in.scale};
  });
}

TEST_CASE("tree_attention: agrees with LibTorch's attention on the parts", "[decoder]") {
  const Blocks blocks = tree(0, 150, {61, 48, 7});
  const Inputs in = random_inputs(blocks, {9, 3, 64}, 21);
  const AttentionResult result = sdpa_attention(in.query, in.key, in.value, blocks, in.scale);
  check_close(
      ours(in, blocks),
      {result.output, result.logsumexp,
       sdpa_attention_backward(in.cotangent, in.query, in.key, in.value, result, blocks, in.scale)},
      1e-12);
}

TEST_CASE("tree_attention: every SIMD target", "[decoder]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const Heads heads : {Heads{4, 2, 5}, Heads{3, 1, 64}, Heads{5, 5, 20}}) {
      for (std::uint64_t seed = 10; seed < 13; ++seed) {
        INFO(simd_name(target) << ", " << heads.query << "/" << heads.kv << " heads of "
                               << heads.dim << ", seed " << seed);
        const Blocks blocks = random_blocks(seed);
        const Inputs in = random_inputs(blocks, heads, seed);
        const Everything expected = formula(in, blocks);
        check_close(ours(in, blocks), expected, 1e-12);
        check_close(ours(in.to(at::kFloat), blocks), expected, 2e-6);
      }
    }
  }
}

TEST_CASE("tree_attention: sharing a prompt is the same as repeating it", "[decoder]") {
  const Inputs in = random_inputs(tree(0, 70, {30, 41}), {6, 3, 16}, 31);
  const auto repeated = [](const at::Tensor& x) {
    return at::cat({x.narrow(0, 0, 100), x.narrow(0, 0, 70), x.narrow(0, 100, 41)});
  };
  const Everything shared = ours(in, tree(0, 70, {30, 41}));
  at::Tensor cotangent = repeated(in.cotangent);
  cotangent.narrow(0, 100, 70).zero_();  // the prompt's own outputs count once
  const Everything unshared =
      ours({repeated(in.query), repeated(in.key), repeated(in.value), cotangent, in.scale},
           sequences({100, 111}));
  CHECK(relative_error(repeated(shared.output), unshared.output) <= 1e-13);
  const auto folded = [](const at::Tensor& x) {
    at::Tensor sum = at::cat({x.narrow(0, 0, 100), x.narrow(0, 170, 41)});
    sum.narrow(0, 0, 70).add_(x.narrow(0, 100, 70));
    return sum;
  };
  CHECK(relative_error(shared.gradients.query, folded(unshared.gradients.query)) <= 1e-13);
  CHECK(relative_error(shared.gradients.key, folded(unshared.gradients.key)) <= 1e-13);
  CHECK(relative_error(shared.gradients.value, folded(unshared.gradients.value)) <= 1e-13);
}

TEST_CASE("tree_attention: scores whose exponential overflows", "[decoder]") {
  // Whole numbers, so that float32 has the scores exactly. The queries' gradients are sums over
  // keys of terms some 500 times as large as they.
  const Blocks blocks = tree(0, 90, {33, 20});
  const double shift = GENERATE(0.0, 12.0, -12.0);
  INFO("queries around " << shift);
  Inputs in = random_inputs(blocks, {6, 2, 8}, 41);
  in.scale = 0.25;
  in.query = (in.query * 2 + shift).round();
  in.key = in.key.round() + 500;
  const at::Tensor scores =
      at::einsum("ihd,jhd->hij", {in.query, in.key.repeat_interleave(3, 1)}) * in.scale;
  REQUIRE(scores.abs().max().item<double>() > (shift == 0 ? 1e3 : 1e4));
  const Everything expected = formula(in, blocks);
  check_close(ours(in, blocks), expected, 1e-11);
  check_close(ours(in.to(at::kFloat), blocks), expected, 2e-6, 1e-3);
}

TEST_CASE("tree_attention: rows that stand apart", "[decoder]") {
  const Blocks blocks = tree(0, 50, {20, 31});
  const at::Tensor fused = random_normal({101, 7 * 12 + 5}, at::kFloat, 51);
  const auto part = [&](std::int64_t first, std::int64_t heads) {
    return fused.narrow(1, first * 12, heads * 12).view({101, heads, 12});
  };
  const Inputs views{part(0, 3), part(3, 1), part(4, 1),
                     random_normal({3, 101, 12}, at::kFloat, 52).transpose(0, 1), 0.3};
  const Inputs copies{views.query.contiguous(), views.key.contiguous(), views.value.contiguous(),
                      views.cotangent.contiguous(), 0.3};
  REQUIRE_FALSE(views.query.is_contiguous());
  check_equal(ours(views, blocks), ours(copies, blocks));
}

TEST_CASE("tree_attention: threads change no bit", "[decoder]") {
  Blocks blocks = tree(0, 700, {150, 3});
  for (const AttentionBlock& block : tree(853, 20, {30, 31, 32})) blocks.push_back(block);
  const Inputs in = random_inputs(blocks, {6, 3, 32}, 61).to(at::kFloat);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Everything expected = ours(in, blocks);
  for (const int threads : {2, 5}) {
    at::set_num_threads(threads);
    check_equal(ours(in, blocks), expected);
  }
  at::set_num_threads(before);
}

TEST_CASE("tree_attention: nothing, and keys that nobody sees", "[decoder]") {
  const Everything none = ours(random_inputs({}, {4, 2, 8}, 71), {});
  CHECK(none.output.sizes() == at::IntArrayRef({0, 4, 8}));
  CHECK(none.logsumexp.sizes() == at::IntArrayRef({4, 0}));
  CHECK(none.gradients.key.sizes() == at::IntArrayRef({0, 2, 8}));

  // Rows 3 and 4 of the keys, and what a cache holds beyond the last token.
  const Blocks blocks{{0, 5, 2, 0, 3}, {2, 0, 0, 0, 0}};
  Inputs in = random_inputs(blocks, {2, 1, 8}, 72);
  in.key = at::cat({in.key, at::full({2, 1, 8}, std::numeric_limits<double>::quiet_NaN())});
  in.value = at::cat({in.value, in.key.narrow(0, 7, 2)});
  const Everything got = ours(in, blocks);
  CHECK(got.output.isfinite().all().item<bool>());
  for (const at::Tensor& gradient : {got.gradients.key, got.gradients.value}) {
    CHECK(gradient.isfinite().all().item<bool>());
    CHECK(gradient.narrow(0, 3, 2).count_nonzero().item<std::int64_t>() == 0);
    CHECK(gradient.narrow(0, 7, 2).count_nonzero().item<std::int64_t>() == 0);
    CHECK(gradient.narrow(0, 5, 2).count_nonzero().item<std::int64_t>() > 0);
  }
}

TEST_CASE("tree_attention: refuses what does not fit", "[decoder]") {
  const Blocks blocks = sequences({3, 2});
  const Inputs in = random_inputs(blocks, {4, 2, 8}, 81);
  const auto call = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const Blocks& b) { return tree_attention(q, k, v, b, in.scale); };
  CHECK_THROWS_TEXT(call(in.query.to(at::kHalf), in.key, in.value, blocks), DtypeError,
                    "tree_attention: expected a query of float32 or float64, got Half");
  CHECK_THROWS_TEXT(call(in.query, in.key.to(at::kFloat), in.value, blocks), DtypeError,
                    "tree_attention: expected key of the query's Double, got Float");
  CHECK_THROWS_TEXT(call(in.query.narrow(1, 0, 3), in.key, in.value, blocks), ShapeError,
                    "tree_attention: expected query [Nq, heads, head_dim], key and value [Nk, "
                    "kv_heads, head_dim] with heads a multiple of kv_heads, got [5, 3, 8], [5, 2, "
                    "8] and [5, 2, 8]");
  CHECK_THROWS_TEXT(call(in.query, in.key, in.value, {{0, 0, 3}, {3, 4, 2, 0, 3}}), ShapeError,
                    "tree_attention: expected blocks within 5 queries and 5 keys, got block 1 of "
                    "queries [3, +2), keys [4, +2) with 0 before them, prefix [0, +3)");
  CHECK_THROWS_TEXT(call(in.query, in.key, in.value, {{0, 0, 3}, {3, 3, 2, 0, 3, 4}}), ShapeError,
                    "tree_attention: expected blocks within 5 queries and 5 keys, got block 1 of "
                    "queries [3, +2), keys [3, +2) with 4 before them, prefix [0, +3)");
  CHECK_THROWS_TEXT(
      call(in.query, in.key, in.value, {{0, 0, 3}, {2, 3, 2}}), ShapeError,
      "tree_attention: expected each of 5 queries in exactly one block, got blocks of "
      "5 queries, 4 of them different");
  AttentionResult result = call(in.query, in.key, in.value, blocks);
  result.logsumexp = result.logsumexp.to(at::kFloat);
  CHECK_THROWS_TEXT(
      tree_attention_backward(in.cotangent, in.query, in.key, in.value, result, blocks, in.scale),
      ShapeError,
      "tree_attention_backward: expected grad_output and output of the query's shape "
      "[5, 4, 8] and logsumexp [heads, Nq] of float64, got [5, 4, 8], [5, 4, 8] and "
      "[4, 5] of Float");
}

}  // namespace prefopt::test_tree_attention
