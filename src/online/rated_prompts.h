// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "dist/meeting.h"
#include "prefopt/data/batch.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/train/metrics.h"

namespace prefopt::detail {

/// Completions of some prompts, the opinion about them, and the rows that follow.
class RatedPrompts {
 public:
  const std::vector<TokenRow>& rows() const { return rows_; }
  /// Returns the completions of each prompt.
  const std::vector<std::vector<Rollout>>& rollouts() const { return rollouts_; }
  void append(RatedPrompts more);
  /// Returns prompts and opinion as bytes for `unpack`, which makes the same rows of them.
  std::string pack() const;
  static RatedPrompts unpack(std::string_view bytes, const OnlineParts& parts);
  /// Drops the prompts for which `keeps` does not hold. Not for prompts with rows.
  void keep_if(const std::function<bool(const std::vector<Rollout>&)>& keeps);
  /// Returns metrics of a round.
  Metrics metrics() const;
  /// Returns the first prompts with their completions, for the report.
  Json samples(std::size_t prompts, const std::vector<SourceOptions>& sources) const;

 private:
  friend RatedPrompts rate(const OnlineParts& parts, std::vector<std::vector<Rollout>> rollouts,
                           std::int64_t seed, std::int64_t round, std::int64_t first);

  /// Visits the counts, to read or write them.
  template <class Visit, class Prompts>
  static void visit_counts(Visit& visit, Prompts& of);
  void add_rows(std::size_t prompt, const OnlineParts& parts);

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

/// Returns completions of held-out prompts, one of each, with the texts that feedback reads.
std::vector<Rollout> with_texts(std::vector<Rollout> rollouts, const OnlineParts& parts,
                                const SamplingOptions& sampling);

/// Completions of another policy, and the metric that holds the rate of wins over them.
struct Opponent {
  std::string_view metric;
  const std::vector<Rollout>* rollouts;
};

/// Returns metrics of an evaluation: the mean reward of completions where there are rewards, the
/// rate of wins over each opponent, lengths. Opponents are not compared with each other.
/// Ranks share the prompts, and get the same metrics.
Metrics contest_metrics(const OnlineParts& parts, const std::vector<Rollout>& ours,
                        const std::vector<Opponent>& opponents, Meeting& meeting);

}  // namespace prefopt::detail
