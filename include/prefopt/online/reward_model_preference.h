// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "prefopt/export.h"
#include "prefopt/online/preference.h"
#include "prefopt/policy/reward_policy.h"

namespace prefopt {

/// Returns the opinion of a reward model, which reads the tokens of a rollout as they are:
/// P(first beats second) = σ((r_first − r_second) / temperature), at temperature 0 a step with 1/2
/// at equal rewards. `at_once` texts are scored together, which bounds memory and changes nothing.
/// `name` is that of the model in messages.
///
/// Throws ConfigError for no model, a negative temperature or an `at_once` below 1. A reward that
/// is not finite is a NonFiniteError with the model, the prompt and the completion.
PREFOPT_API std::unique_ptr<Preference> make_reward_model_preference(
    std::shared_ptr<RewardPolicy> model, double temperature = 1, std::int64_t at_once = 16,
    std::string name = {});

}  // namespace prefopt
