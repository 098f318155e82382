// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "prefopt/export.h"

namespace prefopt {

/// Per-token quantities that cost a pass of their own; computed only when asked for, without
/// gradient.
struct TokenByProducts {
  at::Tensor entropy;     ///< [rows] nats
  at::Tensor mean_logit;  ///< [rows]
  at::Tensor is_top1;     ///< [rows] bool: the target is the most likely token
};

struct TokenLogps {
  at::Tensor logps;  ///< [rows] float32, or float64 for float64 input; nats
  TokenByProducts by_products;
};

/// log softmax(logits)[target] = logits[target] - logsumexp(logits).
/// logits [rows, vocab] floating, targets [rows] int64. Throws ShapeError, DtypeError, DeviceError.
PREFOPT_API TokenLogps token_logps(const at::Tensor& logits, const at::Tensor& targets,
                                   bool by_products = false);

/// The same for logits = hidden @ weight^T. hidden [rows, H], weight [vocab, H].
PREFOPT_API TokenLogps linear_token_logps(const at::Tensor& hidden, const at::Tensor& weight,
                                          const at::Tensor& targets, bool by_products = false);

}  // namespace prefopt
