// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/pairs.h"
#include "prefopt/exact/policy.h"
#include "prefopt/exact/preferences.h"
#include "prefopt/exact/random.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::exact {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

/// Plain loops over probabilities, without log-sum-exp.
double probability(const Table& logits, Index y, Index x) {
  double sum = 0;
  for (Index other = 0; other < logits.rows(); ++other) sum += std::exp(logits(other, x));
  return std::exp(logits(y, x)) / sum;
}

TEST_CASE("exact policies: log-probs and their pullback", "[exact]") {
  Random random(1);
  const Table base = random.normals(4, 3);
  const MatrixXd features = random.normals(12, 5).matrix();
  for (const bool tabular : {true, false}) {
    const SoftmaxPolicy policy =
        tabular ? SoftmaxPolicy::tabular(base) : SoftmaxPolicy::log_linear(base, features);
    const VectorXd theta = random.normals(policy.parameters(), 1).matrix();
    const Table logps = policy.logps(theta);
    for (Index x = 0; x < 3; ++x) {
      for (Index y = 0; y < 4; ++y) {
        Table logits = base;
        for (Index i = 0; i < base.size(); ++i) {
          logits(i % 4, i / 4) += tabular ? theta[i] : features.row(i).dot(theta);
        }
        CHECK(std::exp(logps(y, x)) == Approx(probability(logits, y, x)).epsilon(1e-12));
      }
    }
    const Table slopes = random.normals(4, 3);
    const VectorXd gradient = policy.pullback(logps, slopes);
    for (Index i = 0; i < theta.size(); ++i) {
      VectorXd up = theta, down = theta;
      up[i] += 1e-5;
      down[i] -= 1e-5;
      const double slope = (slopes * (policy.logps(up) - policy.logps(down))).sum() / 2e-5;
      CHECK(gradient[i] == Approx(slope).epsilon(1e-7).margin(1e-8));
    }
  }
}

TEST_CASE("exact policies: what does not fit is refused", "[exact]") {
  const Table base = Table::Zero(3, 2);
  CHECK_THROWS_TEXT(SoftmaxPolicy::tabular(Table()), ShapeError,
                    "policy: expected base logits of at least one action and prompt, got [0, 0]");
  CHECK_THROWS_TEXT(SoftmaxPolicy::tabular(base - std::numeric_limits<double>::infinity()),
                    ConfigError, "policy: expected finite base logits, got some that are not");
  CHECK_THROWS_TEXT(
      SoftmaxPolicy::log_linear(base, MatrixXd::Zero(5, 4)), ShapeError,
      "policy: expected features of shape [6, d] for 3 actions of 2 prompts, got [5, 4]");
  CHECK_THROWS_TEXT(SoftmaxPolicy::tabular(base).logps(VectorXd::Zero(5)), ShapeError,
                    "policy: expected 6 parameters, got 5");
}

TEST_CASE("exact preferences: models and label flips", "[exact]") {
  const Table rewards{{0.3}, {-1.1}, {0.3}};
  const Preferences bt = Preferences::bradley_terry(rewards);
  CHECK(bt(0, 0, 1) == Approx(1 / (1 + std::exp(-1.4))).epsilon(1e-14));
  CHECK(bt(0, 0, 2) == 0.5);
  const Preferences sure = Preferences::deterministic(rewards);
  CHECK(sure(0, 0, 1) == 1);
  CHECK(sure(0, 1, 2) == 0);
  CHECK(sure(0, 2, 0) == 0.5);
  // A correct label with probability 0.8, another one with 0.2.
  CHECK(bt.flipped(0.2)(0, 0, 1) == Approx(0.8 * bt(0, 0, 1) + 0.2 * bt(0, 1, 0)).epsilon(1e-14));
  MatrixXd cycle{{0.5, 0.9, 0.1}, {0.1, 0.5, 0.9}, {0.9, 0.1, 0.5}};
  CHECK(Preferences::general({cycle})(0, 2, 0) == 0.9);

  CHECK_THROWS_TEXT(bt.flipped(0.5), ConfigError,
                    "preferences: expected a flip rate in [0, 0.5), got 0.5; at 0.5 labels say "
                    "nothing");
  CHECK_THROWS_TEXT(bt.flipped(-0.1), ConfigError,
                    "preferences: expected a flip rate in [0, 0.5), got -0.1; at 0.5 labels say "
                    "nothing");
  CHECK_THROWS_TEXT(Preferences::general({}), ShapeError,
                    "preferences: expected a matrix for each prompt, got none");
  CHECK_THROWS_TEXT(Preferences::general({cycle, MatrixXd::Constant(2, 2, 0.5)}), ShapeError,
                    "preferences: expected a matrix [3, 3] for prompt 1, got [2, 2]");
  cycle(0, 1) = 1.2;
  CHECK_THROWS_TEXT(Preferences::general({cycle}), ConfigError,
                    "preferences: expected P(a beats b) in [0, 1], got 1.2 for actions 0 and 1 of "
                    "prompt 0");
  cycle(0, 1) = 0.5;
  CHECK_THROWS_TEXT(Preferences::general({cycle}), ConfigError,
                    "preferences: expected P(a beats b) + P(b beats a) = 1, got 0.6 for actions 0 "
                    "and 1 of prompt 0");
}

