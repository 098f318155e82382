// SPDX-License-Identifier: Apache-2.0

// Attention over packed rows with shared prefixes: prefopt against LibTorch's flash attention on
// the parts, and against the speed of a product of matrices.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "decoder/tree_attention.h"
#include "support/inputs.h"
#include "support/report.h"
#include "support/sdpa_attention.h"

namespace prefopt::bench {
namespace {

using testing_support::sdpa_attention;
using testing_support::sdpa_attention_backward;

constexpr const char* kOurs = "prefopt";
constexpr const char* kPieces = "flash attention of LibTorch on the parts";
constexpr const char* kProduct = "limit: at::mm, 1024 x 576 x 1536";

struct Heads {
  std::int64_t query = 9, kv = 3, dim = 64;
};

struct Shape {
  std::string name;
  std::vector<AttentionBlock> blocks;
  std::int64_t queries = 0, keys = 0;

  /// Pairs of a query and a key that it sees.
  double pairs() const {
    double sum = 0;
    for (const AttentionBlock& b : blocks) {
      const auto length = static_cast<double>(b.length);
      sum += length * static_cast<double>(b.prefix_length + b.past) + length * (length + 1) / 2;
    }
    return sum;
  }
};

/// `groups` prompts, each with its branches behind it.
Shape trees(std::int64_t groups, std::int64_t prompt, const std::vector<std::int64_t>& branches) {
  Shape shape;
  std::string lengths;
  for (const std::int64_t length : branches) lengths += fmt::format(" + {}", length);
  shape.name = fmt::format("{} x ({}{})", groups, prompt, lengths);
  std::int64_t row = 0;
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = row;
    shape.blocks.push_back({row, row, prompt, 0, 0});
    row += prompt;
    for (const std::int64_t length : branches) {
      shape.blocks.push_back({row, row, length, first, prompt});
      row += length;
    }
  }
  shape.queries = shape.keys = row;
  return shape;
}

/// Returns the next token of sequences with one prompt and `past` of at most `most` own tokens.
Shape decoding(std::int64_t sequences, std::int64_t prompt, std::int64_t past, std::int64_t most) {
  Shape shape;
  shape.name = fmt::format("decoding {} x ({} + {})", sequences, prompt, past);
  for (std::int64_t i = 0; i < sequences; ++i) {
    shape.blocks.push_back({i, prompt + i * most + past, 1, 0, prompt, past});
  }
  shape.queries = sequences;
  shape.keys = prompt + sequences * most;
  return shape;
}

/// Views of a fused buffer, as a decoder layer has them.
struct Inputs {
  Inputs(const Shape& shape, Heads heads)
      : fused(random_normal({shape.keys, (heads.query + 2 * heads.kv) * heads.dim}, 1, at::kFloat,
                            1)),
        query(part(0, heads.query, heads.dim).narrow(0, 0, shape.queries)),
        key(part(heads.query, heads.kv, heads.dim)),
        value(part(heads.query + heads.kv, heads.kv, heads.dim)),
        cotangent(random_normal({shape.queries, heads.query, heads.dim}, 1, at::kFloat, 2)),
        scale(1 / std::sqrt(static_cast<double>(heads.dim))) {}

  at::Tensor part(std::int64_t first, std::int64_t heads, std::int64_t dim) const {
    return fused.narrow(1, first * dim, heads * dim).view({fused.size(0), heads, dim});
  }

  at::Tensor fused, query, key, value, cotangent;
  double scale;
};

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b).norm() / b.norm()).item<double>();
}

