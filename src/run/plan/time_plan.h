// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "run/plan/assumptions.h"
#include "run/plan/memory_plan.h"
#include "run/plan/step_work.h"

namespace prefopt::detail {

/// A kind of collective of a step.
struct Collective {
  std::string name;
  double count = 0;    ///< a step
  double bytes = 0;    ///< of all of them, in and out of a rank's memory once
  double seconds = 0;  ///< by α and β
  bool waits = false;  ///< whether nothing is computed meanwhile
};

/// The ranks' network: t(b) = (call + hops · α) + share · b / β.
class Interconnect {
 public:
  explicit Interconnect(const PlanAssumptions& machine);

  /// Returns the seconds of a sum of `bytes` over all ranks; 0 for one rank.
  double sum(double bytes) const;
  /// The same where each rank gets its share of a sum, or all shares are gathered.
  double half(double bytes) const;

 private:
  double ranks_, hops_seconds_, bus_, call_;
};

/// The collectives of a step. `micro_batches`: of the rank that has the most.
std::vector<Collective> collectives_of(const ModelBytes& bytes, const PlanAssumptions& machine,
                                       double micro_batches, bool has_live_reference);

/// Seconds of a step. `layers` to `fixed` are those of the mean rank.
struct StepTime {
  double layers = 0, head = 0, reference = 0, fixed = 0;
  double imbalance = 0;  ///< until the slowest rank is ready
  double collectives = 0;
  double exposed = 0;  ///< of them, what no computation hides
  double optimizer = 0;

  double compute() const { return layers + head + reference + fixed + imbalance; }
  double step() const { return compute() + exposed + optimizer; }
  /// Returns the name of the largest part.
  std::string bottleneck() const;
};

/// Returns the seconds of one rank's share, `parts` micro-batches, without collectives.
StepTime time_of_share(const StepWork& work, double parts, const PlanAssumptions& machine);

/// Returns the seconds of collectives that no computation hides: of those that wait, and of the
/// others all but the share `overlap`, and what takes longer than the computation next to which
/// they run.
double exposed_seconds(const std::vector<Collective>& collectives, double compute,
                       double micro_batches, const PlanAssumptions& machine);

/// Returns the seconds of one rank's optimizer step: state and what it trains are read and written,
/// gradients read.
double optimizer_seconds(const ModelBytes& bytes, const PlanAssumptions& machine);

/// Returns the bytes of that pass on one rank that holds all of it.
double optimizer_traffic(const ModelBytes& bytes);

}  // namespace prefopt::detail
