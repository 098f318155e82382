// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <torch/optim/rmsprop.h>

#include <Eigen/Core>
#include <cmath>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
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

at::Tensor leaf(const at::Tensor& value) { return value.clone().requires_grad_(true); }

/// A part of an optimizer's state, such as "master.w"; undefined: it has none of that name.
at::Tensor state_of(detail::Optimizer& optimizer, const std::string& name) {
  const auto all =
      detail::save_state([&](StateVisitor& visitor) { optimizer.visit_state(visitor); });
  for (const auto& [found, value] : all) {
    if (found == name) return value;
  }
  return {};
}

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

TEST_CASE("optimizer: RMSprop is that of LibTorch", "[train]") {
  const double momentum = GENERATE(0.0, 0.7);
  const double decay = GENERATE(0.0, 0.2);
  const OptimizerOptions options{.type = OptimizerType::kRmsprop,
                                 .rmsprop_alpha = 0.9,
                                 .rmsprop_epsilon = 1e-3,
                                 .rmsprop_momentum = momentum,
                                 .weight_decay = decay};
  const at::Tensor matrix = leaf(at::linspace(-1, 2, 12, at::kDouble).view({3, 4}));
  const at::Tensor vector = leaf(at::linspace(-1, 1, 5, at::kDouble));
  const at::Tensor matrix_there = leaf(matrix.detach());
  const at::Tensor vector_there = leaf(vector.detach());
  detail::Optimizer optimizer({{"matrix", matrix}, {"vector", vector}}, options);
  const auto with_decay = [&](double value) {
    return torch::optim::RMSpropOptions(0.05).alpha(0.9).eps(1e-3).momentum(momentum).weight_decay(
        value);
  };
  torch::optim::RMSprop of_matrix(std::vector<at::Tensor>{matrix_there}, with_decay(decay));
  torch::optim::RMSprop of_vector(std::vector<at::Tensor>{vector_there}, with_decay(0));
  for (int step = 0; step < 6; ++step) {
    optimizer.zero_grad();
    const at::Tensor gradient = (matrix.detach() * 0.3 + gradient_at(step)).detach();
    matrix.mutable_grad() = gradient.clone();
    vector.mutable_grad() = at::full_like(vector, gradient_at(step));
    matrix_there.mutable_grad() = gradient * 0.25;
    vector_there.mutable_grad() = at::full_like(vector, gradient_at(step)) * 0.25;
    optimizer.step(0.05, 0.25);
    of_matrix.step();
    of_vector.step();
    CHECK(at::allclose(matrix, matrix_there, 0, 1e-14));
    CHECK(at::allclose(vector, vector_there, 0, 1e-14));
  }
  CHECK(state_of(optimizer, "momentum.matrix").defined() == (momentum > 0));
  CHECK_FALSE(state_of(optimizer, "mean.matrix").defined());
}

