// SPDX-License-Identifier: Apache-2.0

// Each link and score alone: value against the plain formula, derivative against differences and
// against autograd through the value, float32 against float64.

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/pair/discopop.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/pair/exo_pair.h"
#include "prefopt/losses/pair/f_dpo.h"
#include "prefopt/losses/pair/robust_dpo.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

template <class Function>
void check_derivative(const Function& function, double scale = 1) {
  for (double x : {-7.0, -1.3, -1e-3, 0.0, 0.4, 2.0, 6.5}) {
    CAPTURE(x);
    const double h = 1e-6;
    const double difference = (function.value(x + h) - function.value(x - h)) / (2 * h);
    CHECK(function.derivative(x) == Approx(difference).epsilon(1e-7).margin(1e-8 * scale));

    const at::Tensor t = at::tensor({x}, at::kDouble).requires_grad_();
    const at::Tensor value = function.value(t);
    CHECK(value.template item<double>() == Approx(function.value(x)).epsilon(1e-14).margin(1e-15));
    value.sum().backward();
    // A constant slope leaves autograd nothing to return but one.
    CHECK(t.grad().template item<double>() ==
          Approx(function.derivative(x)).epsilon(1e-13).margin(1e-15));
    CHECK(function.derivative(t.detach()).template item<double>() ==
          Approx(function.derivative(x)).epsilon(1e-14).margin(1e-15));

    const auto single = static_cast<float>(x);
    CHECK(function.value(single) ==
          Approx(function.value(static_cast<double>(single))).epsilon(1e-5).margin(1e-6));
    CHECK(function.derivative(single) ==
          Approx(function.derivative(static_cast<double>(single))).epsilon(1e-5).margin(1e-6));
  }
}

TEST_CASE("links: derivative, autograd, dtypes", "[losses]") {
  check_derivative(LogisticLink{.beta = 0.3});
  check_derivative(LogisticLink{.beta = 2, .a = 0.8, .b = 0.2});
  check_derivative(LogisticLink{.beta = 1, .a = 1.4, .b = -0.4});
  check_derivative(LogisticLink{.beta = 0.7, .a = 0.9, .b = 0.1, .shift = 1.5});
  check_derivative(SquaredLink{.target = 2.5});
  check_derivative(HingeLink{.beta = 0.6});
  check_derivative(SigmoidLink<>{.beta = -0.6, .weight = 2, .center = 0.3});
  check_derivative(
      BernoulliKlLink<double>{.beta = 0.8, .log_target = -0.1, .log_one_minus_target = -2.4});
  check_derivative(DiscopopLink{.beta = 0.5, .tau = 0.4});
}

TEST_CASE("links: values by hand", "[losses]") {
  CHECK(LogisticLink{.beta = 1}.value(2.0) == Approx(std::log(1 + std::exp(-2.0))));
  CHECK(LogisticLink{.beta = 0.5, .a = 0.9, .b = 0.1}.value(2.0) ==
        Approx(0.9 * std::log(1 + std::exp(-1.0)) + 0.1 * std::log(1 + std::exp(1.0))));
  CHECK(LogisticLink{.beta = 1}.value(1e4) == 0.0);
  CHECK(LogisticLink{.beta = 1}.value(-1e4) == 1e4);
  CHECK(LogisticLink{.beta = 1}.derivative(-1e4) == -1.0);
  CHECK(SquaredLink{.target = 5}.value(3.0) == 4.0);
  CHECK(LogisticLink{.beta = 2, .shift = 1}.value(0.5) == Approx(std::log(2.0)));
  CHECK(HingeLink{.beta = 0.5}.value(1.0) == 0.5);
  CHECK(HingeLink{.beta = 0.5}.derivative(2.0) == 0.0);
  CHECK(SigmoidLink<>{.beta = 1}.value(1.0) == Approx(1 / (1 + std::exp(-1.0))));
}

TEST_CASE("scores: derivative, autograd, dtypes, zero at zero", "[losses]") {
  for (Divergence divergence :
       {Divergence::kReverseKl, Divergence::kForwardKl, Divergence::kJensenShannon,
        Divergence::kAlpha, Divergence::kJeffrey, Divergence::kChiSquaredMix}) {
    for (double alpha : {0.0, 0.3, 1.7}) {
      CAPTURE(static_cast<int>(divergence), alpha);
      const Score score{{.divergence = divergence, .alpha = alpha, .gamma = 0.4}};
      check_derivative(score, 1e3);
      CHECK(score.value(0.0) == (divergence == Divergence::kChiSquaredMix ? 0.4 : 0.0));
      if (divergence != Divergence::kAlpha) break;
    }
  }
}

TEST_CASE("alpha divergence joins forward and reverse KL", "[losses]") {
  const Score reverse{{.divergence = Divergence::kReverseKl}};
  const Score forward{{.divergence = Divergence::kForwardKl}};
  for (double x : {-3.0, -1e-9, 0.5, 4.0}) {
    CHECK(Score{{.divergence = Divergence::kAlpha, .alpha = 0}}.value(x) ==
          Approx(forward.value(x)));
    CHECK(Score{{.divergence = Divergence::kAlpha, .alpha = 1 + 1e-9}}.value(x) ==
          Approx(reverse.value(x)).epsilon(1e-8));
  }
}

TEST_CASE("exponential scores continue as their tangent", "[losses]") {
  const Score forward{{.divergence = Divergence::kForwardKl}};
  // e^301 from the tangent at 300: e^300 (1 + 1); the slope stays e^300.
  CHECK(forward.value(-301.0) == Approx(1 - 2 * std::exp(300.0)));
  CHECK(forward.derivative(-1e4) == std::exp(300.0));
  CHECK(forward.derivative(-1e4f) == std::exp(30.0f));
  // Below the limit float32 has the formula itself.
  CHECK(forward.value(-29.5f) == Approx(1 - std::exp(29.5)).epsilon(1e-5));
  const Score chi{{.divergence = Divergence::kChiSquaredMix, .gamma = 0.5}};
  CHECK(chi.value(302.0) == Approx(0.5 * 3 * std::exp(300.0)));
}

TEST_CASE("rDPO is unbiased under flipped labels", "[losses]") {
  const double eps = 0.3;
  const RobustDpoLoss robust({.beta = 0.5, .label_smoothing = eps});
  const DpoLoss clean({.beta = 0.5});
  for (double delta : {-4.0, 0.3, 6.0}) {
    const double expected =
        (1 - eps) * robust.link().value(delta) + eps * robust.link().value(-delta);
    CHECK(expected == Approx(clean.link().value(delta)).epsilon(1e-13));
  }
}

}  // namespace
}  // namespace prefopt
