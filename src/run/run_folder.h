// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/folder_lock.h"
#include "core/json.h"
#include "prefopt/train/trainer.h"
#include "run/checkpoint.h"

namespace prefopt::detail {

/// Hears what a person should know.
using Note = std::function<void(const std::string&)>;

/// The files of one run.
class RunFolder {
 public:
  /// Throws ConfigError for an empty name.
  explicit RunFolder(std::string path);

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const;
  /// Throws ConfigError if a run was here before, or anything that a run would write over.
  void check_new() const;
  /// Throws ConfigError if the folder holds files and no run to resume: neither a checkpoint
  /// nor a run's config.json. Those of `spared`, paths that a run may have inside of its folder,
  /// and what a run leaves that ended before it wrote its config.json are no such files.
  void check_run_or_new(const std::vector<std::string>& spared) const;
  /// Returns config.json, if it is there. Throws ConfigError if it is not that of a run.
  std::optional<Json> config() const;
  /// Makes the folder and keeps other runs out until this object is gone. Throws ConfigError if one
  /// is at work here.
  void lock();
  bool is_locked() const { return lock_.has_value(); }

  /// Writes config.json and env.json and opens an empty metrics.jsonl.
  void start(const Json& config, const Json& environment);
  /// Facts in the lines of metrics.jsonl that a resumed run keeps.
  struct Kept {
    double seconds = 0;             ///< that the run had taken by the last one
    std::int64_t logged_step = -1;  ///< of the last one that is no evaluation's
  };
  /// The same for a run that is resumed after `step`: lines of metrics.jsonl that are later or
  /// broken are cut off, which `note` hears, and where `evaluation_is_due` that of this step's
  /// evaluation as well.
  Kept resume(const Json& config, const Json& environment, std::int64_t step,
              bool evaluation_is_due, const Note& note);

  void append_metrics(const Json& line);
  /// Metrics outlive a power cut from here on.
  void sync_metrics();

  const CheckpointStore& checkpoints() const { return checkpoints_; }

  static constexpr std::int64_t kMostNonFinite = 20;

  /// Writes `nonfinite/step-N` and gives its path: report.json, and in rows.jsonl the offending
  /// rows, or all where none is known. `row_numbers` are those of the training rows. A folder
  /// that has kMostNonFinite of them gets none but what `ends_the_run`; else the path is empty.
  std::string write_non_finite(const NonFiniteStep& report,
                               const std::vector<std::int64_t>& row_numbers,
                               bool ends_the_run) const;

 private:
  void remove_unfinished() const;
  void write_descriptions(const Json& config, const Json& environment) const;
  void open_metrics();
  void check_metrics(const std::string& why) const;

  std::string path_;
  std::optional<FolderLock> lock_;
  CheckpointStore checkpoints_;
  AppendedFile metrics_;
};

/// Returns the seconds that the run of `folder` had taken by `step`, as its metrics.jsonl has it; 0
/// where there is none.
double seconds_by(const std::string& folder, std::int64_t step);

/// A number, or a text where JSON has none for it: "nan", "inf", "-inf".
Json json_number(double value);
/// The reverse; throws a JSON exception for anything else.
double number_in(const Json& value);

}  // namespace prefopt::detail
