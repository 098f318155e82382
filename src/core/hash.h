// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// Hash of everything fed in, however it was cut: a key for equal content, not a seal against
/// forgery. SHA-1 over blocks of 1 MiB, each chained to the digest of those before it (LibTorch's
/// SHA-1 takes whole strings only).
class ContentHash {
 public:
  void update(std::string_view bytes);
  void update(const void* data, std::size_t bytes) {
    update(std::string_view(static_cast<const char*>(data), bytes));
  }
  /// Forty hexadecimal digits.
  std::string hex() const;

 private:
  std::string digest_;
  std::string block_;
};

/// CRC-32 (ISO 3309) of everything fed in: against damage, at many times the speed of a
/// ContentHash, and on all of LibTorch's threads.
class Crc32 {
 public:
  void update(std::string_view bytes);
  /// Eight hexadecimal digits.
  std::string hex() const;

 private:
  unsigned long value_ = 0;
};

std::string crc32_of(std::string_view bytes);

}  // namespace prefopt::detail
