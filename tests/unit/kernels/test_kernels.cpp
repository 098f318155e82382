// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear.h"
#include "support/catch.h"
#include "support/simd.h"

namespace prefopt::kernels::cpu::test_kernels {
namespace {

using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

// The number between the rows of a matrix, where no kernel may write.
constexpr double kGap = 7;

/// Rows that lie a little apart.
template <class T>
struct Matrix {
  Matrix(std::int64_t row_count, std::int64_t column_count, std::int64_t gap = 3)
      : rows(row_count),
        columns(column_count),
        stride(column_count + gap),
        data(static_cast<std::size_t>(rows * stride), static_cast<T>(kGap)) {}

  T& at(std::int64_t i, std::int64_t j) { return data[static_cast<std::size_t>(i * stride + j)]; }
  double operator()(std::int64_t i, std::int64_t j) const {
    return static_cast<double>(data[static_cast<std::size_t>(i * stride + j)]);
  }
  Rows<T> view() { return {data.data(), stride}; }
  Rows<const T> view() const { return {data.data(), stride}; }
  const T* numbers() const { return data.data(); }
  bool gaps_untouched() const {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = columns; j < stride; ++j) {
        if ((*this)(i, j) != kGap) return false;
      }
    }
    return true;
  }

  std::int64_t rows, columns, stride;
  std::vector<T> data;
};

template <class T>
Matrix<T> random_matrix(std::int64_t rows, std::int64_t columns, unsigned seed,
                        std::int64_t gap = 3) {
  Matrix<T> matrix(rows, columns, gap);
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) matrix.at(i, j) = static_cast<T>(normal(generator));
  }
  return matrix;
}

using Formula = std::function<double(std::int64_t i, std::int64_t j)>;

/// Greatest |got − expected| / (scale + |expected|); infinity where a gap was written to.
template <class T>
double error(const Matrix<T>& got, const Formula& expected, double scale = 1) {
  if (!got.gaps_untouched()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::int64_t i = 0; i < got.rows; ++i) {
    for (std::int64_t j = 0; j < got.columns; ++j) {
      const double value = expected(i, j);
      const double off = std::abs(got(i, j) - value) / (scale + std::abs(value));
      worst = std::max(worst, std::isnan(off) ? std::numeric_limits<double>::infinity() : off);
    }
  }
  return worst;
}

/// Σ |terms| of a sum is what its rounding error is relative to.
struct Sum {
  long double value = 0;
  double size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

using SumFormula = std::function<Sum(std::int64_t i, std::int64_t j)>;

/// Greatest error relative to the sizes of the sums.
template <class T>
double sum_error(const Matrix<T>& got, const SumFormula& expected) {
  if (!got.gaps_untouched()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::int64_t i = 0; i < got.rows; ++i) {
    for (std::int64_t j = 0; j < got.columns; ++j) {
      const Sum sum = expected(i, j);
      const double off = static_cast<double>(std::abs(got(i, j) - sum.value)) / (sum.size + 1e-30);
      worst = std::max(worst, std::isnan(off) ? std::numeric_limits<double>::infinity() : off);
    }
  }
  return worst;
}

template <class T>
constexpr double kUlps = std::numeric_limits<T>::epsilon();

/// Central difference of f in the number at `place`.
double slope_of(const std::function<double()>& f, double& place) {
  constexpr double kStep = 1e-5;
  const double before = place;
  place = before + kStep;
  const double above = f();
  place = before - kStep;
  const double below = f();
  place = before;
  return (above - below) / (2 * kStep);
}

/// Runs `check` on each SIMD target in float and in double.
template <class Check>
void on_all_targets(const Check& check) {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    INFO(simd_name(target));
    check(float{});
    check(double{});
  }
}

/// `run()` with one thread and with more; its results have to be the same bits.
template <class Run>
void check_threads(const Run& run) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto expected = run();
  for (const int threads : {2, 3, 7}) {
    at::set_num_threads(threads);
    INFO(threads << " threads");
    CHECK(run() == expected);
  }
  at::set_num_threads(before);
}

