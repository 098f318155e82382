// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// The processes that train one policy together. Every member is called by all of them in the same
/// order; results are the same bits on each.
class PREFOPT_API Ranks {
 public:
  virtual ~Ranks() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Adds up each tensor over all ranks, in place.
  virtual void sum(const std::vector<at::Tensor>& tensors) = 0;
  /// Returns the rows of all ranks, joined along the first dimension in the order of ranks. The
  /// other dimensions have to agree.
  virtual at::Tensor gather(const at::Tensor& rows) = 0;
  /// Returns whether `is_true` holds on all ranks.
  virtual bool agree(bool is_true) = 0;
};

/// Returns the ranks of a run of one process: sums and gathers are what was given.
PREFOPT_API std::shared_ptr<Ranks> one_process();

}  // namespace prefopt
