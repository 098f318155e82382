// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/evaluation/statistics.h"
#include "responses.h"

namespace demo {

/// Responses of the policy against those of the reference to the same held-out prompts.
struct Comparison {
  struct Term {
    std::string_view name;
    double before = 0;
    double after = 0;
  };
  double reward_before = 0;
  double reward_after = 0;
  prefopt::Estimate gain;  ///< of reward, paired by prompt
  prefopt::Estimate wins;  ///< of the policy, ties by half
  std::vector<Term> terms;
  double tokens_before = 0;  ///< a response
  double tokens_after = 0;
};

Comparison compare(const Responses& before, const Responses& after);

/// `kl`: of the policy from the reference, nats a response.
std::string comparison_table(const Comparison& comparison, const prefopt::Estimate& kl);

/// The first response to each of the prompts, before and after.
std::string shown_responses(std::span<const prefopt::Prompt> prompts, const Responses& before,
                            const Responses& after);

/// Mean over all responses.
double mean_reward(const Responses& responses);

}  // namespace demo
