// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "prefopt/exact/policy.h"
#include "prefopt/exact/preferences.h"
#include "prefopt/exact/random.h"
#include "prefopt/export.h"

namespace prefopt::exact {

/// Labelled pairs of actions with weights that sum to 1: a data set, or the distribution that data
/// sets are drawn from.
struct Pairs {
  std::vector<Index> prompts, chosen, rejected;
  Eigen::ArrayXd weights;
  /// Of each pair the action that the reference drew: 0 neither, 1 chosen, 2 rejected; empty: not
  /// known.
  std::vector<int> from_reference = {};

  Index size() const { return weights.size(); }
};

/// Returns a behaviour policy on some of the actions: `logps` where `covered` is not 0,
/// renormalized, and -inf elsewhere. Throws ShapeError for tables that differ in shape, ConfigError
/// for a prompt with fewer than two covered actions.
PREFOPT_API Table covering(const Table& logps, const Table& covered);

/// Returns the exact distribution of a pair: a prompt, two different actions of `behaviour`
/// (log-probs), and the label. Every possible ordered pair is a row. Throws ShapeError for tables
/// that differ in shape.
PREFOPT_API Pairs population(const Table& behaviour, const Preferences& preferences);

/// Returns `count` draws from it, each of weight 1 / count. Throws ConfigError for a count below 1.
PREFOPT_API Pairs sample(const Pairs& population, Index count, Random& random);

/// Merges equal rows and adds up their weights: the same objective in less time.
PREFOPT_API Pairs merged(const Pairs& pairs);

}  // namespace prefopt::exact
