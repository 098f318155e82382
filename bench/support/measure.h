// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace prefopt::bench {

/// One way to do a piece of work.
struct Contender {
  std::string name;
  std::function<void()> run;
  double work = 0;  ///< flops or bytes that the task needs, whoever does it; 0: no rate is shown
  std::int64_t result_bytes = 0;  ///< log-probs and gradients that it returns
  std::int64_t plan_bytes = 0;    ///< what it says it needs in addition; 0: it does not say
};

class Timing {
 public:
  void add(double ms) { samples_ms_.push_back(ms); }
  const std::vector<double>& samples_ms() const { return samples_ms_; }
  double median_ms() const;
  double min_ms() const;
  double max_ms() const;

 private:
  std::vector<double> samples_ms_;
};

/// Runs the contenders in turn (A B C, A B C, …), so that a drift of the machine meets all of them.
/// Before each timed run a contender runs `warmup` times untimed, as a training step follows
/// another: what it keeps between calls is its own. `prepare` precedes each run, outside of the
/// time.
std::vector<Timing> time_interleaved(const std::vector<Contender>& contenders, int repeat,
                                     int warmup, const std::function<void()>& prepare);

/// Returns how far the resident memory of this process rises during `run`. Only on Linux, and where
/// the process may reset its high-water mark.
std::optional<std::int64_t> peak_memory(const std::function<void()>& run);

struct Machine {
  std::string cpu;
  std::string kernels;  ///< instructions of prefopt's kernels
  std::string aten;     ///< instructions of LibTorch's
  std::string libtorch;
  std::string environment;  ///< variables that hold instructions back
  int threads = 0;
};

Machine this_machine();

/// Makes prefopt's kernels run as on a machine whose best instructions are "avx2" or "scalar";
/// "auto" leaves them alone.
void limit_kernels(const std::string& simd);

}  // namespace prefopt::bench
