// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace prefopt::lab {

/// Holds the process to AVX2, or to what PREFOPT_SIMD says: a network that is trained with other
/// sums ends elsewhere. To be called before anything is computed; without effect on a machine that
/// has no AVX2.
void hold_instructions();

}  // namespace prefopt::lab