// --- norms ------------------------------------------------------------------------------------

constexpr double kEps = 1e-5;

/// 1 / sqrt(mean(x²) + eps) of part `group` of row `i`.
template <class T>
double rstd_of(const Matrix<T>& x, std::int64_t i, std::int64_t group, std::int64_t width) {
  long double squares = 0;
  for (std::int64_t j = 0; j < width; ++j) squares += std::pow(x(i, group * width + j), 2);
  return static_cast<double>(1 / std::sqrt(squares / static_cast<long double>(width) + kEps));
}

/// Σ dy y over all numbers.
double norm_loss(const Matrix<double>& x, const Matrix<double>& w, const Matrix<double>& dy,
                 std::int64_t width) {
  double loss = 0;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t j = 0; j < x.columns; ++j) {
      loss += dy(i, j) * w(0, j % width) * x(i, j) * rstd_of(x, i, j / width, width);
    }
  }
  return loss;
}

struct NormCase {
  std::int64_t rows, groups, width;
};
const std::vector<NormCase> kNormCases = {{0, 1, 65}, {1, 1, 1},   {3, 1, 3},  {5, 2, 63},
                                          {2, 1, 65}, {40, 3, 64}, {4, 1, 577}};

template <class T>
void check_norm(const NormCase& c, bool with_residual) {
  const Matrix<T> original = random_matrix<T>(c.rows, c.groups * c.width, 1);
  const Matrix<T> residual = random_matrix<T>(c.rows, c.groups * c.width, 2, 5);
  const Matrix<T> w = random_matrix<T>(1, c.width, 3);
  Matrix<T> x = original, y(c.rows, c.groups * c.width, 4), rstd(c.rows, c.groups, 0);
  RmsNorm<T> norm{.shape = {c.rows, c.groups, c.width},
                  .x = x.view(),
                  .weight = w.numbers(),
                  .eps = kEps,
                  .y = y.view(),
                  .rstd = rstd.data.data()};
  if (with_residual) {
    norm.residual = residual.view();
    norm.sum = x.view();
  }
  rms_norm(norm);
  // The sum is rounded once, so it is exact; norms are of what it became.
  CHECK(error(x, [&](std::int64_t i, std::int64_t j) {
          const double sum = original(i, j) + (with_residual ? residual(i, j) : 0);
          return static_cast<double>(static_cast<T>(sum));
        }) == 0);
  CHECK(error(
            rstd, [&](std::int64_t i, std::int64_t group) { return rstd_of(x, i, group, c.width); },
            0) <= 2 * kUlps<T>);
  CHECK(error(
            y,
            [&](std::int64_t i, std::int64_t j) {
              return w(0, j % c.width) * x(i, j) * rstd_of(x, i, j / c.width, c.width);
            },
            0) <= 4 * kUlps<T>);
}

/// dL/dx for L = Σ dy y, by the chain rule.
template <class T>
Matrix<double> norm_input_gradient(const NormCase& c, const Matrix<T>& x, const Matrix<T>& w,
                                   const Matrix<T>& dy) {
  Matrix<double> dx(c.rows, c.groups * c.width);
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t group = 0; group < c.groups; ++group) {
      const double rstd = rstd_of(x, i, group, c.width);
      const std::int64_t first = group * c.width;
      long double along = 0;
      for (std::int64_t j = first; j < first + c.width; ++j) {
        along += dy(i, j) * w(0, j - first) * x(i, j);
      }
      const double factor =
          std::pow(rstd, 3) / static_cast<double>(c.width) * static_cast<double>(along);
      for (std::int64_t j = first; j < first + c.width; ++j) {
        dx.at(i, j) = rstd * dy(i, j) * w(0, j - first) - factor * x(i, j);
      }
    }
  }
  return dx;
}

