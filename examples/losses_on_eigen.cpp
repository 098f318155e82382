// SPDX-License-Identifier: Apache-2.0

// The formulas that train on tensors, on Eigen arrays in float64: a loss surface, and a tabular
// policy trained to its optimum by plain gradient descent, checked against the closed form
// pi*(y) ~ pi_ref(y) exp(r(y) / beta).

#include <fmt/format.h>

#include <Eigen/Core>
#include <cmath>

#include "prefopt/exact/pair_logps.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/pair/ipo.h"

using namespace prefopt;
using Eigen::ArrayXd;

namespace {

void print_surface() {
  const LogisticLink dpo = DpoLoss({.beta = 0.1}).link();
  const LogisticLink smoothed = DpoLoss({.beta = 0.1, .label_smoothing = 0.1}).link();
  const SquaredLink ipo = IpoLoss({.beta = 0.1}).link();
  fmt::print("{:>8} {:>10} {:>10} {:>10}\n", "delta", "dpo", "cdpo 0.1", "ipo");
  for (double delta = -40; delta <= 40; delta += 10) {
    fmt::print("{:8.1f} {:10.4f} {:10.4f} {:10.2f}\n", delta, dpo.value(delta),
               smoothed.value(delta), ipo.value(delta));
  }
}

ArrayXd log_softmax(const ArrayXd& logits) {
  const double top = logits.maxCoeff();
  return logits - top - std::log((logits - top).exp().sum());
}

// Every ordered pair of responses, weighted by the Bradley-Terry probability of its order.
double train_to_optimum() {
  const double beta = 0.5;
  const ArrayXd reward{{0.0, 0.7, 1.5, -0.4}};
  const ArrayXd ref = log_softmax(ArrayXd{{0.2, -0.3, 0.0, 0.6}});
  const Eigen::Index n = reward.size();
  const LogisticLink link = DpoLoss({.beta = beta}).link();

  ArrayXd logits = ref;
  for (int step = 0; step < 5000; ++step) {
    const ArrayXd logratio = log_softmax(logits) - ref;
    ArrayXd gradient = ArrayXd::Zero(n);
    for (Eigen::Index w = 0; w < n; ++w) {
      for (Eigen::Index l = 0; l < n; ++l) {
        if (w == l) continue;
        const double preferred = math::sigmoid(reward[w] - reward[l]);
        const double slope = preferred * link.derivative(logratio[w] - logratio[l]);
        gradient[w] += slope;  // the normalizer cancels in a difference of log-probs
        gradient[l] -= slope;
      }
    }
    logits -= gradient;
  }
  const ArrayXd closed_form = log_softmax(ref + reward / beta);
  const double error = (log_softmax(logits).exp() - closed_form.exp()).abs().maxCoeff();
  fmt::print("\nDPO's optimum against pi_ref exp(r/beta)/Z: largest difference {:.1e}\n", error);
  return error;
}

}  // namespace

int main() {
  print_surface();
  ExactPairLogps logps;
  logps.chosen_logps = ArrayXd{{-10.0, -12.0}};
  logps.rejected_logps = ArrayXd{{-11.0, -12.0}};
  logps.ref_chosen_logps = logps.ref_rejected_logps = ArrayXd{{-10.5, -12.0}};
  const ExactLossOutput out = DpoLoss({.beta = 0.1}).evaluate(logps);
  fmt::print("\nbatch loss {:.6f}, gradient to the chosen log-probs [{:.6f}, {:.6f}]\n", out.loss,
             out.grad_chosen[0], out.grad_chosen[1]);
  return train_to_optimum() < 1e-8 ? 0 : 1;
}
