// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>

namespace prefopt::fuzz {

/// Changes inputs at random, the same on every platform.
class Mutation {
 public:
  explicit Mutation(std::uint64_t seed) : rng_(seed) {}

  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : rng_() % bound; }

  /// `input` after one to four changes, some of which come from `other`.
  std::string operator()(std::string input, std::string_view other) {
    for (std::size_t changes = 1 + below(4); changes > 0; --changes) change(input, other);
    return input;
  }

 private:
  void change(std::string& input, std::string_view other) {
    const std::size_t at = below(input.size() + 1);
    const std::size_t length = below(std::min<std::size_t>(input.size() - at, kLongest) + 1);
    switch (below(8)) {
      case 0:
        input.erase(at, length);
        break;
      case 1:
        input.insert(at, input.substr(at, length));
        break;
      case 2:
        input.insert(at, other.substr(below(other.size() + 1), 1 + below(kLongest)));
        break;
      case 3:
        input.insert(at, 1, static_cast<char>(rng_()));
        break;
      case 4:
        input.insert(at, kTokens[below(kTokens.size())]);
        break;
      case 5:
        put_number(input, at);
        break;
      default:
        if (at < input.size()) input[at] ^= static_cast<char>(1U << below(8));
    }
  }

  // Over what is there: counts, sizes and offsets are where readers go wrong.
  void put_number(std::string& input, std::size_t at) {
    const std::uint64_t number = kNumbers[below(kNumbers.size())];
    const std::size_t width = std::size_t{1} << below(4);
    if (input.size() - at >= width) std::memcpy(input.data() + at, &number, width);
  }

  static constexpr std::size_t kLongest = 32;
  static constexpr auto kNumbers = std::to_array<std::uint64_t>(
      {0, 1, 7, 13, 255, 256, 65535, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, std::uint64_t{1} << 60,
       std::numeric_limits<std::int64_t>::max(), std::uint64_t{1} << 63,
       std::numeric_limits<std::uint64_t>::max()});
  static constexpr auto kTokens = std::to_array<std::string_view>(
      {"{", "}", "[", "]", "\"", ":", ",", "null", "true", "-1", "1e309", "18446744073709551615",
       "\\ud800", "\n", "\xFF", "\xC3"});

  std::mt19937_64 rng_;
};

}  // namespace prefopt::fuzz