template <class T>
struct NormBackwardRun {
  Matrix<T> dx, dw;
};
template <class T>
NormBackwardRun<T> run_norm_backward(const NormCase& c, const Matrix<T>& x, const Matrix<T>& w,
                                     const Matrix<T>& dy, bool accumulate) {
  Matrix<T> y(c.rows, c.groups * c.width), rstd(c.rows, c.groups, 0);
  const NormShape shape{c.rows, c.groups, c.width};
  rms_norm<T>({.shape = shape,
               .x = x.view(),
               .weight = w.numbers(),
               .eps = kEps,
               .y = y.view(),
               .rstd = rstd.data.data()});
  NormBackwardRun<T> run{random_matrix<T>(c.rows, c.groups * c.width, 9, 1),
                         random_matrix<T>(1, c.width, 10)};
  rms_norm_backward<T>({.shape = shape,
                        .dy = dy.view(),
                        .x = x.view(),
                        .rstd = rstd.numbers(),
                        .weight = w.numbers(),
                        .dx = run.dx.view(),
                        .accumulate = accumulate,
                        .dw = run.dw.data.data()});
  return run;
}

template <class T>
void check_norm_backward(const NormCase& c, bool accumulate) {
  const auto x = random_matrix<T>(c.rows, c.groups * c.width, 1);
  const auto w = random_matrix<T>(1, c.width, 2);
  const auto dy = random_matrix<T>(c.rows, c.groups * c.width, 3, 2);
  const Matrix<double> expected = norm_input_gradient(c, x, w, dy);
  const auto run = run_norm_backward(c, x, w, dy, accumulate);
  const auto dx_before = random_matrix<T>(c.rows, c.groups * c.width, 9, 1);
  const auto dw_before = random_matrix<T>(1, c.width, 10);
  CHECK(error(run.dx, [&](std::int64_t i, std::int64_t j) {
          return expected(i, j) + (accumulate ? dx_before(i, j) : 0);
        }) <= 8 * kUlps<T>);
  CHECK(sum_error(run.dw, [&](std::int64_t, std::int64_t at) {
          Sum sum;
          sum.add(dw_before(0, at));
          for (std::int64_t i = 0; i < c.rows; ++i) {
            for (std::int64_t j = at; j < c.groups * c.width; j += c.width) {
              sum.add(dy(i, j) * x(i, j) * rstd_of(x, i, j / c.width, c.width));
            }
          }
          return sum;
        }) <= 8 * kUlps<T>);
}

// --- SwiGLU -----------------------------------------------------------------------------------

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
void check_swiglu(std::int64_t rows, std::int64_t width) {
  const auto g = random_matrix<T>(rows, width, 1);
  const auto u = random_matrix<T>(rows, width, 2, 1);
  const auto dh = random_matrix<T>(rows, width, 3, 2);
  const Formula h_of = [&](std::int64_t i, std::int64_t j) {
    return g(i, j) * sigmoid(g(i, j)) * u(i, j);
  };
  const Formula dg_of = [&](std::int64_t i, std::int64_t j) {
    const double s = sigmoid(g(i, j));
    return dh(i, j) * u(i, j) * s * (1 + g(i, j) * (1 - s));
  };
  const Formula du_of = [&](std::int64_t i, std::int64_t j) {
    return dh(i, j) * g(i, j) * sigmoid(g(i, j));
  };
  Matrix<T> h(rows, width, 4);
  swiglu<T>({rows, width, g.view(), u.view(), h.view()});
  CHECK(error(h, h_of, 0) <= 5 * kUlps<T>);

  Matrix<T> dg(rows, width, 6), du(rows, width, 7), again(rows, width, 8);
  swiglu_backward<T>({.rows = rows,
                      .width = width,
                      .dh = dh.view(),
                      .g = g.view(),
                      .u = u.view(),
                      .dg = dg.view(),
                      .du = du.view(),
                      .h = again.view()});
  CHECK(error(dg, dg_of) <= 6 * kUlps<T>);
  CHECK(error(du, du_of, 0) <= 5 * kUlps<T>);
  CHECK(error(again, h_of, 0) <= 5 * kUlps<T>);

  // Each result in place of an input.
  Matrix<T> of_g = g, of_u = u, of_h = dh;
  swiglu_backward<T>({.rows = rows,
                      .width = width,
                      .dh = of_h.view(),
                      .g = of_g.view(),
                      .u = of_u.view(),
                      .dg = of_g.view(),
                      .du = of_u.view(),
                      .h = of_h.view()});
  CHECK(error(of_g, [&](std::int64_t i, std::int64_t j) { return dg(i, j); }) == 0);
  CHECK(error(of_u, [&](std::int64_t i, std::int64_t j) { return du(i, j); }) == 0);
  CHECK(error(of_h, [&](std::int64_t i, std::int64_t j) { return again(i, j); }) == 0);
  of_g = g, of_u = u;
  swiglu_backward<T>({.rows = rows,
                      .width = width,
                      .dh = dh.view(),
                      .g = of_g.view(),
                      .u = of_u.view(),
                      .dg = of_g.view(),
                      .du = of_u.view()});
  CHECK(of_g.data == [&] {
    Matrix<T> expected = g;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < width; ++j) expected.at(i, j) = static_cast<T>(dg(i, j));
    }
    return expected.data;
  }());
}

