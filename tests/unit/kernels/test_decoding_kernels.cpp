// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/cpu/next_token.h"
#include "kernels/cpu/query_attention.h"
#include "kernels/cpu/thin_linear.h"
#include "support/catch.h"
#include "support/logps_oracle.h"
#include "support/simd.h"

namespace prefopt::kernels::cpu::test_decoding_kernels {
namespace {

using prefopt::testing_support::random_normal;
using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

template <class T>
WeightRows<T> rows_of(const at::Tensor& weight) {
  if constexpr (std::is_same_v<T, float>) {
    if (weight.scalar_type() == at::kBFloat16) return weight.const_data_ptr<c10::BFloat16>();
    if (weight.scalar_type() == at::kHalf) return weight.const_data_ptr<c10::Half>();
  }
  return weight.const_data_ptr<T>();
}

/// The product into the first columns of a copy of y.
template <class T>
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& y, bool accumulate) {
  at::Tensor out = y.clone();
  const ThinLinear<T> product{.x = {x.const_data_ptr<T>(), x.stride(0)},
                              .rows = x.size(0),
                              .in = weight.size(1),
                              .out = weight.size(0),
                              .weight = rows_of<T>(weight),
                              .bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr,
                              .y = {out.data_ptr<T>(), out.stride(0)},
                              .accumulate = accumulate};
  thin_linear<T>({&product, 1});
  return out;
}

/// softmax(scale · q kᵀ) v, all of one kv head, in float64.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     double scale) {
  return (scale * query.to(at::kDouble).matmul(key.to(at::kDouble).t()))
      .softmax(1)
      .matmul(value.to(at::kDouble));
}

template <class T>
at::Tensor attention_of(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        std::int64_t prompt, double scale) {
  at::Tensor out = at::full_like(query, NAN);
  const T* keys = key.const_data_ptr<T>();
  const T* values = value.const_data_ptr<T>();
  const std::int64_t dim = query.size(1), own = prompt * dim;
  const std::vector<QueryTask<T>> tasks{{.query = query.const_data_ptr<T>(),
                                         .prompt = {keys, values, prompt},
                                         .own = {keys + own, values + own, key.size(0) - prompt},
                                         .output = out.data_ptr<T>()}};
  query_attention<T>(tasks, {.groups = query.size(0), .head_dim = dim, .scale = scale});
  return out;
}

}  // namespace

TEST_CASE("thin_linear: every size, precision and SIMD target", "[kernels]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t rows : {1, 18, 65}) {
      for (const std::int64_t in : {1, 700}) {
        for (const std::int64_t out : {1, 50}) {
          INFO(simd_name(target) << ": " << rows << " x " << in << " x " << out);
          const at::Tensor x = random_normal({rows, in + 3}, at::kDouble, 1);
          const at::Tensor weight = random_normal({out, in}, at::kDouble, 2);
          const at::Tensor bias = random_normal({out}, at::kDouble, 3);
          const at::Tensor y = random_normal({rows, out + 2}, at::kDouble, 4);
          const at::Tensor product = x.slice(1, 0, in).matmul(weight.t());
          at::Tensor expected = y.clone();
          expected.slice(1, 0, out).copy_(product);
          CHECK(at::allclose(linear<double>(x, weight, {}, y, false), expected, 1e-12, 1e-12));
          expected.slice(1, 0, out).copy_(y.slice(1, 0, out) + product + bias);
          CHECK(at::allclose(linear<double>(x, weight, bias, y, true), expected, 1e-12, 1e-12));

          for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
            const at::Tensor rounded = weight.to(dtype);
            expected.slice(1, 0, out).copy_(x.slice(1, 0, in).matmul(rounded.to(at::kDouble).t()) +
                                            bias);
            CHECK(at::allclose(linear<float>(x.to(at::kFloat), rounded, bias.to(at::kFloat),
                                             y.to(at::kFloat), false),
                               expected.to(at::kFloat), 1e-5, 1e-4));
          }
        }
      }
    }
  }
}

TEST_CASE("thin_linear: several maps of the same rows, and of others", "[kernels]") {
  const at::Tensor x = random_normal({5, 20}, at::kFloat, 1);
  const at::Tensor z = random_normal({5, 9}, at::kFloat, 2);
  const at::Tensor a = random_normal({60, 20}, at::kFloat, 3);
  const at::Tensor b = random_normal({200, 20}, at::kFloat, 4);
  const at::Tensor c = random_normal({7, 9}, at::kFloat, 5);
  at::Tensor y = at::zeros({5, 267});
  const Rows<const float> rows_x{x.const_data_ptr<float>(), 20};
  const Rows<const float> rows_z{z.const_data_ptr<float>(), 9};
  const auto into = [&](std::int64_t column) {
    return Rows<float>{y.data_ptr<float>() + column, 267};
  };
  const std::vector<ThinLinear<float>> products{
      {rows_x, 5, 20, 60, a.const_data_ptr<float>(), nullptr, into(0)},
      {rows_x, 5, 20, 200, b.const_data_ptr<float>(), nullptr, into(60)},
      {rows_z, 5, 9, 7, c.const_data_ptr<float>(), nullptr, into(260)}};
  thin_linear<float>(products);
  CHECK(
      at::allclose(y, at::cat({x.matmul(a.t()), x.matmul(b.t()), z.matmul(c.t())}, 1), 1e-5, 1e-5));
}

