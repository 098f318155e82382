// SPDX-License-Identifier: Apache-2.0
// The product behind the output head. A GEMM library writes its result to memory, packs the large
// factor on each call and knows nothing of what follows; here the small factor is packed once, a
// block of logits is used while it is in the cache, and the large factor is read where it lies.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "logps/kernels/cpu/gemm.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "logps/kernels/cpu/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Accumulators of kRows x kVectors registers, plus one row of b and one element of a.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 8;
constexpr int kVectors = 3;
#else
constexpr int kRows = 6;
constexpr int kVectors = 2;
#endif
static_assert(kRowGrain % kRows == 0);

// Rows of a at once: with a depth of kMaxDepth they and one panel of b stay in a second-level
// cache.
constexpr std::int64_t kRowsAtOnce = 4 * kRowGrain;
constexpr std::int64_t kMaxDepth = 640;

template <class T, int kM, int kN>
HWY_INLINE void multiply_registers(StridedMatrix<T> a, std::int64_t depth, const T* HWY_RESTRICT b,
                                   T* HWY_RESTRICT c, std::int64_t c_stride, bool accumulate) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[kM][kN];
  HWY_UNROLL(8)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(3)
    for (int j = 0; j < kN; ++j) {
      sums[i][j] = accumulate ? hn::LoadU(d, c + i * c_stride + j * lanes) : hn::Zero(d);
    }
  }
  const T* HWY_RESTRICT left = a.data;
  for (std::int64_t k = 0; k < depth; ++k) {
    hn::Vec<decltype(d)> row[kN];
    HWY_UNROLL(3)
    for (int j = 0; j < kN; ++j) row[j] = hn::Load(d, b + j * lanes);
    HWY_UNROLL(8)
    for (int i = 0; i < kM; ++i) {
      const auto element = hn::Set(d, left[i * a.row_stride]);
      HWY_UNROLL(3)
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::MulAdd(element, row[j], sums[i][j]);
    }
    left += a.column_stride;
    b += kN * lanes;
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(3)
    for (int j = 0; j < kN; ++j) hn::StoreU(sums[i][j], d, c + i * c_stride + j * lanes);
  }
}

// At the right edge of c, `columns` < width, the rows go through a buffer.
template <class T, int kM, int kN>
HWY_INLINE void multiply_rows(StridedMatrix<T> a, std::int64_t depth, const T* b, T* c,
                              std::int64_t c_stride, std::int64_t columns, bool accumulate) {
  const std::int64_t width = kN * static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  if (columns == width) {
    return multiply_registers<T, kM, kN>(a, depth, b, c, c_stride, accumulate);
  }
  HWY_ALIGN T edge[kM * kN * HWY_MAX_BYTES / sizeof(T)] = {};
  for (int i = 0; i < kM && accumulate; ++i) {
    std::copy(c + i * c_stride, c + i * c_stride + columns, edge + i * width);
  }
  multiply_registers<T, kM, kN>(a, depth, b, edge, width, accumulate);
  for (int i = 0; i < kM; ++i) {
    std::copy(edge + i * width, edge + i * width + columns, c + i * c_stride);
  }
}

template <class T, int kN>
void multiply_panel(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth, const T* b, T* c,
                    std::int64_t c_stride, std::int64_t columns, bool accumulate) {
  while (rows > 0) {
    const std::int64_t taken = rows >= kRows ? kRows : 1;
    if (taken == kRows) {
      multiply_rows<T, kRows, kN>(a, depth, b, c, c_stride, columns, accumulate);
    } else {
      multiply_rows<T, 1, kN>(a, depth, b, c, c_stride, columns, accumulate);
    }
    a.data += taken * a.row_stride;
    c += taken * c_stride;
    rows -= taken;
  }
}

template <class T>
void multiply_all(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,
                  const PackedMatrix<T>& b, std::int64_t first, std::int64_t last,
                  ProductTarget<T> c) {
  const hn::ScalableTag<T> d;
  const std::int64_t vectors = b.width() / static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t cuts = std::max<std::int64_t>(1, (depth + kMaxDepth - 1) / kMaxDepth);
  const std::int64_t step = (depth + cuts - 1) / cuts;
  for (std::int64_t k = 0; k == 0 || k < depth; k += std::max<std::int64_t>(step, 1)) {
    const std::int64_t part = std::min(step, depth - k);
    const bool accumulate = c.accumulate || k > 0;
    for (std::int64_t i = 0; i < rows; i += kRowsAtOnce) {
      const std::int64_t count = std::min(kRowsAtOnce, rows - i);
      for (std::int64_t p = first; p < last; ++p) {
        const StridedMatrix<T> left{a.data + i * a.row_stride + k * a.column_stride, a.row_stride,
                                    a.column_stride};
        const T* right = b.panel(p) + k * b.width();
        T* out = c.data + i * c.row_stride + p * b.width();
        const std::int64_t columns = std::min(b.width(), c.columns - p * b.width());
        switch (vectors) {
          case 1:
            multiply_panel<T, 1>(left, count, part, right, out, c.row_stride, columns, accumulate);
            break;
          case 2:
            multiply_panel<T, 2>(left, count, part, right, out, c.row_stride, columns, accumulate);
            break;
          default:
            multiply_panel<T, kVectors>(left, count, part, right, out, c.row_stride, columns,
                                        accumulate);
        }
      }
    }
  }
}