TEST_CASE("optimizer: Adafactor follows its formulas", "[train]") {
  // 1804.04235, algorithms 4 and 5, number by number; transformers' Adafactor with
  // relative_step=False.
  const bool scales = GENERATE(false, true);
  const double decay = GENERATE(0.0, 0.3);
  constexpr double kRate = 0.02, kClip = 0.8, kPower = 0.7, kFloor = 1e-30;
  const OptimizerOptions options{.type = OptimizerType::kAdafactor,
                                 .adafactor_decay = kPower,
                                 .adafactor_clip = kClip,
                                 .adafactor_scale_parameter = scales,
                                 .weight_decay = decay};
  constexpr int kRows = 3, kColumns = 4, kSize = 5;
  using Matrix = Eigen::Array<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Matrix weight = Matrix::NullaryExpr(
      kRows, kColumns, [](Eigen::Index i, Eigen::Index j) { return 0.5 * double(i) - double(j); });
  Eigen::ArrayXd vector_weight = Eigen::ArrayXd::LinSpaced(kSize, -1, 2);
  Eigen::ArrayXd rows = Eigen::ArrayXd::Zero(kRows);
  Eigen::ArrayXd columns = Eigen::ArrayXd::Zero(kColumns);
  Eigen::ArrayXd squares = Eigen::ArrayXd::Zero(kSize);
  const auto tensor_of = [](const auto& values, at::IntArrayRef sizes) {
    return at::from_blob(const_cast<double*>(values.data()), sizes, at::kDouble).clone();
  };
  const at::Tensor matrix = leaf(tensor_of(weight, {kRows, kColumns}));
  const at::Tensor vector = leaf(tensor_of(vector_weight, {kSize}));
  detail::Optimizer optimizer({{"matrix", matrix}, {"vector", vector}}, options);
  const auto rms = [](const auto& values) { return std::sqrt(values.square().mean()); };
  const auto rate_for = [&](const auto& values) {
    return scales ? kRate * std::max(1e-3, rms(values)) : kRate;
  };
  for (int t = 1; t <= 6; ++t) {
    const Matrix gradient = Matrix::NullaryExpr(kRows, kColumns, [&](auto i, auto j) {
      return std::sin(3.0 * t + 2.0 * double(i) + double(j)) * (t == 1 ? 5 : 0.1);
    });
    const Eigen::ArrayXd vector_gradient =
        Eigen::ArrayXd::NullaryExpr(kSize, [&](auto i) { return std::cos(t + 1.5 * double(i)); });
    optimizer.zero_grad();
    matrix.mutable_grad() = tensor_of(gradient, {kRows, kColumns}) * 2;
    vector.mutable_grad() = tensor_of(vector_gradient, {kSize}) * 2;
    optimizer.step(kRate, 0.5);

    const double kept = 1 - std::pow(t, -kPower);
    const Matrix square = gradient.square() + kFloor;
    rows = kept * rows + (1 - kept) * square.rowwise().mean();
    columns = kept * columns + (1 - kept) * square.colwise().mean().transpose();
    Matrix update(kRows, kColumns);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        update(i, j) = gradient(i, j) / std::sqrt(rows[i] * columns[j] / rows.mean());
      }
    }
    const double rate = rate_for(weight);
    weight = (1 - kRate * decay) * weight - rate * update / std::max(1.0, rms(update) / kClip);
    CHECK(at::allclose(matrix, tensor_of(weight, {kRows, kColumns}), 1e-12, 1e-14));

    squares = kept * squares + (1 - kept) * (vector_gradient.square() + kFloor);
    const Eigen::ArrayXd vector_update = vector_gradient / squares.sqrt();
    const double vector_rate = rate_for(vector_weight);
    vector_weight -= vector_rate * vector_update / std::max(1.0, rms(vector_update) / kClip);
    CHECK(at::allclose(vector, tensor_of(vector_weight, {kSize}), 1e-12, 1e-14));
  }
  // A row and a column in place of a matrix.
  CHECK(state_of(optimizer, "rows.matrix").sizes() == at::IntArrayRef({kRows}));
  CHECK(state_of(optimizer, "columns.matrix").sizes() == at::IntArrayRef({kColumns}));
  CHECK(state_of(optimizer, "square.vector").sizes() == at::IntArrayRef({kSize}));
}

TEST_CASE("optimizer: Adafactor in chunks is that of the whole, also of stacked matrices",
          "[train]") {
  // More numbers than are worked on at a time; the matrices of a stack are apart but for clipping.
  const OptimizerOptions options{.type = OptimizerType::kAdafactor, .adafactor_clip = 1e9};
  torch::manual_seed(4);
  const at::Tensor stack = leaf(at::randn({2, 300, 1000}, at::kDouble));
  const at::Tensor first = leaf(stack.detach()[0]);
  detail::Optimizer of_stack({{"w", stack}}, options), of_first({{"w", first}}, options);
  const at::Tensor vector = leaf(at::randn({300000}, at::kDouble));
  detail::Optimizer of_vector({{"v", vector}}, options);
  for (int step = 0; step < 2; ++step) {
    const at::Tensor gradient = at::randn({2, 300, 1000}, at::kDouble);
    stack.mutable_grad() = gradient;
    first.mutable_grad() = gradient[0].clone();
    vector.mutable_grad() = gradient[0].clone().view(-1);
    of_stack.step(0.1);
    of_first.step(0.1);
    of_vector.step(0.1);
  }
  CHECK(at::allclose(stack[0], first, 0, 1e-12));
  const at::Tensor rows = state_of(of_first, "rows.w");
  CHECK(rows.mean().item<double>() ==
        Approx(state_of(of_first, "columns.w").mean().item<double>()).epsilon(1e-12));
  CHECK(rows.mean().item<double>() ==
        Approx(state_of(of_vector, "square.v").mean().item<double>()).epsilon(1e-12));
}

