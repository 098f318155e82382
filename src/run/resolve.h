// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "data/companions.h"
#include "dist/meeting.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/run/run.h"
#include "prefopt/train/row_source.h"
#include "run/run_folder.h"
#include "run/run_loss.h"

namespace prefopt::detail {

/// Of an objective on tokens, in addition to policy and reference.
struct RolloutTraining {
  double temperature = 1;                          ///< of the completions
  std::int64_t completions = 0;                    ///< of each prompt
  std::shared_ptr<RewardPolicy> value_model = {};  ///< null: it has no values
};

/// A run from files: its options with everything filled in that they leave to models and rows, and
/// what was loaded to know it. Nothing of it changes afterwards.
struct ResolvedRun {
  RunOptions options;
  std::shared_ptr<Policy> policy;        ///< a Decoder, or a RewardModel for a loss of rewards
  std::shared_ptr<Reference> reference;  ///< null: the loss needs none
  std::shared_ptr<RowSource> source;
  std::int64_t planned_steps = 0;  ///< most steps of a source without epochs; 0: it has epochs
  FilesLater companions;           ///< files of a checkpoint next to the weights
  RolloutTraining rollouts = {};
};

/// Throws ConfigError where evaluations are to decide something and there are none.
void check_evaluations(const EvaluateOptions& options, bool has_held_out, bool has_rounds = false);

/// Says that there are no evaluations where some are asked for.
void note_idle_evaluations(const EvaluateOptions& options, bool has_held_out, const Note& note);

/// Loads rows, tokenizer and models. `note` receives what was read and left out, `events` the
/// phases of rounds. All ranks of the meeting load the same. Throws ConfigError
/// for options that do not fit each other, models that do not fit, and as load_dataset.
ResolvedRun resolve(RunOptions options, const RunLoss& loss, const RunEvents& events,
                    const Note& note, Meeting& meeting);

/// Returns the checkpointing that the options choose, where `bytes` says what each keeps: the least
/// that fits the budget, where they leave it open.
Checkpointing chosen_checkpointing(const MachineOptions& options,
                                   const std::function<std::int64_t(Checkpointing)>& bytes);
std::string_view to_string(Checkpointing checkpointing);

/// Returns the tokenizer that the options name, else the adapter's or the model's own, else bytes
/// for a fresh model; `tokenizer` of the options becomes its name, and stays empty where there is
/// none.
std::shared_ptr<const Tokenizer> open_run_tokenizer(ModelOptions& options);

/// Returns the optimizer steps of a run. Throws ConfigError if neither options nor rows say so.
std::int64_t count_steps(const BatchOptions& options, std::int64_t rows_an_epoch);

struct ParameterCount {
  std::int64_t all = 0;
  std::int64_t trained = 0;
};

ParameterCount count_parameters(const Policy& policy);

}  // namespace prefopt::detail
