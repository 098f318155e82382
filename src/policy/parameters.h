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

}  // namespace prefopt::detail
