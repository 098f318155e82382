// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "files/gguf_encoding.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/thin_linear.h"
#include "support/catch.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::kernels::cpu::test_block_matrix {
namespace {

using detail::find_gguf_encoding;
using detail::GgufEncoding;
using prefopt::testing_support::random_normal;
using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

const std::vector<std::string>& encodings() {
  static const std::vector<std::string> names = {
      "Q8_0", "Q4_0", "Q4_1",   "Q5_0",   "Q5_1",  "Q2_K",  "Q3_K",  "Q4_K",
      "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"};
  return names;
}

bool are_sane(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(),
                     [](float value) { return std::isfinite(value) && std::abs(value) < 1e4F; });
}

/// A matrix of random blocks next to what they decode to.
class RandomBlocks {
 public:
  RandomBlocks(const std::string& encoding, std::int64_t rows, std::int64_t columns)
      : encoding_(*find_gguf_encoding(encoding)), wide_(at::empty({rows, columns})) {
    std::mt19937 bits(17);
    std::vector<std::uint8_t> block(static_cast<std::size_t>(encoding_.bytes));
    std::vector<float> values(static_cast<std::size_t>(encoding_.values));
    for (std::int64_t i = 0; i < wide_.numel(); i += encoding_.values) {
      // Scales are floats, of which some bytes make no number.
      do {
        for (std::uint8_t& byte : block) byte = static_cast<std::uint8_t>(bits());
        encoding_.decode(block.data(), 1, values.data());
      } while (!are_sane(values));
      bytes_.insert(bytes_.end(), block.begin(), block.end());
      std::copy(values.begin(), values.end(), wide_.mutable_data_ptr<float>() + i);
    }
  }

  BlockMatrix matrix() const {
    return {.data = bytes_.data(),
            .columns = wide_.size(1),
            .values = encoding_.values,
            .bytes = encoding_.bytes,
            .decode = encoding_.decode};
  }
  const at::Tensor& wide() const { return wide_; }

 private:
  const GgufEncoding& encoding_;
  std::vector<std::uint8_t> bytes_;
  at::Tensor wide_;
};

Rows<const float> rows_in(const at::Tensor& matrix) {
  return {matrix.const_data_ptr<float>(), matrix.size(1)};
}
Rows<float> rows_in(at::Tensor& matrix) {
  return {matrix.mutable_data_ptr<float>(), matrix.size(1)};
}

/// All products of a layer, in one tensor: of a thin one, too.
template <class Weight>
at::Tensor products(const LinearWeight<Weight>& weight, const WeightRows<float>& thin_weight,
                    const LinearSizes& sizes, bool accumulate) {
  const auto [rows, in, out] = sizes;
  const at::Tensor x = random_normal({rows, in}, at::kFloat, 1);
  const at::Tensor dy = random_normal({rows, out}, at::kFloat, 2);
  at::Tensor y = random_normal({rows, out}, at::kFloat, 3), thin = y.clone();
  at::Tensor dx = random_normal({rows, in}, at::kFloat, 4);
  linear_forward<float, Weight>({sizes, rows_in(x), weight, rows_in(y), accumulate});
  linear_input_grad<float, Weight>({sizes, rows_in(dy), weight, rows_in(dx), accumulate});
  const ThinLinear<float> product{.x = rows_in(x),
                                  .rows = rows,
                                  .in = in,
                                  .out = out,
                                  .weight = thin_weight,
                                  .y = rows_in(thin),
                                  .accumulate = accumulate};
  thin_linear<float>({&product, 1});
  return at::cat({y.flatten(), dx.flatten(), thin.flatten()});
}

at::Tensor products_of_blocks(const BlockMatrix& weight, const LinearSizes& sizes,
                              bool accumulate) {
  return products<BlockMatrix>(weight, weight, sizes, accumulate);
}

at::Tensor products_of_floats(const at::Tensor& weight, const LinearSizes& sizes, bool accumulate) {
  return products<float>(rows_in(weight), weight.const_data_ptr<float>(), sizes, accumulate);
}

}  // namespace

TEST_CASE("linear layers of blocks: the bits of those of decoded weights", "[kernels]") {
  const std::int64_t threads = at::get_num_threads();
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::string& encoding : encodings()) {
      const std::int64_t values = find_gguf_encoding(encoding)->values;
      // One and several slices of the output, of the depth and of the input.
      for (const auto& [rows, in, out] :
           {LinearSizes{1, 256, 1}, LinearSizes{7, values == 256 ? 512 : 3 * values, 50},
            LinearSizes{33, 2048, 700}, LinearSizes{0, 256, 3}, LinearSizes{3, 256, 0}}) {
        INFO(simd_name(target) << " " << encoding << ": " << rows << " rows, " << in << " to "
                               << out);
        const RandomBlocks blocks(encoding, out, in);
        const bool large = in == 2048;
        if (large && target != simd_targets().front()) continue;
        const LinearSizes sizes{rows, in, out};
        const at::Tensor expected = products_of_floats(blocks.wide(), sizes, false);
        const at::Tensor added = products_of_floats(blocks.wide(), sizes, true);
        for (const int count : {1, 2, 3}) {
          at::set_num_threads(count);
          CHECK(at::equal(products_of_blocks(blocks.matrix(), sizes, false), expected));
          CHECK(at::equal(products_of_blocks(blocks.matrix(), sizes, true), added));
        }
        at::set_num_threads(static_cast<int>(threads));
      }
    }
  }
}

TEST_CASE("linear layers of blocks: rows in another order", "[kernels]") {
  const std::int64_t out = 10, in = 64;
  const RandomBlocks blocks("Q4_1", out, in);
  std::vector<std::int64_t> places(static_cast<std::size_t>(out));
  std::iota(places.rbegin(), places.rend(), 0);
  BlockMatrix turned = blocks.matrix();
  turned.places = places.data();
  CHECK(at::equal(products_of_blocks(turned, {5, in, out}, false),
                  products_of_floats(blocks.wide().flip(0).contiguous(), {5, in, out}, false)));
}

}  // namespace prefopt::kernels::cpu::test_block_matrix
