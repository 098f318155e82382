// SPDX-License-Identifier: Apache-2.0
#include "cli/stop_signal.h"

#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigaction is not in <csignal>
#include <unistd.h>

#include <array>
#include <atomic>

#include "core/subprocess.h"

namespace prefopt::cli {
namespace {

constexpr std::array kEnding = {SIGINT, SIGTERM, SIGHUP};

// A handler can reach nothing else.
std::atomic<bool> signal_has_come = false;
std::atomic<bool> is_urgent = false;
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void remember_signal(int number) {
  constexpr int kEndedBySignal = 128;
  signal_has_come = true;
  // A terminal that closes sends several SIGHUP, and service managers one after SIGTERM: that is
  // nobody's second wish.
  if (number == SIGHUP) return;
  if (is_urgent.exchange(true)) ::_exit(kEndedBySignal + number);
}

extern "C" void end_groups_and_process(int number) {
  detail::end_process_groups();
  ::signal(number, SIG_DFL);
  ::raise(number);
}

}  // namespace

SignalHandlers::SignalHandlers(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  ::sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kEnding.size(); ++i) {
    ::sigaction(kEnding[i], nullptr, &before_[i]);
    // nohup's wish.
    const bool is_ignored = kEnding[i] == SIGHUP && before_[i].sa_handler == SIG_IGN;
    if (!is_ignored) ::sigaction(kEnding[i], &action, nullptr);
  }
}

SignalHandlers::~SignalHandlers() {
  for (std::size_t i = 0; i < kEnding.size(); ++i) ::sigaction(kEnding[i], &before_[i], nullptr);
}

StopSignal::StopSignal() : handlers_(remember_signal, SA_RESTART) {}

StopSignal::~StopSignal() {
  signal_has_come = false;
  is_urgent = false;
}

bool StopSignal::has_come() const { return signal_has_come; }

EndOfGroups::EndOfGroups() : handlers_(end_groups_and_process, SA_NODEFER) {
  detail::adopt_orphans();
}

}  // namespace prefopt::cli
