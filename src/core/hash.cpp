// SPDX-License-Identifier: Apache-2.0
#include "core/hash.h"

#include <c10/util/hash.h>
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>

namespace prefopt::detail {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;

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

std::string crc32_of(std::string_view bytes) {
  const auto* data = reinterpret_cast<const Bytef*>(bytes.data());
  return fmt::format("{:08x}", ::crc32_z(::crc32_z(0, nullptr, 0), data, bytes.size()));
}

}  // namespace prefopt::detail