TEST_CASE("optimizer: Adafactor scales down long updates", "[train]") {
  // The first update of a vector has numbers ±1, whose root mean square is 1.
  const auto moved = [](double clip) {
    const at::Tensor vector = leaf(at::zeros({6}, at::kDouble));
    detail::Optimizer optimizer({{"v", vector}},
                                {.type = OptimizerType::kAdafactor, .adafactor_clip = clip});
    vector.mutable_grad() = at::linspace(1, 6, 6, at::kDouble);
    optimizer.step(0.1);
    return vector.detach().abs().max().item<double>();
  };
  CHECK(moved(2) == Approx(0.1).epsilon(1e-12));
  CHECK(moved(0.5) == Approx(0.05).epsilon(1e-12));
}

TEST_CASE("optimizer: options of another type are refused", "[train]") {
  const auto refuse = [](const OptimizerOptions& options, const std::string& text) {
    CHECK_THROWS_TEXT(checked(options, "optimizer"), ConfigError, "optimizer: " + text);
  };
  using enum OptimizerType;
  refuse({.type = kRmsprop, .adam_beta1 = 0.8},
         "expected adam_beta1 to be 0.9 with type rmsprop, which has no use for it, got 0.8");
  refuse({.type = kAdafactor, .adam_epsilon = 1e-6},
         "expected adam_epsilon to be 1e-08 with type adafactor, which has no use for it, got "
         "1e-06");
  refuse({.rmsprop_alpha = 0.9},
         "expected rmsprop_alpha to be 0.99 with type adamw, which has no use for it, got 0.9");
  refuse({.adafactor_scale_parameter = true},
         "expected adafactor_scale_parameter to be false with type adamw, which has no use for it, "
         "got true");
  refuse({.type = kAdafactor, .state_dtype = StateDtype::kBFloat16},
         "expected state_dtype to be parameter with type adafactor, whose state is a row and a "
         "column of each matrix, got bfloat16");
  CHECK_NOTHROW(checked(OptimizerOptions{.type = kAdafactor, .adafactor_decay = 0.5}, "optimizer"));
}

