// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>

#include <string>

#include "prefopt/run/run.h"

namespace prefopt::detail {

/// Throws ConfigError, led by the option, for a dtype of model or reference that is none.
void check_dtypes(const ModelOptions& model, const ReferenceOptions& reference);

/// Returns what Decoder::load is to keep the weights in: a dtype, "quantized" for a file's own
/// blocks, or the encoding of model.quantize. Throws ConfigError for a base that does not fit the
/// other options.
std::string kept_weights(const ModelOptions& options);

/// Returns what a model that nobody trains is kept in: "quantized" for a file with matrices in
/// blocks on the CPU, where its numbers would be float32, else `dtype`.
std::string kept_frozen(const std::string& path, const std::string& dtype, at::Device device);

/// Returns what a reference from a file is kept in: a dtype where it is asked for one or moves.
std::string kept_reference(const ReferenceOptions& options, const std::string& path,
                           const ModelOptions& model);

/// Returns the options whose reference in another dtype is made of the policy's numbers, which
/// blocks do not have.
ModelOptions with_numbers_for(const ReferenceOptions& reference, ModelOptions model);

}  // namespace prefopt::detail
