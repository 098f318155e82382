// SPDX-License-Identifier: Apache-2.0

// Losses of online methods in expectation over the policy's own samples, all of them enumerated.
// `hand` is a group of a file of goldens, online.json: float64 numpy and torch autograd.

#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "prefopt/exact/loss.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"
#include "prefopt/exact/objective.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/pair/ipo.h"
#include "prefopt/losses/pair/policy_gradient.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::exact {
namespace {

using Eigen::Array3d;
using Eigen::ArrayXd;
using Eigen::MatrixXd;
using Eigen::VectorXd;

/// Three actions with these logits.
struct Softmax {
  explicit Softmax(const Array3d& logits)
      : logp(logits - std::log(logits.exp().sum())), p(logp.exp()) {}

  /// Adds `slope`, the derivative in the action's log-prob, to the gradient in the logits.
  void add(Array3d& gradient, int action, double slope) const {
    gradient -= slope * p;
    gradient[action] += slope;
  }

  Array3d logp, p;
};

const Array3d kLogits(0.2, -0.4, 0.1), kReference(0.6, 0.3, 0.1);

/// A pair of actions whose first is taken for the better one.
struct ActionPair {
  int first, second;
  double label_prob;
};

ExactPairLogps inputs_of(const Softmax& policy, const std::vector<ActionPair>& pairs) {
  const auto rows = static_cast<Index>(pairs.size());
  const auto column = [&](const std::function<double(const ActionPair&)>& value) {
    ArrayXd x(rows);
    for (Index i = 0; i < rows; ++i) x[i] = value(pairs[static_cast<std::size_t>(i)]);
    return x;
  };
  ExactPairLogps in;
  in.chosen_logps = column([&](const ActionPair& pair) { return policy.logp[pair.first]; });
  in.rejected_logps = column([&](const ActionPair& pair) { return policy.logp[pair.second]; });
  in.ref_chosen_logps = column([](const ActionPair& y) { return std::log(kReference[y.first]); });
  in.ref_rejected_logps =
      column([](const ActionPair& y) { return std::log(kReference[y.second]); });
  in.label_probs = column([](const ActionPair& pair) { return pair.label_prob; });
  return in;
}

void add_pairs(Array3d& gradient, const Softmax& policy, const std::vector<ActionPair>& pairs,
               const ExactLossOutput& out, double weight) {
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto row = static_cast<Index>(i);
    policy.add(gradient, pairs[i].first, weight * out.grad_chosen[row]);
    policy.add(gradient, pairs[i].second, weight * out.grad_rejected[row]);
  }
}

void check_equal(const Array3d& got, const Array3d& expected, double tolerance) {
  CAPTURE(got, expected);
  CHECK((got - expected).abs().maxCoeff() < tolerance);
}

/// P(a beats b) by rewards 1, 0.2, -0.6.
double beats(int a, int b) { return 1 / (1 + std::exp(-0.8 * (b - a))); }

/// Mean of value and gradient of dpo over steps of two pairs, both drawn by the policy. Soft labels
/// or a draw of hard ones.
std::pair<double, Array3d> mean_of_steps(double data_gradient, bool is_soft) {
  const Softmax policy(kLogits);
  struct Draw {
    ActionPair pair;
    double weight;
  };
  std::vector<Draw> draws;
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 3; ++b) {
      const double weight = policy.p[a] * policy.p[b];
      if (is_soft) {
        draws.push_back({{a, b, beats(a, b)}, weight});
      } else {
        draws.push_back({{a, b, 1}, weight * beats(a, b)});
        draws.push_back({{b, a, 1}, weight * beats(b, a)});
      }
    }
  }
  const DpoLoss loss(
      {.beta = 0.5, .pair = {.use_label_probs = true, .data_gradient = data_gradient}});
  double value = 0;
  Array3d gradient = Array3d::Zero();
  for (const Draw& x : draws) {
    for (const Draw& y : draws) {
      const std::vector<ActionPair> step{x.pair, y.pair};
      const ExactLossOutput out = loss.evaluate(inputs_of(policy, step));
      value += x.weight * y.weight * out.loss;
      add_pairs(gradient, policy, step, out, x.weight * y.weight);
    }
  }
  return {value, gradient};
}