TEST_CASE("optimizer: options of AdamW are written as before there were others", "[train]") {
  const std::string json = options_to_json(OptimizerOptions{});
  CHECK(json.find("\"type\"") == std::string::npos);
  CHECK(json.find("rmsprop") == std::string::npos);
  CHECK(json.find("adafactor") == std::string::npos);
  for (const std::string_view name : {"adafactor", "rmsprop"}) {
    const auto options = options_from_json<OptimizerOptions>(
        fmt::format(R"({{"type": "{}", "learning_rate": 0.5}})", name), "optimizer");
    const std::string written = options_to_json(options);
    CHECK(written.find(fmt::format(R"("type":"{}")", name)) != std::string::npos);
    CHECK(options_to_json(options_from_json<OptimizerOptions>(written, "optimizer")) == written);
  }
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

TEST_CASE("optimizer: narrow weights have masters that follow AdamW's formula", "[train]") {
  // Squares of such gradients are 0 in float16, and such steps are nothing to a bfloat16 near 1.
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const OptimizerOptions options{.learning_rate = 1e-4, .weight_decay = 0.3};
  const at::Tensor matrix = leaf(at::full({3, 2}, 1.5, dtype));
  const at::Tensor vector = leaf(at::full({5}, -0.75, dtype));
  detail::Optimizer optimizer({{"matrix", matrix}, {"vector", vector}}, options);
  Formula of_matrix{1.5};
  Formula of_vector{-0.75};
  for (int step = 0; step < 50; ++step) {
    optimizer.zero_grad();
    const double gradient = 1e-4 * gradient_at(step);
    // As a caller may set it, and as a backward pass adds it.
    matrix.mutable_grad() = at::full_like(matrix, gradient, at::kFloat);
    (vector.to(at::kFloat) * gradient).sum().backward();
    const double in_narrow =
        at::full({}, gradient, at::kFloat).to(dtype).to(at::kDouble).item<double>();
    optimizer.step(options.learning_rate);
    of_matrix.step(gradient, options, 0.3);
    of_vector.step(in_narrow, options, 0);
  }
  CHECK(matrix.scalar_type() == dtype);
  CHECK(state_of(optimizer, "square.matrix").scalar_type() == at::kFloat);
  CHECK(state_of(optimizer, "square.matrix").gt(0).all().item<bool>());
  const at::Tensor master = state_of(optimizer, "master.matrix");
  REQUIRE(master.scalar_type() == at::kFloat);
  CHECK(master[2][1].item<double>() == Approx(of_matrix.value).epsilon(2e-6));
  CHECK(state_of(optimizer, "master.vector")[4].item<double>() ==
        Approx(of_vector.value).epsilon(2e-6));
  CHECK(matrix.detach().equal(master.to(dtype)));
}

TEST_CASE("optimizer: small steps move bfloat16 weights as they move float32's", "[train]") {
  // At DPO's usual learning rate a step is a hundredth of what a bfloat16 near 0.02 can tell apart.
  const at::Tensor start = (at::randn({400}, at::kFloat) * 0.02).to(at::kBFloat16);
  const at::Tensor wide = leaf(start.to(at::kFloat));
  const at::Tensor narrow = leaf(start);
  constexpr double kRate = 5e-7;
  detail::Optimizer of_wide({{"w", wide}}, {});
  detail::Optimizer of_narrow({{"w", narrow}}, {});
  for (int step = 0; step < 400; ++step) {
    for (auto* one : {&of_wide, &of_narrow}) one->zero_grad();
    (wide * start.to(at::kFloat)).sum().backward();
    (narrow.to(at::kFloat) * start.to(at::kFloat)).sum().backward();
    of_wide.step(kRate);
    of_narrow.step(kRate);
    if (step == 19)
      CHECK(state_of(of_narrow, "master.w").ne(start.to(at::kFloat)).all().item<bool>());
  }
  CHECK(state_of(of_narrow, "master.w").equal(wide.detach()));
  CHECK(narrow.detach().equal(wide.detach().to(at::kBFloat16)));
  CHECK(narrow.detach().ne(start).sum().item<int>() > 300);
}

TEST_CASE("optimizer: gradients of narrow weights are added up in float32, in one buffer",
          "[train]") {
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const at::Tensor matrix = leaf(at::ones({7, 3}, dtype));
  const at::Tensor vector = leaf(at::ones({4}, dtype));
  const at::Tensor other = leaf(at::ones({4}));
  detail::Optimizer optimizer({{"matrix", matrix}, {"vector", vector}, {"other", other}}, {});
  for (int again = 0; again < 2; ++again) {
    optimizer.zero_grad();
    // 2^-12 is nothing next to a 1 of either dtype.
    for (int part = 0; part < 33; ++part) {
      ((matrix.sum() + vector.sum()) * (part == 0 ? 1 : 0x1p-12)).backward();
    }
    REQUIRE(matrix.grad().scalar_type() == at::kFloat);
    CHECK(matrix.grad().equal(at::full({7, 3}, 1 + 0x1p-7)));
    CHECK(vector.grad().equal(at::full({4}, 1 + 0x1p-7)));
  }
  CHECK(matrix.grad().storage().is_alias_of(vector.grad().storage()));
  CHECK_FALSE(other.grad().defined());
}

TEST_CASE("optimizer: a narrow weight that got no gradient stays as it is", "[train]") {
  const auto masters = GENERATE(Masters::kFloat32, Masters::kStochastic);
  const at::Tensor used = leaf(at::full({8, 2}, 3, at::kBFloat16));
  const at::Tensor unused = leaf(at::full({8, 2}, 3, at::kBFloat16));
  detail::Optimizer optimizer({{"used", used}, {"unused", unused}},
                              {.weight_decay = 1, .masters = masters});
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    used.sum().backward();
    CHECK(optimizer.grad_norm() == 4);
    optimizer.step(0.1);
  }
  CHECK(used.detach().lt(3).all().item<bool>());
  CHECK(unused.detach().equal(at::full({8, 2}, 3, at::kBFloat16)));
  CHECK(state_of(optimizer, "steps.unused").item<double>() == 0);
}

