// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstddef>

namespace prefopt::detail {

/// The system calls that this library changes files and pages of memory with. Tests put others in
/// their place, to see what a full disk, a broken one or a lack of memory leaves behind; nothing
/// else writes to this table.
struct SystemCalls {
  int (*open)(const char* path, int flags, mode_t mode);
  ssize_t (*write)(int fd, const void* bytes, std::size_t count);
  int (*fsync)(int fd);
  int (*close)(int fd);
  int (*rename)(const char* from, const char* to);
  int (*mkdir)(const char* path, mode_t mode);
  int (*symlink)(const char* target, const char* path);
  /// mmap of fresh pages, with further flags.
  void* (*map)(void* place, std::size_t bytes, int flags);
  /// mremap to a place; MAP_FAILED where the system has no such call.
  void* (*move)(void* from, std::size_t bytes, void* to);
};

SystemCalls& system_calls();

}  // namespace prefopt::detail
