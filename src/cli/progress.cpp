// SPDX-License-Identifier: Apache-2.0
#include "cli/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <utility>

#include "core/text.h"
#include "train/metrics.h"

namespace prefopt::cli {
namespace {

constexpr std::int64_t kPlainLines = 20;

// The metrics that a person watches, under short names.
constexpr std::pair<const char*, const char*> kWatched[] = {{"loss", "loss"},
                                                            {"rewards/margins", "margin"},
                                                            {"rewards/accuracies", "accuracy"},
                                                            {"samples/reward", "sample reward"},
                                                            {"reward", "reward"},
                                                            {"win_rate", "win rate"}};

std::string watched(const Metrics& metrics) {
  std::string text;
  for (const auto& [name, label] : kWatched) {
    if (const auto value = detail::find_metric(metrics, name)) {
      text += fmt::format("  {} {:.4f}", label, *value);
    }
  }
  return text;
}

}  // namespace

std::string duration(double seconds) {
  const auto whole = std::llround(std::max(0.0, seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
}

double StepClock::lap() {
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - last_).count();
  last_ = now;
  return seconds;
}

void Progress::note(const std::string& line) {
  clock_.skip();
  print(detail::printable(line));
}

void Progress::step(std::int64_t step, std::int64_t total, const Metrics& metrics) {
  if (steps_before_ < 0) steps_before_ = step - 1;
  clock_.count_step();
  if (quiet_) return;
  const bool due =
      step == 1 || step == total || step % std::max<std::int64_t>(1, total / kPlainLines) == 0;
  const bool live = terminal_width_ > 0;
  if (!live && !due) return;

  const double done = static_cast<double>(step - steps_before_);
  // In a resumed run, steps here are taken to have as many tokens as those before.
  const double tokens = metric(metrics, "num_tokens") / static_cast<double>(step) * done;
  const double speed = tokens / clock_.seconds();
  const double left = clock_.seconds() / done * static_cast<double>(total - step);
  const bool skipped = detail::find_metric(metrics, "skipped").has_value();
  const std::string line =
      fmt::format("step {}/{}{}  {:.0f} tokens/s  {} left{}", step, total, watched(metrics), speed,
                  duration(left), skipped ? "  (not finite, update skipped)" : "");
  if (live) {
    rewrite(line);
  } else {
    print(line);
  }
}

void Progress::evaluation(std::int64_t step, const Metrics& metrics) {
  clock_.skip();
  if (!quiet_) print(fmt::format("evaluation at step {}{}", step, watched(metrics)));
}

void Progress::phase(std::string_view name, std::int64_t done, std::int64_t total) {
  clock_.skip();
  if (quiet_ || terminal_width_ == 0) return;
  rewrite(name == "training" ? std::string(name) : fmt::format("{} {}/{}", name, done, total));
}

void Progress::finish() {
  if (live_width_ > 0) err_ << std::endl;
  live_width_ = 0;
}

void Progress::print(const std::string& line) {
  if (live_width_ > 0) err_ << '\r' << std::string(live_width_, ' ') << '\r';
  live_width_ = 0;
  err_ << line << std::endl;
}

void Progress::rewrite(std::string line) {
  // A line that wraps cannot be rewritten.
  line.resize(std::min(line.size(), terminal_width_ - 1));
  const std::size_t leftover = live_width_ > line.size() ? live_width_ - line.size() : 0;
  err_ << '\r' << line << std::string(leftover, ' ') << std::flush;
  live_width_ = line.size() + leftover;
}

}  // namespace prefopt::cli
