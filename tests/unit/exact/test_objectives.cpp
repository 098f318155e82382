// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <set>
#include <string>

#include "prefopt/error.h"
#include "prefopt/exact/loss.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"
#include "prefopt/exact/objective.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pairs.h"

namespace prefopt::exact {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

/// Three prompts of five actions with a Bradley-Terry reward, and all that a loss may ask for.
struct Problem {
  explicit Problem(std::uint64_t seed) {
    Random random(seed);
    ref = log_softmax(0.5 * random.normals(5, 3));
    rewards = random.normals(5, 3);
    features = random.normals(15, 4).matrix();
    preferences = Preferences::bradley_terry(rewards);
    exact_pairs = population(ref, *preferences);
    for (Index i = 0; i < exact_pairs.size(); ++i) {
      exact_pairs.from_reference.push_back(static_cast<int>(i % 3));
    }
    pairs = sample(exact_pairs, 40, random);
    lens = (3 + 2 * random.normals(5, 3).abs()).round();
    calibration = log_softmax(random.normals(5, 3));
    theta = 0.7 * random.normals(4, 1).matrix();
  }

  Knowledge knowledge() const {
    return {.lens = lens, .rewards = rewards, .preferences = preferences};
  }
  SoftmaxPolicy log_linear() const { return SoftmaxPolicy::log_linear(ref, features); }

