// SPDX-License-Identifier: Apache-2.0
#include "core/system_calls.h"

#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkostemp is not in <cstdlib>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

namespace prefopt::detail {

SystemCalls& system_calls() {
  static SystemCalls calls{.mkostemp = ::mkostemp,
                           .write = ::write,
                           .fsync = ::fsync,
                           .close = ::close,
                           .rename = std::rename,
                           .mkdir = ::mkdir,
                           .symlink = ::symlink};
  return calls;
}

}  // namespace prefopt::detail