TEST_CASE("exact measures: brute force", "[exact]") {
  Random random(2);
  const Table a = random.normals(5, 3), b = random.normals(5, 3), rewards = random.normals(5, 3);
  const Table p = log_softmax(a), q = log_softmax(b);
  const Preferences preferences = Preferences::bradley_terry(rewards);
  double value = 0, surprise = 0, divergence = 0, wins = 0;
  for (Index x = 0; x < 3; ++x) {
    for (Index y = 0; y < 5; ++y) {
      const double at = probability(a, y, x);
      value += at * rewards(y, x) / 3;
      surprise -= at * std::log(at) / 3;
      divergence += at * std::log(at / probability(b, y, x)) / 3;
      for (Index other = 0; other < 5; ++other) {
        wins +=
            at * probability(b, other, x) / (1 + std::exp(rewards(other, x) - rewards(y, x))) / 3;
      }
    }
  }
  CHECK(expectation(p, rewards) == Approx(value).epsilon(1e-13));
  CHECK(entropy(p) == Approx(surprise).epsilon(1e-13));
  CHECK(kl(p, q) == Approx(divergence).epsilon(1e-12));
  CHECK(win_rate(p, q, preferences) == Approx(wins).epsilon(1e-13));
  CHECK(win_rate(p, p, preferences) == Approx(0.5).epsilon(1e-13));
  CHECK_THROWS_TEXT(kl(p, q.leftCols(2)), ShapeError,
                    "measures: expected a table [5, 3], got [5, 2]");
  CHECK_THROWS_TEXT(optimum(p, rewards, 0), ConfigError, "measures: expected beta above 0, got 0");

  // Nothing is lost, or added, by an action of probability 0.
  const double inf = std::numeric_limits<double>::infinity();
  const Table one{{0.0}, {-inf}}, half = Table::Constant(2, 1, -std::log(2.0));
  CHECK(entropy(one) == 0);
  CHECK(kl(one, half) == Approx(std::log(2)).epsilon(1e-14));
  CHECK(kl(half, one) == inf);
}

TEST_CASE("exact measures: the optimum of the regularized reward", "[exact]") {
  Random random(3);
  const double beta = 0.3;
  const Table ref = log_softmax(random.normals(6, 2)), rewards = random.normals(6, 2);
  const Table best = optimum(ref, rewards, beta);
  CHECK(suboptimality_gap(best, ref, rewards, beta) == Approx(0).margin(1e-16));
  const double top = regularized_reward(best, ref, rewards, beta);
  for (const double distance : {1.0, 1e-2, 1e-4}) {
    const Table other = log_softmax(best + distance * random.normals(6, 2));
    const double gap = suboptimality_gap(other, ref, rewards, beta);
    CHECK(gap > 0);
    CHECK(gap == Approx(top - regularized_reward(other, ref, rewards, beta)).margin(1e-14));
    CHECK(gap == Approx(beta * kl(other, best)).margin(1e-14));
  }
  // Halving the distance of a tiny step quarters the gap, far below the rounding of the rewards.
  const Table direction = random.normals(6, 2);
  const auto gap_at = [&](double distance) {
    return suboptimality_gap(log_softmax(best + distance * direction), ref, rewards, beta);
  };
  CHECK(gap_at(2e-8) / gap_at(1e-8) == Approx(4).epsilon(1e-4));
}