// --- GeGLU ------------------------------------------------------------------------------------

/// gelu's tanh form, and its derivative by the formula.
double gelu(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}
double gelu_slope(double x) {
  const double t = std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x));
  return (1 + t) / 2 +
         x / 2 * (1 - t * t) * std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * x * x);
}

template <class T>
void check_geglu(std::int64_t rows, std::int64_t width) {
  const auto g = random_matrix<T>(rows, width, 1);
  const auto u = random_matrix<T>(rows, width, 2, 1);
  const auto dh = random_matrix<T>(rows, width, 3, 2);
  Matrix<T> h(rows, width, 4), dg(rows, width, 5), du(rows, width, 6), again(rows, width, 7);
  swiglu<T>({rows, width, g.view(), u.view(), h.view(), Gate::kGeluTanh});
  swiglu_backward<T>({.rows = rows,
                      .width = width,
                      .dh = dh.view(),
                      .g = g.view(),
                      .u = u.view(),
                      .dg = dg.view(),
                      .du = du.view(),
                      .h = again.view(),
                      .gate = Gate::kGeluTanh});
  const Formula h_of = [&](std::int64_t i, std::int64_t j) { return gelu(g(i, j)) * u(i, j); };
  CHECK(error(h, h_of) <= 8 * kUlps<T>);
  CHECK(error(again, h_of) <= 8 * kUlps<T>);
  CHECK(error(dg, [&](std::int64_t i, std::int64_t j) {
          return dh(i, j) * u(i, j) * gelu_slope(g(i, j));
        }) <= 16 * kUlps<T>);
  CHECK(error(du, [&](std::int64_t i, std::int64_t j) { return dh(i, j) * gelu(g(i, j)); }) <=
        8 * kUlps<T>);
}

// --- rotary -----------------------------------------------------------------------------------

template <class T>
struct Turn {
  Turn(std::int64_t rows, std::int64_t head_dim)
      : cos(rows, head_dim / 2, 0), sin(rows, head_dim / 2, 1) {
    const Matrix<T> angles = random_matrix<T>(rows, head_dim / 2, 5);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < head_dim / 2; ++j) {
        cos.at(i, j) = static_cast<T>(std::cos(3 * angles(i, j)));
        sin.at(i, j) = static_cast<T>(std::sin(3 * angles(i, j)));
      }
    }
  }
  Matrix<T> cos, sin;
};

