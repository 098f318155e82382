// SPDX-License-Identifier: Apache-2.0
#pragma once

// The work of the threads of a block, or of a cluster of blocks, on one row of logits. Everything
// goes through a Context, so that tests run the same arithmetic in the same order on a CPU; on a
// device Context::each is a plain call and PerThread a register. A context has
//
//   PerThread<T>            a T for each thread, indexed by Thread
//   values<T>()             such, uninitialized
//   each(f)                 f(Thread) in every thread; between two calls nothing is synchronized
//   exchange(values, mask)  each thread gets the value of lane ^ mask of its warp
//   sync_block(), sync_row()
//   threads(), blocks()     of a block, of the row
//   share()                 units of the row for a block
//   scratch(thread)         the Scratch of the thread's block
//   scratch_of(block)       that of any block of the row
//   stage(thread)           Units in shared memory for the thread's block: kAhead a thread or, if
//   is_staged()             all of its share
//   fetch(to, from)         begins to copy a Unit into shared memory
//   commit()                makes a group of what the thread began to fetch
//   wait_but<n>()           until the thread's last n groups at most are on their way
//   read(from, values)      a whole Unit, its elements as float or double
//   write(to, unit)         a whole Unit
//
// C++17, no header of LibTorch or CUDA.

#include <cstdint>
#include <type_traits>

#include "logps/kernels/row_softmax.h"

namespace prefopt::kernels::cuda {

constexpr int kWarp = 32;
/// The most threads of a block on every device.
constexpr int kMaxThreads = 1024;
/// The most blocks of a cluster on every device that has clusters.
constexpr int kMaxBlocks = 8;
/// Units that a thread asks memory for before it works on the first of them.
constexpr int kAhead = 4;

/// One of the threads that share a row.
struct Thread {
  int block, index;

  PREFOPT_HOST_DEVICE int lane() const { return index % kWarp; }
  PREFOPT_HOST_DEVICE int warp() const { return index / kWarp; }
};

template <class Element>
using Accumulate = std::conditional_t<std::is_same_v<Element, double>, double, float>;

/// The elements that one load or store moves.
template <class Element>
struct alignas(16) Unit {
  static constexpr int kWidth = 16 / static_cast<int>(sizeof(Element));
  Element values[kWidth];
};

template <class Element>
struct Row {
  const Element* logits;
  std::int64_t size;
  std::int64_t target;
  bool ignored;       // its statistics and its gradient are 0
  Element* gradient;  // may be the logits; null: not wanted
};

template <class State>
struct alignas(16) Scratch {
  State warps[kMaxThreads / kWarp];
  State block, row;
  double statistics[kAllStatistics];
};

template <class Element>
PREFOPT_HOST_DEVICE int misalignment(const Element* address) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(address) % 16 / sizeof(Element));
}

/// One block's units of a row. A row is cut at the 16-byte borders of memory, so that it may begin
/// and end anywhere: its first and its last unit may hold some logits only.
template <class Element>
class Share {
 public:
  static constexpr int kWidth = Unit<Element>::kWidth;
  static constexpr unsigned kAll = (1u << kWidth) - 1;

  /// `units` for each block; all together at least those of the row.
  PREFOPT_HOST_DEVICE Share(const Row<Element>& row, int block, int units)
      : first_(static_cast<std::int64_t>(block) * units * kWidth - misalignment(row.logits)),
        size_(row.size) {
    const std::int64_t left = row.size - first_;
    const std::int64_t whole = left / kWidth, all = (left + kWidth - 1) / kWidth;
    count_ = all < units ? static_cast<int>(all) : units;
    whole_begin_ = first_ < 0 ? 1 : 0;
    whole_end_ = whole < units ? static_cast<int>(whole) : units;
    const bool in_row = row.target >= 0 && row.target < row.size;
    const std::int64_t target = in_row ? row.target - first_ : -1;
    target_ = target >= 0 && target / kWidth < units ? static_cast<int>(target / kWidth) : -1;
    lane_of_target_ = static_cast<int>(target % kWidth);
  }

  /// 0 or less for a block that gets none.
  PREFOPT_HOST_DEVICE int count() const { return count_; }

  /// Index in the row of a unit's first element; may be negative.
  PREFOPT_HOST_DEVICE std::int64_t position(int unit) const {
    return first_ + static_cast<std::int64_t>(unit) * kWidth;
  }

