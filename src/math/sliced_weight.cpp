// SPDX-License-Identifier: Apache-2.0
#include "math/sliced_weight.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "core/memory_pool.h"
#include "math/given_back.h"
#include "math/slices.h"

namespace prefopt::detail {
namespace {

/// The context of a sliced weight's storage: its place in a unit, and the memory while it is whole.
struct SlicedMemory {
  std::shared_ptr<WeightUnit> unit;
  std::size_t member;
  at::DataPtr memory = {};  ///< empty: at rest
};

void forget(void* context) { delete static_cast<SlicedMemory*>(context); }

/// Returns null for another tensor.
const SlicedMemory* memory_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  const at::DataPtr& data = tensor.storage().data_ptr();
  if (data.get_deleter() != &forget) return nullptr;
  return static_cast<const SlicedMemory*>(data.get_context());
}

void set_memory(c10::StorageImpl& storage, std::unique_ptr<SlicedMemory> sliced, at::DataPtr memory,
                std::int64_t bytes) {
  sliced->memory = std::move(memory);
  void* const data = sliced->memory.get();
  storage.set_data_ptr_noswap({data, sliced.release(), &forget, storage.device()});
  storage.set_nbytes(static_cast<std::size_t>(bytes));
}

/// The same for a storage that has its place in a unit already.
void set_memory(c10::StorageImpl& storage, at::DataPtr memory, std::int64_t bytes) {
  const at::Device device = memory.device();
  std::unique_ptr<SlicedMemory> sliced(
      static_cast<SlicedMemory*>(storage._mutable_data_ptr_no_checks().release_context()));
  storage.set_data_ptr_noswap({nullptr, device});
  set_memory(storage, std::move(sliced), std::move(memory), bytes);
}

/// From the pool on the host: the same blocks come and go with each layer.
at::DataPtr fresh_memory(std::int64_t bytes, at::Device device) {
  if (!device.is_cpu()) {
    return c10::GetAllocator(device.type())->allocate(static_cast<std::size_t>(bytes));
  }
  void* const data = take_from_pool(bytes).release();
  return {data, data, [](void* block) { PoolDeleter()(block); }, device};
}

/// So that numbers of every dtype are aligned.
std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

void WeightUnit::slice(const std::vector<at::Tensor>& weights,
                       const std::shared_ptr<WeightGatherer>& gatherer) {
  const at::NoGradGuard no_grad;
  const std::shared_ptr<WeightUnit> unit(new WeightUnit(gatherer));
  unit->add_members(weights);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    unit->members_[i].slice.copy_(unit->own_part(weights[i]));
  }
  gatherer->add(unit);
  unit->attach(weights);
}

void WeightUnit::add_members(const std::vector<at::Tensor>& weights) {
  const int rank = gatherer_->rank(), ranks = gatherer_->size();
  std::int64_t row = 0;
  for (const at::Tensor& weight : weights) {
    const auto size = static_cast<std::int64_t>(weight.element_size());
    members_.push_back({.whole = weight.storage().getWeakStorageImpl(),
                        .sizes = weight.sizes().vec(),
                        .bytes = weight.numel() * size,
                        .begin = row,
                        .each = slice_size(weight.numel(), ranks) * size,
                        .slice = {}});
    row += aligned(members_.back().each);
  }
  row_ = at::zeros({row}, weights.front().options().dtype(at::kByte).requires_grad(false));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    Member& member = members_[i];
    const std::int64_t first = std::min(rank * member.each, member.bytes);
    const std::int64_t bytes = std::min(member.each, member.bytes - first);
    member.slice =
        row_.narrow(0, member.begin, bytes).view(weights[i].scalar_type()).variable_data();
  }
}

at::Tensor WeightUnit::own_part(const at::Tensor& numbers) const {
  return slice_of(numbers.detach().reshape(-1), gatherer_->rank(), gatherer_->size());
}

