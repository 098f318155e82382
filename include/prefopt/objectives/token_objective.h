// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <Eigen/Core>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/kl.h"
#include "prefopt/objectives/rollout_step.h"
#include "prefopt/objectives/token_rule.h"
#include "prefopt/objectives/values.h"
#include "prefopt/options.h"

namespace prefopt {

/// The weights of tokens in the loss of a step, with T tokens, N completions and G groups, of which
/// those without a token that counts do not count. L: tokens of a completion, T_g of a group.
enum class Aggregation {
  kTokenMean,          ///< 1 / T (DAPO, 2503.14476)
  kSequenceTokenMean,  ///< 1 / (L N) (GRPO, 2402.03300)
  kSequenceSum,        ///< 1 / N (RLOO, 2402.14740)
  kFixed,              ///< 1 / (N max_completion_length) (Dr. GRPO, 2503.20783)
  kGroupTokenMean,     ///< 1 / (T_g G)
};

/// The factor for a sampler whose log-probs differ from the trainer's, with q = e^(old − sampler).
enum class CorrectionKind {
  kNone,
  kTruncate,          ///< min(q, cap) (truncated importance sampling)
  kMask,              ///< q where low <= q <= cap, else 0 (IcePop)
  kSequenceTruncate,  ///< min(Πq, cap)
  kSequenceMask,      ///< Πq where low <= Πq <= cap, else 0
};

struct CorrectionOptions {
  CorrectionKind kind = CorrectionKind::kNone;
  double low = 0;
  double cap = 0;

  PREFOPT_API void fields(FieldVisitor& v);
  /// Returns the cap, 2 of truncate, 5 of mask and 3 of completions where it is 0.
  PREFOPT_API double limit() const;
};

/// The reward of a token from a model that DPO trained (RTO, 2404.18922): coefficient · (log π_dpo
/// − log π_ref), limited to [-clip, clip].
struct DpoRewardOptions {
  double coefficient = 0;
  double clip = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The treatment of completions without an end token.
enum class UnfinishedCompletions { kKeep, kMask };

struct TokenObjectiveOptions {
  std::string advantage = R"({"kind": "none"})";  ///< of make_advantage
  std::string rule = R"({"kind": "none"})";       ///< of make_rule
  RatioLevel level = RatioLevel::kToken;
  Aggregation aggregation = Aggregation::kTokenMean;
  std::int64_t max_completion_length = 0;  ///< of aggregation fixed
  KlOptions kl = {};
  CorrectionOptions correction = {};
  double off_policy_drop = 0;  ///< nats a token; 0: none is dropped
  double entropy_coefficient = 0;
  ValueLossOptions value_loss = {};
  DpoRewardOptions dpo_reward = {};
  UnfinishedCompletions unfinished = UnfinishedCompletions::kKeep;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The inputs of an objective, in addition to log-probs of the policy that is trained.
struct ObjectiveNeeds {
  bool ref_logps = false;
  bool sampler_logps = false;  ///< those that the sampler reported
  bool entropies = false;      ///< with gradient
  bool exact_kls = false;      ///< with gradient, over the vocabulary
  bool values = false;         ///< a value model, trained where value_loss has a coefficient
  bool extra_logps = false;    ///< a model trained by DPO
  bool greedy_rewards = false;
  bool given = false;
  bool groups = false;
  bool ratios = false;  ///< compares the policy with the one before: the sampler's own distribution
};

/// Counts over one whole optimizer step (all micro-batches, all ranks), known before any forward
/// pass: the weights of tokens come from them, so a step may be cut anywhere.
struct ObjectiveTotals {
  double tokens = 0;
  double completions = 0;
  double groups = 0;
};

/// Numbers of the acted tokens of some completions, none of them cut, [tokens]; those that an
/// objective does not need may be undefined. `old_logps` undefined: one update, at which the ratio
/// is 1 and its gradient that of log π. No tokens at all: a loss of 0.
template <class T>
struct BasicTokenArrays {
  T logps;  ///< log π, nats
  T old_logps = {}, ref_logps = {}, sampler_logps = {};
  T advantages;
  T entropies = {}, exact_kls = {};
  T values = {}, old_values = {}, returns = {};
  T completions;      ///< place of the token's completion, from 0
  T turns = {};       ///< place of its turn among those of all completions; undefined: one each
  T lens;             ///< acted tokens of its completion
  T group_lens = {};  ///< of its group in the whole step; for group_token_mean
  std::int64_t completion_count = 0, turn_count = 0;
  ObjectiveTotals totals = {};
};

using TokenArrays = BasicTokenArrays<at::Tensor>;

/// A sum over tokens for a metric; the mean over the tokens of the step is logged.
template <class T>
struct BasicTokenStatistic {
  std::string name;
  ScalarOf<T> sum;
};

template <class T>
struct BasicObjectiveOutput {
  ScalarOf<T> loss = {};  ///< this part's share of the step's loss
  T grad_logps = {};      ///< [tokens] d loss / d log π
  T grad_entropies = {}, grad_exact_kls = {}, grad_values = {};
  /// policy, kl, entropy, value, those that there are; they sum to the loss
  std::vector<BasicLossTerm<T>> terms = {};
  std::vector<BasicTokenStatistic<T>> statistics = {};
};

/// `loss` carries the gradient into the tensors that it was computed from.
using ObjectiveOutput = BasicObjectiveOutput<at::Tensor>;

/// Advantages of a step, and what the updates on it read besides.
struct StepAdvantages {
  Eigen::ArrayXd advantages;  ///< [tokens], 0 where the policy did not choose
  Eigen::ArrayXd returns;  ///< [tokens] advantages before whitening + values; without values: none
  Eigen::ArrayXd kept;     ///< [completions] 1, or 0 where keep_above drops it
};

/// A policy-gradient objective on tokens: advantage × rule × level × aggregation × KL × correction.
/// The loss of a step is Σ_t w_t (c_t f(ρ_t, A_t) + β KL_t + v V_t) − e mean_t H_t, with weights w
/// fixed before the step is cut.
class PREFOPT_API TokenObjective {
 public:
  /// Throws ConfigError for options that contradict each other or change nothing. A KL by k1 in the
  /// loss without the ratio has an expected gradient of 0: `make_token_objective` refuses it, this
  /// constructor does not.
  explicit TokenObjective(TokenObjectiveOptions options = {}, std::string name = "policy_gradient");
  /// The same of pieces that need not be registered, in place of those that the options name;
  /// config() then builds an equal objective only where they are.
  TokenObjective(Advantage advantage, TokenRule rule, TokenObjectiveOptions options = {},
                 std::string name = "policy_gradient");

