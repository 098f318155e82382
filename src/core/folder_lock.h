// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/descriptor.h"

namespace prefopt::detail {

/// Keeps other processes, and other runs of this one, out of a folder, for as long as it lives. The
/// system lets go of it when the process ends, however that ends; its file stays.
class FolderLock {
 public:
  /// Through a file at `path`. Where the drive has no locks, as some network drives, each holds it.
  /// Throws CheckpointError where there is no file to be had.
  explicit FolderLock(const std::string& path);

  bool is_ours() const { return holder_.empty(); }
  /// Who has it instead: "process 123", or "another process".
  const std::string& holder() const { return holder_; }

 private:
  Descriptor file_;
  std::string holder_;
};

}  // namespace prefopt::detail
