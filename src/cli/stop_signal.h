// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace prefopt::cli {

/// While it lives, SIGINT and SIGTERM do not end the process but are remembered. A second one ends
/// it at once.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool has_come() const;
};

}  // namespace prefopt::cli