  /// Returns the advantages, with the KL in the reward taken off. `kl_coefficient` replaces that of
  /// the options where it is adapted. Throws as Advantage::of.
  StepAdvantages advantages(const RolloutStep& step, double kl_coefficient) const;
  StepAdvantages advantages(const RolloutStep& step) const {
    return advantages(step, options_.kl.coefficient);
  }

  /// Returns the loss of some completions and its derivatives. Throws ShapeError for arrays that
  /// are missing or of other lengths, and for totals below the completions and tokens given.
  template <class T>
  BasicObjectiveOutput<T> formula(const BasicTokenArrays<T>& in, double kl_coefficient) const;
  /// The same, with `loss` tied to the tensors that require a gradient.
  ObjectiveOutput forward(const TokenArrays& in, double kl_coefficient) const;
  ObjectiveOutput forward(const TokenArrays& in) const {
    return forward(in, options_.kl.coefficient);
  }

  ObjectiveNeeds needs() const;
  /// Returns whether completions without an advantage have neither a loss nor a gradient, so that
  /// they need only be counted.
  bool ignores_zero_advantages() const;
  const TokenObjectiveOptions& options() const { return options_; }
  const Advantage& advantage() const { return advantage_; }
  const TokenRule& rule() const { return rule_; }
  const std::string& name() const { return name_; }
  /// Returns `{"type": "policy_gradient", every option}`, from which make_token_objective builds an
  /// equal objective.
  std::string config() const;

 private:
  template <class T>
  void check(const BasicTokenArrays<T>& in) const;
  template <class T>
  T weights(const BasicTokenArrays<T>& in) const;
  template <class T>
  T correction(const BasicTokenArrays<T>& in, const T& old_logps) const;

  TokenObjectiveOptions options_;
  std::string name_;
  Advantage advantage_;
  TokenRule rule_;
};

/// A named setting of all options.
struct ObjectivePreset {
  std::string name = {};
  std::string options = {};  ///< JSON of TokenObjectiveOptions
  std::string source = {};   ///< arXiv id
  std::string when_to_use = {};
  std::string recipe = {};  ///< settings of the run that the paper has and the objective does not
};

/// Returns the presets in the order of the documentation.
PREFOPT_API const std::vector<ObjectivePreset>& objective_presets();

/// Builds an objective from `{"type": NAME, options…}`, NAME `policy_gradient` or a preset whose
/// options the others replace. TRL's form `{"trainer": "GRPOTrainer", "loss_type": NAME, …}` gives
/// that of TRL 1.16 by its defaults. Throws ConfigError for an unknown name or key, naming the
/// nearest known one.
PREFOPT_API TokenObjective make_token_objective(std::string_view config_json);
/// Returns whether a config is of an objective on tokens rather than of a loss on pairs: a preset,
/// `policy_gradient` with a piece, or TRL's form of GRPOTrainer or RLOOTrainer.
PREFOPT_API bool is_token_objective(std::string_view config_json);

}  // namespace prefopt