TEST_CASE("optimizer: the norm of narrow gradients is not rounded to their dtype", "[train]") {
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const at::Tensor value = leaf(at::ones({3000}, dtype));
  detail::Optimizer optimizer({{"value", value}}, {});
  const at::Tensor gradient = (at::randn({3000}, at::kFloat) * 3000).to(dtype);
  value.mutable_grad() = gradient;
  double sum = 0;
  for (std::int64_t i = 0; i < 3000; ++i) sum += std::pow(gradient[i].item<double>(), 2);
  REQUIRE(std::sqrt(sum) > 70000);  // a float16 would be infinite
  CHECK(optimizer.grad_norm() == Approx(std::sqrt(sum)).epsilon(1e-6));
}

TEST_CASE("optimizer: weights without masters are right on average", "[train]") {
  // A step moves them by a tenth of a bfloat16's distance near 1, or by a float16's.
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const double sign = GENERATE(1, -1);
  const double rate = dtype == at::kHalf ? 1e-4 : 8e-4;
  const OptimizerOptions options{.learning_rate = rate, .masters = Masters::kStochastic};
  const at::Tensor value = leaf(at::full({20000, 1}, 1.25 * sign, dtype));
  detail::Optimizer optimizer({{"value", value}}, options);
  Formula formula{1.25 * sign};
  for (int step = 0; step < 40; ++step) {
    optimizer.zero_grad();
    (value.to(at::kFloat) * sign).sum().backward();
    optimizer.step(rate);
    formula.step(sign, options, 0);
  }
  CHECK_FALSE(state_of(optimizer, "master.value").defined());
  CHECK(state_of(optimizer, "mean.value").scalar_type() == at::kFloat);
  const at::Tensor moved = value.detach().to(at::kDouble) - 1.25 * sign;
  REQUIRE(moved.std().item<double>() > 0);  // each draws for itself
  CHECK(moved.mean().item<double>() == Approx(formula.value - 1.25 * sign).epsilon(1e-2));
}

TEST_CASE("optimizer: float16 rounds at random between its own neighbours", "[train]") {
  // Normal, at a power of two from both sides, below the least normal one, and zero.
  const double start = GENERATE(0.3, 1.0, -1.0, 0x1p-14, -0x1p-15, 3 * 0x1p-24, 0.0);
  const at::Tensor value = leaf(at::full({4000, 1}, start, at::kHalf));
  const double before = value.detach()[0][0].item<double>();
  const double step = 0.25 * std::max(std::abs(before) * 0x1p-10, 0x1p-24);
  detail::Optimizer optimizer({{"value", value}}, {.masters = Masters::kStochastic});
  optimizer.zero_grad();
  value.sum().backward();
  optimizer.step(step);  // the first moves by the learning rate
  const at::Tensor moved = value.detach().to(at::kDouble) - before;
  CHECK(moved.mean().item<double>() == Approx(-step).epsilon(0.1));
  CHECK(moved.min().item<double>() >= -8 * step);
  CHECK(moved.max().item<double>() <= 0);
  CHECK(std::get<0>(at::_unique(moved)).size(0) == 2);
}

