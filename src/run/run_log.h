// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "run/tensorboard.h"

namespace prefopt::detail {

/// Files that a run leaves for people, next to its metrics and checkpoints: run.json, notes.jsonl,
/// samples.jsonl, TensorBoard's events in `tb`, report.html. Throws CheckpointError where a file
/// cannot be written. Of several ranks one alone writes, and all call.
class RunLog {
 public:
  explicit RunLog(std::string folder, bool writes = true)
      : folder_(std::move(folder)), writes_(writes) {}

  /// Kept in memory until `start`, as a run that is refused leaves no folder.
  void note(const std::string& line);
  /// `resumed`: the step after which a run continues in this folder; what samples.jsonl and
  /// TensorBoard have of later steps is taken back, since those steps come again, and where
  /// `evaluation_is_due` the samples of this one. None for a run that starts at its beginning:
  /// nothing of an earlier try stays.
  void start(const Json& config, const Json& facts, std::optional<std::int64_t> resumed,
             bool evaluation_is_due);
  /// Notes that follow are of this step.
  void set_step(std::int64_t step) { step_ = step; }
  /// Whether samples.jsonl holds anything yet.
  bool has_samples() const { return has_samples_; }

  /// A line of metrics.jsonl, for TensorBoard: `train/NAME`, and `eval/NAME` for `eval_NAME`, as
  /// Hugging Face's trainers name them.
  void metrics(const Json& line);
  void samples(const std::vector<Json>& lines);
  /// A line of rounds.jsonl: what is known of the round that begins with this step.
  void round(std::int64_t step, const std::string& record);

  /// Rewrites report.html, unless reports then took more than a hundredth of the run.
  void refresh_report();
  /// The run ends here, `complete` or to be resumed later.
  void finish(bool complete);
  /// The run ends here, for a reason that its caller then throws; so nothing is thrown here.
  void stop(const std::string& reason);

 private:
  using Clock = std::chrono::steady_clock;

  std::string file(std::string_view name) const;
  void append(std::string_view name, const Json& line) const;
  void keep_lines(std::string_view name, std::string_view key, double last) const;
  void report();

  std::string folder_;
  bool writes_;
  Json facts_;
  bool started_ = false;
  std::vector<std::string> early_notes_;
  std::int64_t step_ = 0;
  bool has_samples_ = false;
  bool may_repeat_rounds_ = false;  ///< the next round may be in rounds.jsonl already
  std::optional<EventFile> events_;
  Clock::time_point start_ = Clock::now();
  Clock::duration reporting_{};  ///< time that reports took
};

}  // namespace prefopt::detail
