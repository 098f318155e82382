// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/run/run.h"
#include "run/plan/assumptions.h"

namespace prefopt::detail {

/// The speed of this machine on a model's sizes.
struct MeasuredSpeed {
  double layers_tflops = 0, head_tflops = 0, memory_gb_s = 0, fixed_ms = 0;
  double spread = 0;  ///< the widest among runs of the same work, see Repeated

  void put_into(PlanAssumptions& machine) const;
};

/// Times the output head, the optimizer, and steps on the rows of a micro-batch of fresh decoders
/// that have the sizes of `options.model.decoder` but one and five layers, with LibTorch's present
/// threads. What the longer decoder takes beyond the shorter one is the time of four layers; what
/// the shorter one takes beyond its layer, head and optimizer is fixed. Changes LibTorch's default
/// generator. Throws ConfigError where runs of the same work differ too much to be believed.
MeasuredSpeed measure_speed(const RunOptions& options, const std::vector<TokenRow>& rows);

}  // namespace prefopt::detail