template <class T>
void check_rotary(std::int64_t rows, std::int64_t heads, std::int64_t head_dim) {
  const Matrix<T> x = random_matrix<T>(rows, heads * head_dim, 4);
  const Turn<T> turn(rows, head_dim);
  const std::int64_t half = head_dim / 2;
  const auto turned = [&](double direction) {
    return [&, direction](std::int64_t i, std::int64_t j) {
      const std::int64_t at = j % head_dim, pair = at < half ? j + half : j - half;
      const double c = turn.cos(i, at % half), s = direction * turn.sin(i, at % half);
      return c * x(i, j) + (at < half ? -s : s) * x(i, pair);
    };
  };
  Matrix<T> forward = x, back = x;
  apply_rope_<T>({rows, heads, head_dim, forward.view(), turn.cos.view(), turn.sin.view()});
  apply_rope_backward_<T>({rows, heads, head_dim, back.view(), turn.cos.view(), turn.sin.view()});
  CHECK(error(forward, turned(1)) <= 2 * kUlps<T>);
  CHECK(error(back, turned(-1)) <= 2 * kUlps<T>);
  apply_rope_backward_<T>(
      {rows, heads, head_dim, forward.view(), turn.cos.view(), turn.sin.view()});
  CHECK(error(forward, [&](std::int64_t i, std::int64_t j) { return x(i, j); }) <= 4 * kUlps<T>);
}

/// The beginning of each head alone is turned.
template <class T>
void check_partial_rotary(std::int64_t rows, std::int64_t heads, std::int64_t head_dim,
                          std::int64_t rotated) {
  const Matrix<T> x = random_matrix<T>(rows, heads * head_dim, 4);
  const Turn<T> turn(rows, rotated);
  const std::int64_t half = rotated / 2;
  Matrix<T> forward = x;
  apply_rope_<T>(
      {rows, heads, head_dim, forward.view(), turn.cos.view(), turn.sin.view(), rotated});
  CHECK(error(forward, [&](std::int64_t i, std::int64_t j) {
          const std::int64_t at = j % head_dim, pair = at < half ? j + half : j - half;
          if (at >= rotated) return static_cast<double>(x(i, j));
          const double c = turn.cos(i, at % half), s = turn.sin(i, at % half);
          return c * x(i, j) + (at < half ? -s : s) * x(i, pair);
        }) <= 2 * kUlps<T>);
}

// --- linear layers ----------------------------------------------------------------------------

template <class T, class Weight>
void check_linear(const LinearSizes& sizes, bool accumulate) {
  const auto [rows, in, out] = sizes;
  const auto x = random_matrix<T>(rows, in, 1);
  const auto dy = random_matrix<T>(rows, out, 2, 1);
  const auto w = random_matrix<Weight>(out, in, 3, 5);
  Matrix<T> y = random_matrix<T>(rows, out, 4, 2), dx = random_matrix<T>(rows, in, 5, 4);
  const Matrix<T> y_before = y, dx_before = dx;
  linear_forward<T, Weight>({sizes, x.view(), w.view(), y.view(), accumulate});
  linear_input_grad<T, Weight>({sizes, dy.view(), w.view(), dx.view(), accumulate});
  CHECK(sum_error(y, [&, n = in](std::int64_t i, std::int64_t j) {
          Sum sum;
          if (accumulate) sum.add(y_before(i, j));
          for (std::int64_t k = 0; k < n; ++k) sum.add(x(i, k) * w(j, k));
          return sum;
        }) <= 8 * kUlps<T>);
  CHECK(sum_error(dx, [&, n = out](std::int64_t i, std::int64_t j) {
          Sum sum;
          if (accumulate) sum.add(dx_before(i, j));
          for (std::int64_t k = 0; k < n; ++k) sum.add(dy(i, k) * w(k, j));
          return sum;
        }) <= 8 * kUlps<T>);
  if constexpr (std::is_same_v<T, Weight>) {
    Matrix<T> dw = random_matrix<T>(out, in, 6, 3);
    const Matrix<T> before = dw;
    linear_weight_grad<T>({sizes, dy.view(), x.view(), dw.view(), accumulate});
    CHECK(sum_error(dw, [&, n = rows](std::int64_t i, std::int64_t j) {
            Sum sum;
            if (accumulate) sum.add(before(i, j));
            for (std::int64_t k = 0; k < n; ++k) sum.add(dy(k, i) * x(k, j));
            return sum;
          }) <= 8 * kUlps<T>);
  }
}

}  // namespace

