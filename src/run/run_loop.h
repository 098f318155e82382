// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/companions.h"
#include "dist/meeting.h"
#include "prefopt/run/run.h"
#include "prefopt/train/row_source.h"
#include "prefopt/train/trainer.h"
#include "run/resume.h"
#include "run/run_folder.h"
#include "run/run_log.h"
#include "run/run_prompt_cache.h"
#include "run/run_state.h"
#include "run/sample_table.h"
#include "run/selection.h"

namespace prefopt::detail {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The parts of a run, once everything is loaded.
struct LoopParts {
  const RunOptions& options;
  RowSource& source;
  Trainer& trainer;
  Reference* reference;  ///< null: the loss needs none
  RunFolder& folder;
  RunLog& log;
  SampleTable samples;
  RunPromptCache& prompts;
  const RunEvents& events;
  const Note& note;
  Meeting& meeting;                        ///< of the ranks, which all run the same loop
  Json identity;                           ///< of check_same_run
  std::vector<NonFiniteStep>& non_finite;  ///< steps that the trainer has reported
  FilesLater companions;                   ///< files of a checkpoint next to the weights
  std::int64_t total_steps;
};

/// The loop of one run: steps, evaluations, checkpoints and the lines of metrics.jsonl. All ranks
/// decide alike, by the same numbers, and rank 0 writes.
class RunLoop {
 public:
  explicit RunLoop(LoopParts parts);

  /// Takes up the run where the checkpoint was saved.
  void load(const ResumePoint& from);
  /// Counts seconds that earlier processes took. They are not part of a checkpoint, which is the
  /// same to the last bit however often a run was broken off. The run's own folder may already have
  /// the line that the checkpoint holds as unwritten.
  void count_from(const RunFolder::Kept& kept);

  /// Evaluates before the first step, which shows what metrics evaluations have, and writes
  /// nothing. Throws ConfigError if the best checkpoint is to be found by another one.
  void evaluate_first();
  /// Whether the evaluation of the step after which the run is resumed has still to be made.
  bool evaluation_is_due() const { return state_.evaluation_is_due; }
  const Selection& selection() const { return state_.selection; }

  /// Trains to the end. Where an error ends it, steps that were done and not saved are saved before
  /// it is thrown on.
  void train(RunResult& result);

 private:
  struct Evaluation {
    Metrics metrics;
    std::vector<Json> samples;  ///< lines of samples.jsonl
  };

  void take_steps();
  void take_step();
  bool take_update();
  void skip_round(const StepRows& rows);
  void check_rows(const StepRows& rows) const;
  void add_step(const StepRows& rows, Metrics metrics);
  std::string write_bundle(const StepRows& rows, bool ends_the_run);

  Metrics measure_loss();
  Evaluation measure();
  void record(const Evaluation& evaluation);
  void evaluate_and_judge();
  void evaluate_late_end();
  void check_name(const Metrics& metrics) const;
  std::string_view best_name() const;

  void log_step();
  bool log_is_due() const;
  void append(const Json& line);
  Json metrics_line(const Metrics& metrics, std::string_view prefix) const;
  void watch_displacement(const Metrics& metrics);

  bool writes() const { return parts_.meeting.is_first(); }
  bool keeps_slices() const;
  void save();
  /// The tensors of the trainer that a checkpoint holds; on ranks that write none, nothing.
  NamedTensors gather();
  void write_checkpoint(std::int64_t step, NamedTensors state);
  void link_and_prune(std::int64_t step);
  void save_after_failure();
  void give_slices();
  bool all_can_save(bool is_due);
  SavedRun saved_run() { return {state_, parts_.trainer, parts_.source, parts_.identity}; }

  const RunOptions& options() const { return parts_.options; }
  const std::vector<TokenRow>& held_out() const { return parts_.source.held_out().rows; }
  std::int64_t steps_done() const { return parts_.trainer.steps_done(); }
  bool is_done() const;
  bool is_last_step() const;
  bool asked_to_stop();
  Policy* reference_model() const;
  double seconds() const { return seconds_before_ + clock_.seconds(); }

  LoopParts parts_;
  RunState state_;
  std::optional<FolderFiles> companions_;      ///< once a checkpoint was written
  std::optional<Evaluation> before_training_;  ///< made and not yet written down
  std::int64_t first_step_ = 0;                ///< that this process found done
  std::int64_t last_update_ = 0;               ///< the last step that was not skipped
  bool is_torn_ = false;                       ///< an error interrupted an update
  bool full_noted_ = false;                    ///< that `nonfinite` has as many steps as it takes
  bool is_resumed_ = false;
  std::pair<std::int64_t, std::string> saved_ = {-1, ""};  ///< newest checkpoint: step, folder
  Stopwatch clock_;
  double seconds_before_ = 0;  ///< of the processes before this one
  double tokens_logged_ = 0;
  double step_seconds_ = 0;
};

}  // namespace prefopt::detail
