// SPDX-License-Identifier: Apache-2.0
#include "dist/gathering_ranks.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <set>
#include <utility>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// The wish of a rank that has come to a call of Ranks.
constexpr std::int64_t kCall = -1;

}  // namespace

Ranks::Wait GatheringRanks::begin_sum(const at::Tensor& values) {
  take_rounds(kCall);
  return ranks_->begin_sum(values);
}

Ranks::Wait GatheringRanks::begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) {
  take_rounds(kCall);
  return ranks_->begin_sum_scatter(own, all);
}

at::Tensor GatheringRanks::gather(const at::Tensor& own) {
  take_rounds(kCall);
  return ranks_->gather(own);
}

void GatheringRanks::gather_into(const at::Tensor& all, const at::Tensor& own) {
  take_rounds(kCall);
  ranks_->gather_into(all, own);
}

void GatheringRanks::broadcast(const at::Tensor& values) {
  take_rounds(kCall);
  ranks_->broadcast(values);
}

void GatheringRanks::barrier() {
  take_rounds(kCall);
  ranks_->barrier();
}

void GatheringRanks::add(const std::shared_ptr<WeightUnit>& unit) {
  const at::Tensor& row = unit->row();
  const std::int64_t most = options().bucket_mib << 20;
  const std::int64_t bytes =
      std::min(std::max<std::int64_t>(most / size(), 1), row.numel()) * size();
  if (!staging_.defined() || staging_.numel() < bytes) staging_ = at::empty({bytes}, row.options());
  unit->set_number(std::ssize(units_));
  units_.push_back({unit, row.numel()});
}

void GatheringRanks::gather(WeightUnit& unit) { take_rounds(unit.number()); }

void GatheringRanks::take_rounds(std::int64_t wanted) {
  const at::NoGradGuard no_grad;
  for (;;) {
    const at::Tensor all = ranks_->gather(at::tensor({wanted}));
    const auto* const first = all.const_data_ptr<std::int64_t>();
    std::set<std::int64_t> asked(first, first + all.numel());
    asked.erase(kCall);
    if (asked.empty()) return;
    for (const std::int64_t number : asked) exchange(number);
    if (wanted != kCall) return;
  }
}

/// Sends slices, a piece at a time, which keep their place where this rank needs the unit.
void GatheringRanks::exchange(std::int64_t number) {
  const auto& [weights, row_bytes] = units_.at(static_cast<std::size_t>(number));
  const auto unit = weights.lock();
  // The others are answered before this rank says that something is wrong: they would wait.
  const at::Tensor row = unit ? unit->row() : at::zeros({row_bytes}, staging_.options());
  const std::int64_t most = staging_.numel() / size();
  for (std::int64_t begin = 0; begin < row.numel(); begin += most) {
    const std::int64_t bytes = std::min(most, row.numel() - begin);
    const at::Tensor all = staging_.narrow(0, 0, bytes * size()).view({size(), bytes});
    ranks_->gather_into(all, row.narrow(0, begin, bytes));
    if (!unit || !unit->is_gathered()) continue;
    for (int rank = 0; rank < size(); ++rank) unit->put(rank, begin, all[rank]);
  }
  if (!unit) {
    throw Error("ranks: expected all of them to have the same models, got one that has ended here");
  }
}

}  // namespace prefopt::detail
