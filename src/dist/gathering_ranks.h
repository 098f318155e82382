// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "math/sliced_weight.h"
#include "prefopt/dist/ranks.h"

namespace prefopt::detail {

/// Ranks with slices of weights, which each gathers when it needs to: ranks take different numbers
/// of passes, and no list says who needs what when.
///
/// They go by rounds. In each, every rank says in a small message which unit it needs, or that it
/// has come to a call of Ranks, and all send their slices of the units asked for. Where nobody
/// asks, all are at the same call, which is then made. So a rank that waits serves the others
/// wherever it waits, nothing hangs as long as all ranks make the same calls, and one that fails
/// serves until the others know. Ranks in step share each gather.
///
/// To serve takes no memory, so that it cannot fail.
class GatheringRanks final : public Ranks, public WeightGatherer {
 public:
  explicit GatheringRanks(std::shared_ptr<Ranks> ranks) : ranks_(std::move(ranks)) {}

  int rank() const override { return ranks_->rank(); }
  int size() const override { return ranks_->size(); }
  const RanksOptions& options() const override { return ranks_->options(); }
  std::string backend() const override { return ranks_->backend(); }
  Wait begin_sum(const at::Tensor& values) override;
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override;
  at::Tensor gather(const at::Tensor& own) override;
  void gather_into(const at::Tensor& all, const at::Tensor& own) override;
  void broadcast(const at::Tensor& values) override;
  void barrier() override;

  void add(const std::shared_ptr<WeightUnit>& unit) override;
  void gather(WeightUnit& unit) override;

 private:
  /// Takes part in rounds until this rank has what it wants: a unit, or all ranks at one call.
  void take_rounds(std::int64_t wanted);
  void exchange(std::int64_t number);

  std::shared_ptr<Ranks> ranks_;
  struct Unit {
    std::weak_ptr<WeightUnit> weights;
    std::int64_t row_bytes;
  };
  std::vector<Unit> units_;
  at::Tensor staging_;  ///< bytes of all ranks
};

/// Returns whether weights are in slices over these ranks.
inline bool slices_weights(const Ranks& ranks) {
  return ranks.size() > 1 && ranks.options().sharding == Sharding::kWeights;
}

}  // namespace prefopt::detail