TEST_CASE("kernels: norms, with and without a residual, are their formula", "[kernels]") {
  on_all_targets([](auto type) {
    for (const NormCase& c : kNormCases) {
      INFO(c.rows << " x " << c.groups << " x " << c.width);
      check_norm<decltype(type)>(c, false);
      check_norm<decltype(type)>(c, true);
    }
  });
}

TEST_CASE("kernels: the norm of a long row loses nothing in float32", "[kernels]") {
  on_all_targets([](auto type) {
    using T = decltype(type);
    // Equal numbers: each addition to a long sum would be rounded the same way.
    Matrix<T> x(1, 100003, 0), y(1, 100003, 0), rstd(1, 1, 0);
    const Matrix<T> w = random_matrix<T>(1, 100003, 1, 0);
    std::fill(x.data.begin(), x.data.end(), T(0.3));
    rms_norm<T>({.shape = {1, 1, 100003},
                 .x = x.view(),
                 .weight = w.numbers(),
                 .eps = kEps,
                 .y = y.view(),
                 .rstd = rstd.data.data()});
    const double expected = rstd_of(x, 0, 0, 100003);
    CHECK(std::abs(rstd(0, 0) - expected) / expected <=
          (sizeof(T) == sizeof(float) ? 2e-7 : 1e-12));
  });
}

TEST_CASE("kernels: a norm may stand in place of its input", "[kernels]") {
  on_all_targets([](auto type) {
    using T = decltype(type);
    const Matrix<T> x = random_matrix<T>(5, 65, 1), w = random_matrix<T>(1, 65, 2);
    Matrix<T> apart = x, in_place = x;
    rms_norm<T>({.shape = {.rows = 5, .width = 65},
                 .x = x.view(),
                 .weight = w.numbers(),
                 .eps = kEps,
                 .y = apart.view()});
    rms_norm<T>({.shape = {.rows = 5, .width = 65},
                 .x = in_place.view(),
                 .weight = w.numbers(),
                 .eps = kEps,
                 .y = in_place.view()});
    CHECK(in_place.data == apart.data);
  });
}

TEST_CASE("kernels: gradients of norms are the slopes of the formula", "[kernels]") {
  for (const NormCase& c : kNormCases) {
    if (c.rows * c.width > 400) continue;  // each slope takes a pass over all numbers
    INFO(c.rows << " x " << c.groups << " x " << c.width);
    auto x = random_matrix<double>(c.rows, c.groups * c.width, 1);
    auto w = random_matrix<double>(1, c.width, 2);
    const auto dy = random_matrix<double>(c.rows, c.groups * c.width, 3);
    const auto run = run_norm_backward(c, x, w, dy, false);
    const auto dw_before = random_matrix<double>(1, c.width, 10);
    const auto loss = [&] { return norm_loss(x, w, dy, c.width); };
    CHECK(error(run.dx, [&](std::int64_t i, std::int64_t j) {
            return slope_of(loss, x.at(i, j));
          }) <= 1e-7);
    CHECK(error(run.dw, [&](std::int64_t, std::int64_t j) {
            return dw_before(0, j) + slope_of(loss, w.at(0, j));
          }) <= 1e-7);
  }
}

TEST_CASE("kernels: gradients of norms on every SIMD target", "[kernels]") {
  on_all_targets([](auto type) {
    for (const NormCase& c : kNormCases) {
      INFO(c.rows << " x " << c.groups << " x " << c.width);
      check_norm_backward<decltype(type)>(c, false);
      check_norm_backward<decltype(type)>(c, true);
    }
  });
}

