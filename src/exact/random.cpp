// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/random.h"

#include <cmath>
#include <numbers>

#include "core/random.h"

namespace prefopt::exact {

Random::Random(std::uint64_t seed) : engine_(splitmix64(seed)) {}

double Random::uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

double Random::normal() {
  const double radius = std::sqrt(-2 * std::log1p(-uniform()));
  return radius * std::cos(2 * std::numbers::pi * uniform());
}

Eigen::Index Random::below(Eigen::Index count) {
  return static_cast<Eigen::Index>(uniform() * static_cast<double>(count));
}

Eigen::Index Random::index(const Eigen::ArrayXd& weights) {
  double left = uniform() * weights.sum();
  Eigen::Index last = 0;  // with a positive weight: where rounding leaves something over
  for (Eigen::Index i = 0; i < weights.size(); ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    left -= weights[i];
    if (left < 0) break;
  }
  return last;
}

Eigen::ArrayXXd Random::normals(Eigen::Index rows, Eigen::Index columns) {
  return Eigen::ArrayXXd::NullaryExpr(rows, columns, [this] { return normal(); });
}

}  // namespace prefopt::exact
