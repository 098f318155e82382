// SPDX-License-Identifier: Apache-2.0
// A GEMM library packs both factors. Here a thread packs one panel of the right factor at a time,
// which then stays in its second-level cache while all rows of the left one go past it; the left
// one is read where it lies, but for the transposed one of a weight's gradient and for tiles.
#include "kernels/cpu/linear.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "kernels/cpu/gemm.h"

namespace prefopt::kernels::cpu {
namespace {

struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

Range part(std::int64_t index, std::int64_t step, std::int64_t size) {
  return {index * step, std::min(size, (index + 1) * step)};
}

std::int64_t quotient_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// The cut of a result [rows, columns] into the tasks that the threads share: by the panels of the
/// right factor, and by rows as well where panels are few. A panel is packed again for each part of
/// the rows, hence large ones.
struct Cut {
  Cut(std::int64_t rows, std::int64_t columns, std::int64_t panel_width)
      : panels(quotient_up(columns, panel_width)) {
    constexpr std::int64_t kTasksOfThread = 4, kLeastRows = kRowGrain;
    const std::int64_t wanted = quotient_up(kTasksOfThread * thread_count(), panels);
    const std::int64_t parts = std::clamp<std::int64_t>(rows / kLeastRows, 1, wanted);
    row_step = quotient_up(quotient_up(rows, parts), kRowGrain) * kRowGrain;
    row_parts = quotient_up(rows, row_step);
  }

  std::int64_t tasks() const { return panels * row_parts; }

  std::int64_t panels, row_parts, row_step;
};

/// Returns the unit for a layer. Tiles take longer to pack than vectors, which few columns or a
/// short sum do not pay for, as those of an adapter. The number of rows has no say: their results
/// must not depend on the others.
template <class T>
ProductUnit unit_of_layer(std::int64_t in, std::int64_t out) {
  constexpr std::int64_t kLeast = 64;
  return std::min(in, out) < kLeast ? ProductUnit::kVectors : best_unit<T>();
}

/// The left factor of products, [rows, depth]: read where it lies, or packed once for all of them,
/// in the parts of the depth that are one sum each.
template <class T>
class LeftFactor {
 public:
  LeftFactor(ProductUnit unit, StridedMatrix<T> a, std::int64_t rows, std::int64_t depth)
      : unit_(unit), a_(a), rows_(rows), depth_(depth), step_(part_size(depth, kDepthAtOnce)) {
    if (is_read_in_place(unit, a) || rows == 0 || depth == 0) return;
    for (std::int64_t k = 0; k < depth; k += step_) parts_.emplace_back(step_, rows, unit);
    constexpr std::int64_t kBlocksAtOnce = 4;
    const std::int64_t groups = quotient_up(parts_.front().blocks(), kBlocksAtOnce);
    parallel_for(0, std::ssize(parts_) * groups, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        PackedRows<T>& packed = parts_[static_cast<std::size_t>(i / groups)];
        const Range of_depth = part(i / groups, step_, depth_);
        const Range blocks = part(i % groups, kBlocksAtOnce, packed.blocks());
        packed.pack(a_.from(0, of_depth.begin), of_depth.size(), blocks.begin, blocks.end);
      }
    });
  }

  static bool is_read_in_place(ProductUnit unit, const StridedMatrix<T>& a) {
    return unit == ProductUnit::kVectors && a.column_stride == 1;
  }

  ProductUnit unit() const { return unit_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t depth() const { return depth_; }
  std::int64_t step() const { return step_; }

  /// Multiplies those rows and that part of the depth, one of `step`.
  void multiply(Range rows, Range depth, const PackedMatrix<T>& panel, ProductTarget<T> c) const {
    if (parts_.empty()) {
      return cpu::multiply<T>(a_.from(rows.begin, depth.begin), rows.size(), depth.size(), panel, 0,
                              1, c);
    }
    const PackedRows<T>& packed = parts_[static_cast<std::size_t>(depth.begin / step_)];
    cpu::multiply<T>(packed, rows.begin / packed.block_rows(), rows.size(), depth.size(), panel, 0,
                     1, c);
  }

 private:
  ProductUnit unit_;
  StridedMatrix<T> a_;
  std::int64_t rows_, depth_, step_;
  std::vector<PackedRows<T>> parts_;
};

/// Calls f with a part of the rows of `a` as a left factor, and with the first of these rows. A
/// part is as large as may be packed.
template <class T, class F>
void for_left_factors(ProductUnit unit, StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,
                      const F& f) {
  constexpr std::int64_t kNumbersPacked = std::int64_t{1} << 23;
  const std::int64_t most = std::max(kNumbersPacked / std::max<std::int64_t>(depth, 1), kRowGrain);
  const std::int64_t at_once = LeftFactor<T>::is_read_in_place(unit, a)
                                   ? std::max<std::int64_t>(rows, 1)
                                   : most / kRowGrain * kRowGrain;
  for (std::int64_t first = 0; first < rows; first += at_once) {
    f(LeftFactor<T>(unit, a.from(first, 0), std::min(at_once, rows - first), depth), first);
  }
}

/// c (+)= a b, where b has so many columns.
template <class T, class Source>
void product(const LeftFactor<T>& a, std::int64_t columns, StridedMatrix<Source> b, Rows<T> c,
             bool accumulate) {
  if (a.depth() == 0) {
    for (std::int64_t i = 0; i < a.rows() && !accumulate; ++i) std::fill_n(c[i], columns, T(0));
    return;
  }
  if (a.rows() == 0 || columns == 0) return;
  const std::int64_t width = PackedMatrix<T>::width_of(columns, a.unit());
  const Cut cut(a.rows(), columns, width);
  parallel_for(0, cut.tasks(), 1, [&](std::int64_t first, std::int64_t last) {
    PackedMatrix<T> panel;
    for (std::int64_t task = first, next; task < last; task = next) {
      // The tasks of one panel at once.
      const std::int64_t index = task / cut.row_parts;
      next = std::min(last, (index + 1) * cut.row_parts);
      const Range of_columns = part(index, width, columns);
      const Range of_rows{part(task - index * cut.row_parts, cut.row_step, a.rows()).begin,
                          part(next - 1 - index * cut.row_parts, cut.row_step, a.rows()).end};
      if (panel.columns() != of_columns.size()) {
        panel = PackedMatrix<T>(a.step(), of_columns.size(), a.unit());
      }
      for (std::int64_t k = 0; k < a.depth(); k += a.step()) {
        const Range of_depth{k, std::min(a.depth(), k + a.step())};
        panel.pack(b.from(k, of_columns.begin), of_depth.size(), 0, 1);
        a.multiply(of_rows, of_depth, panel,
                   ProductTarget<T>{c[of_rows.begin] + of_columns.begin, c.stride,
                                    of_columns.size(), accumulate || k > 0});
      }
    }
  });
}

/// c (+)= a b by the unit.
template <class T, class Source>
void product(ProductUnit unit, StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,
             std::int64_t columns, StridedMatrix<Source> b, Rows<T> c, bool accumulate) {
  for_left_factors(unit, a, rows, depth, [&](const LeftFactor<T>& left, std::int64_t first) {
    product(left, columns, b, Rows<T>{c[first], c.stride}, accumulate);
  });
}

template <class T>
StridedMatrix<T> in_rows(Rows<const T> rows) {
  return {rows.data, rows.stride, 1};
}

template <class T>
StridedMatrix<T> transposed(Rows<const T> rows) {
  return {rows.data, 1, rows.stride};
}

}  // namespace

