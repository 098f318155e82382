// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "support/catch.h"
#include "support/errors.h"

// Numbers are those of golden/online.json (keys in the names of the cases), made with numpy.
namespace prefopt::exact {
namespace {

using Eigen::ArrayXd;
using Eigen::MatrixXd;

Preferences game(const MatrixXd& p) { return Preferences::general({p}); }

Preferences cycle() { return game(MatrixXd{{0.5, 0.8, 0.3}, {0.2, 0.5, 0.9}, {0.7, 0.1, 0.5}}); }

Table logps(std::vector<double> p) {
  return Eigen::Map<const ArrayXd>(p.data(), static_cast<Index>(p.size())).log();
}

void check_probabilities(const Table& found, const std::vector<double>& expected, double epsilon) {
  for (Index y = 0; y < found.rows(); ++y) {
    CAPTURE(y);
    CHECK(std::exp(found(y, 0)) == Approx(expected[static_cast<std::size_t>(y)]).epsilon(epsilon));
  }
}

/// Any preferences, cyclic or not.
Preferences random_preferences(Random& random, Index actions, Index prompts) {
  std::vector<MatrixXd> matrices;
  for (Index x = 0; x < prompts; ++x) {
    MatrixXd p = MatrixXd::Constant(actions, actions, 0.5);
    for (Index a = 0; a < actions; ++a) {
      for (Index b = 0; b < a; ++b) {
        p(a, b) = random.uniform();
        p(b, a) = 1 - p(a, b);
      }
    }
    matrices.push_back(p);
  }
  return Preferences::general(matrices);
}

TEST_CASE("games: one step of Nash-MD (nash_md_exact_step)", "[exact]") {
  const double w = 5.0 / 9, l = 4.0 / 9;
  const Preferences dice = game(MatrixXd{{0.5, w, l}, {l, 0.5, w}, {w, l, 0.5}});
  const Table pi = logps({0.6, 0.3, 0.1}), uniform = log_softmax(Table::Zero(3, 1));
  check_probabilities(nash_md_step(pi, uniform, dice, 0.1, 5),
                      {0.49092006131249555, 0.3088195941889322, 0.2002603444985724}, 1e-14);
}

TEST_CASE("games: the equilibrium and the last iterates (nash_md_rate)", "[exact]") {
  const double tau = 0.2;
  const Table ref = logps({0.6, 0.3, 0.1});
  const Equilibrium nash = equilibrium(ref, cycle(), tau);
  CHECK(nash.converged);
  CHECK(nash.residual < 1e-13);
  check_probabilities(nash.logps, {0.6895121508733076, 0.1549185034812142, 0.15556934564547814},
                      1e-13);
  CHECK(std::abs(duality_gap(nash.logps, ref, cycle(), tau)) < 1e-15);
  CHECK(duality_gap(ref, ref, cycle(), tau) == Approx(0.038275359778422).epsilon(1e-12));
  const std::map<int, std::vector<double>> expected{
      {10, {0.0013504556705020605, 3.123951081757939e-05}},
      {100, {1.270892090832887e-05, 4.19752602527591e-09}}};
  Table nash_md = ref, mirror = ref;
  for (int t = 0; t < 100; ++t) {
    const double step = 2 / (tau * (t + 2));
    nash_md = nash_md_step(nash_md, ref, cycle(), tau, step);
    mirror = mirror_descent_step(mirror, ref, cycle(), tau, step);
    if (const auto at = expected.find(t + 1); at != expected.end()) {
      CHECK(kl(nash.logps, nash_md) == Approx(at->second[0]).epsilon(1e-10));
      CHECK(kl(nash.logps, mirror) == Approx(at->second[1]).epsilon(1e-7));
    }
  }
}

TEST_CASE("games: a constant step ends off the equilibrium with Nash-MD alone (nash_md_rate)",
          "[exact]") {
  const Table ref = logps({0.6, 0.3, 0.1});
  const Table nash = equilibrium(ref, cycle(), 0.2).logps;
  const std::map<double, double> expected{
      {0.5, 0.00014216208742325693}, {1, 0.0006005103024995274}, {2, 0.002722678136971312}};
  for (const auto& [step, distance] : expected) {
    Table nash_md = ref, mirror = ref;
    for (int t = 0; t < 400; ++t) {
      nash_md = nash_md_step(nash_md, ref, cycle(), 0.2, step);
      mirror = mirror_descent_step(mirror, ref, cycle(), 0.2, step);
    }
    CHECK(kl(nash, nash_md) == Approx(distance).epsilon(1e-9));
    CHECK(std::abs(kl(nash, mirror)) < 1e-15);
  }
}

TEST_CASE("games: self-play without a reference (self_play_unregularized)", "[exact]") {
  check_probabilities(minimax_winner(cycle()), {4.0 / 9, 2.0 / 9, 3.0 / 9}, 1e-14);
  CHECK(std::abs(exploitability(minimax_winner(cycle()), cycle())) < 1e-15);
  const std::map<int, std::vector<double>> expected{
      {10, {0.12321274060327214, 0.07773681043546476}},
      {100, {0.12145862098644522, 0.008723976886321094}},
      {1000, {0.19021970968460333, 0.005440872319327106}}};
  Table last = logps({0.6, 0.3, 0.1}), sum = Table::Zero(3, 1);
  for (int t = 1; t <= 1000; ++t) {
    sum += last.exp();
    last = multiplicative_weights_step(last, cycle(), 1);
    if (const auto at = expected.find(t); at != expected.end()) {
      CHECK(exploitability(last, cycle()) == Approx(at->second[0]).epsilon(1e-9));
      CHECK(exploitability((sum / t).log(), cycle()) == Approx(at->second[1]).epsilon(1e-9));
    }
  }
}

TEST_CASE("games: a round of DNO gains as much as its bound (dno_population)", "[exact]") {
  const double eta = 0.5;
  const Table pi = logps({0.663643788580848, 0.20126015245106657, 0.13509605896808544});
  const Table next = multiplicative_weights_step(pi, cycle(), 1 / eta);
  check_probabilities(next, {0.7024207013498484, 0.14909120604426812, 0.14848809260588341}, 1e-14);
  CHECK(win_rate(next, pi, cycle()) == Approx(0.5095602990371152).epsilon(1e-14));
  CHECK(0.5 + eta * kl(next, pi) == Approx(0.5045949509192035).epsilon(1e-14));
}

TEST_CASE("games: a round of SPPO (sppo_population)", "[exact]") {
  const Table pi = logps({0.663643788580848, 0.20126015245106657, 0.13509605896808544});
  const std::map<double, std::vector<double>> expected{
      {0.1, {0.6658435452032545, 0.19835664800180355, 0.13579980679494197}},
      {1, {0.6843438613752351, 0.17370020413122864, 0.14195593449353638}},
      {4, {0.7297496971533864, 0.11051638352918967, 0.1597339193174239}}};
  for (const auto& [step, p] : expected) {
    check_probabilities(sppo_step(pi, cycle(), step), p, 1e-8);
  }
  CHECK(kl(multiplicative_weights_step(pi, cycle(), 4), sppo_step(pi, cycle(), 4)) ==
        Approx(1.9593220936032205e-05).epsilon(1e-6));
}

TEST_CASE("games: a round of SPPO is where its loss has no gradient", "[exact]") {
  Random random(3);
  const Table pi = log_softmax(random.normals(5, 1));
  const Preferences preferences = random_preferences(random, 5, 1);
  const ArrayXd rates = win_rates(pi, preferences).col(0);
  for (const double step : {0.1, 2.0, 50.0, 1000.0}) {
    const Table next = sppo_step(pi, preferences, step);
    // d/d theta of E_pi (ratio - target)^2, theta the logits of the next policy.
    const ArrayXd slopes =
        2 * pi.exp().col(0) * ((next - pi).col(0) - step * (rates - 0.5)) / (step * step);
    const ArrayXd gradient = slopes - next.exp().col(0) * slopes.sum();
    CAPTURE(step);
    CHECK(gradient.abs().maxCoeff() < 1e-14);
    CHECK(next.exp().sum() == Approx(1).epsilon(1e-14));
  }
}

TEST_CASE("games: extrapolated rounds have the exponents of APO (apo)", "[exact]") {
  const double beta = 2;
  const Table rewards{{1}, {0.6}, {0}}, ref = logps({0.05, 0.15, 0.8});
  const std::map<double, std::vector<double>> expected{
      {0, {1, 2, 3, 4, 5, 6}},
      {0.3, {1, 2.3, 3.69, 5.107, 6.5321, 7.95963}},
      {0.5, {1, 2.5, 4.25, 6.125, 8.0625, 10.03125}}};
  const std::map<double, std::vector<double>> gaps{{0, {0.5135546326199432, 0.17849595132735374}},
                                                   {0.3, {0.3860932666531076, 0.07844930901382297}},
                                                   {0.5, {0.27802590408746, 0.0320582279039201}}};
  for (const auto& [alpha, exponents] : expected) {
    Table now = ref, before = ref;
    for (std::size_t round = 1; round <= 10; ++round) {
      const Table start = extrapolated(now, before, alpha);
      before = now;
      now = optimum(start, rewards, beta);
      if (round <= exponents.size()) {
        const Table ratios = now - ref;
        CHECK((ratios(0, 0) - ratios(2, 0)) * beta == Approx(exponents[round - 1]).epsilon(1e-12));
      }
      if (round == 5 || round == 10) {
        CHECK(1 - expectation(now, rewards) ==
              Approx(gaps.at(alpha)[round / 5 - 1]).epsilon(1e-10));
      }
    }
  }
}

TEST_CASE("games: the optimum next to demonstrations (demonstration_regularized)", "[exact]") {
  const Table cloned = logps({0.5, 0.45, 0.05}), rewards{{1}, {0}, {2}};
  check_probabilities(optimum(cloned, rewards, 0.5),
                      {0.5374300219982482, 0.06545991982229273, 0.397110058179459}, 1e-13);
}

TEST_CASE("games: properties on random preferences", "[exact]") {
  Random random(7);
  for (int trial = 0; trial < 20; ++trial) {
    const Index actions = 2 + random.below(7), prompts = 1 + random.below(3);
    const Preferences preferences = random_preferences(random, actions, prompts);
    const Table ref = log_softmax(random.normals(actions, prompts));
    const Table pi = log_softmax(random.normals(actions, prompts));
    CAPTURE(trial, actions, prompts);

    // No action beats the winner, so neither does a policy.
    const Table winner = minimax_winner(preferences);
    CHECK(exploitability(winner, preferences) < 1e-12);
    CHECK(win_rate(pi, winner, preferences) < 0.5 + 1e-12);
    CHECK(exploitability(pi, preferences) >= win_rate(ref, pi, preferences) - 0.5);

    // The equilibrium at either end of tau: all of the reference, or a winner.
    const Equilibrium nash = equilibrium(ref, preferences, 0.1);
    CHECK(nash.converged);
    CHECK(duality_gap(nash.logps, ref, preferences, 0.1) < 1e-13);
    CHECK(regularized_win_rate(pi, nash.logps, ref, preferences, 0.1) < 0.5 + 1e-13);
    CHECK(kl(ref, equilibrium(ref, preferences, 1e4).logps) < 1e-7);
    CHECK(duality_gap(pi, ref, preferences, 0.1) > 0);

    // Both steps stay at the reference's ends: no reference, or nothing else.
    const Table plain = multiplicative_weights_step(pi, preferences, 0.7);
    CHECK((mirror_descent_step(pi, ref, preferences, 0, 0.7) == plain).all());
    CHECK((nash_md_step(pi, ref, preferences, 0, 0.7) - plain).abs().maxCoeff() < 1e-14);
    CHECK((nash_md_step(pi, ref, preferences, 2, 0.5) -
           multiplicative_weights_step(ref, preferences, 0.5))
              .abs()
              .maxCoeff() < 1e-14);
  }
}

TEST_CASE("games: with rewards the best action is the winner", "[exact]") {
  const Table winner = minimax_winner(Preferences::bradley_terry(Table{{0.1}, {0.9}, {-2.0}}));
  CHECK(winner(1, 0) == 0);
  CHECK(winner(0, 0) == -std::numeric_limits<double>::infinity());
}

TEST_CASE("games: what does not fit is refused", "[exact]") {
  const Table pi = log_softmax(Table::Zero(3, 1));
  CHECK_THROWS_TEXT(win_rates(Table::Zero(3, 2), cycle()), ShapeError,
                    "games: expected preferences of 3 actions and 2 prompts, got 3 and 1");
  CHECK_THROWS_TEXT(equilibrium(pi, cycle(), 0), ConfigError, "games: expected tau above 0, got 0");
  CHECK_THROWS_TEXT(multiplicative_weights_step(pi, cycle(), -1), ConfigError,
                    "games: expected step above 0, got -1");
  CHECK_THROWS_TEXT(nash_md_step(pi, pi, cycle(), 0.5, 4), ConfigError,
                    "games: expected step tau from 0 to 1, the reference's share, got 2 = 4 * 0.5");
  CHECK_THROWS_TEXT(mirror_descent_step(pi, Table::Zero(2, 1), cycle(), 0.5, 1), ShapeError,
                    "games: expected a table [3, 1], got [2, 1]");
  CHECK_THROWS_TEXT(extrapolated(pi, pi, 1), ConfigError, "games: expected alpha in [0, 1), got 1");
}

}  // namespace
}  // namespace prefopt::exact
