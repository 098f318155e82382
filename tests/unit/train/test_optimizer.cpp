// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "support/catch.h"
#include "train/optimizer.h"

namespace prefopt {
namespace {

/// AdamW (1711.05101, algorithm 2) on one number.
struct Formula {
  double value, mean = 0, square = 0;
  int steps = 0;

  void step(double gradient, const OptimizerOptions& o, double decay) {
    ++steps;
    mean = o.adam_beta1 * mean + (1 - o.adam_beta1) * gradient;
    square = o.adam_beta2 * square + (1 - o.adam_beta2) * gradient * gradient;
    const double corrected_mean = mean / (1 - std::pow(o.adam_beta1, steps));
    const double corrected_square = square / (1 - std::pow(o.adam_beta2, steps));
    value -= o.learning_rate * decay * value;
    value -= o.learning_rate * corrected_mean / (std::sqrt(corrected_square) + o.adam_epsilon);
  }
};

at::Tensor leaf(at::Tensor value) { return value.clone().requires_grad_(true); }

double gradient_at(int step) { return std::sin(step + 1.0) - 0.3; }

}  // namespace

TEST_CASE("optimizer: matrices and vectors follow AdamW's formula", "[train]") {
  const OptimizerOptions options{
      .learning_rate = 0.05, .adam_beta1 = 0.8, .adam_beta2 = 0.95, .weight_decay = 0.2};
  const at::Tensor matrix = leaf(at::full({2, 2}, 1.5, at::kDouble));
  const at::Tensor vector = leaf(at::full({3}, -0.5, at::kDouble));
  const at::Tensor unused = leaf(at::full({2}, 7, at::kDouble));
  const at::Tensor frozen = at::full({2}, 7, at::kDouble);
  detail::Optimizer optimizer(
      {{"matrix", matrix}, {"vector", vector}, {"unused", unused}, {"frozen", frozen}}, options);
  Formula of_matrix{1.5};
  Formula of_vector{-0.5};
  for (int step = 0; step < 7; ++step) {
    optimizer.zero_grad();
    CHECK_FALSE(matrix.grad().defined());
    matrix.mutable_grad() = at::full_like(matrix, gradient_at(step));
    vector.mutable_grad() = at::full_like(vector, 2 * gradient_at(step));
    CHECK(optimizer.grad_norm() ==
          Approx(std::sqrt(4 + 3 * 4) * std::abs(gradient_at(step))).epsilon(1e-12));
    constexpr double kFactor = 0.25;
    optimizer.step(options.learning_rate, kFactor);
    of_matrix.step(kFactor * gradient_at(step), options, 0.2);
    of_vector.step(kFactor * 2 * gradient_at(step), options, 0);
    CHECK(matrix[1][0].item<double>() == Approx(of_matrix.value).epsilon(1e-10));
    CHECK(vector[2].item<double>() == Approx(of_vector.value).epsilon(1e-10));
  }
  CHECK(unused.equal(at::full({2}, 7, at::kDouble)));
}

TEST_CASE("optimizer: narrow state is right on average where rounding would lose it", "[train]") {
  // A mean of squares near 1 takes steps of 0.001 times the gradient's square: a bfloat16 near 1
  // has steps of 0.0078, so rounding to the nearest would leave it where it is for ever.
  const OptimizerOptions options{.learning_rate = 1e-3, .state_dtype = StateDtype::kBFloat16};
  const std::int64_t numbers = 20000;
  const at::Tensor narrow = leaf(at::zeros({numbers, 1}));
  detail::Optimizer optimizer({{"narrow", narrow}}, options);
  Formula formula{0};
  for (int step = 0; step < 60; ++step) {
    const double gradient = step < 5 ? 3 : 1;
    narrow.mutable_grad() = at::full_like(narrow, gradient);
    optimizer.step(options.learning_rate);
    formula.step(gradient, options, 0);
  }
  const double mean = narrow.detach().mean().item<double>();
  const double spread = narrow.detach().std().item<double>();
  REQUIRE(spread > 0);  // each number draws for itself
  CHECK(spread < 0.02 * std::abs(formula.value));
  CHECK(mean == Approx(formula.value).epsilon(2e-3));
}

TEST_CASE("optimizer: the draws of narrow state depend on the step alone", "[train]") {
  const OptimizerOptions options{.state_dtype = StateDtype::kBFloat16};
  const auto run = [&] {
    const at::Tensor value = leaf(at::ones({300, 2}));
    detail::Optimizer optimizer({{"value", value}}, options);
    for (int step = 0; step < 4; ++step) {
      torch::manual_seed(static_cast<std::uint64_t>(std::rand()));
      value.mutable_grad() = at::full_like(value, 0.3 + step);
      optimizer.step(0.01);
    }
    return value.detach().clone();
  };
  CHECK(run().equal(run()));
}

}  // namespace prefopt
