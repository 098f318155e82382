// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/gemm.h"
#include "support/catch.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::kernels::cpu::test_gemm {
namespace {

using prefopt::testing_support::random_normal;
using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

/// The product through packing and multiply; the rest of each row of c must stay what it was.
template <class T>
at::Tensor product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, bool accumulate) {
  PackedMatrix<T> packed(b.size(0) + 3, b.size(1));
  packed.pack({b.const_data_ptr<T>(), b.stride(0), b.stride(1)}, b.size(0), 0, packed.panels());
  at::Tensor out = c.clone();
  multiply<T>({a.const_data_ptr<T>(), a.stride(0), a.stride(1)}, a.size(0), a.size(1), packed, 0,
              packed.panels(), {out.data_ptr<T>(), out.stride(0), b.size(1), accumulate});
  return out;
}

}  // namespace

TEST_CASE("gemm: every size, layout and SIMD target", "[kernels]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t rows : {1, 7, 24, 97}) {
      for (const std::int64_t depth : {0, 1, 65, 1300}) {
        for (const std::int64_t columns : {1, 15, 48, 50, 100}) {
          INFO(simd_name(target) << ": " << rows << " x " << depth << " x " << columns);
          const at::Tensor a = random_normal({rows, depth}, at::kDouble, 1);
          const at::Tensor b = random_normal({depth, columns}, at::kDouble, 2);
          const at::Tensor c = random_normal({rows, columns + 2}, at::kDouble, 3);
          at::Tensor expected = c.clone();
          expected.slice(1, 0, columns).copy_(a.matmul(b));
          CHECK(at::allclose(product<double>(a, b, c, false), expected, 1e-12, 1e-11));
          expected.slice(1, 0, columns).add_(c.slice(1, 0, columns));
          // Both factors may be transposed.
          CHECK(
              at::allclose(product<double>(a.t().contiguous().t(), b.t().contiguous().t(), c, true),
                           expected, 1e-12, 1e-11));
          CHECK(at::allclose(
              product<float>(a.to(at::kFloat), b.to(at::kFloat), c.to(at::kFloat), true),
              expected.to(at::kFloat), 1e-5, 1e-4));
        }
      }
    }
  }
}

TEST_CASE("gemm: a left factor that is packed gives the same bits", "[kernels]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t rows : {1, 7, 24, 97}) {
      for (const std::int64_t depth : {1, 65}) {
        INFO(simd_name(target) << ": " << rows << " x " << depth);
        // Packed from rows and from columns.
        const at::Tensor a = random_normal({rows, depth}, at::kFloat, 1);
        const at::Tensor b = random_normal({depth, 50}, at::kFloat, 2);
        PackedMatrix<float> right(depth, 50);
        right.pack({b.const_data_ptr<float>(), 50, 1}, depth, 0, right.panels());
        const at::Tensor expected = product<float>(a, b, at::zeros({rows, 52}), false);
        for (const at::Tensor& source : {a, a.t().contiguous().t()}) {
          PackedRows<float> left(depth + 1, rows);
          left.pack({source.const_data_ptr<float>(), source.stride(0), source.stride(1)}, depth, 0,
                    left.blocks());
          at::Tensor out = at::zeros({rows, 52});
          multiply<float>(left, 0, rows, depth, right, 0, right.panels(),
                          {out.data_ptr<float>(), 52, 50, false});
          CHECK(at::equal(out, expected));
        }
      }
    }
  }
}

TEST_CASE("gemm: a right factor in bfloat16 is widened", "[kernels]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    INFO(simd_name(target));
    const at::Tensor a = random_normal({9, 65}, at::kFloat, 1);
    const at::Tensor b = random_normal({65, 50}, at::kBFloat16, 2);
    const at::Tensor expected = product<float>(a, b.to(at::kFloat), at::zeros({9, 50}), false);
    for (const at::Tensor& source : {b, b.t().contiguous().t()}) {
      PackedMatrix<float> right(65, 50);
      right.pack<c10::BFloat16>(
          {source.const_data_ptr<c10::BFloat16>(), source.stride(0), source.stride(1)}, 65, 0,
          right.panels());
      at::Tensor out = at::zeros({9, 50});
      multiply<float>({a.const_data_ptr<float>(), 65, 1}, 9, 65, right, 0, right.panels(),
                      {out.data_ptr<float>(), 50, 50, false});
      CHECK(at::equal(out, expected));
    }
  }
}

TEST_CASE("gemm: a large number that is added to costs a rounding a part of the depth",
          "[kernels]") {
  // As in a residual stream of a trained model, whose largest numbers are thousands.
  constexpr double kLarge = 3000, kUlp = 1.0 / 4096;  // of float32 between 2048 and 4096
  for (const std::int64_t depth : {576, 1536}) {
    const auto parts = static_cast<double>((depth + kDepthAtOnce - 1) / kDepthAtOnce);
    const at::Tensor a = random_normal({30, depth}, at::kFloat, 1).mul_(0.1);
    const at::Tensor b = random_normal({depth, 50}, at::kFloat, 2).mul_(0.1);
    const at::Tensor c = at::full({30, 50}, kLarge, at::kFloat);
    const at::Tensor expected = a.to(at::kDouble).matmul(b.to(at::kDouble)).add_(kLarge);
    for (const std::int64_t target : simd_targets()) {
      const SimdTarget simd(target);
      INFO(simd_name(target) << ", depth " << depth);
      const at::Tensor error = product<float>(a, b, c, true).to(at::kDouble).sub_(expected).abs_();
      CHECK(error.max().item<double>() <= 0.51 * parts * kUlp);
    }
  }
}

TEST_CASE("gemm: a part of the panels leaves the other columns alone", "[kernels]") {
  const at::Tensor a = random_normal({30, 20}, at::kDouble, 4);
  const at::Tensor b = random_normal({20, 200}, at::kDouble, 5);
  PackedMatrix<double> packed(20, 200);
  packed.pack({b.const_data_ptr<double>(), 200, 1}, 20, 0, packed.panels());
  REQUIRE(packed.panels() > 2);
  at::Tensor out = at::full({30, 200}, 7.0, at::kDouble);
  multiply<double>({a.const_data_ptr<double>(), 20, 1}, 30, 20, packed, 1, 2,
                   {out.data_ptr<double>(), 200, 200, false});
  at::Tensor expected = at::full({30, 200}, 7.0, at::kDouble);
  expected.slice(1, packed.width(), 2 * packed.width())
      .copy_(a.matmul(b.slice(1, packed.width(), 2 * packed.width())));
  CHECK(at::allclose(out, expected, 1e-12, 1e-12));
}

}  // namespace prefopt::kernels::cpu::test_gemm
