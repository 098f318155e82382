// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigaction is not in <csignal>

#include <array>

namespace prefopt::cli {

/// A handler of SIGINT, SIGTERM and, unless it is ignored as under nohup, SIGHUP, for as long as it
/// lives.
class SignalHandlers {
 public:
  SignalHandlers(void (*handler)(int), int flags);
  ~SignalHandlers();
  SignalHandlers(const SignalHandlers&) = delete;
  SignalHandlers& operator=(const SignalHandlers&) = delete;

 private:
  std::array<struct sigaction, 3> before_{};
};

/// While it lives, SIGINT, SIGTERM and SIGHUP do not end the process but are remembered. A second
/// SIGINT or SIGTERM ends it at once.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();

  bool has_come() const;

 private:
  SignalHandlers handlers_;
};

/// While it lives, a signal that ends the process ends the process groups that it started as well.
class EndOfGroups {
 public:
  EndOfGroups();

 private:
  SignalHandlers handlers_;
};

}  // namespace prefopt::cli
