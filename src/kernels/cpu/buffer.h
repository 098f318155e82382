// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "core/memory_pool.h"

namespace prefopt::kernels::cpu {

/// Numbers in memory of the pool, not cleared.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size)
      : memory_(take_from_pool(size * static_cast<std::int64_t>(sizeof(T)))) {}

  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  std::unique_ptr<void, PoolDeleter> memory_;
};

}  // namespace prefopt::kernels::cpu