  PREFOPT_HOST_DEVICE bool is_whole(int unit) const {
    return unit >= whole_begin_ && unit < whole_end_;
  }

  PREFOPT_HOST_DEVICE bool has_target(int unit) const { return unit == target_; }
  PREFOPT_HOST_DEVICE int lane_of_target() const { return lane_of_target_; }

  /// Returns a bit for each element of the unit that belongs to the row.
  PREFOPT_HOST_DEVICE unsigned present(int unit) const {
    if (is_whole(unit)) return kAll;
    const std::int64_t first = position(unit), left = size_ - first;
    const unsigned begun = first < 0 ? kAll << -first : kAll;
    return left < kWidth ? begun & ((1u << left) - 1) : begun & kAll;
  }

 private:
  std::int64_t first_, size_;
  int count_, whole_begin_, whole_end_, target_, lane_of_target_;
};

/// The gradient may be aligned otherwise than the logits, by which the units were cut.
template <class Context, class Element>
PREFOPT_HOST_DEVICE void store(Context& context, Element* row, const Share<Element>& share,
                               int unit, const Unit<Element>& value) {
  Element* to = row + share.position(unit);
  if (share.is_whole(unit) && misalignment(to) == 0) {
    context.write(to, value);
    return;
  }
  const unsigned present = share.present(unit);
  for (int i = 0; i < Unit<Element>::kWidth; ++i) {
    if ((present >> i & 1u) != 0) to[i] = value.values[i];
  }
}

/// Brings a unit into shared memory. Elements outside of the row become 0.
template <class Context, class Element>
PREFOPT_HOST_DEVICE void fetch(Context& context, const Row<Element>& row,
                               const Share<Element>& share, int unit, Unit<Element>* to) {
  const Element* from = row.logits + share.position(unit);
  if (share.is_whole(unit)) {
    context.fetch(to, from);
    return;
  }
  const unsigned present = share.present(unit);
  for (int i = 0; i < Unit<Element>::kWidth; ++i) {
    to->values[i] = (present >> i & 1u) != 0 ? from[i] : static_cast<Element>(0.0f);
  }
}

/// Calls f(unit, where it is) for the thread's units. They come through shared memory, kAhead of
/// them on their way, and stay there if the row is staged; `held`: there they are.
template <class Context, class Element, class F>
PREFOPT_HOST_DEVICE void for_units(Context& context, Thread thread, const Row<Element>& row,
                                   const Share<Element>& share, bool held, const F& f) {
  Unit<Element>* const stage = context.stage(thread);
  const int threads = context.threads();
  const int ahead = kAhead * threads;
  if (!held) {
#ifdef __CUDA_ARCH__
#pragma unroll 1  // four copies would take registers from the loop below
#endif
    for (int i = 0; i < kAhead; ++i) {
      const int unit = thread.index + i * threads;
      if (unit < share.count()) fetch(context, row, share, unit, stage + unit);
      context.commit();
    }
  }
  // Without a stage the slots go round.
  const int last = context.is_staged() ? -1 : thread.index + ahead - threads;
  int slot = thread.index;
  for (int unit = thread.index; unit < share.count(); unit += threads) {
    if (!held) context.template wait_but<kAhead - 1>();
    f(unit, stage + slot);
    if (!held) {
      if (share.count() - unit > ahead) {
        fetch(context, row, share, unit + ahead,
              stage + (context.is_staged() ? slot + ahead : slot));
      }
      context.commit();
    }
    slot = slot == last ? thread.index : slot + threads;
  }
}

/// Sums over the thread's logits but the target.
template <class State, class Context, class Element, class A>
PREFOPT_HOST_DEVICE State scan(Context& context, Thread thread, const Row<Element>& row,
                               const LogitMap<A>& map) {
  constexpr int kWidth = Unit<Element>::kWidth;
  const Share<Element> share(row, thread.block, context.share());
  State state = State::none();
  for_units(context, thread, row, share, /*held=*/false, [&](int unit, const Unit<Element>* at) {
    A z[kWidth];
    context.read(at, z);
    map.map(z);
    A sum_of_z = sum_of(z);
    if (share.has_target(unit) || !share.is_whole(unit)) {
      const unsigned target = share.has_target(unit) ? 1u << share.lane_of_target() : 0;
      sum_of_z = mask(z, share.present(unit) & ~target);
    }
    push(state, z, sum_of_z);
  });
  return state;
}

