// SPDX-License-Identifier: Apache-2.0
#include "core/system_calls.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

namespace prefopt::detail {

namespace {

void* move_mapping(void* from, std::size_t bytes, void* to) {
#ifdef MREMAP_FIXED
  return ::mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
#else
  static_cast<void>(from), static_cast<void>(bytes), static_cast<void>(to);
  return MAP_FAILED;
#endif
}

}  // namespace

SystemCalls& system_calls() {
  static SystemCalls calls{
      .open = [](const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); },
      .write = ::write,
      .fsync = ::fsync,
      .close = ::close,
      .rename = std::rename,
      .mkdir = ::mkdir,
      .symlink = ::symlink,
      .map =
          [](void* place, std::size_t bytes, int flags) {
            return ::mmap(place, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags,
                          -1, 0);
          },
      .move = move_mapping};
  return calls;
}

}  // namespace prefopt::detail
