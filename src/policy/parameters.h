// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <vector>

#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Copies tensors by name, read from `where`, into the parameters that require a gradient. Throws
/// CheckpointError, and changes nothing, where one is missing or differs in shape or dtype.
void copy_parameters(const std::vector<NamedParameter>& parameters,
                     const std::map<std::string, at::Tensor>& values, const std::string& where);

/// Returns whether two policies give the same samples as far as their config says what they are:
/// they are of one class and config, on one device, and have the same weights, bit for bit.
bool have_equal_weights(const Policy& a, const Policy& b);

}  // namespace prefopt::detail