void check(Report& report, const Shape& shape, const Inputs& in) {
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const AttentionResult result = tree_attention(in.query, in.key, in.value, shape.blocks, in.scale);
  const AttentionGradients gradients = tree_attention_backward(
      in.cotangent, in.query, in.key, in.value, result, shape.blocks, in.scale);
  const AttentionResult exact =
      sdpa_attention(wide(in.query), wide(in.key), wide(in.value), shape.blocks, in.scale);
  const AttentionGradients of_exact =
      sdpa_attention_backward(wide(in.cotangent), wide(in.query), wide(in.key), wide(in.value),
                              exact, shape.blocks, in.scale);
  const auto one = [&](const char* name, const at::Tensor& got, const at::Tensor& expected) {
    report.check(fmt::format("{}, {}", shape.name, name), relative_error(got, expected), 1e-5);
  };
  one("output", result.output, exact.output);
  one("query's gradient", gradients.query, of_exact.query);
  one("key's gradient", gradients.key, of_exact.key);
  one("value's gradient", gradients.value, of_exact.value);
}

Contender product_limit() {
  const at::Tensor a = random_normal({1024, 576}, 1, at::kFloat, 3);
  const at::Tensor b = random_normal({576, 1536}, 1, at::kFloat, 4);
  at::Tensor c = at::empty({1024, 1536});
  return {.name = kProduct,
          .run = [=]() mutable { at::mm_out(c, a, b); },
          .work = 2.0 * 1024 * 576 * 1536};
}

void measure(Report& report, const Shape& shape, const Inputs& in, const std::string& part,
             double flops, std::function<void()> ours, std::function<void()> pieces) {
  const Task task{.part = part,
                  .title = shape.name,
                  .dtype = "float32",
                  .rows = shape.queries,
                  .hidden = in.query.size(1) * in.query.size(2),
                  .unit = "GFLOP/s",
                  .base = kOurs};
  const Table table =
      report.measure(task, {{.name = kOurs, .run = std::move(ours), .work = flops},
                            {.name = kPieces, .run = std::move(pieces), .work = flops},
                            product_limit()});
  report.judge(task, "own", fmt::format("{} {}: times the speed of the parts", part, shape.name),
               quotient(table.ms(kPieces), table.ms(kOurs)), Bound::kAtLeast, 3);
}

void run(Report& report, const Options& options, Heads heads) {
  const at::NoGradGuard no_grad;
  const std::vector<Shape> shapes = {trees(4, 114, {40, 48}), trees(1, 694, {178, 178}),
                                     trees(16, 21, {64, 64}), decoding(64, 21, 32, 64)};
  for (const Shape& shape : shapes) {
    const Inputs in(shape, heads);
    if (options.check) check(report, shape, in);
    // Two products of scores and values forward, five backward.
    const double product =
        2 * shape.pairs() * static_cast<double>(heads.query) * static_cast<double>(heads.dim);
    measure(
        report, shape, in, "forward", 2 * product,
        [&] { tree_attention(in.query, in.key, in.value, shape.blocks, in.scale); },
        [&] { sdpa_attention(in.query, in.key, in.value, shape.blocks, in.scale); });
    if (shape.queries < shape.keys) continue;  // nobody trains through a cache
    const AttentionResult ours = tree_attention(in.query, in.key, in.value, shape.blocks, in.scale);
    const AttentionResult pieces =
        sdpa_attention(in.query, in.key, in.value, shape.blocks, in.scale);
    measure(
        report, shape, in, "backward", 5 * product,
        [&] {
          tree_attention_backward(in.cotangent, in.query, in.key, in.value, ours, shape.blocks,
                                  in.scale);
        },
        [&] {
          sdpa_attention_backward(in.cotangent, in.query, in.key, in.value, pieces, shape.blocks,
                                  in.scale);
        });
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  using namespace prefopt::bench;
  CLI::App app("Times attention with shared prefixes: prefopt, LibTorch's pieces, and a product");
  Options options;
  options.add_to(app);
  Heads heads;
  app.add_option("--heads", heads.query, "Query heads")->capture_default_str();
  app.add_option("--kv-heads", heads.kv, "Key and value heads")->capture_default_str();
  app.add_option("--head-dim", heads.dim, "Numbers of a head")->capture_default_str();
  return bench_main("bench_attention", app, options, argc, argv,
                    [&](Report& report) { run(report, options, heads); });
}
