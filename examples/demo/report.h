// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
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
  Divergence kl;
};

Comparison compare(const Responses& before, const Responses& after, const Divergence& kl,
                   std::uint64_t seed);

std::string comparison_table(const Comparison& comparison);

/// The first response to each prompt, before and after in two columns.
std::string side_by_side(std::span<const Prompt> prompts, const Responses& before,
                         const Responses& after);

/// `text` in lines of at most `width` characters, broken between words where that is possible; its
/// own line breaks stay.
std::vector<std::string> wrapped(std::string_view text, std::size_t width);

/// Mean over all responses.
double mean_reward(const Responses& responses);

}  // namespace demo
