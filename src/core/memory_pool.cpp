// SPDX-License-Identifier: Apache-2.0
#include "core/memory_pool.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "prefopt/memory.h"

namespace prefopt {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kLargePage = std::size_t{2} << 20;
// Less than this the C library's own lists serve as well.
constexpr std::size_t kLeastPooled = std::size_t{1} << 20;

/// Sizes in steps of an eighth to a quarter, so that batches of slightly different lengths fit the
/// same block. Pages that are never touched take no memory.
std::size_t rounded(std::int64_t bytes) {
  const auto size = std::max<std::size_t>(static_cast<std::size_t>(bytes), kCacheLine);
  const std::size_t step = std::max(std::bit_floor(size) / 4, kCacheLine);
  const std::size_t alignment = size < kLargePage ? step : std::max(step, kLargePage);
  return (size + alignment - 1) / alignment * alignment;
}

/// Returns memory of the C library, for a block that is too small for the pool.
void* allocate_small(std::size_t size) {
  void* data = std::aligned_alloc(kCacheLine, size);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

/// Returns a block of `size` from the system, of which `bytes` are wanted now. The C library would
/// keep it when it is freed.
void* allocate(std::size_t size, std::size_t bytes) {
  const std::size_t alignment = size < kLargePage ? 1 : kLargePage;
  const std::size_t reserved = size + alignment - 1;
  void* begin =
      ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) throw std::bad_alloc();
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t at = (first + alignment - 1) / alignment * alignment;
  const auto unmap = [](std::uintptr_t from, std::uintptr_t to) {
    if (from < to) ::munmap(reinterpret_cast<void*>(from), to - from);
  };
  unmap(first, at);
  unmap(at + size, first + reserved);
  void* data = reinterpret_cast<void*>(at);
#ifdef MADV_HUGEPAGE
  // Advice: where it is not taken the pages are small. The rest of a large page would be memory
  // that nobody asked for.
  if (bytes >= kLargePage) ::madvise(data, bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return data;
}

class Pool {
 public:
  void* take(std::int64_t bytes) {
    const std::size_t size = rounded(bytes);
    if (size < kLeastPooled) return allocate_small(size);
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      // A much larger one is left for what needs it.
      const bool fits = block->size >= size && block->size <= 2 * size;
      if (fits && (best == free_.end() || block->size < best->size)) best = block;
    }
    if (best != free_.end()) {
      const Block block = *best;
      free_.erase(best);
      sizes_.emplace(block.data, block.size);
      return block.data;
    }
    // The kept blocks did not serve this time, so as much of them goes, the oldest first.
    release(size);
    // Room for all blocks, so that giving one back cannot fail.
    free_.reserve(sizes_.size() + free_.size() + 1);
    void* data = allocate(size, static_cast<std::size_t>(bytes));
    try {
      sizes_.emplace(data, size);
    } catch (...) {
      ::munmap(data, size);
      throw;
    }
    return data;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(data);
    if (found == sizes_.end()) return std::free(data);
    free_.push_back({data, found->second});
    sizes_.erase(found);
  }

  void release_all() {
    const std::lock_guard lock(mutex_);
    release(std::numeric_limits<std::size_t>::max());
  }

  std::int64_t bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const Block& block : free_) sum += block.size;
    return static_cast<std::int64_t>(sum);
  }

 private:
  struct Block {
    void* data;
    std::size_t size;
  };

  void release(std::size_t bytes) {
    while (bytes > 0 && !free_.empty()) {
      ::munmap(free_.front().data, free_.front().size);
      bytes -= std::min(bytes, free_.front().size);
      free_.erase(free_.begin());
    }
  }

  mutable std::mutex mutex_;
  std::vector<Block> free_;
  std::unordered_map<void*, std::size_t> sizes_;
};

Pool& pool() {
  // Never destroyed: a tensor may outlive every static object.
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void PoolDeleter::operator()(void* data) const { pool().give_back(data); }

std::unique_ptr<void, PoolDeleter> take_from_pool(std::int64_t bytes) {
  return std::unique_ptr<void, PoolDeleter>(pool().take(bytes));
}

at::Tensor empty_from_pool(at::IntArrayRef shape, at::ScalarType dtype) {
  const std::int64_t bytes =
      c10::multiply_integers(shape) * static_cast<std::int64_t>(c10::elementSize(dtype));
  return at::from_blob(take_from_pool(bytes).release(), shape, PoolDeleter{}, dtype);
}

std::int64_t block_bytes(std::int64_t bytes) {
  constexpr auto kPage = static_cast<std::int64_t>(kLargePage);
  return bytes < kPage ? bytes : (bytes + kPage - 1) / kPage * kPage;
}

std::int64_t pooled_bytes() { return pool().bytes(); }

void release_pooled_memory() { pool().release_all(); }

}  // namespace prefopt
