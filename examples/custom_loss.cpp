// SPDX-License-Identifier: Apache-2.0

// A custom loss: written as a link, checked, registered, and used by name like any other.
// Here an exponential loss, e^(-beta delta), the link of AdaBoost.

#include <fmt/format.h>
#include <torch/types.h>

#include <cmath>
#include <string>

#include "prefopt/losses/pairwise_loss.h"
#include "prefopt/losses/registry.h"
#include "prefopt/testing/loss_checks.h"

using namespace prefopt;

namespace {

struct ExponentialOptions {
  double beta = 0.1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, Range::above(0));
    score.fields(v);
    pair.fields(v);
  }
};

// Value and derivative in delta, on any number type.
struct ExponentialLink {
  double beta;

  template <class T>
  T value(const T& delta) const {
    return math::capped_expm1(T(-beta * delta)) + 1;
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
  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
};

}  // namespace

int main() {
  register_loss<ExponentialLoss>();

  // Derivatives, extremes, cut steps, … of the defaults and of another beta.
  std::string faults = testing::check_loss(ExponentialLoss()).text();
  faults += testing::check_loss(ExponentialLoss({.beta = 0.7}), {.batch = 7, .seed = 2}).text();

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
  fmt::print("{}\nloss {:.6f}, expected {:.6f}, gradient {}\n{}\n", loss.config(),
             out.loss.item<double>(), expected, gradient_arrives ? "arrives" : "LOST",
             faults.empty() ? "all checks hold" : faults);
  return value_is_right && gradient_arrives && faults.empty() ? 0 : 1;
}
