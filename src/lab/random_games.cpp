// SPDX-License-Identifier: Apache-2.0
#include "lab/random_games.h"

#include "prefopt/math/functions.h"

namespace prefopt::lab {
namespace {

using Eigen::MatrixXd;
using exact::Index;

void set_beats(MatrixXd& p, Index a, Index b, double probability) {
  p(a, b) = probability;
  p(b, a) = 1 - probability;
}

template <class F>
exact::Preferences cycle(F&& probability) {
  constexpr Index kActions = 3;
  MatrixXd p = MatrixXd::Constant(kActions, kActions, 0.5);
  for (Index a = 0; a < kActions; ++a) set_beats(p, a, (a + 1) % kActions, probability());
  return exact::Preferences::general({p});
}

}  // namespace

exact::Preferences random_cycle(exact::Random& random) {
  return cycle([&] { return 0.6 + 0.35 * random.uniform(); });
}

exact::Preferences certain_cycle() {
  return cycle([] { return 1.0; });
}

exact::Preferences random_game(exact::Random& random, Index actions) {
  MatrixXd p = MatrixXd::Constant(actions, actions, 0.5);
  for (Index a = 0; a < actions; ++a) {
    for (Index b = 0; b < a; ++b) set_beats(p, a, b, math::sigmoid(random.normal()));
  }
  return exact::Preferences::general({p});
}

}  // namespace prefopt::lab
