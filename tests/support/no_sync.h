// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/system_calls.h"

namespace prefopt::testing_support {

/// Files are not forced to the disk while this lives, which no test could see and all wait for.
class NoSync {
 public:
  NoSync() {
    detail::system_calls().fsync = [](int) { return 0; };
  }
  ~NoSync() { detail::system_calls().fsync = before_; }
  NoSync(const NoSync&) = delete;
  NoSync& operator=(const NoSync&) = delete;

 private:
  int (*before_)(int) = detail::system_calls().fsync;
};

}  // namespace prefopt::testing_support
