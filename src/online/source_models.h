// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/online/online_rows.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/past_weights.h"
#include "prefopt/policy/weight_snapshot.h"

namespace prefopt::detail {

/// The models that sources write with, and what of them changes from round to round.
class SourceModels {
 public:
  /// Throws ConfigError for a source that needs `initial` where there is none.
  SourceModels(const std::vector<SourceOptions>& sources, const Policy& policy,
               std::shared_ptr<Policy> initial);

  /// Takes the policy at the start of a round.
  void start_round(Policy& policy);
  /// Takes the policy after a step.
  void finish_step(const Policy& policy);
  /// Calls `use` with the model of source `place` in `round`. The policy is as before afterwards.
  void with_model(std::int64_t place, Policy& policy, std::int64_t round, std::int64_t seed,
                  const std::function<void(Policy& model)>& use);
  void visit_state(StateVisitor& visitor);

 private:
  const SourceOptions& source(std::int64_t place) const {
    return sources_[static_cast<std::size_t>(place)];
  }

  std::vector<SourceOptions> sources_;
  std::shared_ptr<Policy> initial_;
  std::optional<WeightSnapshot> last_, present_;      ///< the round before, this round
  std::map<std::int64_t, PastWeights> past_;          ///< by place of their source
  std::map<std::int64_t, MovingReference> averages_;  ///< likewise
  std::int64_t steps_ = 0;
};

}  // namespace prefopt::detail
