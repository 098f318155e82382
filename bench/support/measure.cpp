// SPDX-License-Identifier: Apache-2.0
#include "support/measure.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <hwy/targets.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string_view>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "prefopt/error.h"
#include "prefopt/memory.h"

namespace prefopt::bench {
namespace {

// Returns a field of /proc/self/status, which has them in kB.
std::optional<std::int64_t> status_bytes(std::string_view field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with(field)) continue;
    return std::strtoll(line.c_str() + field.size(), nullptr, 10) * 1024;
  }
  return std::nullopt;
}

// Sets VmHWM to VmRSS (man 5 proc, clear_refs).
bool reset_high_water_mark() {
  std::ofstream clear("/proc/self/clear_refs");
  return clear && clear << "5\n" && clear.flush();
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

// Of the targets that the kernels are compiled for, the best one here.
std::string kernel_target() {
  for (const std::int64_t target : {HWY_AVX3, HWY_AVX2}) {
    if ((hwy::SupportedTargets() & target) != 0) return hwy::TargetName(target);
  }
  return hwy::TargetName(HWY_SCALAR);
}

std::string environment() {
  std::string text;
  for (const char* name : {"ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS",
                           "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "MALLOC_MMAP_THRESHOLD_"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) text += fmt::format(" {}={}", name, value);
  }
  return text.empty() ? text : text.substr(1);
}

}  // namespace

double Timing::median_ms() const {
  std::vector<double> sorted = samples_ms_;
  std::sort(sorted.begin(), sorted.end());
  const std::size_t half = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

double Timing::min_ms() const { return *std::min_element(samples_ms_.begin(), samples_ms_.end()); }

double Timing::max_ms() const { return *std::max_element(samples_ms_.begin(), samples_ms_.end()); }

std::vector<Timing> time_interleaved(const std::vector<Contender>& contenders, int repeat,
                                     int warmup, const std::function<void()>& prepare) {
  using Clock = std::chrono::steady_clock;
  std::vector<Timing> timings(contenders.size());
  for (int turn = 0; turn < repeat; ++turn) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      for (int run = 0; run <= warmup; ++run) {
        if (prepare) prepare();
        const auto start = Clock::now();
        contenders[i].run();
        const std::chrono::duration<double, std::milli> taken = Clock::now() - start;
        if (run == warmup) timings[i].add(taken.count());
      }
    }
  }
  return timings;
}

std::optional<std::int64_t> peak_memory(const std::function<void()>& run) {
  // Free memory that stays resident would hide what `run` takes from it.
  release_pooled_memory();
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  const auto before = status_bytes("VmRSS:");
  if (!before || !reset_high_water_mark()) return std::nullopt;
  run();
  const auto peak = status_bytes("VmHWM:");
  if (!peak) return std::nullopt;
  return std::max<std::int64_t>(0, *peak - *before);
}

Machine this_machine() {
  return {.cpu = cpu_model(),
          .kernels = kernel_target(),
          .aten = at::get_cpu_capability(),
          .libtorch = TORCH_VERSION,
          .environment = environment(),
          .threads = at::get_num_threads()};
}

void limit_kernels(const std::string& simd) {
  if (simd == "auto") return;
  if (simd != "avx2" && simd != "scalar") {
    throw ConfigError("--simd: expected auto, avx2 or scalar, got " + simd);
  }
  // Highway's way to test the code of lesser machines.
  hwy::SetSupportedTargetsForTest(simd == "avx2" ? HWY_AVX2 : HWY_SCALAR);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace prefopt::bench
