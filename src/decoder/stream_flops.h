// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "decoder/network.h"
#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// Floating-point operations of the matrix products that take a packed stream through the layers;
/// a multiply-add is two. Norms, rotations and functions are not counted, and of attention the
/// scores and values of keys that a query sees.
struct StreamFlops {
  double forward = 0;
  double backward = 0;    ///< without what is computed again
  double recomputed = 0;  ///< in the backward pass, by checkpointing

  StreamFlops& operator+=(const StreamFlops& other);
};

/// Counts what packed_layer does for a network as executors see it, whose tensors say by
/// `requires_grad` what is trained: in the last layer only rows that predict a completion token
/// have queries; gradients are made from the lowest layer on that trains. Routed experts are those
/// that are chosen, and their router.
StreamFlops stream_flops(const Network& network, const PackedTokens& tokens,
                         Checkpointing checkpointing);

}  // namespace prefopt::detail