void multiply_float(StridedMatrix<float> a, std::int64_t rows, std::int64_t depth,
                    const PackedMatrix<float>& b, std::int64_t first, std::int64_t last,
                    ProductTarget<float> c) {
  multiply_all(a, rows, depth, b, first, last, c);
}

void multiply_double(StridedMatrix<double> a, std::int64_t rows, std::int64_t depth,
                     const PackedMatrix<double>& b, std::int64_t first, std::int64_t last,
                     ProductTarget<double> c) {
  multiply_all(a, rows, depth, b, first, last, c);
}

// Bytes of a vector, and vectors of the widest panel.
std::int64_t vector_bytes() {
  return static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>()) * sizeof(float));
}
std::int64_t panel_vectors() { return kVectors; }

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace prefopt::kernels::cpu {
namespace {

HWY_EXPORT(multiply_float);
HWY_EXPORT(multiply_double);
HWY_EXPORT(vector_bytes);
HWY_EXPORT(panel_vectors);

struct PanelShape {
  std::int64_t panels, width;
};

// Panels of equal width, none wider than the registers allow: 4 vectors are 2 + 2, not 3 + 1.
template <class T>
PanelShape panel_shape(std::int64_t columns) {
  // A vector of the scalar target is one number of either type.
  const std::int64_t bytes = HWY_DYNAMIC_DISPATCH(vector_bytes)();
  const std::int64_t lanes =
      std::max<std::int64_t>(1, bytes / static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t most = HWY_DYNAMIC_DISPATCH(panel_vectors)();
  const std::int64_t vectors = (columns + lanes - 1) / lanes;
  const std::int64_t panels = std::max<std::int64_t>(1, (vectors + most - 1) / most);
  const std::int64_t per_panel = std::max<std::int64_t>(1, (vectors + panels - 1) / panels);
  return {panels, per_panel * lanes};
}

}  // namespace

template <class T>
PackedMatrix<T>::PackedMatrix(std::int64_t max_depth, std::int64_t columns)
    : buffer_(bytes(max_depth, columns) / static_cast<std::int64_t>(sizeof(T))),
      max_depth_(max_depth),
      columns_(columns) {
  const PanelShape shape = panel_shape<T>(columns);
  panels_ = shape.panels;
  width_ = shape.width;
}

template <class T>
std::int64_t PackedMatrix<T>::padded(std::int64_t columns) {
  const PanelShape shape = panel_shape<T>(columns);
  return shape.panels * shape.width;
}

template <class T>
void PackedMatrix<T>::pack(StridedMatrix<T> source, std::int64_t depth, std::int64_t first,
                           std::int64_t last) {
  for (std::int64_t p = first; p < last; ++p) {
    T* out = buffer_.data() + p * max_depth_ * width_;
    const T* in = source.data + p * width_ * source.column_stride;
    const std::int64_t columns = std::clamp<std::int64_t>(columns_ - p * width_, 0, width_);
    for (std::int64_t k = 0; k < depth; ++k) {
      if (source.column_stride == 1) {
        std::copy(in, in + columns, out);
      } else {
        for (std::int64_t j = 0; j < columns; ++j) out[j] = in[j * source.column_stride];
      }
      std::fill(out + columns, out + width_, T(0));
      out += width_;
      in += source.row_stride;
    }
  }
}

template <>
void multiply(StridedMatrix<float> a, std::int64_t rows, std::int64_t depth,
              const PackedMatrix<float>& b, std::int64_t first, std::int64_t last,
              ProductTarget<float> c) {
  HWY_DYNAMIC_DISPATCH(multiply_float)(a, rows, depth, b, first, last, c);
}

template <>
void multiply(StridedMatrix<double> a, std::int64_t rows, std::int64_t depth,
              const PackedMatrix<double>& b, std::int64_t first, std::int64_t last,
              ProductTarget<double> c) {
  HWY_DYNAMIC_DISPATCH(multiply_double)(a, rows, depth, b, first, last, c);
}

template class PackedMatrix<float>;
template class PackedMatrix<double>;

}  // namespace prefopt::kernels::cpu
#endif