void WeightUnit::attach(const std::vector<at::Tensor>& weights) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    const bool is_alone =
        weight.storage_offset() == 0 && weight.storage().nbytes() == weight.nbytes();
    if (!is_alone) {
      // A part of a larger memory, which stays with those who hold it.
      weight.set_data(without_memory(weight.sizes(), weight.options().requires_grad(false)));
    }
    members_[i].whole = weight.storage().getWeakStorageImpl();
    set_memory(*weight.storage().unsafeGetStorageImpl(),
               std::make_unique<SlicedMemory>(SlicedMemory{shared_from_this(), i}),
               {nullptr, weight.device()}, 0);
  }
}

void WeightUnit::hold() {
  if (holders_ == 0) {
    is_gathered_ = true;
    try {
      take_memory();
      gatherer_->gather(*this);
    } catch (...) {
      is_gathered_ = false;
      give_memory_back();
      throw;
    }
    is_gathered_ = false;
  }
  ++holders_;
}

void WeightUnit::release() noexcept {
  if (--holders_ == 0) give_memory_back();
}

void WeightUnit::take_memory() {
  for (const Member& member : members_) {
    if (const auto storage = member.whole.lock()) {
      set_memory(*storage, fresh_memory(member.bytes, row_.device()), member.bytes);
    }
  }
}

void WeightUnit::give_memory_back() noexcept {
  for (const Member& member : members_) {
    if (const auto storage = member.whole.lock()) set_memory(*storage, {nullptr, row_.device()}, 0);
  }
}

void WeightUnit::put(int rank, std::int64_t begin, const at::Tensor& bytes) const {
  const std::int64_t end = begin + bytes.size(0);
  for (const Member& member : members_) {
    const std::int64_t from = std::max(begin, member.begin);
    const std::int64_t place = rank * member.each + from - member.begin;
    const std::int64_t count =
        std::min(std::min(end, member.begin + member.each) - from, member.bytes - place);
    const auto storage = member.whole.lock();
    if (count <= 0 || !storage) continue;
    void* const data = static_cast<std::byte*>(storage->mutable_data()) + place;
    at::for_blob(data, {count})
        .options(bytes.options())
        .target_device(bytes.device())
        .make_tensor()
        .copy_(bytes.narrow(0, from - begin, count));
  }
}

HeldWeights::HeldWeights(const at::Tensor& weight) {
  const SlicedMemory* const sliced = memory_of(weight);
  if (sliced == nullptr) return;
  sliced->unit->hold();
  unit_ = sliced->unit;
}

HeldWeights::~HeldWeights() {
  if (unit_) unit_->release();
}

HeldWeights& HeldWeights::operator=(HeldWeights&& other) noexcept {
  unit_.swap(other.unit_);  // which the other one releases
  return *this;
}

at::Tensor SlicedCopies::copy_of(const at::Tensor& weight) {
  const SlicedMemory& sliced = *memory_of(weight);
  const WeightUnit& from = *sliced.unit;
  std::vector<at::Tensor>& copies = copies_[&from];
  if (copies.empty()) {
    for (const WeightUnit::Member& member : from.members_) {
      copies.push_back(without_memory(member.sizes, member.slice.options().requires_grad(false)));
    }
    const std::shared_ptr<WeightUnit> unit(new WeightUnit(from.gatherer_));
    unit->add_members(copies);
    unit->row_.copy_(from.row_);
    from.gatherer_->add(unit);
    unit->attach(copies);
  }
  return copies[sliced.member];
}

bool is_sliced(const at::Tensor& weight) { return memory_of(weight) != nullptr; }

at::Tensor slice_in(const at::Tensor& weight) {
  const SlicedMemory& sliced = *memory_of(weight);
  return sliced.unit->members_[sliced.member].slice;
}

void assign(const at::Tensor& weight, const at::Tensor& numbers) {
  const at::NoGradGuard no_grad;
  const SlicedMemory* const sliced = memory_of(weight);
  if (sliced == nullptr) {
    weight.detach().copy_(numbers);
    return;
  }
  sliced->unit->members_[sliced->member].slice.copy_(sliced->unit->own_part(numbers));
  if (sliced->unit->holders_ > 0) weight.variable_data().copy_(numbers);
}

}  // namespace prefopt::detail