TEST_CASE("the gradient through the data completes that of the exact objective", "[exact]") {
  // hand.parl: torch autograd of E l(y, y') in theta, of the loss alone and of the samples alone.
  const Array3d online(-0.09829418367111295, -0.0129483681271949, 0.11124255179830785);
  const Array3d data(-0.010138265242538691, -0.027591206445539862, 0.03772947168807894);
  for (const bool is_soft : {true, false}) {
    CAPTURE(is_soft);
    const auto [value, plain] = mean_of_steps(0, is_soft);
    CHECK(value == Approx(0.8432372941803661).epsilon(1e-13));
    check_equal(plain, online, 1e-14);
    const auto [same_value, full] = mean_of_steps(1, is_soft);
    CHECK(same_value == Approx(value).epsilon(1e-13));
    check_equal(full, online + data, 1e-14);
    check_equal(mean_of_steps(0.25, is_soft).second, online + 0.25 * data, 1e-14);
  }
  // Without it the gradient is another one.
  CHECK((mean_of_steps(0, true).second - (online + data)).abs().maxCoeff() > 0.02);
}

/// Of the five numbers of two steps, first action 0 or 1, then 0 or 1 after it.
struct Tree {
  Eigen::Array2d first;
  std::array<Eigen::Array2d, 2> second;

  double logp(int a, int b) const { return of(first, a) + of(second[at(a)], b); }

  static double of(const Eigen::Array2d& logits, int action) {
    return logits[action] - std::log(logits.exp().sum());
  }
  static std::size_t at(int action) { return static_cast<std::size_t>(action); }
};

const Tree kPolicy{{0.7, -0.3}, {Eigen::Array2d(0.5, 0.1), Eigen::Array2d(-0.8, 0.9)}};
const Tree kReferenceTree{{0.0, 0.4}, {Eigen::Array2d(-0.2, 0.6), Eigen::Array2d(0.3, 0.0)}};

/// Adds slope * d logp(a, b) / d logits.
void add_slope(Tree& gradient, int a, int b, double slope) {
  for (int j = 0; j < 2; ++j) {
    gradient.first[j] += slope * ((j == a) - std::exp(Tree::of(kPolicy.first, j)));
    gradient.second[Tree::at(a)][j] +=
        slope * ((j == b) - std::exp(Tree::of(kPolicy.second[Tree::at(a)], j)));
  }
}

TEST_CASE("policy_gradient's KL is exact over sequences", "[exact]") {
  // hand.kl_gradients: the true gradient of KL(pi || pi_ref) by autograd.
  const auto check = [](const Tree& got) {
    const Eigen::Array2d first(0.23571252605104187, -0.23571252605104182);
    const Eigen::Array2d after_0(0.21077361513886478, -0.21077361513886494);
    const Eigen::Array2d after_1(-0.07025059045636385, 0.07025059045636387);
    CHECK((got.first - first).abs().maxCoeff() < 1e-14);
    CHECK((got.second[0] - after_0).abs().maxCoeff() < 1e-14);
    CHECK((got.second[1] - after_1).abs().maxCoeff() < 1e-14);
  };
  constexpr std::array<std::array<int, 2>, 4> kSequences{{{0, 0}, {0, 1}, {1, 0}, {1, 1}}};
  const auto evaluate = [](KlBaseline baseline, const std::vector<std::array<int, 2>>& sequences) {
    const auto rows = static_cast<Index>(sequences.size());
    ExactPairLogps in;
    in.chosen_logps = in.ref_chosen_logps = in.advantages = in.groups = ArrayXd::Zero(rows);
    for (Index i = 0; i < rows; ++i) {
      const auto [a, b] = sequences[static_cast<std::size_t>(i)];
      in.chosen_logps[i] = kPolicy.logp(a, b);
      in.ref_chosen_logps[i] = kReferenceTree.logp(a, b);
    }
    return PolicyGradientLoss({.tau = 1, .kl_baseline = baseline}).evaluate(in);
  };
  Tree alone{}, in_groups{};
  for (Tree* gradient : {&alone, &in_groups}) {
    gradient->first.setZero();
    for (auto& second : gradient->second) second.setZero();
  }
  double kl = 0;
  for (const auto& [a, b] : kSequences) {
    const double weight = std::exp(kPolicy.logp(a, b));
    const ExactLossOutput out = evaluate(KlBaseline::kNone, {{a, b}});
    kl += weight * out.loss;
    add_slope(alone, a, b, weight * out.grad_chosen[0]);
    for (const auto& [c, d] : kSequences) {
      const double of_both = weight * std::exp(kPolicy.logp(c, d));
      const ExactLossOutput two = evaluate(KlBaseline::kGroup, {{a, b}, {c, d}});
      add_slope(in_groups, a, b, of_both * two.grad_chosen[0]);
      add_slope(in_groups, c, d, of_both * two.grad_chosen[1]);
    }
  }
  CHECK(kl == Approx(0.4538378521526894).epsilon(1e-14));
  check(alone);
  check(in_groups);
}

