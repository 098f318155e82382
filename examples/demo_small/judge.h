// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/policy/policy.h"

namespace demo {

/// The worth of fresh samples of a policy on held-out prompts.
struct Judgement {
  double reward = 0;
  double reward_error = 0;  ///< standard error of the mean
  double kl = 0;            ///< mean log pi/pi_ref of the samples: KL(pi || pi_ref) in nats
  std::vector<std::string> examples;  ///< `prompt response`
};

Judgement judge(prefopt::Policy& policy, prefopt::Policy& reference,
                const prefopt::ControlledTask& task, const std::vector<std::string>& prompts,
                std::int64_t seed);

}  // namespace demo
