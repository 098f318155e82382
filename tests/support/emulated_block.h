// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "logps/kernels/cuda/block_rows.h"

namespace prefopt::testing_support {

/// The Context of block_rows.h on a CPU: all threads of all blocks of a row, one phase after
/// another.
template <class State, class Element>
class EmulatedBlocks {
 public:
  using Thread = kernels::cuda::Thread;
  using Unit = kernels::cuda::Unit<Element>;
  using Scratch = kernels::cuda::Scratch<State>;

  template <class T>
  struct PerThread {
    std::vector<T> of;
    int threads;
    T& operator[](Thread thread) {
      return of[static_cast<std::size_t>(thread.block * threads + thread.index)];
    }
  };

  /// `backwards`: the threads of a phase run in the opposite order, which changes nothing unless
  /// one needs what another one makes in the same phase.
  EmulatedBlocks(int threads, int blocks, std::int64_t share, bool staged, bool backwards = false)
      : threads_(threads),
        blocks_(blocks),
        share_(static_cast<int>(share)),
        staged_(staged),
        backwards_(backwards),
        stage_size_(staged ? share : kernels::cuda::kAhead * threads),
        stages_(static_cast<std::size_t>(blocks * stage_size_)),
        scratches_(static_cast<std::size_t>(blocks)) {
    std::memset(static_cast<void*>(stages_.data()), 0xff, stages_.size() * sizeof(Unit));
  }

  template <class T>
  PerThread<T> values() const {
    return {std::vector<T>(static_cast<std::size_t>(blocks_ * threads_)), threads_};
  }

  template <class F>
  void each(const F& f) const {
    const int all = blocks_ * threads_;
    for (int i = 0; i < all; ++i) {
      const int thread = backwards_ ? all - 1 - i : i;
      f(Thread{thread / threads_, thread % threads_});
    }
  }

  template <class T>
  PerThread<T> exchange(PerThread<T>& values, int mask) const {
    PerThread<T> result = this->values<T>();
    each([&](Thread thread) {
      result[thread] = values[Thread{thread.block, thread.index ^ mask}];
    });
    return result;
  }

  void sync_block() const {}
  void sync_row() const {}

  int threads() const { return threads_; }
  int blocks() const { return blocks_; }
  int share() const { return share_; }

  Scratch& scratch(Thread thread) { return scratch_of(thread.block); }
  Scratch& scratch_of(int block) { return scratches_[static_cast<std::size_t>(block)]; }

  bool is_staged() const { return staged_; }
  Unit* stage(Thread thread) { return stages_.data() + thread.block * stage_size_; }

  void fetch(Unit* to, const Element* from) {
    check_border(from);
    std::memcpy(to->values, from, sizeof(*to));
    ++fetches_;
  }
  void commit() const {}
  template <int n>
  void wait_but() const {}
  template <class A, int n>
  void read(const Unit* from, A (&values)[n]) const {
    for (int i = 0; i < n; ++i) values[i] = static_cast<A>(from->values[i]);
  }
  void write(Element* to, const Unit& unit) const {
    check_border(to);
    std::memcpy(to, unit.values, sizeof(unit));
  }

  /// Units that were read from the row, but for those at its ends.
  std::int64_t fetches() const { return fetches_; }

 private:
  /// A device would end the program.
  static void check_border(const Element* address) {
    if (kernels::cuda::misalignment(address) != 0) throw std::logic_error("a misaligned unit");
  }

  int threads_, blocks_, share_;
  bool staged_, backwards_;
  std::int64_t stage_size_, fetches_ = 0;
  std::vector<Unit> stages_;
  std::vector<Scratch> scratches_;
};

}  // namespace prefopt::testing_support