const MatrixXd kCycle{{0.5, 0.8, 0.3}, {0.2, 0.5, 0.9}, {0.7, 0.1, 0.5}};
constexpr double kTau = 0.3;

Objective nash(const char* config, const Table& start) {
  const Pairs prompt{.prompts = {0}, .chosen = {0}, .rejected = {1}, .weights = ArrayXd::Ones(1)};
  return Objective(ExactLoss(config), SoftmaxPolicy::tabular(start), kReference.log(), prompt,
                   {.preferences = Preferences::general({kCycle})});
}

TEST_CASE("ipo on the policy's own pairs is 4/tau times the policy gradient", "[exact]") {
  const Softmax policy(kLogits);
  const IpoLoss loss(
      {.beta = kTau, .score = {.length_normalized = false}, .pair = {.use_label_probs = true}});
  Array3d hard = Array3d::Zero(), soft = Array3d::Zero();
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 3; ++b) {
      const double weight = policy.p[a] * policy.p[b];
      const auto add = [&](Array3d& gradient, const ActionPair& pair, double of_pair) {
        add_pairs(gradient, policy, {pair}, loss.evaluate(inputs_of(policy, {pair})), of_pair);
      };
      add(soft, {a, b, kCycle(a, b)}, weight);
      add(hard, {a, b, 1}, weight * kCycle(a, b));
      add(hard, {b, a, 1}, weight * kCycle(b, a));
    }
  }
  // hand.online_ipo_is_self_play: torch autograd, of P(pi beats stopped pi) - tau KL as well.
  const Array3d ipo(-1.0148666670982407, -0.568752982033138, 1.5836196491313785);
  const Array3d self_play(-0.07611500003236807, -0.04265647365248535, 0.11877147368485341);
  check_equal(hard, ipo, 1e-13);
  check_equal(soft, ipo, 1e-13);

  const Objective objective =
      nash(R"({"type": "policy_gradient", "tau": 0.3, "kl_baseline": "group"})", Table::Zero(3, 1));
  const Objective::Evaluation found = objective.evaluate(kLogits.matrix());
  check_equal(found.gradient.array(), self_play, 1e-15);
  check_equal(soft, 4 / kTau * found.gradient.array(), 1e-13);
  // The value is tau KL, as a policy beats itself half of the time.
  CHECK(found.value ==
        Approx(kTau * (policy.p * (policy.logp - kReference.log())).sum()).epsilon(1e-13));
}

TEST_CASE("policy_gradient with rewards ends at the regularized optimum", "[exact]") {
  const Table rewards = Array3d(1, 0.2, -0.6), reference = kReference.log();
  const Pairs prompt{.prompts = {0}, .chosen = {0}, .rejected = {1}, .weights = ArrayXd::Ones(1)};
  const auto end_of = [&](const char* config) {
    const SoftmaxPolicy policy = SoftmaxPolicy::tabular(reference);
    const Objective objective(ExactLoss(config), policy, reference, prompt, {.rewards = rewards});
    return policy.logps(descend(objective, VectorXd::Zero(3), 2, 20000));
  };
  const Table end = end_of(R"({"type": "policy_gradient", "tau": 0.5})");
  CHECK((end - optimum(reference, rewards, 0.5)).abs().maxCoeff() < 1e-10);
  // Without the penalty the best action takes all.
  CHECK(end_of(R"({"type": "policy_gradient", "tau": 0})")(0, 0) > -0.01);
}

