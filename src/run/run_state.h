// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/json.h"
#include "prefopt/train/metrics.h"
#include "prefopt/train/row_source.h"
#include "prefopt/train/trainer.h"
#include "run/log_window.h"
#include "run/selection.h"
#include "train/state.h"

namespace prefopt::detail {

/// All that the loop of a run changes, besides trainer, policy and row source.
struct RunState {
  Selection selection;
  Metrics last_step = {}, first_evaluation = {}, last_evaluation = {};
  LogWindow window = {};
  bool evaluation_is_due = false;  ///< of the last step
  bool displacement_noted = false;
};

/// Everything that steps change but the policy's weights, as a checkpoint holds it: numbers in
/// training_state.json, tensors in training_state.safetensors.
struct SavedRun {
  RunState& state;
  Trainer& trainer;
  RowSource& source;
  const Json& identity;  ///< of check_same_run

  /// Throws Error for a row source whose state has names of the run's.
  void check_names() const;
  /// `tensors`: of the trainer, as it gathers them.
  void write(const std::string& folder, NamedTensors tensors) const;
  /// Returns training_state.json, unread but for its identity. Throws CheckpointError.
  static Json read_values(const std::string& checkpoint);
  /// Takes the values and the tensors of a checkpoint. Throws CheckpointError, and a JSON exception
  /// for values that are no state of a run.
  void load(const Json& values, const std::string& checkpoint) const;

  /// Writes what an evaluation has changed since the checkpoint was written. It is in no manifest:
  /// without it, or with a damaged one, the evaluation is made again.
  void write_evaluation(const std::string& checkpoint) const;
  void load_evaluation(const std::string& checkpoint) const;

 private:
  Json values(const Json& of_source) const;
  void load_values(const Json& values, const std::string& path) const;
};

/// The state of LibTorch's default generator of the CPU.
at::Tensor generator_state();
void set_generator_state(const at::Tensor& state);

}  // namespace prefopt::detail
