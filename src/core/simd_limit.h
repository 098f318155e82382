// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

namespace prefopt::detail {

/// Instructions that a process can be held to. With one limit, one LibTorch and one C library all
/// x86-64 machines that have the instructions compute the same bits, whatever else they have.
enum class SimdLimit { kScalar, kAvx2, kAvx512 };

/// Returns the limit that the environment asks for in PREFOPT_SIMD: scalar, avx2 or avx512. Throws
/// ConfigError for another word.
std::optional<SimdLimit> simd_limit_of_environment();

/// Returns whether this is an x86-64 machine with the instructions.
bool has_simd(SimdLimit limit);

/// Holds the library's kernels, ATen, MKL and oneDNN to `limit`, in this process and in those that
/// it starts. Threads must not run yet. Throws ConfigError where the machine has no such
/// instructions, and Error where LibTorch has chosen its own already.
void hold_simd(SimdLimit limit);

/// Returns whether kernels may multiply on a processor's tile unit (kernels/cpu/tiles.h): not where
/// the process is held to instructions, which leave the unit out.
bool allows_tiles();

/// Allows the unit or not: for tests, and for hold_simd.
void allow_tiles(bool allowed);

}  // namespace prefopt::detail
