// SPDX-License-Identifier: Apache-2.0
#include "cli/stop_signal.h"

#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigaction is not in <csignal>
#include <unistd.h>

#include <atomic>

namespace prefopt::cli {
namespace {

// A handler can reach nothing else.
std::atomic<bool> signal_has_come = false;
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void remember_signal(int number) {
  constexpr int kEndedBySignal = 128;
  if (signal_has_come.exchange(true)) ::_exit(kEndedBySignal + number);
}

void set_handler(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM}) ::sigaction(number, &action, nullptr);
}

}  // namespace

StopSignal::StopSignal() {
  signal_has_come = false;
  set_handler(remember_signal);
}

StopSignal::~StopSignal() { set_handler(SIG_DFL); }

bool StopSignal::has_come() const { return signal_has_come; }

}  // namespace prefopt::cli
