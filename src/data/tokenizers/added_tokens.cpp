// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/added_tokens.h"

#include <algorithm>

#include "core/utf8.h"
#include "data/tokenizers/unicode.h"

namespace prefopt::detail {
namespace {

/// Returns whether [begin, end) shares a byte with one of `ranges`, which are in order.
bool overlaps(std::span<const TextRange> ranges, std::size_t begin, std::size_t end) {
  const auto at = std::partition_point(ranges.begin(), ranges.end(),
                                       [&](const TextRange& range) { return range.end <= begin; });
  return at != ranges.end() && at->begin < end;
}

}  // namespace

bool is_control(const AddedToken& token) {
  return token.special || (token.content.starts_with("<|") && token.content.ends_with("|>"));
}

bool is_single_word(std::string_view text, std::size_t begin, std::size_t end) {
  const auto is_word = [&](std::size_t at) {
    return is_word_character(utf8_character(text, at).code);
  };
  const bool touches_left = begin > 0 && is_word(character_before(text, begin));
  const bool touches_right = end < text.size() && is_word(end);
  return !touches_left && !touches_right;
}

std::size_t left_end(std::string_view text, const AddedTokens::Match& match, std::size_t limit) {
  if (!match.token->strip_left) return match.begin;
  return std::max(limit, white_space_begin(text, match.begin, 0));
}

std::size_t right_end(std::string_view text, const AddedTokens::Match& match) {
  return match.token->strip_right ? white_space_end(text, match.end) : match.end;
}

void AddedTokens::set(std::vector<std::pair<std::string, const AddedToken*>> tokens) {
  tokens_ = std::move(tokens);
  std::sort(tokens_.begin(), tokens_.end());
  for (const auto& [content, token] : tokens_) {
    begins_[static_cast<unsigned char>(content.front())] = true;
    longest_ = std::max(longest_, content.size());
  }
}

AddedTokens::Match AddedTokens::find(std::string_view text, std::size_t from,
                                     std::span<const TextRange> plain) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    if (!begins_[static_cast<unsigned char>(text[at])]) continue;
    const auto is_allowed = [&](const Entry& entry) {
      return plain.empty() || !is_control(*entry.second) ||
             !overlaps(plain, at, at + entry.first.size());
    };
    if (const auto* found = longest_at(text.substr(at), is_allowed)) {
      return {.begin = at, .end = at + found->first.size(), .token = found->second};
    }
  }
  return {.begin = text.size(), .end = text.size(), .token = nullptr};
}

std::size_t AddedTokens::free_place(std::string_view text, std::size_t limit) const {
  while (limit > 0 && !is_free(text, limit)) --limit;
  return limit;
}

// Between two letters that no token spans or begins at. Bytes of ASCII are characters in any text,
// valid or not.
bool AddedTokens::is_free(std::string_view text, std::size_t place) const {
  const auto is_plain = [&](std::size_t at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    return byte > ' ' && byte < 0x7f;
  };
  if (!is_plain(place - 1) || !is_plain(place)) return false;
  const std::size_t first = place - std::min(place, longest_);
  for (std::size_t at = first; at <= place; ++at) {
    if (!begins_[static_cast<unsigned char>(text[at])]) continue;
    const Entry* found = longest_at(text.substr(at), [](const Entry&) { return true; });
    if (found != nullptr && (at == place || at + found->first.size() > place)) return false;
  }
  return true;
}

// Narrows the sorted tokens to those that share one more byte with `text`.
template <class Allowed>
const AddedTokens::Entry* AddedTokens::longest_at(std::string_view text,
                                                  const Allowed& is_allowed) const {
  const Entry* longest = nullptr;
  auto first = tokens_.begin();
  auto last = tokens_.end();
  for (std::size_t i = 0; first != last; ++i) {
    if (first->first.size() == i && ++first == last) return longest;
    if (i == text.size()) return longest;
    const auto byte = [i](const Entry& entry) {
      return static_cast<unsigned char>(entry.first[i]);
    };
    const auto wanted = static_cast<unsigned char>(text[i]);
    first = std::partition_point(first, last, [&](auto& entry) { return byte(entry) < wanted; });
    last = std::partition_point(first, last, [&](auto& entry) { return byte(entry) == wanted; });
    if (first != last && first->first.size() == i + 1 && is_allowed(*first)) longest = &*first;
  }
  return longest;
}

}  // namespace prefopt::detail
