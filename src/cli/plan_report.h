// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iosfwd>
#include <optional>

#include "core/json.h"
#include "run/plan/run_plan.h"

namespace prefopt::cli {

/// A plan with what it was made from.
struct PlanReport {
  const detail::RunPlan& plan;
  const detail::PlanAssumptions& machine;
  /// Of the runs that speeds were measured by on this machine, see Repeated; none: not measured.
  std::optional<double> spread;
};

void print_plan(const PlanReport& report, std::ostream& out);
detail::Json plan_to_json(const PlanReport& report);

}  // namespace prefopt::cli
