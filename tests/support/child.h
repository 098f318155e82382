// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <functional>

#include "support/catch.h"

namespace prefopt::testing_support {

/// Runs `work` in a child process, which ends with 0 where it returns.
inline pid_t start_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child > 0) return child;
  int code = 1;
  try {
    work();
    code = 0;
  } catch (...) {  // the code says it
  }
  ::_exit(code);
}

}  // namespace prefopt::testing_support
