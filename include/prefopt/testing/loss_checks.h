// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"

// Checks for your own losses. They need no test framework:
//   CHECK(prefopt::testing::check_loss(MyLoss()).text() == "");
namespace prefopt::testing {

/// A failed check, in one sentence that names the loss, the batch and the seed, as in "gradient of
/// rejected_logps at row 2: expected -0.0312 by finite differences, got 0.0312 (loss 'my_loss',
/// batch of 4, seed 7)".
struct Failure {
  std::string check;  ///< the name of the check, as check_loss lists them
  std::string text;
};

struct LossReport {
  std::vector<Failure> failures = {};

  bool ok() const { return failures.empty(); }
  /// Returns one failure per line; empty if there is none.
  PREFOPT_API std::string text() const;
};

/// Names of inputs are those of losses/inputs.h, as in "sample_logps".
struct LossCheckOptions {
  std::int64_t batch = 4;  ///< rows, at least 2
  std::uint64_t seed = 1;
  LossProperties properties = {};
  bool anchors = true;  ///< false for options that are not the default: anchors hold for those
  /// Inputs in which the gradient is meant not to be the derivative of the value (an estimate by
  /// the score function, say), so that no differences are taken.
  std::vector<std::string> no_difference = {};
  /// For a loss that stops the gradient of a part of itself (a weight, a running mean): its value
  /// with that part computed from `frozen` and the rest from `moved`. Differences are taken of this
  /// instead of the loss.
  std::function<double(const PairLogps& moved, const PairLogps& frozen)> surrogate = {};
  double tolerance = 1e-6;  ///< of differences, relative; rounding of the loss is added to it
};

/// Returns random float64 inputs, those that `needs` names and no others. Policy log-probs lie
/// uniformly within `spread` nats of the reference's and are negative; completions have 1 to 30
/// tokens. The same numbers on every machine.
PREFOPT_API PairLogps random_pair_logps(const LossRequirements& needs, std::int64_t batch,
                                        std::uint64_t seed, double spread = 3);

/// Runs all checks of a loss and reports what fails; the checks, by name:
///   difference   grad_* of float64 batches against differences of `losses`, near to the reference
///                and far from it; at a kink, any slope between those of both sides
///   autograd     `loss.backward()` with a random outer gradient against grad_*
///   reference    no gradient into an input that has no grad_*; no graph on the other outputs
///   undeclared   NaN in inputs that requirements() does not name changes nothing
///   finite       |Delta| up to 1e4, in float32 and float64
///   float32      close to float64
///   mean         `losses` average to `loss`, `terms` add up to it
///   permutation  permuted rows give permuted results
///   cut          with `totals`, the parts of a step add up to it; a loss with `whole_step` refuses
///                a part with ShapeError
///   misuse       a missing or short input is an Error of prefopt
///   anchor       the values of info()
///   config       if the loss is registered, make_loss(config()) gives it back
///   property     the declared properties
/// An exception is a failure of its check. Of each input, the first failure is reported.
PREFOPT_API LossReport check_loss(const Loss& loss, const LossCheckOptions& options = {});

/// Runs the same for a loss that declares its properties: `static LossProperties properties()`.
template <class L>
requires requires {
  { L::properties() } -> std::same_as<LossProperties>;
}
LossReport check_loss(const L& loss, LossCheckOptions options = {}) {
  options.properties = L::properties();
  return check_loss(Loss(loss), std::as_const(options));
}

}  // namespace prefopt::testing
