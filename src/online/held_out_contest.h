// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "dist/meeting.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/train/state_visitor.h"

namespace prefopt::detail {

/// The policy's completions of held-out prompts against those of the policy before training, and
/// against those of the evaluation before.
class HeldOutContest {
 public:
  /// `parts` and `meeting` have to outlive it. `seed` is that of all draws, so that equal policies
  /// write the same.
  HeldOutContest(const OnlineParts& parts, std::int64_t at_once, std::int64_t seed,
                 Meeting& meeting);

  /// Returns the metrics of contest_metrics; none without held-out prompts or feedback.
  Metrics measure(Policy& policy);
  /// From here on the completions that `measure` wrote last are those of the evaluation before.
  void finish();
  /// Visits the completions of the evaluation before.
  void visit_state(StateVisitor& visitor);

 private:
  bool has_environment() const;
  std::size_t environment() const;
  /// Returns a completion of each held-out prompt: an episode of the first source that has an
  /// environment, if one has.
  std::vector<Rollout> write(Policy& policy) const;
  std::vector<Rollout> write(Policy& policy, const Portion& own) const;

  const OnlineParts& parts_;
  SamplingOptions sampling_;
  std::int64_t at_once_;
  Meeting& meeting_;
  std::vector<Rollout> first_;     ///< of the policy before training
  std::vector<Rollout> measured_;  ///< of the newest evaluation, which may not count yet
  std::vector<Rollout> last_;      ///< of the evaluation before; empty: there was none
};

}  // namespace prefopt::detail