TEST_CASE("optimizer: draws and masters are those of an optimizer that was never away", "[train]") {
  const auto type =
      GENERATE(OptimizerType::kAdamW, OptimizerType::kAdafactor, OptimizerType::kRmsprop);
  const auto masters = GENERATE(Masters::kFloat32, Masters::kStochastic);
  const auto state_dtype = GENERATE(StateDtype::kParameter, StateDtype::kBFloat16);
  if (type == OptimizerType::kAdafactor && state_dtype == StateDtype::kBFloat16) return;
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf, at::kFloat);
  const OptimizerOptions options{.type = type,
                                 .rmsprop_momentum = type == OptimizerType::kRmsprop ? 0.5 : 0,
                                 .weight_decay = 0.1,
                                 .state_dtype = state_dtype,
                                 .masters = masters};
  const auto take_steps = [](detail::Optimizer& optimizer, const at::Tensor& value, int from,
                             int to) {
    for (int step = from; step < to; ++step) {
      optimizer.zero_grad();
      (value.to(at::kFloat) * at::linspace(-1, 1 + step, 600).view({300, 2})).sum().backward();
      optimizer.step(1e-3, 0.5);
    }
  };
  const at::Tensor straight = leaf(at::ones({300, 2}, dtype));
  detail::Optimizer whole({{"value", straight}}, options);
  take_steps(whole, straight, 0, 7);

  const at::Tensor first = leaf(at::ones({300, 2}, dtype));
  detail::Optimizer before({{"value", first}}, options);
  take_steps(before, first, 0, 4);
  const at::Tensor second = leaf(first.detach());
  detail::Optimizer after({{"value", second}}, options);
  detail::load_state(
      [&](StateVisitor& visitor) { after.visit_state(visitor); },
      detail::save_state([&](StateVisitor& visitor) { before.visit_state(visitor); }), "optimizer");
  take_steps(after, second, 4, 7);
  CHECK(second.detach().equal(straight.detach()));
  int parts = 0;
  for (const char* part : {"master.value", "mean.value", "square.value", "momentum.value",
                           "rows.value", "columns.value", "steps.value"}) {
    INFO(part);
    const at::Tensor expected = state_of(whole, part);
    if (!expected.defined()) continue;
    CHECK(state_of(after, part).equal(expected));
    ++parts;
  }
  CHECK(parts >= 3);
  // Without the state they are others.
  const at::Tensor third = leaf(first.detach());
  detail::Optimizer unloaded({{"value", third}}, options);
  take_steps(unloaded, third, 4, 7);
  CHECK_FALSE(third.detach().equal(straight.detach()));
}

TEST_CASE("optimizer: the state of another type is refused", "[train]") {
  const at::Tensor value = leaf(at::ones({3, 2}));
  detail::Optimizer adamw({{"value", value}}, {});
  detail::Optimizer adafactor({{"value", value}}, {.type = OptimizerType::kAdafactor});
  const auto saved = detail::save_state([&](StateVisitor& visitor) { adamw.visit_state(visitor); });
  CHECK_THROWS_AS(detail::load_state([&](StateVisitor& visitor) { adafactor.visit_state(visitor); },
                                     saved, "optimizer"),
                  CheckpointError);
}

TEST_CASE("optimizer: what others write into a narrow weight reaches its master", "[train]") {
  const at::Tensor value = leaf(at::ones({2, 2}, at::kBFloat16));
  detail::Optimizer optimizer({{"value", value}}, {});
  const auto step = [&] {
    optimizer.zero_grad();
    value.sum().backward();
    optimizer.step(1e-4);
  };
  step();
  {
    const at::NoGradGuard no_grad;
    value[0].fill_(4);
  }
  step();
  const at::Tensor master = state_of(optimizer, "master.value");
  CHECK(master[0][1].item<double>() == Approx(4 - 1e-4).epsilon(1e-7));
  CHECK(master[1][1].item<double>() == Approx(1 - 2e-4).epsilon(1e-7));
}

