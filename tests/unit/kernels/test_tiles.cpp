// SPDX-License-Identifier: Apache-2.0
// Products on a processor's tile unit, where there is one; test_gemm.cpp tries all sizes and
// layouts.
#include <ATen/Context.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/tiles.h"
#include "support/catch.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::kernels::cpu {
namespace {

using prefopt::testing_support::random_normal;
using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

/// Sets at::Float32MatmulPrecision while it lives.
class Precision {
 public:
  explicit Precision(const std::string& name) {
    at::globalContext().setFloat32MatmulPrecision(name);
  }
  ~Precision() { at::globalContext().setFloat32MatmulPrecision("highest"); }
  Precision(const Precision&) = delete;
  Precision& operator=(const Precision&) = delete;
};

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  PackedMatrix<float> right(b.size(0), b.size(1));
  right.pack({b.const_data_ptr<float>(), b.stride(0), b.stride(1)}, b.size(0), 0, right.panels());
  at::Tensor out = at::zeros({a.size(0), b.size(1)});
  multiply<float>({a.const_data_ptr<float>(), a.stride(0), a.stride(1)}, a.size(0), a.size(1),
                  right, 0, right.panels(), {out.data_ptr<float>(), b.size(1), b.size(1), false});
  return out;
}

/// Returns the largest error in units of Σ_k |a_k b_k|, which bounds what rounding does.
double error_of(const at::Tensor& result, const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return (result.to(at::kDouble) - x.matmul(y))
      .abs()
      .div(x.abs().matmul(y.abs()))
      .max()
      .item<double>();
}

}  // namespace

TEST_CASE("tiles: a product is as exact as one of float32 numbers", "[kernels]") {
  // Numbers of many magnitudes, and of 24 bits each.
  const at::Tensor scale = random_normal({70, 1}, at::kFloat, 3).mul_(8).exp2_();
  const at::Tensor a = random_normal({70, 1000}, at::kFloat, 1).mul_(scale);
  const at::Tensor b = random_normal({1000, 90}, at::kFloat, 2);
  const double expected = [&] {
    const SimdTarget vectors(simd_targets().back());
    return error_of(product(a, b), a, b);
  }();
  for (const std::int64_t target : simd_targets()) {
    INFO(simd_name(target));
    const SimdTarget simd(target);
    CHECK(error_of(product(a, b), a, b) <= expected);
  }
}

TEST_CASE("tiles: one term keeps all digits", "[kernels]") {
  // With a depth of 1 nothing is added, so that the product is rounded as float32's is, but for the
  // parts that are left out: 2^-25 of it.
  const at::Tensor a = random_normal({100, 1}, at::kFloat, 1);
  const at::Tensor b = random_normal({1, 100}, at::kFloat, 2);
  CHECK(error_of(product(a, b), a, b) <= std::ldexp(1.0, -22));
  // And numbers of few bits are exact.
  const at::Tensor few = at::arange(1, 101, at::kFloat);
  CHECK(at::equal(product(few.unsqueeze(1), few.unsqueeze(0)), few.outer(few)));
}

TEST_CASE("tiles: what is not finite stays so, and large numbers stay finite", "[kernels]") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kMost = std::numeric_limits<float>::max();
  const auto all_ones = std::bit_cast<float>(0xFFFFFFFFU);
  const auto low_bit = std::bit_cast<float>(0x7F800001U);
  for (const char* precision : {"highest", "high", "medium"}) {
    INFO(precision);
    const Precision set(precision);
    for (const float x : {kInfinity, -kInfinity, std::nanf(""), all_ones, low_bit}) {
      for (const bool left : {true, false}) {
        at::Tensor a = at::ones({33, 40}), b = at::ones({40, 35});
        (left ? a.mutable_data_ptr<float>()[32 * 40 + 39]
              : b.mutable_data_ptr<float>()[39 * 35 + 34]) = x;
        const at::Tensor finite = product(a, b).isfinite();
        // Its row or column alone.
        CHECK(finite.logical_not().sum().item<std::int64_t>() == (left ? 35 : 33));
        CHECK_FALSE(finite[32][34].item<bool>());
      }
    }
    const at::Tensor most = at::full({1, 1}, kMost);
    const float half = product(most, at::full({1, 1}, 0.5F)).item<float>();
    CHECK(std::abs(half / (kMost / 2) - 1) < 0.01F);
  }
}

TEST_CASE("tiles: factors of few bits take fewer products", "[kernels]") {
  const auto with_bits = [](at::Tensor x, int bits) {
    const double scale = std::ldexp(1.0, bits);
    return x.to(at::kDouble).mul_(scale).round_().div_(scale).to(at::kFloat);
  };
  // Numbers up to 4, of about 8, 16 and 24 bits.
  for (const int left : {6, 13, 30}) {
    for (const int right : {6, 13, 30}) {
      INFO(left << ", " << right);
      const at::Tensor a = with_bits(random_normal({50, 100}, at::kFloat, 1), left);
      const at::Tensor b = with_bits(random_normal({100, 70}, at::kFloat, 2), right);
      CHECK(error_of(product(a, b), a, b) < 3e-7);
    }
  }
}

TEST_CASE("tiles: less precision rounds the factors", "[kernels]") {
  const at::Tensor a = random_normal({70, 700}, at::kFloat, 1);
  const at::Tensor b = random_normal({700, 90}, at::kFloat, 2);
  const at::Tensor exact = product(a, b);
  const auto with = [&](const char* name) {
    const Precision set(name);
    return product(a, b);
  };
  if (!has_tiles()) {  // other processors know float32 alone
    CHECK(at::equal(with("high"), exact));
    CHECK(at::equal(with("medium"), exact));
    return;
  }
  CHECK(error_of(with("high"), a, b) < std::ldexp(1.0, -16));
  CHECK(error_of(with("high"), a, b) > std::ldexp(1.0, -23));
  const auto rounded = [](const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); };
  CHECK(error_of(with("medium"), rounded(a), rounded(b)) < 3e-7);
  CHECK(error_of(with("medium"), a, b) > std::ldexp(1.0, -14));
}

TEST_CASE("tiles: a process that is held to instructions uses none", "[kernels]") {
  const SimdTarget vectors(HWY_SCALAR);
  CHECK_FALSE(has_tiles());
}

}  // namespace prefopt::kernels::cpu
