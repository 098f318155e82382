// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "decoder/model_shape.h"
#include "prefopt/train/trainer.h"
#include "run/plan/assumptions.h"

namespace prefopt::detail {

/// A part of the memory of a rank.
struct MemoryPart {
  std::string name;
  std::int64_t bytes = 0;
  std::string note = {};  ///< what decides it; empty: nothing to say
};

struct MemoryPlan {
  std::vector<MemoryPart> parts;
  std::int64_t limit = 0;  ///< bytes that a rank has; 0: not known

  std::int64_t total() const;
  bool fits() const { return limit == 0 || total() <= limit; }
};

/// Sizes of what a run trains, on one rank that holds all of it.
struct ModelBytes {
  std::int64_t weights = 0;  ///< without an adapter's, and without those in `mapped`
  std::int64_t mapped = 0;   ///< blocks of a file
  std::int64_t adapter = 0;
  std::int64_t gradients = 0, masters = 0, optimizer = 0;
  // For the sharding of weights and gradients, which gathers a few layers at a time.
  std::int64_t layers = 0;
  std::int64_t layer_numbers = 0;  ///< of the largest layer
  std::int64_t head_bytes = 0;     ///< of the embedding matrix
  std::int64_t narrowest = 4;      ///< bytes of a number in the weights
  std::int64_t trained_numbers = 0;
};

/// Counts the tensors that a trainer of this model holds, by the Optimizer's own list.
ModelBytes model_bytes(const ModelShape& shape, const OptimizerOptions& optimizer);

/// Adds the parts of weights, masters, gradients, optimizer and adapter as a rank holds them:
/// a share and what is gathered for a layer, by 1910.02054 section 5.
void add_model_parts(const ModelBytes& bytes, const PlanAssumptions& machine, MemoryPlan& plan);

/// Returns the bytes of a frozen model on a rank.
std::int64_t frozen_bytes(const ModelShape& shape, const PlanAssumptions& machine);

}  // namespace prefopt::detail
