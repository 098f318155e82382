// SPDX-License-Identifier: Apache-2.0
#include "core/hash.h"

#include <c10/util/hash.h>
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/parallel.h"

namespace prefopt::detail {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
constexpr std::size_t kCrcBlock = std::size_t{4} << 20;

}  // namespace

void ContentHash::update(std::string_view bytes) {
  while (!bytes.empty()) {
    const std::size_t taken = std::min(kBlock - block_.size(), bytes.size());
    block_.append(bytes.substr(0, taken));
    bytes.remove_prefix(taken);
    if (block_.size() == kBlock) {
      digest_ = c10::sha1(digest_ + block_).str();
      block_.clear();
    }
  }
}

std::string ContentHash::hex() const { return c10::sha1(digest_ + block_).str(); }

void Crc32::update(std::string_view bytes) {
  const std::size_t parts = (bytes.size() + kCrcBlock - 1) / kCrcBlock;
  std::vector<uLong> sums(parts);
  const auto part = [&](std::size_t i) { return bytes.substr(i * kCrcBlock, kCrcBlock); };
  parallel_for(0, static_cast<std::int64_t>(parts), 1, [&](std::int64_t first, std::int64_t last) {
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      const auto* data = reinterpret_cast<const Bytef*>(part(i).data());
      sums[i] = ::crc32_z(::crc32_z(0, nullptr, 0), data, part(i).size());
    }
  });
  for (std::size_t i = 0; i < parts; ++i) {
    value_ = ::crc32_combine(value_, sums[i], static_cast<z_off_t>(part(i).size()));
  }
}

std::string Crc32::hex() const { return fmt::format("{:08x}", value_); }

std::string crc32_of(std::string_view bytes) {
  Crc32 sum;
  sum.update(bytes);
  return sum.hex();
}

}  // namespace prefopt::detail
