// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "prefopt/export.h"

namespace prefopt {

/// Returns the device that a text names: "cpu"; "cuda", the first CUDA device; "cuda:1"; "auto",
/// the first CUDA device where LibTorch has one, else the CPU; or the name of a backend that the
/// program has registered with LibTorch in the place of PrivateUse1.
///
/// Throws ConfigError, led by `where`, for another text and DeviceError for a device that is not
/// there: nothing runs on another one than was asked for.
PREFOPT_API at::Device parse_device(std::string_view name, std::string_view where = "device");

}  // namespace prefopt
