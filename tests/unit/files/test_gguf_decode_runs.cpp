// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "files/gguf_blocks.h"
#include "support/catch.h"
#include "support/simd.h"

namespace prefopt::detail::test_gguf_decode_runs {
namespace {

using prefopt::testing_support::simd_name;
using prefopt::testing_support::simd_targets;
using prefopt::testing_support::SimdTarget;

struct Decoders {
  std::string name;
  std::size_t values, bytes;
  void (*one)(const std::uint8_t* block, float* values);
  void (*run)(const std::uint8_t* blocks, std::int64_t count, float* values);
};

const std::vector<Decoders>& decoders() {
#define PREFOPT_DECODERS(name, values, bytes) \
  {#name, values, bytes, decode_##name, decode_run_##name},
  static const std::vector<Decoders> all{PREFOPT_FAST_ENCODINGS(PREFOPT_DECODERS)};
#undef PREFOPT_DECODERS
  return all;
}

bool are_same(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool both_nan = std::isnan(a[i]) && std::isnan(b[i]);
    if (!both_nan && std::memcmp(&a[i], &b[i], sizeof a[i]) != 0) return false;
  }
  return a.size() == b.size();
}

}  // namespace

// Any bytes are a block, those of scales without a number, too.
TEST_CASE("gguf: runs of blocks decode to the bits of single ones", "[files]") {
  for (const std::int64_t target : simd_targets()) {
    const SimdTarget simd(target);
    for (const Decoders& of : decoders()) {
      INFO(simd_name(target) << " " << of.name);
      std::mt19937 draw(5);
      for (const std::size_t count : {0U, 1U, 2U, 500U}) {
        std::vector<std::uint8_t> blocks(count * of.bytes);
        for (std::uint8_t& byte : blocks) byte = static_cast<std::uint8_t>(draw());
        std::vector<float> single(count * of.values), run(count * of.values + 1, 7.0F);
        for (std::size_t i = 0; i < count; ++i) {
          of.one(blocks.data() + i * of.bytes, single.data() + i * of.values);
        }
        of.run(blocks.data(), static_cast<std::int64_t>(count), run.data());
        CHECK(run.back() == 7);
        run.pop_back();
        CHECK(are_same(run, single));
      }
    }
  }
}

}  // namespace prefopt::detail::test_gguf_decode_runs