TEST_CASE("policy_gradient against itself ends at the regularized equilibrium", "[exact]") {
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(kReference.log());
  const Objective objective = nash(R"({"type": "policy_gradient", "tau": 0.3})", kReference.log());
  const Table end = policy.logps(descend(objective, VectorXd::Zero(3), 2, 2000));
  // There pi is proportional to pi_ref e^(P(y beats pi) / tau).
  const Table wins = (kCycle * end.exp().matrix()).array();
  CHECK((end - optimum(kReference.log(), wins, kTau)).abs().maxCoeff() < 1e-9);
}

TEST_CASE("the policy's own actions ask for rewards or preferences", "[exact]") {
  const Pairs prompt{.prompts = {0}, .chosen = {0}, .rejected = {1}, .weights = ArrayXd::Ones(1)};
  const Table reference = kReference.log();
  CHECK_THROWS_TEXT(Objective(ExactLoss(R"({"type": "policy_gradient"})"),
                              SoftmaxPolicy::tabular(reference), reference, prompt),
                    ConfigError, "objective: expected rewards for 'policy_gradient', got none");
  CHECK_THROWS_TEXT(Objective(ExactLoss(R"({"type": "xpo"})"), SoftmaxPolicy::tabular(reference),
                              reference, prompt),
                    ConfigError,
                    "objective: expected pairs that say which side the reference drew for 'xpo', "
                    "got none");
}

/// All pairs of two draws, with their probability.
Pairs pairs_of_draws(const Array3d& p) {
  Pairs pairs;
  std::vector<double> weights;
  for (Index a = 0; a < 3; ++a) {
    for (Index b = 0; b < 3; ++b) {
      pairs.prompts.push_back(0);
      pairs.chosen.push_back(a);
      pairs.rejected.push_back(b);
      weights.push_back(p[a] * p[b]);
    }
  }
  pairs.weights = Eigen::Map<const ArrayXd>(weights.data(), 9) / (p.sum() * p.sum());
  return pairs;
}

TEST_CASE("INPO's minimizer on two samples is the step of mirror descent", "[exact]") {
  const double eta = 0.4, tau = 0.1;
  const Softmax before(kLogits);
  const Array3d reference = tau / eta * kReference.log() + (1 - tau / eta) * before.logp;
  const Array3d wins = (kCycle * before.p.matrix()).array();
  // 2407.00617 eqs. 4, 5
  const Array3d logits = wins / eta + reference;
  const Softmax expected(logits);

  const auto minimizer = [&](const Array3d& against) {
    const SoftmaxPolicy policy = SoftmaxPolicy::tabular(before.logp);
    const Objective objective(ExactLoss(R"({"type": "ipo", "beta": 0.4, "length_normalized": false,
                                            "use_label_probs": true})"),
                              policy, against, pairs_of_draws(before.p),
                              {.preferences = Preferences::general({kCycle})});
    return Array3d(policy.logps(minimize(objective, VectorXd::Zero(3)).theta));
  };
  check_equal(minimizer(reference), expected.logp, 1e-10);
  // Against the first reference alone it is another policy.
  CHECK((minimizer(kReference.log()) - expected.logp).abs().maxCoeff() > 0.1);
}

TEST_CASE("DNO's minimizer is a step of self-play", "[exact]") {
  // hand.dno_population: next ~ pi_t e^(r / eta), r the win rates over pi_t.
  const Array3d before(0.663643788580848, 0.20126015245106657, 0.13509605896808544);
  const Array3d expected(0.7024207013498484, 0.14909120604426812, 0.14848809260588341);
  const Table wins = (kCycle * before.matrix()).array();
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(before.log());
  const Objective objective(ExactLoss(R"({"type": "dpo", "beta": 0.5, "use_label_probs": true})"),
                            policy, before.log(), pairs_of_draws(before),
                            {.preferences = Preferences::bradley_terry(wins)});
  const Array3d next = policy.logps(minimize(objective, VectorXd::Zero(3)).theta).exp();
  check_equal(next, expected, 1e-10);
  const double rate = next.matrix().dot(kCycle * before.matrix());
  CHECK(rate == Approx(0.5095602990371152).epsilon(1e-9));
  CHECK(rate >= 0.5045949509192035);
}

}  // namespace
}  // namespace prefopt::exact
