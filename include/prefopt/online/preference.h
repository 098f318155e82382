// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/online/rollout.h"

namespace prefopt {

/// Two completions of one prompt.
struct Comparison {
  const Rollout* first = nullptr;
  const Rollout* second = nullptr;
};

/// An opinion about completions: which of two is better, and with what probability.
class PREFOPT_API Preference {
 public:
  virtual ~Preference() = default;

  /// Returns P(first beats second) of each comparison, in [0, 1]; NaN: no answer.
  virtual std::vector<double> beats(const std::vector<Comparison>& comparisons) = 0;
  /// Returns whether single completions have a reward.
  virtual bool has_rewards() const { return false; }
  /// Returns the reward of each completion, more is better; NaN: no answer. The default throws
  /// ConfigError: there are comparisons alone.
  virtual std::vector<double> rewards(const std::vector<const Rollout*>& rollouts);
};

/// The fate of a completion without an end token, in a comparison.
enum class Unfinished { kAsJudged, kLoses };

struct RaterOptions {
  double missing_eos_penalty = 0;  ///< subtracted from the reward of a completion without end token
  double length_penalty = 0;       ///< subtracted from a reward for each token
  Unfinished unfinished = Unfinished::kAsJudged;
};

/// Counts of a rater, for metrics.
struct RaterCounts {
  std::int64_t questions = 0;  ///< rewards and comparisons that were asked for
  std::int64_t failures = 0;   ///< those without an answer
  std::int64_t identical = 0;  ///< comparisons of equal token sequences, which are never asked
};

/// The opinion about the completions of one prompt, each question asked once: beats(i, j) +
/// beats(j, i) = 1, and equal token sequences have 1/2 without a question. Where there are rewards,
/// comparisons follow from them.
class PREFOPT_API Rater {
 public:
  /// `preference` and `rollouts` have to outlive the rater.
  Rater(Preference& preference, const std::vector<Rollout>& rollouts,
        const RaterOptions& options = {});

  std::int64_t size() const;
  bool has_rewards() const;
  const Rollout& rollout(std::int64_t i) const;
  /// Returns whether the token sequences are equal.
  bool is_identical(std::int64_t i, std::int64_t j) const;
  /// Returns the reward after penalties; NaN: no answer. Throws ConfigError without rewards.
  double reward(std::int64_t i);
  /// Returns P(i beats j); NaN: no answer.
  double beats(std::int64_t i, std::int64_t j);
  const RaterCounts& counts() const { return counts_; }

  /// The questions whose answers are not known yet, for one call about many prompts.
  void ask_rewards();      ///< of all completions
  void ask_comparisons();  ///< of all pairs

 private:
  Preference* preference_;
  const std::vector<Rollout>* rollouts_;
  RaterOptions options_;
  RaterCounts counts_;
  std::vector<double> rewards_;  ///< empty: not asked yet
  std::vector<double> beats_;    ///< [size, size]
  std::vector<bool> is_known_;   ///< [size, size]
};

}  // namespace prefopt
