// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/options.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/metrics.h"

namespace prefopt {

class Ranks;           // prefopt/dist/ranks.h
class TokenLoss;       // prefopt/objectives/token_loss.h
class TokenObjective;  // prefopt/objectives/token_objective.h

/// AdamW (1711.05101), Adafactor (1804.04235) without momentum, or RMSprop as LibTorch has it.
enum class OptimizerType { kAdamW, kAdafactor, kRmsprop };

enum class Schedule { kConstant, kLinear, kCosine };

enum class StateDtype { kParameter, kBFloat16 };

/// The training of bfloat16 and float16 weights: through float32 copies that steps change, or
/// directly by stochastic rounding.
enum class Masters { kFloat32, kStochastic };

/// Options of another type than `type` must have their defaults.
struct OptimizerOptions {
  OptimizerType type = OptimizerType::kAdamW;
  double learning_rate = 1e-4;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double adafactor_decay = 0.8;            ///< of step t: 1 - t^-decay is kept of the mean squares
  double adafactor_clip = 1;               ///< largest root mean square of an update
  bool adafactor_scale_parameter = false;  ///< the learning rate times that of the weight
  double rmsprop_alpha = 0.99;
  double rmsprop_epsilon = 1e-8;
  double rmsprop_momentum = 0;  ///< 0: none, and no memory for it
  /// Of matrices. RMSprop adds it to the gradient, the others shrink weights apart from it.
  double weight_decay = 0;
  double max_grad_norm = 1;  ///< 0: no clipping
  /// Of AdamW's and RMSprop's means, at least float32.
  StateDtype state_dtype = StateDtype::kParameter;
  Masters masters = Masters::kFloat32;  ///< of bfloat16 and float16 weights
  Schedule schedule = Schedule::kLinear;
  std::int64_t warmup_steps = 0;
  double min_learning_rate_ratio = 0;  ///< floor of linear and cosine, as a share of the peak

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns the learning rate of a step counted from 0: (step + 1) / warmup_steps of the peak in the
/// warmup, so that no step is spent at zero, then the schedule down to the floor at `total_steps`.
PREFOPT_API double learning_rate_at(const OptimizerOptions& options, std::int64_t step,
                                    std::int64_t total_steps);

/// Thrown when a step or evaluation runs out of memory. Gives the shape of the batch, the process's
/// peak memory and what to change.
class PREFOPT_API OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

/// Diagnostics of a skipped step: its rows, re-scored.
struct NonFiniteStep {
  std::int64_t step = 0;  ///< counted from 1
  double loss = 0;
  double grad_norm = 0;
  std::vector<TokenRow> rows = {};  ///< all rows of the step, in the order in which it took them
  /// One value per row under the names of PairLogps (`chosen_logps`, `ref_chosen_logps`, …).
  std::vector<std::pair<std::string, std::vector<double>>> logps = {};
  /// Places in `rows` of those with a value that is not finite; empty: they all have finite ones.
  std::vector<std::int64_t> offending = {};
  std::string weight = {};    ///< first parameter that is not finite itself; empty: none
  std::string gradient = {};  ///< first parameter whose gradient is not finite; empty: none
  /// Those that Trainer::step gives, with `skipped`; none if the step failed before its loss.
  Metrics metrics = {};
};

struct TrainerOptions {
  OptimizerOptions optimizer = {};
  std::int64_t total_steps = 0;       ///< length of the schedule; a constant one needs none
  std::int64_t micro_batch_size = 0;  ///< pairs at a time; 0: the whole step at once
  /// Tokens at a time, of prompts and completions together, at least one pair; 0: no limit.
  std::int64_t micro_batch_tokens = 0;
  /// Rows of an evaluation that a loss with `whole_step` sees at once: those of a step, or its
  /// value answers another problem than training does; a single row left over joins those before
  /// it. The loss is the mean of theirs, by rows. 0: all.
  std::int64_t evaluation_batch_size = 0;
  /// Of the output head, see linear_token_logps: changes memory and speed, never results.
  std::int64_t head_budget_bytes = std::int64_t{1} << 30;
  SamplingOptions sampling = {};  ///< for losses that need fresh samples
  /// Of the log-probs of an objective on tokens: that which its completions were drawn with.
  double temperature = 1;
  /// Weight of the mean negative log-prob of tokens of rows that are imitated (a pretraining mix,
  /// 2307.04964 eq. 17): those without `TokenRow::rollout` among the rollouts of a step.
  double imitation_coefficient = 0;
  /// Of an objective with a value loss: the values of tokens, trained by another optimizer
  /// along the same schedule of steps. Its gradients are clipped apart from the policy's.
  std::shared_ptr<RewardPolicy> value_model = {};
  OptimizerOptions value_optimizer = {};
  std::int64_t value_pretrain_steps = 0;  ///< first steps, which train the values alone
  /// Called for each step without an update, before NonFiniteError where it is the third. Of
  /// several ranks the first one calls it.
  std::function<void(const NonFiniteStep&)> on_non_finite = {};
  /// Processes that take each step together, every one with all rows of it; null: this one alone.
  std::shared_ptr<Ranks> ranks = {};
};

/// Returns what the rows of a loss must have.
PREFOPT_API RowNeeds row_needs(const LossRequirements& needs);

/// The state of a loss from step to step: a running mean (see `LossRequirements::running_mean`).
struct LossState {
  double mean = 0;
  double count = 0;
};

/// One loss, one policy, one optimizer. Knows nothing of files; `run_training` does.
///
/// Over several ranks, `step`, `evaluate` and `accumulate_gradients` are called by all with the
/// same rows, and results are the same bits on each; what fails on one throws on all, "rank 1: …".
/// Where they keep slices (RanksOptions::sharding), `save_policy`, `state`, `gather_state` and
/// `load_state` are called by all as well. `save_policy` writes on the first rank alone.
class PREFOPT_API Trainer {
 public:
  /// `reference` may be null for losses that need none; ConfigError otherwise.
  Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference, Loss loss,
          TrainerOptions options);
  /// Trains on rollouts, rows of one completion with `TokenRow::rollout`. `reference` may be null
  /// where the objective needs none or the rows have its log-probs; ConfigError otherwise.
  Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
          TokenObjective objective, TrainerOptions options);
  /// Trains on tokens of given rows of one completion, whose numbers are computed as the loss needs
  /// them. Throws ConfigError for a missing reference or value model.
  Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference, TokenLoss loss,
          TrainerOptions options);
  ~Trainer();

  /// Takes one optimizer step over `pairs`, in micro-batches whose sum is exactly the whole. A
  /// non-finite loss or gradient skips the update; the third in a row throws NonFiniteError. Throws
  /// OutOfMemoryError if memory runs out.
  Metrics step(const std::vector<TokenRow>& pairs);
  /// Returns loss and metrics without an update; keys without the `eval_` prefix. Fresh samples are
  /// drawn with the same seed each time, so that evaluations differ by the policy alone. A running
  /// mean stays that of the training rows.
  Metrics evaluate(const std::vector<TokenRow>& pairs);
  /// Leaves the gradients of one step in the parameters' `grad`, float32 for those of bfloat16 and
  /// float16, without an update; for checks.
  Metrics accumulate_gradients(const std::vector<TokenRow>& pairs);

  /// Sets the optimizer's moments and its counts of steps to zero, as before the first step. The
  /// schedule of the learning rate continues.
  void restart_optimizer();

  /// Writes the policy as its `save` does, with the float32 masters of bfloat16 and float16 weights
  /// in place of the rounded ones, and other such weights widened next to them. A value model is
  /// written in the folder `value` in it.
  void save_policy(const std::string& directory) const;
  /// Reads what `save_policy` wrote into the policy and the value model. Throws as
  /// Policy::load_weights.
  void load_policy(const std::string& directory);
  /// Returns all that steps change in addition to the policy's weights, by name, for a checkpoint:
  /// counts of steps, tokens and skipped updates, the optimizer's means and counts, float32
  /// masters, the loss's running mean, the reference's state. Not copies. A step after `load_state`
  /// is to the last bit the one that would have followed `state`, given the policy's weights.
  std::vector<std::pair<std::string, at::Tensor>> state() const;
  /// Returns `state` on the first of several ranks, for a checkpoint that it then writes without
  /// the others. Those get nothing, and hold no more than a tensor at a time.
  std::vector<std::pair<std::string, at::Tensor>> gather_state() const;
  /// Writes as `save_policy`, with the masters of a gathered state and without other ranks; those
  /// that keep slices of weights give them from the next call in which they wait for this one.
  /// Throws CheckpointError for a state that lacks masters.
  void save_policy(const std::string& directory,
                   const std::vector<std::pair<std::string, at::Tensor>>& gathered) const;
  /// Throws CheckpointError for the state of another policy, loss, reference or optimizer, and
  /// changes nothing then.
  void load_state(const std::vector<std::pair<std::string, at::Tensor>>& saved);

  /// Returns the running mean alone; part of `state`.
  LossState loss_state() const;
  void set_loss_state(const LossState& state);

  /// Returns, of each metric of the last step that is a mean, over how many values it is: tokens of
  /// token metrics, rows of the others. A mean over several steps is weighted by them.
  Metrics step_counts() const;
  std::int64_t steps_done() const;
  std::int64_t tokens_seen() const;
  Policy& policy();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace prefopt
