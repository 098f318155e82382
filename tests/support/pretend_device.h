// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device that these tests pretend to have, `pretend` by LibTorch's names: its memory can be
// neither read nor written but within operators, which compute on the CPU. Code that looks into the
// memory of a device dies here as it would die, or read rubbish, with a real one; a tensor left on
// another device is refused by LibTorch's own operators' checks.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace prefopt::testing_support {

/// Lets LibTorch see the device, before anything else of it is used: autograd starts a thread for
/// each device that it finds at first, and refuses to work in forks from then on.
void offer_pretend_device();

/// The device. Operators go to LibTorch's fallback, and sums are those of the CPU's operators.
at::Device pretend_device();

/// Operators since the last call for which the host would wait with a real device: copies to the
/// CPU, copies from it that are not asynchronous, single numbers, and those whose result has a size
/// or a value that the host has to know.
std::vector<std::string> take_waits();

/// Returns how many operators were left to the fallback so far.
std::int64_t fallbacks();

}  // namespace prefopt::testing_support
