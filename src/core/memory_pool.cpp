// SPDX-License-Identifier: Apache-2.0
#include "core/memory_pool.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <numeric>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/system_calls.h"
#include "prefopt/memory.h"

namespace prefopt {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kLargePage = std::size_t{2} << 20;
// Less than this the C library's own lists serve as well.
constexpr std::size_t kLeastPooled = std::size_t{1} << 20;

std::size_t rounded(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/// Returns memory of the C library, for a block that is too small for the pool.
void* allocate_small(std::size_t bytes) {
  void* data = std::aligned_alloc(kCacheLine, rounded(std::max<std::size_t>(bytes, 1), kCacheLine));
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

/// Large pages that follow one another. The system moves them only a mapping at a time, so a block
/// remembers the sizes of its mappings.
struct Block {
  std::byte* data = nullptr;
  std::vector<std::size_t> mappings = {};

  std::size_t size() const {
    return std::accumulate(mappings.begin(), mappings.end(), std::size_t{0});
  }

  /// Leaves out `bytes` of the first mapping.
  void drop_front(std::size_t bytes) {
    data += bytes;
    mappings.front() -= bytes;
    if (mappings.front() == 0) mappings.erase(mappings.begin());
  }

  /// Takes `bytes` off the front.
  Block split(std::size_t bytes) {
    Block front{data};
    while (bytes > 0) {
      const std::size_t part = std::min(bytes, mappings.front());
      front.mappings.push_back(part);
      drop_front(part);
      bytes -= part;
    }
    return front;
  }
};

void unmap(std::byte* data, std::size_t size) {
  if (size > 0) ::munmap(data, size);
}

/// Returns a block of `size` from the system, of which `bytes` are wanted now; without data where
/// memory is short. The C library would keep it when it is freed.
Block map(std::size_t size, std::size_t bytes) {
  const std::size_t reserved = size + kLargePage - 1;
  void* begin = detail::system_calls().map(nullptr, reserved, /*flags=*/0);
  if (begin == MAP_FAILED) return {};
  auto* const first = static_cast<std::byte*>(begin);
  const std::size_t before = rounded(reinterpret_cast<std::uintptr_t>(first), kLargePage) -
                             reinterpret_cast<std::uintptr_t>(first);
  std::byte* const data = first + before;
  unmap(first, before);
  unmap(data + size, reserved - before - size);
  // Advice: where it is not taken the pages are small. The rest of a large page would be memory
  // that nobody asked for.
  std::size_t advised = 0;
#ifdef MADV_HUGEPAGE
  advised = std::min(bytes, size) / kLargePage * kLargePage;
  if (advised > 0) ::madvise(data, advised, MADV_HUGEPAGE);
#endif
  Block block{data};
  for (const std::size_t part : {advised, size - advised}) {
    if (part > 0) block.mappings.push_back(part);
  }
  return block;
}

/// Puts pages in place of others. Returns false, with memory in the old place and in the new one,
/// where the system does not. Throws std::bad_alloc where nothing is left in the new one.
bool move_pages(std::byte* from, std::size_t size, std::byte* to) {
  const detail::SystemCalls& calls = detail::system_calls();
  if (calls.move(from, size, to) != MAP_FAILED) return true;
  // Linux before 6.17 may have taken away what was there.
  if (calls.map(to, size, MAP_FIXED) == MAP_FAILED) throw std::bad_alloc();
  return false;
}

class Pool {
 public:
  void* take(std::int64_t bytes) {
    const auto wanted = static_cast<std::size_t>(bytes);
    if (wanted < kLeastPooled) return allocate_small(wanted);
    const std::size_t size = rounded(wanted, kLargePage);
    const std::lock_guard lock(mutex_);
    // Room for all blocks, so that giving one back cannot fail.
    free_.reserve(taken_.size() + free_.size() + 1);
    Block block = take_free(size);
    if (block.data == nullptr) block = gather(size, wanted);
    void* const data = block.data;
    try {
      taken_.emplace(data, std::move(block));
    } catch (...) {
      unmap(static_cast<std::byte*>(data), size);
      throw;
    }
    return data;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    const auto found = taken_.find(data);
    if (found == taken_.end()) return std::free(data);
    free_.push_back(std::move(found->second));
    taken_.erase(found);
  }

  void release_all() {
    const std::lock_guard lock(mutex_);
    release(std::numeric_limits<std::size_t>::max());
  }

  std::int64_t bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const Block& block : free_) sum += block.size();
    return static_cast<std::int64_t>(sum);
  }

 private:
  /// Returns a block, or a part of the smallest that is larger; without data where all are smaller.
  Block take_free(std::size_t size) {
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      if (block->size() >= size && (best == free_.end() || block->size() <= best->size())) {
        best = block;
      }
    }
    return best == free_.end() ? Block{} : take_front(best, size);
  }

  /// Returns fresh memory to whose front pages of the blocks that wait are moved, the oldest first:
  /// they are not cleared again, and no memory waits while more is asked for.
  Block gather(std::size_t size, std::size_t bytes) {
    Block fresh = map(size, bytes);
    if (fresh.data == nullptr) {
      release(size);
      fresh = map(size, bytes);
      if (fresh.data == nullptr) throw std::bad_alloc();
    }
    Block block{fresh.data};
    try {
      std::size_t unmoved = 0;
      while (!free_.empty() && fresh.size() > 0 && unmoved == 0) {
        Block& oldest = free_.front();
        const std::size_t part = std::min(oldest.mappings.front(), fresh.mappings.front());
        block.mappings.reserve(block.mappings.size() + fresh.mappings.size() + 1);
        std::byte* const place = fresh.data;
        fresh.drop_front(part);  // where moving throws, it may be another thread's by now
        const bool is_moved = move_pages(oldest.data, part, place);
        block.mappings.push_back(part);
        if (!is_moved) {
          unmoved = part;
          continue;
        }
        oldest.drop_front(part);
        if (oldest.mappings.empty()) free_.erase(free_.begin());
      }
      release(fresh.size() + unmoved);
      block.mappings.insert(block.mappings.end(), fresh.mappings.begin(), fresh.mappings.end());
      return block;
    } catch (...) {
      unmap(fresh.data, fresh.size());
      // The gathered pages wait again: take() made room for one block more.
      if (!block.mappings.empty()) free_.push_back(std::move(block));
      throw;
    }
  }

  Block take_front(std::vector<Block>::iterator block, std::size_t bytes) {
    Block front = block->split(bytes);
    if (block->mappings.empty()) free_.erase(block);
    return front;
  }

  void release(std::size_t bytes) {
    while (bytes > 0 && !free_.empty()) {
      const Block block = take_front(free_.begin(), std::min(bytes, free_.front().size()));
      unmap(block.data, block.size());
      bytes -= block.size();
    }
  }

  mutable std::mutex mutex_;
  std::vector<Block> free_;
  std::unordered_map<void*, Block> taken_;
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
