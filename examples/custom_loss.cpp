// SPDX-License-Identifier: Apache-2.0

// A loss of one's own: written as a link, registered, tested, and used by name like any other.
// Here an exponential loss, e^(-beta delta), the link of AdaBoost.

#include <fmt/format.h>
#include <torch/torch.h>

#include <cmath>
#include <string>

#include "prefopt/losses/pairwise_loss.h"
#include "prefopt/losses/registry.h"

using namespace prefopt;

namespace {

struct ExponentialOptions {
  double beta = 0.1;
  ScoreOptions score = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, Range::above(0));
    score.fields(v);
  }
};

// Value and derivative in delta, on any number type.
struct ExponentialLink {
  double beta;

  template <class T>
  T value(const T& delta) const {
    return math::tame_expm1(T(-beta * delta)) + 1;
  }
  template <class T>
  T derivative(const T& delta) const {
    return -beta * math::tame_exp_slope(T(-beta * delta));
  }
};

class ExponentialLoss : public PairwiseLoss<ExponentialLoss, ExponentialOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  ExponentialLink link() const { return {options_.beta}; }

  static LossInfo info() {
    return {.name = "exponential",
            .aliases = {},
            .formula = "exp(-beta*delta)",
            .source = "this example",
            .anchors = {{0, 0, 1}}};
  }
};

// The derivative against central differences of the value, in float64.
bool derivative_is_right(const ExponentialLink& link) {
  for (double delta : {-20.0, -1.0, 0.0, 0.5, 30.0}) {
    const double h = 1e-5;
    const double difference = (link.value(delta + h) - link.value(delta - h)) / (2 * h);
    if (std::abs(difference - link.derivative(delta)) > 1e-6 * std::abs(difference) + 1e-9) {
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  register_loss<ExponentialLoss>();
  const Loss loss = make_loss(R"({"type": "exponential", "beta": 0.5})");

  PairLogps logps;
  logps.chosen_logps = torch::tensor({-10.0, -12.0}, torch::kDouble).requires_grad_();
  logps.rejected_logps = torch::tensor({-11.0, -12.0}, torch::kDouble).requires_grad_();
  logps.ref_chosen_logps = torch::tensor({-10.5, -12.0}, torch::kDouble);
  logps.ref_rejected_logps = torch::tensor({-10.5, -12.0}, torch::kDouble);
  const LossOutput out = loss(logps);
  out.loss.backward();

  // delta = 1 and 0: (e^-0.5 + 1) / 2.
  const double expected = (std::exp(-0.5) + 1) / 2;
  const bool value_is_right = std::abs(out.loss.item<double>() - expected) < 1e-12;
  const bool gradient_arrives = torch::equal(logps.chosen_logps.grad(), out.grad_chosen);
  fmt::print("{}\nloss {:.6f}, expected {:.6f}\nderivative {}, gradient {}\n", loss.config(),
             out.loss.item<double>(), expected, derivative_is_right({0.5}) ? "right" : "WRONG",
             gradient_arrives ? "arrives" : "LOST");
  return value_is_right && gradient_arrives && derivative_is_right({0.5}) ? 0 : 1;
}
