// SPDX-License-Identifier: Apache-2.0
#pragma once

// Parts that selections share: which completions may be in a row, how good they are, and the checks
// that every pair passes.

#include <cstdint>
#include <string_view>
#include <vector>

#include "prefopt/online/preference.h"
#include "prefopt/online/selection.h"
#include "prefopt/options.h"

namespace prefopt::detail {

/// Places of completions.
using Places = std::vector<std::int64_t>;

/// A completion with its reward or its row mean.
struct Scored {
  std::int64_t place;
  double score;
};

/// The number that ranks completions.
enum class ScoreBy {
  kReward,
  kRowMean,  ///< mean probability of beating the others
};
void score_by_field(FieldVisitor& v, ScoreBy& by);

/// Returns the places of completions with a token; the others are counted as unusable.
Places usable_places(const Rater& rater, SelectedRows& result);

/// Throws ConfigError, led by `selection`, where there is one completion or none.
void require_others(const Rater& rater, std::string_view selection);

/// Returns the rewards; completions without one are counted as failed. Throws ConfigError, led by
/// `selection`, where there are comparisons alone.
std::vector<Scored> rewards_of(Rater& rater, const Places& places, std::string_view selection,
                               SelectedRows& result);

/// Returns the mean over j in `against`, j != i, of P(i beats j) for each i of `places`;
/// `include_self` adds the completion itself with 1/2. Pairs without an answer are counted as
/// failed and left out of the mean; a completion without any answer is left out.
std::vector<Scored> row_means_of(Rater& rater, const Places& places, const Places& against,
                                 bool include_self, SelectedRows& result);

/// The usable completions with their scores.
std::vector<Scored> score_candidates(Rater& rater, ScoreBy by, std::string_view selection,
                                     SelectedRows& result);

/// Questions that score_candidates asks.
Questions questions_of(ScoreBy by);

/// Removes and returns the one with the largest score, the first of equal ones; there is one.
Scored take_best(std::vector<Scored>& scored);
/// Removes and returns the one with the smallest score, the first of equal ones; there is one.
Scored take_worst(std::vector<Scored>& scored);
/// Sorts by score, the largest first, equal ones in their order.
void rank_by_score(std::vector<Scored>& scored);

/// Returns whether completions differ; equal ones are counted.
bool are_distinct(const Rater& rater, std::int64_t first, std::int64_t second,
                  SelectedRows& result);

/// Adds the pair where the first has the larger score by at least `min_gap`. Equal scores are
/// counted as a tie, equal completions as identical.
void add_if_better(const Rater& rater, const Scored& chosen, const Scored& rejected, double min_gap,
                   SelectedRows& result);

/// Adds the pair of two completions in the order that P(first beats second) says; a tie, a missing
/// answer and equal completions are counted.
void add_labelled(const Rater& rater, std::int64_t first, std::int64_t second, double p,
                  SelectedRows& result);

/// Gives the rows of the prompt the weight 1 / rows each, so that prompts count alike.
void weigh_prompt(SelectedRows& result);

}  // namespace prefopt::detail
