// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "logps/kernels/cpu/softmax.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt::kernels::cpu {

/// A call of linear_token_logps whose arguments were checked. Bias is undefined or [vocab].
struct HeadInputs {
  at::Tensor hidden, weight, bias, targets;
  LogitMap map;
};

struct HeadForward {
  at::Tensor statistics;  ///< float64 [kFewStatistics or kAllStatistics, rows], see statistics.h
  /// kKeepLogits, kRecompute: mapped logits [kept_vocab, padded rows]; kFrozenHead: the gradient of
  /// each row's log-prob with respect to hidden, [rows, H].
  at::Tensor kept;
};

HeadForward head_forward(const HeadInputs& inputs, const HeadPlan& plan, bool all_statistics);

/// Gradients of hidden, weight and bias, those that are needed, from the factors of the logits'
/// (see statistics.h); a wide gradient of the weight takes its own as it comes. `kept` of a plan
/// with kKeepLogits or kRecompute.
std::array<at::Tensor, 3> head_backward(const HeadInputs& inputs, const HeadPlan& plan,
                                        const at::Tensor& factors, const at::Tensor& logsumexp,
                                        const at::Tensor& kept, std::array<bool, 3> needed);

}  // namespace prefopt::kernels::cpu
