// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weights of which each rank keeps a slice (ZeRO-3, 1910.02054). A weight at rest has shape, graph
// and names, and no memory; whoever reads it holds it for that time. Its storage knows how: views
// of it and what autograd saved of it have the numbers while it is held, too.

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace prefopt::detail {

class WeightUnit;

/// The messages of ranks about their slices.
class WeightGatherer {
 public:
  virtual ~WeightGatherer() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Takes up a unit. All ranks have the same units in the same order.
  virtual void add(const std::shared_ptr<WeightUnit>& unit) = 0;
  /// Fills the memory of a unit with the numbers of all ranks. Each rank gathers when it needs to.
  virtual void gather(WeightUnit& unit) = 0;
};

/// Weights that are held together, as those of a layer, and this rank's slices of them.
class WeightUnit : public std::enable_shared_from_this<WeightUnit> {
 public:
  /// Cuts weights: from here on they are at rest. Throws std::bad_alloc.
  static void slice(const std::vector<at::Tensor>& weights,
                    const std::shared_ptr<WeightGatherer>& gatherer);

  /// Makes the weights whole, until each holder has released them. Throws what taking memory and
  /// gathering throw; then they are at rest.
  void hold();
  void release() noexcept;
  /// Returns whether this rank gathers it now.
  bool is_gathered() const { return is_gathered_; }

  /// Its number among those of the gatherer.
  std::int64_t number() const { return number_; }
  void set_number(std::int64_t number) { number_ = number; }

  /// Returns this rank's slices, one after the other, [row] bytes; rows of all ranks are as long.
  const at::Tensor& row() const { return row_; }
  /// Writes bytes of a rank's row, from `begin` on, to where the whole weights have them.
  void put(int rank, std::int64_t begin, const at::Tensor& bytes) const;

 private:
  friend at::Tensor slice_in(const at::Tensor& weight);
  friend void assign(const at::Tensor& weight, const at::Tensor& numbers);
  friend class SlicedCopies;

  struct Member {
    c10::weak_intrusive_ptr<c10::StorageImpl> whole;
    std::vector<std::int64_t> sizes;
    std::int64_t bytes;        ///< of the whole
    std::int64_t begin, each;  ///< bytes in the row: where the slice is, and of the largest one
    at::Tensor slice;          ///< [n], a part of the row that counts its own versions
  };

  explicit WeightUnit(std::shared_ptr<WeightGatherer> gatherer) : gatherer_(std::move(gatherer)) {}
  at::Tensor own_part(const at::Tensor& numbers) const;
  void add_members(const std::vector<at::Tensor>& weights);
  /// Takes the memory of the weights, which are members from here on.
  void attach(const std::vector<at::Tensor>& weights);
  void take_memory();
  void give_memory_back() noexcept;

  std::shared_ptr<WeightGatherer> gatherer_;
  std::vector<Member> members_;
  at::Tensor row_;
  std::int64_t number_ = -1;
  int holders_ = 0;
  bool is_gathered_ = false;
};

/// Whole weights for a scope: those of the unit that `weight` is in. Does nothing for a tensor that
/// is not sliced.
class HeldWeights {
 public:
  HeldWeights() = default;
  explicit HeldWeights(const at::Tensor& weight);
  ~HeldWeights();
  HeldWeights(HeldWeights&& other) noexcept = default;
  HeldWeights& operator=(HeldWeights&& other) noexcept;
  HeldWeights(const HeldWeights&) = delete;
  HeldWeights& operator=(const HeldWeights&) = delete;

 private:
  std::shared_ptr<WeightUnit> unit_;
};

/// Makes copies of sliced weights, which are sliced alike, without a message.
class SlicedCopies {
 public:
  /// Returns the copy of a sliced weight, in one unit with those of its neighbours.
  at::Tensor copy_of(const at::Tensor& weight);

 private:
  std::map<const WeightUnit*, std::vector<at::Tensor>> copies_;  ///< by the unit copied
};

bool is_sliced(const at::Tensor& weight);

/// Returns this rank's numbers of a sliced weight, [n]: the ones that training changes. They are
/// those from slice_size · rank on (math/slices.h).
at::Tensor slice_in(const at::Tensor& weight);

/// Writes numbers into a weight, whole or sliced, without a message: all ranks have to.
void assign(const at::Tensor& weight, const at::Tensor& numbers);

}  // namespace prefopt::detail
