// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"
#include "prefopt/train/metrics.h"
#include "prefopt/train/state_visitor.h"

namespace prefopt {

/// The rows of one optimizer step, or all held-out rows.
struct StepRows {
  std::vector<TokenRow> rows;
  /// Of the rows in their source, for reports of a step; empty: their places in `rows`.
  std::vector<std::int64_t> numbers = {};
  Metrics metrics = {};  ///< of the rows, added to those of the step or the evaluation
  /// JSON about the round that these rows begin, or that has no rows; empty: none.
  std::string round = {};
  bool ends_round = false;          ///< an evaluation is due after them, where none is counted
  bool restarts_optimizer = false;  ///< its means begin at zero before them
};

/// The source of a run's rows: a file, or whatever makes rows during the run.
class PREFOPT_API RowSource {
 public:
  virtual ~RowSource() = default;

  /// Returns the rows of the next step of `policy`: the same ones again until finish_step is
  /// called, as a step may fail before it has changed anything. No rows: a round has ended without
  /// a step, and `round` tells of it; the next call begins another one, unless the source is_done.
  virtual StepRows next(Policy& policy) = 0;
  /// Called after the step on the rows of `next`.
  virtual void finish_step() = 0;
  /// Returns the rows for evaluations, the same ones each time. The default: none.
  virtual const StepRows& held_out() const;
  /// Returns the rows of one epoch; 0, the default: rows have no end, and `batch.steps` decides.
  virtual std::int64_t rows_an_epoch() const { return 0; }

  /// Returns whether no further rows follow, however many steps were planned.
  virtual bool is_done() const { return false; }
  /// Returns whether `is_done` alone ends a run; the planned steps are then for its schedule.
  virtual bool ends_itself() const { return false; }

  /// Returns whether evaluations have a result: rows held out, or `evaluate`.
  virtual bool evaluates() const { return !held_out().rows.empty(); }
  /// Measures the policy in ways of the source, in addition to the loss of held-out rows: the same
  /// again until finish_evaluation is called.
  virtual Metrics evaluate(Policy& policy);
  /// Called after an evaluation of the run, when its metrics are written.
  virtual void finish_evaluation() {}
  /// Returns prompts for samples. The default: those of the held-out rows.
  virtual std::vector<std::vector<std::int64_t>> sample_prompts() const;

  /// Visits all that `next` and `finish_step` change. A source that loads what was saved then gives
  /// the rows that would have followed. Names of a run's own state ("step", …) are taken.
  virtual void visit_state(StateVisitor& visitor) = 0;
  /// Visits all that `finish_evaluation` changes, numbers alone; `visit_state` visits it as well.
  /// Written by itself where an evaluation comes after its step was saved.
  virtual void visit_evaluation(StateVisitor& visitor);
  /// Returns a hash of what the rows are made from: a run is resumed with the same one only.
  virtual std::string fingerprint() const { return {}; }
  /// Returns tokens as text, for samples. The default: their ids.
  virtual std::string text_of(const std::vector<std::int64_t>& tokens) const;
};

}  // namespace prefopt
