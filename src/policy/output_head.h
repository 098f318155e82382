// SPDX-License-Identifier: Apache-2.0
#pragma once

// From hidden states to logits, for those who need whole rows of logits.

#include <ATen/core/Tensor.h>

#include "prefopt/logps/token_logps.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

bool is_neutral(const LogitTransform& transform);

/// Returns the logits [rows, vocab] of hidden states [rows, hidden] of the head's dtype.
at::Tensor logits_of(const OutputHead& head, const at::Tensor& hidden);

/// Applies the transform to raw outputs, in place.
void transform_logits_(const at::Tensor& raw, const LogitTransform& transform);

/// Returns the derivative of logits by raw outputs, given the logits.
at::Tensor transform_slope(const at::Tensor& logits, const LogitTransform& transform);

}  // namespace prefopt::detail
