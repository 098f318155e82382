// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>

#include "prefopt/train/trainer.h"

namespace prefopt::cli {

/// Time spent in steps, without what lies between them.
class StepClock {
 public:
  /// The time since the last call belongs to something else.
  void skip() { lap(); }
  void count_step() { seconds_ += lap(); }
  /// Seconds since the last call of any of these.
  double lap();
  double seconds() const { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
  double seconds_ = 0;
};

/// Progress of a run: one line rewritten in place, or about 20 plain lines. Writes no colour and no
/// other escape code, so NO_COLOR has nothing to turn off.
class Progress {
 public:
  /// `terminal_width` 0: no terminal, plain lines.
  Progress(std::ostream& err, std::size_t terminal_width, bool quiet)
      : err_(err), terminal_width_(terminal_width), quiet_(quiet) {}
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Printed even when quiet.
  void note(const std::string& line);
  void step(std::int64_t step, std::int64_t total, const Metrics& metrics);
  void evaluation(std::int64_t step, const Metrics& metrics);
  /// Of a round, before its steps.
  void phase(std::string_view name, std::int64_t done, std::int64_t total);
  /// Leaves the cursor on an empty line.
  void finish();

 private:
  void print(const std::string& line);
  void rewrite(std::string line);

  std::ostream& err_;
  std::size_t terminal_width_;
  bool quiet_;
  StepClock clock_;
  std::int64_t steps_before_ = -1;  ///< those of a resumed run; the clock has not seen them
  std::size_t live_width_ = 0;      ///< of the text under the cursor; 0: none
};

/// `47s`, `3m05s`, `2h07m`.
std::string duration(double seconds);

}  // namespace prefopt::cli
