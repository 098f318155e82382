// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace prefopt::detail {

/// Writes `manifest.json`: size and CRC-32 of each file that the folder holds now. What has one is
/// a checkpoint, so it is written last.
void write_manifest(const std::string& folder, std::int64_t step);

/// Empty where all files are there as the manifest says, else what is wrong with which one.
std::string defect_of_checkpoint(const std::string& folder);

/// The step that the manifest names, which defect_of_checkpoint has found to be whole.
std::int64_t step_of_checkpoint(const std::string& folder);

/// The checkpoints of a run: folders `step-N`, each whole or not there, and the links `last` and
/// `best`, small files where the drive has no links (see try_link). A process that ends at any
/// moment, or a disk that fails, leaves `last` on a whole one.
class CheckpointStore {
 public:
  explicit CheckpointStore(std::string directory) : directory_(std::move(directory)) {}

  std::string folder_of(std::int64_t step) const;

  /// `write` puts the files into another folder, which then gets its manifest and its place, and
  /// `last` names it. Throws CheckpointError where the disk does not take it.
  std::string commit(std::int64_t step,
                     const std::function<void(const std::string& folder)>& write) const;
  /// Lets `name` be the checkpoint of this step.
  void link(const std::string& name, std::int64_t step) const;

  /// Lets `best` be the first of these steps that has a checkpoint; removes it where none has.
  void link_best(const std::vector<std::int64_t>& best) const;

  /// Ascending, whole or not.
  std::vector<std::int64_t> steps() const;
  /// The step that `last` names, if there is such a link.
  std::optional<std::int64_t> last() const;
  /// Removes what a process that ended in `commit` left.
  void remove_unfinished() const;
  /// Removes the checkpoints up to `newest` but the `keep_last` newest of them (0: all) and those
  /// of `kept`. What cannot be removed stays.
  void prune(std::int64_t newest, std::int64_t keep_last, const std::set<std::int64_t>& kept) const;

 private:
  std::string directory_;
};

}  // namespace prefopt::detail
