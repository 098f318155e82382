// SPDX-License-Identifier: Apache-2.0
#include "core/system_calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

namespace prefopt::detail {

SystemCalls& system_calls() {
  static SystemCalls calls{
      .open = [](const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); },
      .write = ::write,
      .fsync = ::fsync,
      .close = ::close,
      .rename = std::rename,
      .mkdir = ::mkdir,
      .symlink = ::symlink};
  return calls;
}

}  // namespace prefopt::detail
