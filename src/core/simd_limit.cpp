// SPDX-License-Identifier: Apache-2.0
#include "core/simd_limit.h"

#include <ATen/Version.h>
#include <hwy/targets.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr const char* kSimdVariable = "PREFOPT_SIMD";

/// A limit, and what the libraries call it in the variables that they read at their first use.
struct SimdNames {
  SimdLimit limit;
  const char* name;
  const char* aten;        ///< ATEN_CPU_CAPABILITY
  const char* mkl_branch;  ///< MKL_CBWR
  const char* mkl_most;    ///< MKL_ENABLE_INSTRUCTIONS
  const char* onednn;      ///< ONEDNN_MAX_CPU_ISA
  const char* found;       ///< found_instructions() then
};

// MKL's branch AVX2 is for Intel's processors: others take another one, with other sums. COMPATIBLE
// is the one that all have.
constexpr std::array<SimdNames, 3> kSimdNames{{
    {SimdLimit::kScalar, "scalar", "default", "COMPATIBLE", "SSE4_2", "SSE41", "DEFAULT"},
    {SimdLimit::kAvx2, "avx2", "avx2", "COMPATIBLE", "AVX2", "AVX2", "AVX2"},
    {SimdLimit::kAvx512, "avx512", "avx512", "AVX512", "AVX512", "AVX512_CORE", "AVX512"},
}};

const SimdNames& names_of(SimdLimit limit) { return kSimdNames[static_cast<std::size_t>(limit)]; }

#if HWY_ARCH_X86
/// Returns the bit of the best of Highway's targets within a limit; better ones have lower bits.
std::int64_t best_target(SimdLimit limit) {
  switch (limit) {
    case SimdLimit::kAvx512:
      return HWY_AVX3;
    case SimdLimit::kAvx2:
      return HWY_AVX2;
    case SimdLimit::kScalar:
      break;
  }
  return HWY_SSE4;  // not compiled, as SSSE3 is not
}
#endif

/// Returns what LibTorch takes, by the names of its later versions: 2.7 says "NO AVX".
std::string found_instructions() {
  const std::string found = at::get_cpu_capability();
  return found == "NO AVX" ? "DEFAULT" : found;
}

std::atomic<bool> tiles_allowed = true;

}  // namespace

bool allows_tiles() { return tiles_allowed.load(std::memory_order_relaxed); }
void allow_tiles(bool allowed) { tiles_allowed = allowed; }

std::optional<SimdLimit> simd_limit_of_environment() {
  const char* value = std::getenv(kSimdVariable);
  if (value == nullptr || *value == '\0') return std::nullopt;
  for (const SimdNames& names : kSimdNames) {
    if (std::string_view(value) == names.name) return names.limit;
  }
  throw ConfigError(std::string(kSimdVariable) + ": expected scalar, avx2 or avx512, got " + value);
}

bool has_simd(SimdLimit limit) {
#if HWY_ARCH_X86
  return limit == SimdLimit::kScalar || (hwy::SupportedTargets() & best_target(limit)) != 0;
#else
  static_cast<void>(limit);
  return false;
#endif
}

void hold_simd(SimdLimit limit) {
  const SimdNames& names = names_of(limit);
  if (!has_simd(limit)) {
    throw ConfigError(std::string(kSimdVariable) + ": expected instructions of this machine, got " +
                      names.name);
  }
#if HWY_ARCH_X86
  hwy::DisableTargets(best_target(limit) - 1);
#endif
  allow_tiles(false);
  constexpr int kReplace = 1;
  ::setenv(kSimdVariable, names.name, kReplace);  // for processes that this one starts
  ::setenv("ATEN_CPU_CAPABILITY", names.aten, kReplace);
  ::setenv("MKL_CBWR", names.mkl_branch, kReplace);
  ::setenv("MKL_ENABLE_INSTRUCTIONS", names.mkl_most, kReplace);
  ::setenv("ONEDNN_MAX_CPU_ISA", names.onednn, kReplace);
  if (const std::string found = found_instructions(); found != names.found) {
    throw Error(std::string(kSimdVariable) + ": expected LibTorch to take the instructions " +
                names.found + ", got " + found + "; its choice was made before");
  }
}

}  // namespace prefopt::detail