TEST_CASE("kernels: a norm's gradient in place, and without that of its weight", "[kernels]") {
  const NormCase c{33, 1, 65};
  const auto x = random_matrix<float>(33, 65, 1), w = random_matrix<float>(1, 65, 2);
  const auto dy = random_matrix<float>(33, 65, 3);
  const auto expected = run_norm_backward(c, x, w, dy, false);
  Matrix<float> in_place = dy, y(33, 65), rstd(33, 1, 0);
  rms_norm<float>({.shape = {33, 1, 65},
                   .x = x.view(),
                   .weight = w.numbers(),
                   .eps = kEps,
                   .y = y.view(),
                   .rstd = rstd.data.data()});
  rms_norm_backward<float>({.shape = {33, 1, 65},
                            .dy = in_place.view(),
                            .x = x.view(),
                            .rstd = rstd.numbers(),
                            .weight = w.numbers(),
                            .dx = in_place.view()});
  CHECK(error(in_place, [&](std::int64_t i, std::int64_t j) { return expected.dx(i, j); }) == 0);
}

TEST_CASE("kernels: SwiGLU and GeGLU with gradients, apart and in place", "[kernels]") {
  on_all_targets([](auto type) {
    for (const std::int64_t rows : {0, 1, 5}) {
      for (const std::int64_t width : {1, 3, 63, 65, 577}) {
        INFO(rows << " x " << width);
        check_swiglu<decltype(type)>(rows, width);
        check_geglu<decltype(type)>(rows, width);
      }
    }
  });
}

TEST_CASE("kernels: gradients of SwiGLU are the slopes of the formula", "[kernels]") {
  auto g = random_matrix<double>(3, 21, 1), u = random_matrix<double>(3, 21, 2);
  const auto dh = random_matrix<double>(3, 21, 3);
  Matrix<double> dg(3, 21), du(3, 21);
  swiglu_backward<double>({.rows = 3,
                           .width = 21,
                           .dh = dh.view(),
                           .g = g.view(),
                           .u = u.view(),
                           .dg = dg.view(),
                           .du = du.view()});
  const auto loss = [&] {
    double sum = 0;
    for (std::int64_t i = 0; i < 3; ++i) {
      for (std::int64_t j = 0; j < 21; ++j) {
        sum += dh(i, j) * u(i, j) * g(i, j) * sigmoid(g(i, j));
      }
    }
    return sum;
  };
  CHECK(error(dg, [&](std::int64_t i, std::int64_t j) { return slope_of(loss, g.at(i, j)); }) <=
        1e-8);
  CHECK(error(du, [&](std::int64_t i, std::int64_t j) { return slope_of(loss, u.at(i, j)); }) <=
        1e-8);
}

TEST_CASE("kernels: SwiGLU of every size of gate", "[kernels]") {
  on_all_targets([](auto type) {
    using T = decltype(type);
    std::vector<double> gates = {0.0, -0.0};
    for (double size = 1e-6; size <= 1e4; size *= 1.03) gates.insert(gates.end(), {size, -size});
    const auto count = static_cast<std::int64_t>(gates.size());
    Matrix<T> g(1, count), ones(1, count), h(1, count), dg(1, count), du(1, count);
    for (std::int64_t j = 0; j < count; ++j) {
      g.at(0, j) = static_cast<T>(gates[static_cast<std::size_t>(j)]);
      ones.at(0, j) = 1;
    }
    swiglu<T>({1, count, g.view(), ones.view(), h.view()});
    swiglu_backward<T>({.rows = 1,
                        .width = count,
                        .dh = ones.view(),
                        .g = g.view(),
                        .u = ones.view(),
                        .dg = dg.view(),
                        .du = du.view()});
    // e^x has no normal number below this; what is left of it is nothing.
    const double least = sizeof(T) == sizeof(float) ? 1e-29 : 1e-290;
    const Formula silu = [&](std::int64_t, std::int64_t j) { return g(0, j) * sigmoid(g(0, j)); };
    CHECK(error(h, silu, least) <= 5 * kUlps<T>);
    CHECK(error(du, silu, least) <= 5 * kUlps<T>);
    CHECK(error(dg, [&](std::int64_t, std::int64_t j) {
            const double x = g(0, j);
            return sigmoid(x) * (1 + x * sigmoid(-x));
          }) <= 5 * kUlps<T>);
  });
}

