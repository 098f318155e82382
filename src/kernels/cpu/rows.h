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

}  // namespace prefopt::kernels::cpu
