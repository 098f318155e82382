// SPDX-License-Identifier: Apache-2.0
// A GEMM library packs both factors. Here a thread packs one panel of the right factor at a time,
// which then stays in its second-level cache while all rows of the left one go past it; the left
// one is read where it lies, but for the transposed one of a weight's gradient and for tiles.
#include "kernels/cpu/linear.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>

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

/// c (+)= a b. multiply_part(rows, depth, panel, target) multiplies those rows
/// and that part of the depth of a.
template <class T, class Source, class MultiplyPart>
void product(ProductUnit unit, std::int64_t rows, Range depth, std::int64_t columns,
             StridedMatrix<Source> b, Rows<T> c, bool accumulate,
             const MultiplyPart& multiply_part) {
  if (depth.size() == 0) {
    for (std::int64_t i = 0; i < rows && !accumulate; ++i) std::fill_n(c[i], columns, T(0));
    return;
  }
  if (rows == 0 || columns == 0) return;
  const std::int64_t width = PackedMatrix<T>::width_of(columns, unit);
  const std::int64_t step = part_size(depth.size(), kDepthAtOnce);
  const Cut cut(rows, columns, width);
  parallel_for(0, cut.tasks(), 1, [&](std::int64_t first, std::int64_t last) {
    PackedMatrix<T> panel;
    for (std::int64_t task = first, next; task < last; task = next) {
      // The tasks of one panel at once.
      const std::int64_t index = task / cut.row_parts;
      next = std::min(last, (index + 1) * cut.row_parts);
      const Range of_columns = part(index, width, columns);
      const Range of_rows{part(task - index * cut.row_parts, cut.row_step, rows).begin,
                          part(next - 1 - index * cut.row_parts, cut.row_step, rows).end};
      if (panel.columns() != of_columns.size()) {
        panel = PackedMatrix<T>(step, of_columns.size(), unit);
      }
      for (std::int64_t k = depth.begin; k < depth.end; k += step) {
        const Range of_depth{k, std::min(depth.end, k + step)};
        StridedMatrix<Source> source = b;
        source.data += k * b.row_stride + of_columns.begin * b.column_stride;
        panel.pack(source, of_depth.size(), 0, 1);
        multiply_part(of_rows, of_depth, panel,
                      ProductTarget<T>{c[of_rows.begin] + of_columns.begin, c.stride,
                                       of_columns.size(), accumulate || k > depth.begin});
      }
    }
  });
}

/// The same with a left factor that is packed, a part of its depth and so many rows at a time.
template <class T, class Source>
void product_of_packed(ProductUnit unit, StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,
                       std::int64_t columns, StridedMatrix<Source> b, Rows<T> c, bool accumulate) {
  constexpr std::int64_t kRowsPacked = 64 * kRowGrain;
  const std::int64_t step = std::max<std::int64_t>(part_size(depth, kDepthAtOnce), 1);
  for (std::int64_t first = 0; first < rows; first += kRowsPacked) {
    const std::int64_t count = std::min(kRowsPacked, rows - first);
    PackedRows<T> packed(step, count, unit);
    for (std::int64_t k = 0; k == 0 || k < depth; k += step) {
      const Range of_depth{k, std::min(depth, k + step)};
      const StridedMatrix<T> source{a.data + first * a.row_stride + k * a.column_stride,
                                    a.row_stride, a.column_stride};
      parallel_for(0, packed.blocks(), 4, [&](std::int64_t begin, std::int64_t end) {
        packed.pack(source, of_depth.size(), begin, end);
      });
      product(unit, count, of_depth, columns, b, Rows<T>{c[first], c.stride}, accumulate || k > 0,
              [&](Range of_rows, Range, const PackedMatrix<T>& panel, ProductTarget<T> target) {
                multiply<T>(packed, of_rows.begin / packed.block_rows(), of_rows.size(),
                            of_depth.size(), panel, 0, 1, target);
              });
    }
  }
}

/// The same where the rows of a can be read in place.
template <class T, class Source>
void product_of_rows(ProductUnit unit, Rows<const T> a, std::int64_t rows, std::int64_t depth,
                     std::int64_t columns, StridedMatrix<Source> b, Rows<T> c, bool accumulate) {
  if (unit == ProductUnit::kTiles) {
    return product_of_packed<T>(unit, {a.data, a.stride, 1}, rows, depth, columns, b, c,
                                accumulate);
  }
  product(
      unit, rows, {0, depth}, columns, b, c, accumulate,
      [&](Range of_rows, Range of_depth, const PackedMatrix<T>& panel, ProductTarget<T> target) {
        multiply<T>({a[of_rows.begin] + of_depth.begin, a.stride, 1}, of_rows.size(),
                    of_depth.size(), panel, 0, 1, target);
      });
}

}  // namespace

template <class T, class Weight>
void linear_forward(const LinearForward<T, Weight>& p) {
  const auto [rows, in, out] = p.sizes;
  product_of_rows<T, Weight>(unit_of_layer<T>(in, out), p.x, rows, in, out,
                             {p.weight.data, 1, p.weight.stride}, p.y, p.accumulate);
}

template <class T, class Weight>
void linear_input_grad(const LinearInputGrad<T, Weight>& p) {
  const auto [rows, in, out] = p.sizes;
  product_of_rows<T, Weight>(unit_of_layer<T>(in, out), p.dy, rows, out, in,
                             {p.weight.data, p.weight.stride, 1}, p.dx, p.accumulate);
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
  for (std::int64_t first = 0; first < out; first += step) {
    const Range of_out{first, std::min(out, first + step)};
    decode_slice(p.weight, {of_out.begin, of_out.size(), 0, in}, slice.data());
    product_of_rows<float, float>(unit_of_layer<float>(in, out), p.x, rows, in, of_out.size(),
                                  {slice.data(), 1, in}, {p.y.data + of_out.begin, p.y.stride},
                                  p.accumulate);
  }
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
  for (std::int64_t first = 0; first < in; first += wide) {
    const Range of_in{first, std::min(in, first + wide)};
    for (std::int64_t k = 0; k == 0 || k < out; k += depth) {
      const Range of_out{k, std::min(out, k + depth)};
      decode_slice(p.weight, {of_out.begin, of_out.size(), of_in.begin, of_in.size()},
                   slice.data());
      product_of_rows<float, float>(unit_of_layer<float>(in, out), {p.dy.data + k, p.dy.stride},
                                    rows, of_out.size(), of_in.size(),
                                    {slice.data(), of_in.size(), 1},
                                    {p.dx.data + first, p.dx.stride}, p.accumulate || k > 0);
    }
  }
}

// The tokens are the depth, and they are taken a part at a time, so that the packed part of dY
// stays in a cache.
template <class T>
void linear_weight_grad(const LinearWeightGrad<T>& p) {
  const auto [rows, in, out] = p.sizes;
  product_of_packed<T, T>(unit_of_layer<T>(in, out), {p.dy.data, 1, p.dy.stride}, out, rows, in,
                          {p.x.data, p.x.stride, 1}, p.dw, p.accumulate);
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
