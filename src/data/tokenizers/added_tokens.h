// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// Returns whether text that merely spells the token does harm.
bool is_control(const AddedToken& token);

/// Finds the longest added token at the leftmost place.
class AddedTokens {
 public:
  /// `tokens`, each with the text that is searched for, outlive this.
  void set(std::vector<std::pair<std::string, const AddedToken*>> tokens);

  bool empty() const { return tokens_.empty(); }

  struct Match {
    std::size_t begin, end;
    const AddedToken* token;
  };
  /// `token` is null where there is no more. Control tokens are not looked for in `plain`, ranges
  /// in order.
  Match find(std::string_view text, std::size_t from, std::span<const TextRange> plain = {}) const;

  /// Returns the last place up to `limit`, a place in `text`, that a search from the beginning
  /// passes between tokens and off white space, with no token before which it lies: what follows
  /// has the same tokens by itself. 0 where there is no other.
  std::size_t free_place(std::string_view text, std::size_t limit) const;

  /// Calls `token` with each added token of `text` and `rest` with what lies between them, by its
  /// begin and end. White space that a token takes along is in neither. Returns where the last
  /// token ended, with such white space; 0 without one.
  template <class Token, class Rest>
  std::size_t split(std::string_view text, std::span<const TextRange> plain, const Token& token,
                    const Rest& rest) const;

 private:
  using Entry = std::pair<std::string, const AddedToken*>;

  template <class Allowed>
  const Entry* longest_at(std::string_view text, const Allowed& is_allowed) const;

  bool is_free(std::string_view text, std::size_t place) const;

  std::vector<Entry> tokens_;
  std::size_t longest_ = 0;  ///< bytes of a token
  std::array<bool, 256> begins_{};
};

/// Returns whether no word character touches [begin, end).
bool is_single_word(std::string_view text, std::size_t begin, std::size_t end);

/// White space around a token, up to `limit` on its left.
std::size_t left_end(std::string_view text, const AddedTokens::Match& match, std::size_t limit);
std::size_t right_end(std::string_view text, const AddedTokens::Match& match);

template <class Token, class Rest>
std::size_t AddedTokens::split(std::string_view text, std::span<const TextRange> plain,
                               const Token& token, const Rest& rest) const {
  std::size_t done = 0;
  std::size_t from = 0;
  while (!tokens_.empty() && from < text.size()) {
    const Match match = find(text, from, plain);
    if (match.token == nullptr) break;
    from = match.end;
    if (match.token->single_word && !is_single_word(text, match.begin, match.end)) continue;
    const std::size_t left = left_end(text, match, done);
    if (left > done) rest(done, left);
    token(*match.token);
    done = right_end(text, match);
  }
  if (done < text.size()) rest(done, text.size());
  return done;
}

}  // namespace prefopt::detail