TEST_CASE("optimizer: bfloat16 state is rounded at random whatever the weights' dtype", "[train]") {
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf, at::kFloat, at::kDouble);
  const OptimizerOptions options{.learning_rate = 1e-3, .state_dtype = StateDtype::kBFloat16};
  const at::Tensor value = leaf(at::zeros({5000, 1}, dtype));
  detail::Optimizer optimizer({{"value", value}}, options);
  Formula formula{0};
  for (int step = 0; step < 40; ++step) {
    const double gradient = step < 5 ? 3 : 1;
    optimizer.zero_grad();
    value.mutable_grad() = at::full_like(value, gradient);
    optimizer.step(options.learning_rate);
    formula.step(gradient, options, 0);
  }
  const at::Tensor squares = state_of(optimizer, "square.value").to(at::kDouble);
  CHECK(squares.std().item<double>() > 0);
  CHECK(squares.mean().item<double>() == Approx(formula.square).epsilon(3e-3));
  CHECK(value.detach().to(at::kDouble).mean().item<double>() ==
        Approx(formula.value).epsilon(6e-3));
}

TEST_CASE("optimizer: float64 weights with bfloat16 state stay float64", "[train]") {
  const at::Tensor value = leaf(at::full({6, 1}, 0.1, at::kDouble));
  detail::Optimizer optimizer({{"value", value}}, {.state_dtype = StateDtype::kBFloat16});
  value.mutable_grad() = at::full_like(value, 1.0);
  optimizer.step(1e-12);
  CHECK(value[3][0].item<double>() == Approx(0.1 - 1e-12).epsilon(1e-15));
  CHECK(value.detach().ne(value.detach().to(at::kFloat).to(at::kDouble)).all().item<bool>());
}

TEST_CASE("optimizer: masters stand in for their weights while a policy is written", "[train]") {
  const at::Tensor trained = leaf(at::ones({2, 2}, at::kBFloat16));
  const at::Tensor frozen = at::full({2}, 0.5, at::kBFloat16);
  const at::Tensor wide = leaf(at::ones({2}));
  const std::vector<NamedParameter> all{{"trained", trained}, {"frozen", frozen}, {"wide", wide}};
  detail::Optimizer optimizer(all, {});
  optimizer.zero_grad();
  trained.sum().backward();
  optimizer.step(1e-5);
  const at::Tensor before = trained.detach().clone();
  const at::Tensor gradient = trained.grad();
  {
    const detail::WideWeights weights(optimizer, all);
    CHECK(trained.detach().equal(state_of(optimizer, "master.trained")));
    CHECK(trained.detach()[0][0].item<double>() == Approx(1 - 1e-5).epsilon(1e-7));
    CHECK(frozen.equal(at::full({2}, 0.5)));
    CHECK(wide.detach().equal(at::ones({2})));
  }
  CHECK(trained.detach().equal(before));
  CHECK(frozen.scalar_type() == at::kBFloat16);
  CHECK(trained.grad().is_same(gradient));
  optimizer.zero_grad();
  trained.sum().backward();
  optimizer.step(1e-5);
  CHECK(state_of(optimizer, "master.trained")[1][1].item<double>() ==
        Approx(1 - 2e-5).epsilon(1e-7));
  // Without masters the weights are what is trained.
  detail::Optimizer plain(all, {.masters = Masters::kStochastic});
  const detail::WideWeights weights(plain, all);
  CHECK(trained.scalar_type() == at::kBFloat16);
}

TEST_CASE("optimizer: narrow state on a GPU", "[train]") {
  if (!at::hasCUDA()) return;
  const auto on_gpu = at::TensorOptions(at::kCUDA);
  const at::Tensor value = leaf(at::ones({8, 2}, on_gpu));
  const at::Tensor narrow = leaf(at::ones({8, 2}, on_gpu.dtype(at::kHalf)));
  detail::Optimizer optimizer(
      {{"value", value}, {"narrow", narrow}},
      {.state_dtype = StateDtype::kBFloat16, .masters = Masters::kStochastic});
  optimizer.zero_grad();
  (value.sum() + narrow.sum()).backward();
  CHECK(optimizer.grad_norm() == Approx(std::sqrt(32.0)));
  optimizer.step(0.01);
  CHECK(value.detach().cpu().lt(1).all().item<bool>());
}

}  // namespace prefopt