template <class Context, class Element, class A>
PREFOPT_HOST_DEVICE void write_gradient(Context& context, Thread thread, const Row<Element>& row,
                                        const RowGradient<A>& gradient, bool held) {
  constexpr int kWidth = Unit<Element>::kWidth;
  const Share<Element> share(row, thread.block, context.share());
  for_units(context, thread, row, share, held, [&](int unit, const Unit<Element>* at) {
    A raw[kWidth], out[kWidth];
    context.read(at, raw);
    gradient.of_others(raw, out);
    if (share.has_target(unit)) {
      const int lane = share.lane_of_target();
      const A of_target = gradient.of_target(static_cast<A>(at->values[lane]));
      for (int i = 0; i < kWidth; ++i) out[i] = lane == i ? of_target : out[i];
    }
    Unit<Element> narrow;
    for (int i = 0; i < kWidth; ++i) narrow.values[i] = static_cast<Element>(out[i]);
    store(context, row.gradient, share, unit, narrow);
  });
}

template <class Context, class Element>
PREFOPT_HOST_DEVICE void write_zeros(Context& context, Thread thread, const Row<Element>& row) {
  const Share<Element> share(row, thread.block, context.share());
  Unit<Element> zeros;
  for (Element& value : zeros.values) value = static_cast<Element>(0.0f);
  for (int unit = thread.index; unit < share.count(); unit += context.threads()) {
    store(context, row.gradient, share, unit, zeros);
  }
}

/// Leaves the merged state of a warp in each of its lanes. All lanes first agree on a shift: one
/// exponential a lane instead of two a step.
template <class Context, class States>
PREFOPT_HOST_DEVICE void reduce_warps(Context& context, States& states) {
  using A = decltype(states[Thread{}].shift);
  auto shifts = context.template values<A>();
  context.each([&](Thread thread) { shifts[thread] = states[thread].shift; });
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    auto others = context.exchange(shifts, mask);
    context.each(
        [&](Thread thread) { shifts[thread] = std::fmax(shifts[thread], others[thread]); });
  }
  context.each([&](Thread thread) { rebase(states[thread], shifts[thread]); });
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    auto others = context.exchange(states, mask);
    context.each([&](Thread thread) { states[thread].add(others[thread]); });
  }
}

/// Leaves the state of all threads of the row in the scratch of each block: lanes, then warps, then
/// blocks in the order of their ranks.
template <class State, class Context, class States>
PREFOPT_HOST_DEVICE void reduce_row(Context& context, States& states) {
  reduce_warps(context, states);
  context.each([&](Thread thread) {
    if (thread.lane() == 0) context.scratch(thread).warps[thread.warp()] = states[thread];
  });
  context.sync_block();
  // Every warp does the same, since the first would have the others wait.
  context.each([&](Thread thread) {
    const bool has_warp = thread.lane() < context.threads() / kWarp;
    states[thread] = has_warp ? context.scratch(thread).warps[thread.lane()] : State::none();
  });
  reduce_warps(context, states);
  context.each([&](Thread thread) {
    if (thread.index == 0) context.scratch(thread).block = states[thread];
  });
  if (context.blocks() > 1) context.sync_row();
  context.each([&](Thread thread) {
    if (thread.index != 0) return;
    State merged = context.scratch_of(0).block;
    for (int block = 1; block < context.blocks(); ++block) {
      merged = merge(merged, context.scratch_of(block).block);
    }
    context.scratch(thread).row = merged;
  });
}

/// Statistic k goes to statistics[k * stride]; the gradient, if wanted, is that of the log-prob.
/// A target outside of the row makes all of them NaN.
template <class State, class Context, class Element>
PREFOPT_HOST_DEVICE void score_row(Context& context, const Row<Element>& row,
                                   const LogitMap<Accumulate<Element>>& map, double* statistics,
                                   std::int64_t stride) {
  using A = Accumulate<Element>;
  constexpr int kCount = std::is_same_v<State, SoftmaxSum<A>> ? kFewStatistics : kAllStatistics;
  if (row.ignored) {
    context.each([&](Thread thread) {
      if (thread.block == 0 && thread.index < kCount) statistics[thread.index * stride] = 0;
      if (row.gradient != nullptr) write_zeros(context, thread, row);
    });
    return;
  }
  auto states = context.template values<State>();
  context.each([&](Thread thread) { states[thread] = scan<State>(context, thread, row, map); });
  reduce_row<State>(context, states);
  context.each([&](Thread thread) {
    if (thread.index != 0) return;
    const bool has_target = row.target >= 0 && row.target < row.size;
    const A target = has_target ? map.logit(static_cast<A>(row.logits[row.target])) : kNan<A>;
    auto& scratch = context.scratch(thread);
    finish(scratch.row, static_cast<double>(target), row.size, scratch.statistics);
    if (thread.block != 0) return;
    for (int k = 0; k < kCount; ++k) statistics[k * stride] = scratch.statistics[k];
  });
  // The gradient may overwrite the target's logit only now, and no block ends while others read its
  // scratch.
  context.sync_row();
  if (row.gradient == nullptr) return;
  context.each([&](Thread thread) {
    const RowGradient<A> gradient(map, context.scratch(thread).statistics[kLogsumexp], {1, 1, 0});
    write_gradient(context, thread, row, gradient, /*held=*/context.is_staged());
  });
}