TEST_CASE("thin_linear: a row depends neither on the others nor on the threads", "[kernels]") {
  const at::Tensor x = random_normal({70, 800}, at::kFloat, 1);
  const at::Tensor weight = random_normal({130, 800}, at::kFloat, 2);
  const at::Tensor y = at::zeros({70, 130});
  const at::Tensor all = linear<float>(x, weight, {}, y, false);
  for (const std::int64_t row : {0, 31, 69}) {
    CHECK(at::equal(linear<float>(x.slice(0, row, row + 1), weight, {}, y.slice(0, 0, 1), false),
                    all.slice(0, row, row + 1)));
  }
  CHECK(at::equal(linear<float>(x.slice(0, 5, 45), weight, {}, y.slice(0, 0, 40), false),
                  all.slice(0, 5, 45)));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(at::equal(linear<float>(x, weight, {}, y, false), all));
  at::set_num_threads(threads);
}

TEST_CASE("query_attention: every size and SIMD target", "[kernels]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const std::int64_t groups : {1, 3}) {
      for (const std::int64_t dim : {1, 6, 64, 100}) {
        for (const std::int64_t keys : {1, 5, 130}) {
          INFO(simd_name(target) << ": " << groups << " x " << dim << ", " << keys << " keys");
          const double scale = 1 / std::sqrt(static_cast<double>(dim));
          const at::Tensor query = 4 * random_normal({groups, dim}, at::kDouble, 1);
          const at::Tensor key = random_normal({keys, dim}, at::kDouble, 2);
          const at::Tensor value = random_normal({keys, dim}, at::kDouble, 3);
          const at::Tensor expected = attention(query, key, value, scale);
          for (const std::int64_t prompt : {std::int64_t{0}, keys / 2, keys}) {
            CHECK(at::allclose(attention_of<double>(query, key, value, prompt, scale), expected,
                               1e-12, 1e-12));
            CHECK(at::allclose(attention_of<float>(query.to(at::kFloat), key.to(at::kFloat),
                                                   value.to(at::kFloat), prompt, scale),
                               expected.to(at::kFloat), 1e-4, 1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("query_attention: scores far apart", "[kernels]") {
  const at::Tensor query = at::full({1, 1}, 1.0f);
  const at::Tensor key = torch::tensor({{-3e4f}, {3e4f}, {0.0f}});
  const at::Tensor value = torch::tensor({{1.0f}, {2.0f}, {3.0f}});
  CHECK(attention_of<float>(query, key, value, 1, 1).item<float>() == 2);
}

TEST_CASE("highest_logit: wherever it stands, and NaN", "[kernels]") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    INFO(simd_name(target));
    for (const std::int64_t place : {0, 15, 16, 39}) {
      std::vector<float> row(40, -2.0f);
      row[static_cast<std::size_t>(place)] = -1;
      CHECK(highest_logit(row.data(), 40) == -1);
      row[static_cast<std::size_t>(place)] = kInf;
      CHECK(highest_logit(row.data(), 40) == kInf);
      row[static_cast<std::size_t>(place)] = NAN;
      CHECK(std::isnan(highest_logit(row.data(), 40)));
      row[20] = kInf;
      CHECK(std::isnan(highest_logit(row.data(), 40)));
    }
    const std::vector<double> none(5, -std::numeric_limits<double>::infinity());
    CHECK(highest_logit(none.data(), 5) == -std::numeric_limits<double>::infinity());
  }
}

TEST_CASE("token_weights: exponentials and the sums of their parts", "[kernels]") {
  constexpr std::int64_t kSize = 2 * kWeightsOfSum + 77;
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    INFO(simd_name(target));
    const at::Tensor row = 3 * random_normal({kSize}, at::kDouble, 1);
    const double highest = row.max().item<double>();
    const auto check = [&](auto number, double temperature, double tolerance) {
      using T = decltype(number);
      const at::Tensor logits = row.to(c10::CppTypeToScalarType<T>::value);
      at::Tensor weights = at::zeros_like(logits);
      std::vector<double> sums(3);
      token_weights(logits.const_data_ptr<T>(), kSize, logits.max().template item<T>(), temperature,
                    weights.data_ptr<T>(), sums.data());
      const at::Tensor expected = ((row - highest) / temperature).exp();
      CHECK(at::allclose(weights.to(at::kDouble), expected, tolerance, 1e-30));
      const at::Tensor wide = weights.to(at::kDouble);
      for (std::int64_t i = 0; i < 3; ++i) {
        const auto part = wide.slice(0, i * kWeightsOfSum, (i + 1) * kWeightsOfSum);
        CHECK(sums[static_cast<std::size_t>(i)] ==
              Approx(part.sum().item<double>()).epsilon(1e-14));
      }
    };
    check(double(), 1, 1e-13);
    check(double(), 0.3, 1e-12);
    check(float(), 1, 1e-5);
    check(float(), 2.5, 1e-5);
  }
}

TEST_CASE("token_weights: any temperature, and tokens that cannot come", "[kernels]") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> row{-kInf, 3e38f, -3e38f, 3e38f};
  for (const double temperature : {1e-308, 1.0, 1e308}) {
    std::vector<float> weights(4);
    double sum = 0;
    token_weights(row.data(), 4, 3e38f, temperature, weights.data(), &sum);
    CHECK(weights[0] == 0);
    CHECK(weights[1] == 1);
    CHECK(weights[3] == 1);
    CHECK(weights[2] <= 1);
    CHECK(std::isfinite(weights[2]));
  }
}

}  // namespace prefopt::kernels::cpu::test_decoding_kernels
