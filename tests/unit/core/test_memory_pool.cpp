// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "core/memory_pool.h"
#include "prefopt/memory.h"
#include "support/catch.h"
#include "support/injected_calls.h"

namespace prefopt {
namespace {

constexpr std::int64_t kMib = std::int64_t{1} << 20;

}  // namespace

TEST_CASE("memory pool: a block of about the same size is used again", "[core]") {
  release_pooled_memory();
  CHECK(pooled_bytes() == 0);
  const void* first = nullptr;
  {
    const at::Tensor tensor = empty_from_pool({1000, 1000}, at::kFloat);
    first = tensor.const_data_ptr();
    CHECK(reinterpret_cast<std::uintptr_t>(first) % 64 == 0);
    CHECK(pooled_bytes() == 0);
  }
  CHECK(pooled_bytes() >= 4'000'000);
  {
    const at::Tensor smaller = empty_from_pool({950, 1000}, at::kFloat);
    CHECK(smaller.const_data_ptr() == first);
    const auto other = take_from_pool(4'000'000);
    CHECK(other.get() != first);
  }
  release_pooled_memory();
  CHECK(pooled_bytes() == 0);
}

TEST_CASE("memory pool: a request takes a part of a block that is larger", "[core]") {
  release_pooled_memory();
  { const auto large = take_from_pool(64 * kMib); }
  const auto part = take_from_pool(20 * kMib);
  CHECK(pooled_bytes() == 44 * kMib);
  const auto other = take_from_pool(44 * kMib);
  CHECK(pooled_bytes() == 0);
}

#ifdef __linux__
TEST_CASE("memory pool: a request that fits no block gets the pages of several", "[core]") {
  release_pooled_memory();
  {
    const auto small = take_from_pool(2 * kMib), first = take_from_pool(5 * kMib),
               second = take_from_pool(6 * kMib);
    std::memset(first.get(), 7, static_cast<std::size_t>(6 * kMib));
    std::memset(second.get(), 7, static_cast<std::size_t>(6 * kMib));
  }
  CHECK(pooled_bytes() == 14 * kMib);
  const auto gathered = take_from_pool(13 * kMib);
  CHECK(pooled_bytes() == 0);
  const auto* bytes = static_cast<const std::uint8_t*>(gathered.get());
  CHECK(reinterpret_cast<std::uintptr_t>(bytes) % (2 * kMib) == 0);
  // Memory from the system would be zero.
  CHECK(std::count(bytes, bytes + 14 * kMib, 7) == 12 * kMib);

  // A block longer than all that waits has new pages at its end.
  release_pooled_memory();
  {
    const auto first = take_from_pool(4 * kMib);
    std::memset(first.get(), 7, static_cast<std::size_t>(4 * kMib));
  }
  const auto longer = take_from_pool(8 * kMib);
  bytes = static_cast<const std::uint8_t*>(longer.get());
  CHECK(std::count(bytes, bytes + 4 * kMib, 7) == 4 * kMib);
  CHECK(std::count(bytes + 4 * kMib, bytes + 8 * kMib, 0) == 4 * kMib);
}

/// Fails to move pages from the second time on, and to get others for them.
struct FewMappings {
  explicit FewMappings(bool gets_others) {
    left = 1;
    others = gets_others;
    calls->move = [](void* from, std::size_t bytes, void* to) {
      return left-- > 0 ? ::mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to)
                        : MAP_FAILED;
    };
    calls->map = [](void* place, std::size_t bytes, int flags) {
      if (flags == MAP_FIXED && !others) return MAP_FAILED;
      return ::mmap(place, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1,
                    0);
    };
  }
  testing_support::InjectedCalls calls;
  static int left;
  static bool others;
};
int FewMappings::left = 0;
bool FewMappings::others = false;

TEST_CASE("memory pool: pages that cannot be moved", "[core]") {
  release_pooled_memory();
  const auto put_three = [] {
    const auto first = take_from_pool(2 * kMib), second = take_from_pool(2 * kMib),
               third = take_from_pool(2 * kMib);
    for (const auto* block : {&first, &second, &third}) {
      std::memset(block->get(), 7, static_cast<std::size_t>(2 * kMib));
    }
  };
  put_three();
  {
    const FewMappings system(/*gets_others=*/false);
    CHECK_THROWS_AS(take_from_pool(6 * kMib), std::bad_alloc);
  }
  // The gathered pages wait with the rest.
  CHECK(pooled_bytes() == 6 * kMib);
  const auto gathered = take_from_pool(6 * kMib);
  const auto* bytes = static_cast<const std::uint8_t*>(gathered.get());
  CHECK(std::count(bytes, bytes + 6 * kMib, 7) == 6 * kMib);
  CHECK(pooled_bytes() == 0);

  put_three();
  const FewMappings system(/*gets_others=*/true);
  const auto partly = take_from_pool(6 * kMib);
  bytes = static_cast<const std::uint8_t*>(partly.get());
  CHECK(std::count(bytes, bytes + 2 * kMib, 7) == 2 * kMib);
  CHECK(std::count(bytes + 2 * kMib, bytes + 6 * kMib, 0) == 4 * kMib);
  CHECK(pooled_bytes() == 0);
}

TEST_CASE("memory pool: blocks of all sizes keep their numbers", "[core]") {
  release_pooled_memory();
  struct Held {
    std::unique_ptr<void, PoolDeleter> data;
    std::size_t size;
    std::uint8_t mark;
  };
  std::vector<Held> held;
  std::mt19937 draw(1);
  std::int64_t most = 0, now = 0;
  for (int i = 0; i < 400; ++i) {
    if (held.size() > 12) {
      const std::size_t at = draw() % held.size();
      const auto* bytes = static_cast<const std::uint8_t*>(held[at].data.get());
      REQUIRE(bytes[0] == held[at].mark);
      REQUIRE(std::equal(bytes + 1, bytes + held[at].size, bytes));
      now -= static_cast<std::int64_t>((held[at].size + 2 * kMib - 1) / (2 * kMib)) * 2 * kMib;
      std::swap(held[at], held.back());
      held.pop_back();
    }
    const std::size_t size = kMib + draw() % (4 * kMib);
    const auto mark = static_cast<std::uint8_t>(1 + draw() % 255);
    held.push_back({take_from_pool(static_cast<std::int64_t>(size)), size, mark});
    std::memset(held.back().data.get(), mark, size);
    now += static_cast<std::int64_t>((size + 2 * kMib - 1) / (2 * kMib)) * 2 * kMib;
    most = std::max(most, now);
    // No more than what was once wanted at a time is ever held.
    REQUIRE(now + pooled_bytes() <= most);
  }
  held.clear();
  release_pooled_memory();
  CHECK(pooled_bytes() == 0);
}
#endif

TEST_CASE("memory pool: small blocks do not wait in it", "[core]") {
  release_pooled_memory();
  { const auto small = take_from_pool(1000); }
  CHECK(pooled_bytes() == 0);
}

TEST_CASE("memory pool: nothing is a size too", "[core]") {
  const at::Tensor none = empty_from_pool({0, 5}, at::kDouble);
  CHECK(none.numel() == 0);
  CHECK(none.sizes() == at::IntArrayRef({0, 5}));
}

}  // namespace prefopt
