// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "data/companions.h"
#include "dist/meeting.h"
#include "prefopt/run/run.h"
#include "prefopt/train/row_source.h"
#include "run/resolve.h"
#include "run/resume.h"
#include "run/run_folder.h"
#include "run/run_log.h"
#include "run/run_loop.h"
#include "run/run_loss.h"

namespace prefopt::detail {

/// The folder of a run, its log, and the point that it is resumed from. Rank 0 alone writes there.
class RunSession {
 public:
  RunSession(std::string folder, const RunEvents& events, Meeting& meeting)
      : log_(folder, meeting.is_first()),
        folder_(std::move(folder)),
        events_(events),
        meeting_(meeting),
        note_([this](const auto& line) {
          log_.note(line);
          if (events_.note && meeting_.is_first()) events_.note(line);
        }) {}
  RunSession(const RunSession&) = delete;
  RunSession& operator=(const RunSession&) = delete;

  const Note& note() const { return note_; }

  /// Finds the point that `resume` names. Throws ConfigError for a folder that is not the run's.
  void claim(const RunOptions& options, const std::string& resume);
  /// `contents`: of check_same_run. `planned_steps`: the most steps of a source of rounds; 0:
  /// options and epochs say how many. `rollouts`: of an objective on tokens. `companions`: of a run
  /// from files; null: of a program's own policy and rows, of which the options say nothing.
  RunResult run(const std::shared_ptr<Policy>& policy, const std::shared_ptr<Reference>& reference,
                RowSource& source, const RunOptions& options, const RunLoss& loss,
                const Json& contents, std::int64_t planned_steps, const RolloutTraining& rollouts,
                const FilesLater* companions = nullptr);

 private:
  std::optional<ResumePoint> find(const RunOptions& options, const std::string& resume);
  /// Locks the folder, and writes or takes up the files of the run.
  RunFolder::Kept open(RunLoop& loop, const Json& config, const Json& environment,
                       const Json& facts, std::int64_t start);

  Stopwatch watch_;
  RunLog log_;
  RunFolder folder_;
  const RunEvents& events_;
  Meeting& meeting_;
  Note note_;
  std::optional<ResumePoint> from_;
  bool is_here_ = false;  ///< whether the run is resumed in its own folder
};

}  // namespace prefopt::detail
