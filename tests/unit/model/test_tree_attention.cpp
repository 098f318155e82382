// SPDX-License-Identifier: Apache-2.0
#include <random>

#include "model/tree_attention.h"
#include "support/catch.h"
#include "support/logps_oracle.h"

namespace prefopt {
namespace {

using prefopt::testing_support::finite_differences;
using prefopt::testing_support::random_normal;
using prefopt::testing_support::relative_error;

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

/// visible[i, j]: query i sees key j.
at::Tensor visible(const Blocks& blocks, std::int64_t queries, std::int64_t keys) {
  at::Tensor mask = at::zeros({queries, keys}, at::kBool);
  auto at = mask.accessor<bool, 2>();
  for (const AttentionBlock& b : blocks) {
    for (std::int64_t i = 0; i < b.length; ++i) {
      for (std::int64_t j = 0; j < b.prefix_length; ++j) at[b.query + i][b.prefix + j] = true;
      for (std::int64_t j = -b.past; j <= i; ++j) at[b.query + i][b.key + j] = true;
    }
  }
  return mask;
}

struct Everything {
  at::Tensor output, logsumexp;
  AttentionGradients gradients;
};

/// The masked softmax by its definition, and its gradients by autograd.
Everything formula(const Inputs& in, const Blocks& blocks) {
  const auto leaf = [](const at::Tensor& x) {
    return x.to(at::kDouble).detach().clone().requires_grad_();
  };
  const at::Tensor q = leaf(in.query), k = leaf(in.key), v = leaf(in.value);
  const std::int64_t groups = q.size(1) / k.size(1);
  const at::Tensor hidden = visible(blocks, q.size(0), k.size(0)).logical_not();
  const at::Tensor scores =
      (at::einsum("ihd,jhd->hij", {q, k.repeat_interleave(groups, 1)}) * in.scale)
          .masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const at::Tensor output =
      at::einsum("hij,jhd->ihd", {at::softmax(scores, -1), v.repeat_interleave(groups, 1)});
  const auto grads = torch::autograd::grad({output}, {q, k, v}, {in.cotangent.to(at::kDouble)});
  return {output.detach(), at::logsumexp(scores, -1).detach(), {grads[0], grads[1], grads[2]}};
}

Everything ours(const Inputs& in, const Blocks& blocks) {
  const AttentionResult result = tree_attention(in.query, in.key, in.value, blocks, in.scale);
  return {
      result.output, result.logsumexp,
      tree_attention_backward(in.cotangent, in.query, in.key, in.value, result, blocks, in.scale)};
}

void check_close(const Everything& got, const Everything& expected, double tolerance) {
  const auto check = [&](const char* name, const at::Tensor& a, const at::Tensor& b) {
    INFO(name << ", relative error " << relative_error(a, b));
    CHECK(a.sizes() == b.sizes());
    CHECK(relative_error(a, b) <= tolerance);
  };
  check("output", got.output, expected.output);
  check("logsumexp", got.logsumexp, expected.logsumexp);
  check("query's gradient", got.gradients.query, expected.gradients.query);
  check("key's gradient", got.gradients.key, expected.gradients.key);
  check("value's gradient", got.gradients.value, expected.gradients.value);
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

TEST_CASE("tree_attention: agrees with a masked softmax", "[model]") {
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

TEST_CASE("tree_attention: gradients are those of finite differences", "[model]") {
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

}  // namespace prefopt
