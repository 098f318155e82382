// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/json.h"
#include "prefopt/data/batch.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/train/metrics.h"

namespace prefopt::detail {

/// Completions of some prompts, the opinion about them, and the rows that follow.
class RatedPrompts {
 public:
  const std::vector<TokenRow>& rows() const { return rows_; }
  const std::vector<std::vector<Rollout>>& rollouts() const { return rollouts_; }
  void append(RatedPrompts more);
  /// Returns metrics of a round.
  Metrics metrics() const;
  /// Returns the first prompts with their completions, for the report.
  Json samples(std::size_t prompts, const std::vector<SourceOptions>& sources) const;
  /// Returns why there are no rows, in a few words.
  std::string summary() const;

 private:
  friend RatedPrompts rate(const OnlineParts& parts, std::vector<std::vector<Rollout>> rollouts,
                           std::int64_t seed, std::int64_t round, std::int64_t first);

  std::vector<TokenRow> rows_;
  std::vector<std::vector<Rollout>> rollouts_;
  std::vector<std::vector<SelectedRow>> selected_;  ///< of each prompt
  std::int64_t ties_ = 0, identical_ = 0, failed_ = 0, unusable_ = 0, missing_ = 0;
  std::int64_t questions_ = 0, failures_ = 0;
};

/// Asks what the selection asks about all completions at once, and selects. `first` is the place of
/// the first prompt in its round. Throws ConfigError for a column that the loss does not read.
RatedPrompts rate(const OnlineParts& parts, std::vector<std::vector<Rollout>> rollouts,
                  std::int64_t seed, std::int64_t round, std::int64_t first);

/// Returns a completion of each held-out prompt: an episode of the first source that has an
/// environment, if one has.
std::vector<Rollout> completions_of(Policy& model, const OnlineParts& parts,
                                    const SamplingOptions& sampling, std::int64_t at_once);

/// Returns metrics of an evaluation: the mean reward of completions where there are rewards, the
/// rate of wins over `others` (none if empty), lengths.
Metrics contest_metrics(const OnlineParts& parts, const std::vector<Rollout>& ours,
                        const std::vector<Rollout>& others);

}  // namespace prefopt::detail