/// The gradient of the row with these factors. Threads need nothing of each other.
template <class Context, class Element>
PREFOPT_HOST_DEVICE void backpropagate_row(Context& context, const Row<Element>& row,
                                           const LogitMap<Accumulate<Element>>& map,
                                           double logsumexp, const RowFactors& factors) {
  const RowGradient<Accumulate<Element>> gradient(map, logsumexp, factors);
  context.each([&](Thread thread) {
    if (row.ignored) {
      write_zeros(context, thread, row);
    } else {
      write_gradient(context, thread, row, gradient, /*held=*/false);
    }
  });
}

// --- how many threads a row gets --------------------------------------------------------------

struct DeviceLimits {
  int multiprocessors;
  std::int64_t shared_bytes;  // the most that a block can have
  bool clusters;
};

struct Plan {
  int threads;         // of a block
  int blocks;          // of a row
  std::int64_t share;  // units of a block
  bool staged;
};

/// Shared memory in addition to the stage.
constexpr std::int64_t kScratchBytes = sizeof(Scratch<SoftmaxMoments<double>>);
constexpr std::int64_t kUnitBytes = 16;
/// The most threads of a block as it is launched. More would get fewer registers.
constexpr int kBlockThreads = 512;

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::int64_t shared_bytes(const Plan& plan) {
  return kScratchBytes + kUnitBytes * (plan.staged ? plan.share : kAhead * plan.threads);
}

inline Plan make_plan(std::int64_t units, std::int64_t blocks, bool staged) {
  const std::int64_t share = ceil_div(units, blocks);
  const std::int64_t warps = ceil_div(share, kAhead * kWarp);
  const bool is_short = warps < kBlockThreads / kWarp;
  return {is_short ? static_cast<int>(warps) * kWarp : kBlockThreads, static_cast<int>(blocks),
          share, staged};
}

/// One more than a row has, for rows that begin between two borders.
inline std::int64_t units_of(std::int64_t size, int element_bytes) {
  return ceil_div(size * element_bytes, kUnitBytes) + 1;
}

inline Plan plan_scores(std::int64_t rows, std::int64_t size, int element_bytes, bool gradient,
                        const DeviceLimits& device) {
  const std::int64_t units = units_of(size, element_bytes);
  // So that two blocks fit a multiprocessor: one loads while the other reduces.
  const std::int64_t half = (device.shared_bytes / 2 - 2 * kScratchBytes) / kUnitBytes;
  const std::int64_t all = (device.shared_bytes - kScratchBytes) / kUnitBytes;
  int blocks = 1;
  while (device.clusters && blocks < kMaxBlocks) {
    const bool is_too_long = gradient && ceil_div(units, blocks) > half;
    const bool leaves_idle =
        rows * blocks < device.multiprocessors && units >= 2 * blocks * kAhead * kBlockThreads;
    if (!is_too_long && !leaves_idle) break;
    blocks *= 2;
  }
  return make_plan(units, blocks, gradient && ceil_div(units, blocks) <= all);
}

/// Of the backward pass, whose blocks need not be one cluster.
inline Plan plan_gradients(std::int64_t rows, std::int64_t size, int element_bytes,
                           const DeviceLimits& device) {
  const std::int64_t units = units_of(size, element_bytes);
  const std::int64_t wanted = ceil_div(2 * device.multiprocessors, rows);
  const std::int64_t most = ceil_div(units, kAhead * kBlockThreads);
  return make_plan(units, wanted < most ? wanted : most, false);
}

}  // namespace prefopt::kernels::cuda
