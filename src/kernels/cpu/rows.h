// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

namespace prefopt::kernels::cpu {

/// Rows in memory: row i begins at data + i * stride.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  T* operator[](std::int64_t i) const { return data + i * stride; }
  operator Rows<const T>() const  // NOLINT(google-explicit-constructor): as T* to const T*
      requires(!std::is_const_v<T>) {
    return {data, stride};
  }
};

/// A matrix read through strides: element (i, j) is data[i * row_stride + j * column_stride].
template <class T>
struct StridedMatrix {
  const T* data;
  std::int64_t row_stride;
  std::int64_t column_stride;

  /// Returns the part that begins at element (row, column).
  StridedMatrix from(std::int64_t row, std::int64_t column) const {
    return {data + row * row_stride + column * column_stride, row_stride, column_stride};
  }
};

/// The target of a product. Columns up to `columns` of each row are written, the rest is kept.
template <class T>
struct ProductTarget {
  T* data;
  std::int64_t row_stride;
  std::int64_t columns;
  bool accumulate;
};

}  // namespace prefopt::kernels::cpu
