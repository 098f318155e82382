// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/export.h"
#include "prefopt/online/environment.h"
#include "prefopt/options.h"

namespace prefopt {

/// The environment `guess`: a number in [low, high] is to be found, which follows from seed and
/// prompt. An action is the first number in its text. The right one ends the episode with reward 1;
/// any other, and an action without a number in the range, has -cost and a hint: higher, lower, or
/// the range. Halving what is left needs at most ⌊log2(high − low + 1)⌋ + 1 actions.
struct GuessOptions {
  std::int64_t low = 1;
  std::int64_t high = 20;
  double cost = 0.1;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns the number that is to be found.
PREFOPT_API std::int64_t hidden_number(const GuessOptions& options, const Episode& episode);

/// Throws ConfigError for a high below low.
PREFOPT_API EnvironmentFactory make_guess_factory(const GuessOptions& options = {});

}  // namespace prefopt
