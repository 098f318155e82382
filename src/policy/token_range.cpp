// SPDX-License-Identifier: Apache-2.0
#include "policy/token_range.h"

#include <fmt/format.h>

#include <algorithm>

#include "prefopt/error.h"

namespace prefopt::detail {

void check_token_range(const std::vector<TokenRow>& pairs, std::int64_t vocab_size,
                       std::string_view where) {
  const auto check = [&](const std::vector<std::int64_t>& ids, std::string_view part,
                         std::size_t pair) {
    for (const auto id : ids) {
      if (id >= 0 && id < vocab_size) continue;
      throw DataError(fmt::format(
          "{}: expected token ids from 0 to {}, got {} in the {} of pair {}; were the ids made for "
          "another model?",
          where, vocab_size - 1, id, part, pair));
    }
  };
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    check(pairs[i].prompt, "prompt", i);
    check(pairs[i].chosen, "chosen completion", i);
    check(pairs[i].rejected, "rejected completion", i);
    check(pairs[i].gold, "gold completion", i);
  }
}

void check_row_lengths(const std::vector<TokenRow>& pairs, const Policy& policy,
                       std::string_view where) {
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto longest = std::max(
        {std::ssize(pairs[i].chosen), std::ssize(pairs[i].rejected), std::ssize(pairs[i].gold)});
    policy.check_length(std::ssize(pairs[i].prompt) + longest,
                        fmt::format("{}: pair {}", where, i));
  }
}

std::int64_t tokens_of(const TokenRow& pair) {
  return std::ssize(pair.prompt) + std::ssize(pair.chosen) + std::ssize(pair.rejected) +
         std::ssize(pair.gold);
}

}  // namespace prefopt::detail
