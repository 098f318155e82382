// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pair_logps.h"
#include "prefopt/math/functions.h"

namespace prefopt {

/// Returns the running mean unchanged, for a value that does not count; 0 before the first value.
template <class T>
RunningMean<T> frozen_mean(const RunningMean<T>& before, const prefopt::ScalarOf<T>& like) {
  if (before.count > 0) return before;
  return {prefopt::ScalarOf<T>(0 * like), 0, true};
}

/// Returns the running mean after `count` more values of the given sum.
template <class T>
RunningMean<T> updated(const RunningMean<T>& before, const ScalarOf<T>& sum, double count) {
  if (before.is_frozen) return frozen_mean<T>(before, sum);
  if (before.count == 0) return {ScalarOf<T>(sum / count), count};
  const double all = before.count + count;
  return {ScalarOf<T>(before.mean * (before.count / all) + sum / all), all};
}

/// Returns an exponential average that starts at 0: momentum * before + (1 - momentum) * value.
template <class T>
RunningMean<T> blended(const RunningMean<T>& before, const ScalarOf<T>& value, double momentum) {
  if (before.is_frozen) return frozen_mean<T>(before, value);
  const ScalarOf<T> fresh = (1 - momentum) * value;
  if (before.count == 0) return {fresh, 1};
  return {ScalarOf<T>(momentum * before.mean + fresh), before.count + 1};
}

}  // namespace prefopt
