// SPDX-License-Identifier: Apache-2.0
#pragma once

// Waiting for other processes, however slow the machine is.

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

namespace prefopt::testing_support {

/// More than any load takes: it only ends a test that would wait for ever.
inline constexpr std::chrono::milliseconds kLongWait = std::chrono::minutes(10);

/// Waits until `is_so`; false where that never comes.
inline bool comes_true(const std::function<bool()>& is_so) {
  const auto end = std::chrono::steady_clock::now() + kLongWait;
  while (!is_so()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

/// Whether the process is there and no zombie that its new parent has not reaped yet.
inline bool is_alive(pid_t id) {
  if (::kill(id, 0) != 0) return false;
  std::ifstream status("/proc/" + std::to_string(id) + "/stat");
  std::string number, name, state;
  status >> number >> name >> state;
  return state != "Z" && state != "";
}

/// Whether a signal was sent to the process that none of its threads has taken yet.
inline bool is_pending(pid_t id, int number) {
  std::ifstream status("/proc/" + std::to_string(id) + "/status");
  for (std::string word; status >> word;) {
    if (word != "ShdPnd:") continue;
    std::string bits;
    status >> bits;
    return (std::stoull(bits, nullptr, 16) >> (number - 1) & 1) != 0;
  }
  return false;
}

}  // namespace prefopt::testing_support
