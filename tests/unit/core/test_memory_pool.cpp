// SPDX-License-Identifier: Apache-2.0
#include "core/memory_pool.h"
#include "prefopt/memory.h"
#include "support/catch.h"

namespace prefopt {

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

TEST_CASE("memory pool: a request that nothing fits pushes out as much of what waits", "[core]") {
  release_pooled_memory();
  {
    const auto oldest = take_from_pool(2 << 20);
    const auto large = take_from_pool(64 << 20);
  }
  const std::int64_t both = pooled_bytes();
  CHECK(both >= 66 << 20);
  // Far too large a block is not taken for it.
  const auto middle = take_from_pool(20 << 20);
  CHECK(pooled_bytes() < both);
  release_pooled_memory();
}

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