  Table ref, rewards, lens, calibration;
  MatrixXd features;
  std::optional<Preferences> preferences;
  Pairs exact_pairs, pairs;
  VectorXd theta;
};

std::string of_type(const std::string& name) { return R"({"type": ")" + name + R"("})"; }

/// Without what a loss detaches, the gradient is the value's.
void check_gradient(const Objective& objective, const VectorXd& theta) {
  const VectorXd gradient = objective.evaluate(theta).gradient;
  for (Index i = 0; i < theta.size(); ++i) {
    VectorXd up = theta, down = theta;
    up[i] += 1e-5;
    down[i] -= 1e-5;
    const double slope = (objective.evaluate(up).value - objective.evaluate(down).value) / 2e-5;
    CHECK(gradient[i] == Approx(slope).epsilon(1e-6).margin(1e-7));
  }
}

TEST_CASE("exact losses: every registered one by its config", "[exact]") {
  for (const std::string& name : registered_losses()) {
    CAPTURE(name);
    const ExactLoss loss(of_type(name));
    const Loss tensors = make_loss(of_type(name));
    const auto samples = static_cast<int>(loss.requirements().samples_per_prompt);
    const ExactPairLogps in = testing_support::random_pairs(6, samples, 5);
    const LossOutput expected = tensors.forward(testing_support::to_tensors(in));
    const ExactLossOutput out = loss.evaluate(in);
    CHECK(out.loss == Approx(expected.loss.item<double>()).epsilon(1e-12));
    CHECK((out.losses - testing_support::to_array(expected.losses)).abs().maxCoeff() < 1e-12);
    for (std::size_t f = 0; f < kPairFields<at::Tensor>.size(); ++f) {
      const auto gradient = kPairFields<at::Tensor>[f].gradient;
      if (gradient == nullptr || !(expected.*gradient).defined()) continue;
      CHECK((out.*kPairFields<Eigen::ArrayXd>[f].gradient -
             testing_support::to_array(expected.*gradient))
                .abs()
                .maxCoeff() < 1e-12);
    }
    CHECK(loss.config() == tensors.config());
    CHECK(loss.name() == name);
  }
  CHECK(ExactLoss(R"({"type": "ipo", "beta": 0.5})")
            .evaluate(testing_support::random_pairs(4, 0, 1))
            .loss !=
        ExactLoss(of_type("ipo")).evaluate(testing_support::random_pairs(4, 0, 1)).loss);
  CHECK_THROWS_TEXT(ExactLoss(of_type("dpi")), ConfigError,
                    "loss: expected a registered loss, got 'dpi'; did you mean 'dpo'?");
  CHECK_THROWS_TEXT(ExactLoss(of_type("mix")).evaluate({}), ShapeError,
                    "mix: expected chosen_logps of shape [batch], got no tensor");
}

TEST_CASE("exact objective: gradients of all losses against finite differences", "[exact]") {
  // These hold fixed what the finite difference would move.
  const std::set<std::string> detaching{"kto",      "kto_pair",       "bco",  "bco_pair",
                                        "beta_dpo", "tdpo",           "sppo", "exo_pair",
                                        "dft",      "policy_gradient"};
  const Problem problem(6);
  int checked = 0;
  for (const std::string& name : registered_losses()) {
    CAPTURE(name);
    const Objective objective(ExactLoss(of_type(name)), problem.log_linear(), problem.ref,
                              problem.pairs, problem.knowledge());
    CHECK(objective.evaluate(problem.theta).gradient.allFinite());
    if (detaching.contains(name)) continue;
    check_gradient(objective, problem.theta);
    ++checked;
  }
  CHECK(checked > 25);
}

TEST_CASE("exact objective: weights are what repeated rows are", "[exact]") {
  const Problem problem(7);
  for (const std::string name : {"dpo", "hypo", "rpo", "sft", "tpo", "ipo"}) {
    CAPTURE(name);
    const auto value = [&](const Pairs& pairs) {
      return Objective(ExactLoss(of_type(name)), problem.log_linear(), problem.ref, pairs,
                       problem.knowledge())
          .evaluate(problem.theta);
    };
    const auto rows = value(problem.pairs), weights = value(merged(problem.pairs));
    CHECK(merged(problem.pairs).size() < problem.pairs.size());
    CHECK(rows.value == Approx(weights.value).epsilon(1e-12));
    CHECK((rows.gradient - weights.gradient).cwiseAbs().maxCoeff() < 1e-12);
  }
}

TEST_CASE("exact objective: DPO's terms by hand", "[exact]") {
  const Problem problem(8);
  const SoftmaxPolicy policy = problem.log_linear();
  const Table logps = policy.logps(problem.theta);
  double loss = 0;
  const Pairs& pairs = problem.exact_pairs;
  for (Index i = 0; i < pairs.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const auto logratio = [&](Index y) {
      return logps(y, pairs.prompts[at]) - problem.ref(y, pairs.prompts[at]);
    };
    const double z = 0.4 * (logratio(pairs.chosen[at]) - logratio(pairs.rejected[at]));
    loss += pairs.weights[i] * std::log1p(std::exp(-z));
  }
  const auto value = [&](const std::string& config) {
    return Objective(ExactLoss(config), policy, problem.ref, pairs,
                     {.calibration = problem.calibration})
        .evaluate(problem.theta)
        .value;
  };
  CHECK(value(R"({"type": "dpo", "beta": 0.4})") == Approx(loss).epsilon(1e-13));
  // HyPO adds the very KL, not a sample of it; VPO the mean log-ratio of the calibration policy.
  CHECK(value(R"({"type": "hypo", "beta": 0.4, "lambda": 0.3, "num_samples": 4})") ==
        Approx(loss + 0.3 * kl(logps, problem.ref)).epsilon(1e-12));
  CHECK(value(R"({"type": "vpo", "beta": 0.4, "alpha": 0.5, "mode": "online",
                  "calibration": "samples", "num_samples": 3})") ==
        Approx(loss + 0.2 * expectation(problem.calibration, logps - problem.ref)).epsilon(1e-12));
}

