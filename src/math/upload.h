// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace prefopt::detail {

/// Returns a tensor on a device. One of the CPU without a wait for what the device still has to do:
/// its memory is read before this returns.
inline at::Tensor uploaded(const at::Tensor& tensor, at::Device device) {
  return tensor.to(device, tensor.scalar_type(), /*non_blocking=*/tensor.is_cpu());
}

}  // namespace prefopt::detail
