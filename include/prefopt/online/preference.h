// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
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
  /// Returns the T by which `compare_rewards` makes comparisons of rewards.
  virtual double temperature() const { return 1; }
  /// Returns whether rewards follow from the tokens, so that equal ones are asked about once.
  virtual bool is_of_tokens() const { return true; }
  /// Returns how many comparisons, so far, had one winner in one order and the other in the other.
  virtual std::int64_t inconsistent() const { return 0; }
  /// Returns the questions without an answer that count towards a limit, so far: a number for each
  /// program. The default: none counts.
  virtual std::vector<std::int64_t> failures() const { return {}; }
  /// Takes as many numbers as `failures` has, those of a run that is resumed.
  virtual void set_failures(std::span<const std::int64_t> /*failures*/) {}
};

/// Returns P(first beats second) = σ((first − second) / temperature), the Bradley–Terry model.
/// Temperature 0 is its limit: 1, 0, and 1/2 for equal rewards. NaN for a reward that is NaN.
PREFOPT_API double compare_rewards(double first, double second, double temperature);

/// A preference that follows from rewards.
class PREFOPT_API RewardPreference : public Preference {
 public:
  /// Throws ConfigError for a temperature below 0.
  explicit RewardPreference(double temperature = 1);

  std::vector<double> beats(const std::vector<Comparison>& comparisons) override;
  bool has_rewards() const override { return true; }
  double temperature() const override { return temperature_; }

 private:
  double temperature_;
};

/// The fate of a completion without an end token, in a comparison with one that has one.
enum class Unfinished { kAsJudged, kLoses };

struct RaterOptions {
  double missing_eos_penalty = 0;  ///< subtracted from the reward of a completion without end token
  double length_penalty = 0;       ///< subtracted from a reward for each token
  Unfinished unfinished = Unfinished::kAsJudged;
};

/// Returns what a completion's reward loses by these options.
PREFOPT_API double end_penalty(const Rollout& rollout, const RaterOptions& options);

/// Counts of a rater, for metrics.
struct RaterCounts {
  std::int64_t questions = 0;  ///< rewards and comparisons that were asked for
  std::int64_t failures = 0;   ///< those without an answer
  /// Pairs of equal token sequences among those that were compared; they are never asked about.
  std::int64_t identical = 0;
};

/// The opinion about the completions of one prompt, each question asked once: beats(i, j) +
/// beats(j, i) = 1, and equal token sequences have one reward, unless the preference's are not of
/// tokens, and 1/2 without a question. Where there are rewards, comparisons follow from them after
/// penalties.
///
/// Throws DataError for answers that are infinite, or probabilities outside of [0, 1].
class PREFOPT_API Rater {
 public:
  /// `preference` and `rollouts` have to outlive the rater.
  Rater(Preference& preference, const std::vector<Rollout>& rollouts,
        const RaterOptions& options = {});

  std::int64_t size() const { return std::ssize(*rollouts_); }
  bool has_rewards() const { return preference_->has_rewards(); }
  const Rollout& rollout(std::int64_t i) const { return rollouts_->at(i); }
  /// Returns whether the token sequences are equal.
  bool is_identical(std::int64_t i, std::int64_t j) const { return first_.at(i) == first_.at(j); }
  /// Returns the reward after penalties; NaN: no answer. Throws ConfigError without rewards.
  double reward(std::int64_t i);
  /// Returns P(i beats j); NaN: no answer.
  double beats(std::int64_t i, std::int64_t j);
  const RaterCounts& counts() const { return counts_; }

  /// The questions whose answers are not known yet, in one call.
  void ask_rewards();      ///< of all completions
  void ask_comparisons();  ///< of all pairs

  /// The same of many raters, in one call for all neighbours that share a preference.
  static void ask_rewards(std::span<Rater> raters);
  static void ask_comparisons(std::span<Rater> raters);
  /// Of each rater the first two completions with a token alone.
  static void ask_first_comparison(std::span<Rater> raters);
  /// Returns whether the reward of a completion is known, or that it has none.
  bool has_reward(std::int64_t i) const { return has_reward_[first_.at(i)]; }

 private:
  struct Pair {
    std::int64_t first, second;
  };
  using Places = std::vector<std::int64_t>;

  std::size_t place(Pair pair) const;
  bool is_settled(Pair pair) const;
  bool is_first(std::int64_t i) const;
  double asked_comparison(Pair pair);
  void count_identical(Pair pair);
  void count_answer(double answer);
  Places all() const;
  Places first_two() const;
  Places open_rewards(const Places& among) const;
  std::vector<Pair> open_comparisons(const Places& among) const;
  static void ask_rewards_of(std::span<Rater> raters, Places (Rater::*among)() const);
  static void ask_comparisons_of(std::span<Rater> raters, Places (Rater::*among)() const);
  void set_reward(std::int64_t i, double answer);
  void set_comparison(Pair pair, double answer);
  static std::span<Rater> with_one_preference(std::span<Rater> raters);

  Preference* preference_;
  const std::vector<Rollout>* rollouts_;
  RaterOptions options_;
  RaterCounts counts_;
  std::vector<std::int64_t> first_;  ///< place of the first rollout with the same tokens
  std::vector<std::int64_t> rated_;  ///< place of the rollout whose reward it has
  std::vector<double> rewards_;      ///< before penalties, of first rollouts
  std::vector<bool> has_reward_;
  std::vector<double> beats_;   ///< [size, size], of pairs i < j of first rollouts
  std::vector<bool> is_known_;  ///< [size, size]; of equal tokens: is counted
};

}  // namespace prefopt
