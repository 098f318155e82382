// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iosfwd>

#include "core/json.h"
#include "run/plan/run_plan.h"

namespace prefopt::cli {

/// A plan with what it was made from.
struct PlanReport {
  const detail::RunPlan& plan;
  const detail::PlanAssumptions& machine;
  bool is_calibrated;  ///< speeds were measured on this machine
};

void print_plan(const PlanReport& report, std::ostream& out);
detail::Json plan_to_json(const PlanReport& report);

}  // namespace prefopt::cli
