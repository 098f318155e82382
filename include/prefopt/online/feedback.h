// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sources of opinions about completions: reward programs, judges, reward models.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "prefopt/evaluation/judge.h"
#include "prefopt/export.h"
#include "prefopt/online/implicit_reward.h"
#include "prefopt/online/preference.h"
#include "prefopt/online/selection.h"
#include "prefopt/options.h"

namespace prefopt {

/// How the rewards of several models become one. Of models r_1 … r_n, with the mean m and the
/// standard deviation s = √(Σ (r_k − m)² / n): m, the least r_k, or m − k·s.
enum class Ensemble { kMean, kMin, kMeanMinusStd };

/// A program and its arguments.
using Command = std::vector<std::string>;

/// Where feedback comes from: exactly one of `reward`, `judge`, `program`, `reward_model`,
/// `implicit_reward` and `environment`.
///
/// A program reads one line of JSON a question and answers each with one line, in their order. It
/// has to flush after each line, and ends at the end of its input.
///
/// | source | question | answer |
/// | --- | --- | --- |
/// | reward | {"prompt": …, "completion": …} | {"reward": number} |
/// | judge, program | {"prompt": …, "a": …, "b": …} | {"winner": "a"}, "b" or "tie", or {"p": P(a
/// beats b)} |
///
/// null in place of the number or the name says that there is no answer, a failure.
struct FeedbackOptions {
  std::vector<Command> reward = {};         ///< their weighted sum is the reward
  std::vector<double> reward_weights = {};  ///< one a reward program; empty: 1 each
  Command judge = {};                       ///< asked about pairs
  bool both_orders = true;  ///< a judge is asked in both orders, and the mean counts
  Command program = {};     ///< asked about pairs once, as one without a favourite place
  std::vector<std::string> reward_model = {};  ///< folders of reward models
  ImplicitRewardOptions implicit_reward = {};  ///< of a model with a reference
  bool environment = false;  ///< rewards are those that rollouts have from their environment
  Ensemble ensemble = Ensemble::kMean;  ///< of several reward models
  double ensemble_k = 1;
  /// A judge's or program's comparisons with one baseline completion of the prompt are the rewards,
  /// see make_baseline_reward.
  bool against_baseline = false;
  double temperature = 1;  ///< of comparisons that follow from rewards, see compare_rewards
  std::int64_t workers = 1;
  double timeout = 60;  ///< seconds to the next answer
  std::int64_t retries = 2;
  std::int64_t max_failures = 0;
  double missing_eos_penalty = 0;
  double length_penalty = 0;
  Unfinished unfinished = Unfinished::kAsJudged;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns the part of the options that raters apply.
PREFOPT_API RaterOptions rater_options(const FeedbackOptions& options);

/// Returns the completion that completions of the same prompt are compared with.
using Baseline = std::function<const Rollout&(const Rollout& rollout)>;

/// Parts of feedback that are made elsewhere.
struct FeedbackParts {
  /// Loads the reward model of a folder.
  std::function<std::unique_ptr<Preference>(const std::string& folder)> load_reward_model = {};
  Baseline baseline = {};
  /// Loads the models of an implicit reward.
  std::function<std::unique_ptr<Preference>(const ImplicitRewardOptions& options)>
      load_implicit_reward = {};
};

/// Returns the source that the options describe. Programs are started.
///
/// Throws ConfigError for no source or several, for an option that the source does not use, for a
/// part that it needs and does not have, and for a program that cannot be started.
///
/// Of a program, `workers` processes answer at once. One that ends or takes longer than `timeout`
/// is started again, and asked the same question again, `retries` times; one that gives an invalid
/// line is started again as well, without a second try. A question that fails has the answer NaN.
/// More than `max_failures` of a program, over all calls and those of a run that is resumed, are a
/// DataError with what came in place
/// of the last answer.
PREFOPT_API std::unique_ptr<Preference> make_feedback(const FeedbackOptions& options,
                                                      const FeedbackParts& parts = {});

/// Returns a preference by the rewards of a function.
PREFOPT_API std::unique_ptr<Preference> make_reward_preference(Reward reward,
                                                               double temperature = 1);

/// Returns a preference by the rewards that rollouts have already: Rollout::rewards, which has to
/// hold one; DataError where it does not. Rollouts of equal tokens keep their own.
PREFOPT_API std::unique_ptr<Preference> make_given_reward(double temperature = 1);

/// Returns the preference of a judge: 1, 1/2 or 0 by its verdict, or the mean of both orders.
PREFOPT_API std::unique_ptr<Preference> make_judge_preference(std::unique_ptr<Judge> judge,
                                                              bool both_orders = true);

/// Returns Σ_k weights[k] r_k, as TRL's `reward_weights`; unlike there, the sum has no answer where
/// a part has none. Throws ConfigError for no parts, a part without rewards, or another number of
/// weights.
PREFOPT_API std::unique_ptr<Preference> make_weighted_sum(
    std::vector<std::unique_ptr<Preference>> parts, std::vector<double> weights,
    double temperature = 1);

/// Returns the rewards of several models as one, against overoptimization of a single one
/// (2310.02743, which subtracts the variance where this does the standard deviation). Throws
/// ConfigError for no parts, a part without rewards, or a negative k.
PREFOPT_API std::unique_ptr<Preference> make_ensemble(
    std::vector<std::unique_ptr<Preference>> parts, Ensemble ensemble, double k = 1,
    double temperature = 1);

/// Returns the rewards r(y) = log(p / (1 − p)) with p = P(y beats y_b), y_b the baseline of the
/// prompt, p clipped to [1e-6, 1 − 1e-6] (2309.06657, eq. 7). A completion with the tokens of its
/// baseline has 0, without a question.
PREFOPT_API std::unique_ptr<Preference> make_baseline_reward(
    std::unique_ptr<Preference> comparisons, Baseline baseline, double temperature = 1);

/// Asks what a selection asks of all raters, in one call of a preference that they share.
PREFOPT_API void ask(std::span<Rater> raters, Questions questions);

}  // namespace prefopt
