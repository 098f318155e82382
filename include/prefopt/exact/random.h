// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <random>

#include "prefopt/export.h"

namespace prefopt::exact {

/// Random numbers that are the same on every platform for one seed, unlike those of <random>'s
/// distributions.
class PREFOPT_API Random {
 public:
  explicit Random(std::uint64_t seed);

  double uniform();                        ///< in [0, 1)
  double normal();                         ///< mean 0, variance 1 (Box and Muller 1958)
  Eigen::Index below(Eigen::Index count);  ///< one of 0 … count - 1
  /// Returns i with probability proportional to weights[i] >= 0, at least one of them positive.
  Eigen::Index index(const Eigen::ArrayXd& weights);
  Eigen::ArrayXXd normals(Eigen::Index rows, Eigen::Index columns);

 private:
  std::mt19937_64 engine_;
};

}  // namespace prefopt::exact
