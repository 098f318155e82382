// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace prefopt {

/// Gives a block back to the pool.
struct PoolDeleter {
  void operator()(void* data) const;
};

/// At least `bytes` of memory, aligned to a cache line, not cleared, that goes back to the pool
/// when it is let go. A training step asks for large buffers again and again, and the system's
/// first touch of fresh memory costs more than a pass over it: 2 to 3 GB/s in pages of 4 KiB, 10 in
/// those of 2 MiB that large blocks are made of. Where no block that waits is large enough, pages
/// of several are moved to one place (Linux). Throws std::bad_alloc.
std::unique_ptr<void, PoolDeleter> take_from_pool(std::int64_t bytes);

/// Returns an uninitialized tensor of the CPU in such memory.
at::Tensor empty_from_pool(at::IntArrayRef shape, at::ScalarType dtype);

/// Returns the size of a block of which `bytes` are touched: whole pages.
std::int64_t block_bytes(std::int64_t bytes);

/// Bytes that wait in the pool.
std::int64_t pooled_bytes();

}  // namespace prefopt
