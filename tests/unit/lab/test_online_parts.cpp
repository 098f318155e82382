// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "lab/bounded_fit.h"
#include "lab/random_games.h"
#include "lab/two_tokens.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

using Eigen::ArrayXd;
using Eigen::ArrayXXd;
using exact::Index;
using exact::Table;

/// Pairs of the first two of three actions; the last has none.
BoundedFit partial_fit(double incentive) {
  const Table ref = exact::log_softmax(Table{{0.5}, {0.2}, {-3.0}});
  BoundedFit fit(ref, 0.5, 1);
  for (int i = 0; i < 3; ++i) fit.add_pair(0, 1);
  fit.add_pair(1, 0);
  fit.add_incentive(1, incentive);
  return fit;
}

TEST_CASE("lab: the gradient of a bounded fit is that of its value", "[lab]") {
  const BoundedFit fit = partial_fit(0.7);
  const ArrayXd f{{0.3, -0.2, 0.6}};
  for (Index y = 0; y < 3; ++y) {
    ArrayXd up = f, down = f;
    up[y] += 1e-5;
    down[y] -= 1e-5;
    CHECK(fit.gradient(f)[y] ==
          Approx((fit.value(up) - fit.value(down)) / 2e-5).epsilon(1e-7).margin(1e-9));
  }
}

TEST_CASE("lab: a bounded fit without incentive is the maximum of the likelihood", "[lab]") {
  const ArrayXd f = partial_fit(0).minimize(ArrayXd::Zero(3));
  CHECK(f[0] - f[1] == Approx(std::log(3)).epsilon(1e-4));
  CHECK(f[2] == 0);  // nothing is known of it
}

TEST_CASE("lab: a bounded fit finds no less than a grid does", "[lab]") {
  for (const double incentive : {0.05, -0.05, 1.0, -1.0}) {
    const BoundedFit fit = partial_fit(incentive);
    const double found = fit.value(fit.minimize(ArrayXd::Zero(3)));
    double least = found + 1;
    constexpr int kPoints = 40;
    for (int i = 0; i <= kPoints; ++i) {
      for (int j = 0; j <= kPoints; ++j) {
        for (int k = 0; k <= kPoints; ++k) {
          const ArrayXd f = 2.0 / kPoints * ArrayXd{{double(i), double(j), double(k)}} - 1;
          least = std::min(least, fit.value(f));
        }
      }
    }
    CAPTURE(incentive);
    CHECK(found < least + 1e-6);
  }
}

// Two blocks of two actions: the incentive moves a block as a whole, which no coordinate can alone.
TEST_CASE("lab: a bounded fit moves blocks of actions as a grid does", "[lab]") {
  for (const double incentive : {2.0, -2.0}) {
    BoundedFit fit(exact::log_softmax(Table{{0.5}, {0.2}, {-1.0}, {0.1}}), 0.5, 1);
    for (int i = 0; i < 30; ++i) {
      fit.add_pair(i % 3 == 0, i % 3 != 0);
      fit.add_pair(2 + (i % 5 < 2), 2 + (i % 5 >= 2));
    }
    fit.add_incentive(1, incentive);
    const double found = fit.value(fit.minimize(ArrayXd::Zero(4)));
    double least = found + 1;
    constexpr int kPoints = 16;
    ArrayXd f(4);
    for (int i = 0; i < kPoints * kPoints * kPoints * kPoints; ++i) {
      for (Index y = 0, rest = i; y < 4; ++y, rest /= kPoints) {
        f[y] = 2.0 / (kPoints - 1) * double(rest % kPoints) - 1;
      }
      least = std::min(least, fit.value(f));
    }
    CAPTURE(incentive);
    CHECK(found < least + 1e-6);
  }
}

TEST_CASE("lab: optimism lifts the action without data, pessimism does not", "[lab]") {
  CHECK(partial_fit(0.05).minimize(ArrayXd::Zero(3))[2] == Approx(1).margin(1e-6));
  CHECK(partial_fit(-0.05).minimize(ArrayXd::Zero(3))[2] == Approx(-1).margin(1e-6));
}

// Numbers of golden/online.json, key rlgf: bb alone is rewarded.
TEST_CASE("lab: values of completions of two tokens", "[lab]") {
  ArrayXXd rewards = ArrayXXd::Zero(2, 2);
  rewards(1, 1) = 1;
  const TwoTokens policy{ArrayXd{{0.95, 0.05}}, ArrayXXd{{0.5, 0.5}, {0.9, 0.1}}};
  const TwoTokens guide{ArrayXd{{0.3, 0.7}}, ArrayXXd{{0.5, 0.5}, {0.1, 0.9}}};
  CHECK(policy.action_values(rewards)[0] == 0);
  CHECK(policy.action_values(rewards)[1] == Approx(0.1).epsilon(1e-14));
  CHECK(guide.action_values(rewards)[1] == Approx(0.9).epsilon(1e-14));
  CHECK(policy.value(rewards) == Approx(0.005).epsilon(1e-14));
  CHECK(guide.value(rewards) == Approx(0.63).epsilon(1e-14));
  CHECK(one_step_value(guide, rewards) == Approx(0.9).epsilon(1e-14));
}

TEST_CASE("lab: random games are games", "[lab]") {
  exact::Random random(5);
  const exact::Preferences cycle = random_cycle(random);
  for (Index a = 0; a < 3; ++a) {
    CHECK(cycle(0, a, (a + 1) % 3) >= 0.6);
    CHECK(cycle(0, a, (a + 1) % 3) < 0.95);
  }
  CHECK(certain_cycle()(0, 2, 0) == 1);
  CHECK(random_game(random, 6).actions() == 6);
}

}  // namespace
}  // namespace prefopt::lab