TEST_CASE("kernels: rotary embeddings turn, and turn back", "[kernels]") {
  on_all_targets([](auto type) {
    for (const std::int64_t rows : {0, 1, 9}) {
      for (const std::int64_t head_dim : {2, 6, 64, 126}) {
        INFO(rows << " x 3 x " << head_dim);
        check_rotary<decltype(type)>(rows, 3, head_dim);
        check_partial_rotary<decltype(type)>(rows, 3, head_dim + 5, head_dim);
      }
    }
  });
}

TEST_CASE("kernels: the products of a linear layer", "[kernels]") {
  const std::vector<LinearSizes> cases = {{0, 3, 65}, {1, 1, 1},     {3, 65, 63},
                                          {65, 3, 1}, {63, 577, 65}, {700, 65, 3}};
  on_all_targets([&](auto type) {
    using T = decltype(type);
    for (const LinearSizes& sizes : cases) {
      for (const bool accumulate : {false, true}) {
        INFO(sizes.rows << " rows, " << sizes.in << " to " << sizes.out);
        check_linear<T, T>(sizes, accumulate);
        if constexpr (std::is_same_v<T, float>) check_linear<T, c10::BFloat16>(sizes, accumulate);
      }
    }
  });
}

TEST_CASE("kernels: a deep product is cut", "[kernels]") {
  on_all_targets([](auto type) {
    check_linear<decltype(type), decltype(type)>({17, 1301, 20}, true);
    check_linear<decltype(type), decltype(type)>({17, 20, 1301}, false);
    check_linear<decltype(type), decltype(type)>({1301, 20, 17}, true);
  });
}

TEST_CASE("kernels: the number of threads changes no bit", "[kernels]") {
  const std::int64_t rows = 333, in = 160, out = 130;
  const auto x = random_matrix<float>(rows, in, 1), dy = random_matrix<float>(rows, out, 2);
  const auto w = random_matrix<float>(out, in, 3), of_x = random_matrix<float>(rows, in, 4);
  const LinearSizes sizes{rows, in, out};
  check_threads([&] {
    Matrix<float> y(rows, out), dx(rows, in), dw(out, in);
    linear_forward<float, float>({sizes, x.view(), w.view(), y.view()});
    linear_input_grad<float, float>({sizes, dy.view(), w.view(), dx.view()});
    linear_weight_grad<float>({sizes, dy.view(), x.view(), dw.view()});
    return std::vector{y.data, dx.data, dw.data};
  });
  check_threads([&] {
    const auto run = run_norm_backward({rows, 1, in}, x, w, of_x, false);
    const auto heads = run_norm_backward({rows, 5, in / 5}, x, w, of_x, true);
    return std::vector{run.dx.data, run.dw.data, heads.dx.data, heads.dw.data};
  });
  check_threads([&] {
    Matrix<float> h(rows, in), g = x, u = of_x, turned = x;
    swiglu<float>({rows, in, x.view(), of_x.view(), h.view()});
    swiglu_backward<float>({.rows = rows,
                            .width = in,
                            .dh = h.view(),
                            .g = g.view(),
                            .u = u.view(),
                            .dg = g.view(),
                            .du = u.view()});
    const Turn<float> turn(rows, 32);
    apply_rope_<float>({rows, 5, 32, turned.view(), turn.cos.view(), turn.sin.view()});
    return std::vector{h.data, g.data, u.data, turned.data};
  });
}

}  // namespace prefopt::kernels::cpu::test_kernels