template <class T, class Weight>
void linear_forward(const LinearForward<T, Weight>& p) {
  const auto [rows, in, out] = p.sizes;
  product(unit_of_layer<T>(in, out), in_rows(p.x), rows, in, out, transposed(p.weight), p.y,
          p.accumulate);
}

template <class T, class Weight>
void linear_input_grad(const LinearInputGrad<T, Weight>& p) {
  const auto [rows, in, out] = p.sizes;
  product(unit_of_layer<T>(in, out), in_rows(p.dy), rows, out, in, in_rows(p.weight), p.dx,
          p.accumulate);
}

// Numbers of a weight that are decoded at once: few enough to stay in a cache until they are
// packed.
constexpr std::int64_t kSliceNumbers = std::int64_t{1} << 20;

// The slices are rows of W, columns of the result.
template <>
void linear_forward(const LinearForward<float, BlockMatrix>& p) {
  const auto [rows, in, out] = p.sizes;
  const std::int64_t step = std::max<std::int64_t>(1, part_size(out, kSliceNumbers / (in + 1) + 1));
  const Buffer<float> slice(step * in);
  const auto multiply_slices = [&](const LeftFactor<float>& x, std::int64_t row) {
    for (std::int64_t first = 0; first < p.sizes.out; first += step) {
      const std::int64_t count = std::min(p.sizes.out - first, step);
      decode_slice(p.weight, {first, count, 0, p.sizes.in}, slice.data());
      product(x, count, StridedMatrix<float>{slice.data(), 1, p.sizes.in},
              Rows<float>{p.y[row] + first, p.y.stride}, p.accumulate);
    }
  };
  for_left_factors(unit_of_layer<float>(in, out), in_rows(p.x), rows, in, multiply_slices);
}

// The slices are parts of the depth as `product` cuts it, so that sums have the same order, and of
// those some blocks of each row.
template <>
void linear_input_grad(const LinearInputGrad<float, BlockMatrix>& p) {
  const auto [rows, in, out] = p.sizes;
  const std::int64_t depth = std::max<std::int64_t>(1, part_size(out, kDepthAtOnce));
  const std::int64_t block = p.weight.values;
  const std::int64_t wide = std::min(in, std::max(block, kSliceNumbers / depth / block * block));
  const Buffer<float> slice(depth * wide);
  for (std::int64_t k = 0; k == 0 || k < out; k += depth) {
    const std::int64_t of_depth = std::min(out - k, depth);
    const auto multiply_slices = [&](const LeftFactor<float>& dy, std::int64_t row) {
      for (std::int64_t first = 0; first < p.sizes.in; first += wide) {
        const std::int64_t count = std::min(p.sizes.in - first, wide);
        decode_slice(p.weight, {k, of_depth, first, count}, slice.data());
        product(dy, count, StridedMatrix<float>{slice.data(), count, 1},
                Rows<float>{p.dx[row] + first, p.dx.stride}, p.accumulate || k > 0);
      }
    };
    for_left_factors(unit_of_layer<float>(in, out), in_rows(p.dy).from(0, k), rows, of_depth,
                     multiply_slices);
  }
}

template <class T>
void linear_weight_grad(const LinearWeightGrad<T>& p) {
  const auto [rows, in, out] = p.sizes;
  product(unit_of_layer<T>(in, out), transposed(p.dy), out, rows, in, in_rows(p.x), p.dw,
          p.accumulate);
}

template void linear_forward(const LinearForward<float>&);
template void linear_forward(const LinearForward<double>&);
template void linear_forward(const LinearForward<float, c10::BFloat16>&);
template void linear_input_grad(const LinearInputGrad<float>&);
template void linear_input_grad(const LinearInputGrad<double>&);
template void linear_input_grad(const LinearInputGrad<float, c10::BFloat16>&);
template void linear_weight_grad(const LinearWeightGrad<float>&);
template void linear_weight_grad(const LinearWeightGrad<double>&);

}  // namespace prefopt::kernels::cpu