TEST_CASE("exact measures: the most reward at a distance", "[exact]") {
  Random random(5);
  const Table ref = log_softmax(random.normals(6, 2)), rewards = random.normals(6, 2);
  const Table best = optimum_at(ref, rewards, 0.4);
  CHECK(kl(best, ref) == Approx(0.4).epsilon(1e-9));
  for (int i = 0; i < 200; ++i) {  // other policies at that distance have less
    const Table direction = random.normals(6, 2);
    const Table other = optimum_at(ref, rewards + 0.5 * direction, 0.4);
    CHECK(expectation(other, rewards) < expectation(best, rewards));
  }
  // No policy of the best actions alone is farther away than this.
  CHECK(expectation(optimum_at(ref, rewards, 100), rewards) ==
        Approx(rewards.colwise().maxCoeff().mean()).epsilon(1e-9));
  CHECK_THROWS_TEXT(optimum_at(ref, rewards, 0), ConfigError,
                    "measures: expected a distance above 0, got 0");
}

TEST_CASE("exact pairs: the population is the law of the samples", "[exact]") {
  Random random(4);
  const Table behaviour = log_softmax(random.normals(4, 2));
  const Table rewards = random.normals(4, 2);
  const Preferences preferences = Preferences::bradley_terry(rewards).flipped(0.1);
  const Pairs exact = population(behaviour, preferences);
  CHECK(exact.size() == 2 * 4 * 3);
  CHECK(exact.weights.sum() == Approx(1).epsilon(1e-14));

  // The definition: two draws, again if they are equal, then a label.
  constexpr int kDraws = 200000;
  std::map<std::array<Index, 3>, double> counts;
  for (int i = 0; i < kDraws; ++i) {
    const Index x = random.below(2);
    const Eigen::ArrayXd p = behaviour.col(x).exp();
    Index a = 0, b = 0;
    while (a == b) {
      a = random.index(p);
      b = random.index(p);
    }
    if (random.uniform() >= preferences(x, a, b)) std::swap(a, b);
    counts[{x, a, b}] += 1.0 / kDraws;
  }
  std::map<std::array<Index, 3>, double> sampled;
  const Pairs drawn = merged(sample(exact, kDraws, random));
  for (Index i = 0; i < drawn.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    sampled[{drawn.prompts[at], drawn.chosen[at], drawn.rejected[at]}] = drawn.weights[i];
  }
  for (Index i = 0; i < exact.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::array<Index, 3> row{exact.prompts[at], exact.chosen[at], exact.rejected[at]};
    const double noise = 5 * std::sqrt(exact.weights[i] / kDraws);
    CHECK(std::abs(counts[row] - exact.weights[i]) < noise);
    CHECK(std::abs(sampled[row] - exact.weights[i]) < noise);
  }
  CHECK_THROWS_TEXT(sample(exact, 0, random), ConfigError,
                    "pairs: expected at least 1 draw, got 0");
}

TEST_CASE("exact pairs: partial coverage", "[exact]") {
  const Table uniform = log_softmax(Table::Zero(4, 1));
  const Table part = covering(uniform, Table{{1.0}, {0.0}, {1.0}, {0.0}});
  CHECK(std::exp(part(0, 0)) == Approx(0.5).epsilon(1e-14));
  CHECK(std::exp(part(1, 0)) == 0);
  const Pairs pairs =
      population(part, Preferences::deterministic(Table{{2.0}, {9.0}, {1.0}, {9.0}}));
  REQUIRE(pairs.size() == 1);
  CHECK(pairs.chosen[0] == 0);
  CHECK(pairs.rejected[0] == 2);
  CHECK_THROWS_TEXT(covering(uniform, Table{{1.0}, {0.0}, {0.0}, {0.0}}), ConfigError,
                    "pairs: expected at least two covered actions, got 1 for prompt 0");
  CHECK_THROWS_TEXT(covering(uniform, Table::Ones(3, 1)), ShapeError,
                    "pairs: expected a table [4, 1], got [3, 1]");
}

}  // namespace
}  // namespace prefopt::exact
