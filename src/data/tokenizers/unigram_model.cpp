// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/unigram_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "core/utf8.h"
#include "prefopt/error.h"

namespace prefopt::detail {

TokenTrie::TokenTrie(const std::vector<std::string>& tokens) : ids_(1, -1) {
  std::size_t bytes = 1;
  for (const std::string& token : tokens) bytes += token.size();
  edges_.resize(std::bit_ceil(2 * bytes));
  shift_ = 64 - std::countr_zero(edges_.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    std::uint32_t node = 0;
    for (char c : tokens[id]) {
      const std::uint64_t key = key_of(node, static_cast<unsigned char>(c));
      Edge& edge = edges_[slot_of(key)];
      if (edge.key != key) {
        edge = {.key = key, .child = static_cast<std::uint32_t>(ids_.size())};
        ids_.push_back(-1);
      }
      node = edge.child;
    }
    if (node != 0) ids_[node] = static_cast<Id>(id);
  }
}

// Returns where `key` is or would be: at most half of the slots are taken.
std::size_t TokenTrie::slot_of(std::uint64_t key) const {
  // Fibonacci hashing: the upper bits of a product by 2^64 over the golden ratio.
  std::size_t at = (key * 0x9E3779B97F4A7C15ULL) >> shift_;
  while (edges_[at].key != key && edges_[at].child != 0) at = (at + 1) & (edges_.size() - 1);
  return at;
}

TokenTrie::Id TokenTrie::find(std::string_view text) const {
  Id id = -1;
  prefixes(text, [&](std::size_t size, Id token) {
    if (size == text.size()) id = token;
  });
  return id;
}

UnigramModel::UnigramModel(const std::vector<std::string>& tokens, const UnigramSpec& spec,
                           std::int64_t unknown_id, std::string_view name)
    : trie_(tokens),
      scores_(spec.scores),
      bytes_(spec.byte_fallback ? byte_tokens(TokenIndex(tokens)) : std::vector<Id>(256, -1)),
      unknown_id_(static_cast<Id>(unknown_id)) {
  if (unknown_id < 0) {
    throw CheckpointError(fmt::format("{}: expected an unknown token, got none", name));
  }
  constexpr double kPenalty = 10;
  unknown_score_ = *std::min_element(scores_.begin(), scores_.end()) - kPenalty;
}

void UnigramModel::find_path(std::string_view word, std::vector<PathNode>& path) const {
  path.assign(word.size() + 1, {});
  for (std::size_t begin = 0; begin < word.size();) {
    const double score = path[begin].score;
    const auto offer = [&](std::size_t end, double better, Id id) {
      PathNode& node = path[end];
      if (node.begin >= 0 && better <= node.score) return;
      node = {.score = better, .begin = static_cast<std::int32_t>(begin), .id = id};
    };
    const std::size_t length = utf8_character(word, begin).length;
    bool has_character = false;
    trie_.prefixes(word.substr(begin), [&](std::size_t size, Id id) {
      offer(begin + size, score + scores_[static_cast<std::size_t>(id)], id);
      has_character |= size == length;
    });
    if (!has_character) offer(begin + length, score + unknown_score_, unknown_id_);
    begin += length;
  }
}

void UnigramModel::append_unknown(std::string_view text, std::vector<Id>& ids) const {
  // Unknown characters together may be a token that is written the same.
  if (const Id id = trie_.find(text); id >= 0) {
    ids.push_back(id);
  } else if (!append_bytes(text, bytes_, ids)) {
    ids.push_back(unknown_id_);
  }
}

void UnigramModel::encode(std::string_view word, Scratch& scratch, std::vector<Id>& ids) const {
  const std::vector<PathNode>& path = scratch.path;
  find_path(word, scratch.path);
  std::vector<std::int32_t>& ends = scratch.ends;  // of the tokens, from the last one
  ends.clear();
  for (auto at = static_cast<std::int32_t>(word.size()); at > 0; at = path[at].begin) {
    ends.push_back(at);
  }
  for (std::size_t i = ends.size(); i > 0;) {
    std::int32_t end = ends[--i];
    const PathNode& node = path[end];
    if (node.id != unknown_id_) {
      ids.push_back(node.id);
      continue;
    }
    while (i > 0 && path[ends[i - 1]].id == unknown_id_) end = ends[--i];
    append_unknown(word.substr(node.begin, end - node.begin), ids);
  }
}

}  // namespace prefopt::detail
