// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <cstddef>
#include <cstdint>

#include "fuzz/targets.h"

// PREFOPT_FUZZ_READ is the function of the target that this file is compiled for. What it throws
// ends the process, and libFuzzer keeps the input.

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  at::set_num_threads(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  prefopt::fuzz::PREFOPT_FUZZ_READ({reinterpret_cast<const char*>(data), size});
  return 0;
}
