// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace prefopt::kernels::cpu {

/// Returns the instructions that the kernels run with on this machine, by Highway's name:
/// AVX3, AVX2, …, and the tile unit.
std::string simd_target();

}  // namespace prefopt::kernels::cpu
