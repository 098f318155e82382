// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "report/run_record.h"

namespace prefopt::detail {

/// The meaning of a run's figures, in words.
struct Verdict {
  enum class Outcome { kBetter, kUnclear, kWorse, kUnknown };

  Outcome outcome = Outcome::kUnknown;
  std::string sentence;
  std::vector<std::string> warnings;
};

/// Compares the first evaluation with the last. Where the loss has rewards, what counts is how many
/// held-out pairs the policy prefers the right way round, by Wilson's interval: against one half
/// where the policy began as its reference, which prefers neither, else against the first
/// evaluation's interval. A policy that lost a tenth of its token accuracy on the way is no clear
/// success. Elsewhere it is the loss.
Verdict judge(const RunRecord& record);

/// First and last value of a curve.
struct Change {
  double before = 0, after = 0;
};
/// Nothing where the curve is not there.
std::optional<Change> change_of(const Curves& curves, std::string_view name);

/// Returns whether the policy began as its reference: all margins zero, no pair counted as won.
bool began_as_reference(const RunRecord& record);

/// Held-out rows, where run.json says so.
std::optional<double> held_out_rows(const RunRecord& record);

}  // namespace prefopt::detail