TEST_CASE("exact objective: Hessian and Newton's method", "[exact]") {
  const Problem problem(9);
  const Objective dpo(ExactLoss(R"({"type": "dpo", "beta": 0.5})"), problem.log_linear(),
                      problem.ref, problem.exact_pairs);
  // sum_i w_i beta^2 sigmoid'(z_i) (phi_w - phi_l)(phi_w - phi_l)^T, as the normalizer cancels.
  MatrixXd expected = MatrixXd::Zero(4, 4);
  for (Index i = 0; i < problem.exact_pairs.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const Index x = problem.exact_pairs.prompts[at];
    const VectorXd gap = (problem.features.row(5 * x + problem.exact_pairs.chosen[at]) -
                          problem.features.row(5 * x + problem.exact_pairs.rejected[at]))
                             .transpose();
    const double p = 1 / (1 + std::exp(-0.5 * gap.dot(problem.theta)));
    expected += problem.exact_pairs.weights[i] * 0.25 * p * (1 - p) * gap * gap.transpose();
  }
  CHECK((dpo.hessian(problem.theta) - expected).cwiseAbs().maxCoeff() < 1e-10);

  const Minimum minimum = minimize(dpo, VectorXd::Zero(4));
  CHECK(minimum.converged);
  CHECK(minimum.gradient_norm < 1e-12);
  CHECK(minimum.iterations < 20);
  // Two actions and a win probability p: IPO's optimum is a log-ratio of (2p - 1) / (2 tau).
  const Table flat = log_softmax(Table::Zero(2, 1));
  const Preferences coin = Preferences::general({MatrixXd{{0.5, 0.8}, {0.2, 0.5}}});
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(flat);
  const Minimum ipo = minimize(Objective(ExactLoss(R"({"type": "ipo", "beta": 0.25})"), policy,
                                         flat, population(flat, coin)),
                               VectorXd::Zero(2));
  const Table logps = policy.logps(ipo.theta);
  CHECK(logps(0, 0) - logps(1, 0) == Approx((2 * 0.8 - 1) / 0.5).epsilon(1e-10));

  // Gradient descent, by hand for one step.
  const VectorXd step = -0.1 * dpo.evaluate(problem.theta).gradient;
  int calls = 0;
  const VectorXd moved =
      descend(dpo, problem.theta, 0.1, 1, [&](int at, const VectorXd&) { CHECK(at == calls++); });
  CHECK((moved - problem.theta - step).norm() < 1e-15);
  CHECK(calls == 2);
}

TEST_CASE("exact objective: DPO's optimum is that of the regularized reward", "[exact]") {
  const Problem problem(10);
  const double beta = 0.3;
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(problem.ref);
  const Objective dpo(ExactLoss(R"({"type": "dpo", "beta": 0.3})"), policy, problem.ref,
                      problem.exact_pairs);
  const Table found = policy.logps(minimize(dpo, VectorXd::Zero(15)).theta);
  CHECK((found - optimum(problem.ref, problem.rewards, beta)).abs().maxCoeff() < 1e-8);
}

TEST_CASE("exact objective: what does not fit is refused", "[exact]") {
  const Problem problem(11);
  const auto make = [&](const std::string& name, const Table& ref, const Pairs& pairs) {
    return Objective(ExactLoss(of_type(name)), problem.log_linear(), ref, pairs);
  };
  CHECK_THROWS_TEXT(make("dpo", problem.ref.topRows(4), problem.pairs), ShapeError,
                    "objective: expected ref_logps of shape [5, 3], got [4, 3]");
  CHECK_THROWS_TEXT(make("rpo_sq", problem.ref, problem.pairs), ConfigError,
                    "objective: expected rewards for 'rpo_sq', got none");
  CHECK_THROWS_TEXT(Objective(ExactLoss(R"({"type": "sppo", "soft": true})"), problem.log_linear(),
                              problem.ref, problem.pairs),
                    ConfigError, "objective: expected preferences for 'sppo', got none");
  Pairs pairs = problem.pairs;
  pairs.chosen[3] = 5;
  CHECK_THROWS_TEXT(make("dpo", problem.ref, pairs), DataError,
                    "objective: expected chosen actions from 0 to 4, got 5");
  pairs = problem.pairs;
  pairs.rejected.pop_back();
  CHECK_THROWS_TEXT(make("dpo", problem.ref, pairs), ShapeError,
                    "objective: expected at least one pair, and as many prompts, chosen and "
                    "rejected actions as weights, got 40, 40, 39 and 40");
  pairs = problem.pairs;
  pairs.weights *= 2;
  CHECK_THROWS_TEXT(make("dpo", problem.ref, pairs), ConfigError,
                    "objective: expected weights of at least 0 that sum to 1, got a smallest one "
                    "of 0.05 and a sum of 2");
  pairs = problem.pairs;
  pairs.weights[0] -= 0.01;
  pairs.weights[1] += 0.01;
  CHECK_THROWS_TEXT(make("aot", problem.ref, pairs), ConfigError,
                    "objective: expected pairs of equal weight for 'aot', which sees a step as a "
                    "whole, got weights from 0.015 to 0.035; sample pairs");
}

}  // namespace
}  // namespace prefopt::exact
