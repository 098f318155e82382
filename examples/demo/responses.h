// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/data/prompts.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/online/rollout.h"
#include "prefopt/policy/policy.h"
#include "reward.h"

namespace demo {

struct Response {
  std::string text;
  std::vector<std::int64_t> ids;  ///< as they were drawn, the end token included
  bool ended = false;
  RewardTerms terms;

  double reward() const { return terms.total(); }
};

/// Responses to each prompt.
using Responses = std::vector<std::vector<Response>>;

std::vector<std::vector<std::int64_t>> ids_of(const std::vector<prefopt::Prompt>& prompts);

/// Draws responses to each prompt and rates them.
Responses respond(prefopt::Policy& policy, const prefopt::Tokenizer& tokenizer,
                  const std::vector<prefopt::Prompt>& prompts,
                  const prefopt::RolloutOptions& options);

}  // namespace demo
