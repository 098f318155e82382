// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/hash.h"
#include "core/utf8.h"
#include "data/bpe_merges.h"
#include "data/split_pattern.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using Id = detail::BpeMerges::Id;
using Ids = std::vector<std::int64_t>;

constexpr std::size_t kMaxTokens = std::size_t{1} << 24;
// Ids that are no token: room for them is made, so a vocabulary must not ask for much of it.
constexpr std::size_t kMaxGaps = std::size_t{1} << 16;
constexpr std::size_t kMaxText = std::size_t{1} << 29;  // of a text; NFC makes it 3 times as long

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDigitPattern = R"(\p{N})";

/// GPT-2's alphabet: a byte that Latin-1 prints is that character, and the others follow from
/// U+0100 on (https://github.com/openai/gpt-2, encoder.py).
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t code = printable ? byte : next++;
      byte_of_[code] = static_cast<int>(byte);
    }
  }

  /// Sets the bytes that `token` spells; returns false if a character of it is no byte.
  bool bytes_of(std::string_view token, std::string& bytes) const {
    bytes.clear();
    for (std::size_t at = 0; at < token.size();) {
      const detail::Utf8Character character = detail::utf8_character(token, at);
      const int byte = character.code < byte_of_.size() ? byte_of_[character.code] : -1;
      if (byte < 0 || !character.valid) return false;
      bytes += static_cast<char>(byte);
      at += character.length;
    }
    return true;
  }

 private:
  std::array<int, 0x100 + 68> byte_of_;
};

/// Returns whether text that merely spells the token does harm.
bool is_control(const AddedToken& token) {
  return token.special || (token.content.starts_with("<|") && token.content.ends_with("|>"));
}

/// Returns whether [begin, end) shares a byte with one of `ranges`, which are in order.
bool overlaps(std::span<const TextRange> ranges, std::size_t begin, std::size_t end) {
  const auto at = std::partition_point(ranges.begin(), ranges.end(),
                                       [&](const TextRange& range) { return range.end <= begin; });
  return at != ranges.end() && at->begin < end;
}

/// Returns the same ranges of `map(text)`; a beginning of `text` becomes one of the result.
template <class Map>
std::vector<TextRange> mapped(std::span<const TextRange> ranges, std::string_view text,
                              const Map& map) {
  std::vector<TextRange> result;
  for (const TextRange& range : ranges) {
    result.push_back(
        {map(text.substr(0, range.begin)).size(), map(text.substr(0, range.end)).size()});
  }
  return result;
}

/// Returns the parts of `ranges` that lie in [begin, end), counted from `begin`.
std::vector<TextRange> within(std::span<const TextRange> ranges, std::size_t begin,
                              std::size_t end) {
  std::vector<TextRange> result;
  for (const TextRange& range : ranges) {
    const TextRange part{std::max(range.begin, begin), std::min(range.end, end)};
    if (part.begin < part.end) result.push_back({part.begin - begin, part.end - begin});
  }
  return result;
}

/// Finds the longest added token at the leftmost place.
class AddedTokens {
 public:
  /// `tokens` outlive this.
  void set(std::vector<std::pair<std::string, const AddedToken*>> tokens) {
    tokens_ = std::move(tokens);
    std::sort(tokens_.begin(), tokens_.end());
    for (const auto& [content, token] : tokens_) {
      begins_[static_cast<unsigned char>(content.front())] = true;
    }
  }

  bool empty() const { return tokens_.empty(); }

  struct Match {
    std::size_t begin, end;
    const AddedToken* token;
  };
  /// `token` is null where there is no more. Control tokens are not looked for in `plain`.
  Match find(std::string_view text, std::size_t from, std::span<const TextRange> plain = {}) const {
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

 private:
  using Entry = std::pair<std::string, const AddedToken*>;

  // Narrows the sorted tokens to those that share one more byte with `text`.
  template <class Allowed>
  const Entry* longest_at(std::string_view text, const Allowed& is_allowed) const {
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

  std::vector<Entry> tokens_;
  std::array<bool, 256> begins_{};
};

/// Tokens of words that were met before; a newer word takes the place of an older one. An entry is
/// a cache line, so a hit costs one access to memory.
class WordCache {
 public:
  WordCache() : entries_(kEntries) {}

  static bool fits(std::string_view word) { return word.size() <= kMaxBytes; }

  /// Appends the tokens of `word`, which fits, if they are known.
  bool append(std::string_view word, std::size_t hash, Ids& ids) const {
    const Entry& entry = entries_[hash % kEntries];
    if (entry.bytes != word.size() || std::memcmp(entry.text, word.data(), word.size()) != 0) {
      return false;
    }
    ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
    return true;
  }

  void put(std::string_view word, std::size_t hash, const std::vector<Id>& ids) {
    if (ids.size() > kMaxIds) return;
    Entry& entry = entries_[hash % kEntries];
    entry.bytes = static_cast<std::uint8_t>(word.size());
    entry.count = static_cast<std::uint8_t>(ids.size());
    std::memcpy(entry.text, word.data(), word.size());
    std::copy(ids.begin(), ids.end(), entry.ids);
  }

 private:
  static constexpr std::size_t kEntries = std::size_t{1} << 14;
  static constexpr std::size_t kMaxBytes = 30;
  static constexpr std::size_t kMaxIds = 8;

  struct alignas(64) Entry {
    std::uint8_t bytes = 0;  ///< 0: nothing here; no word is empty
    std::uint8_t count = 0;
    char text[kMaxBytes];
    Id ids[kMaxIds];
  };
  static_assert(sizeof(Entry) == 64);

  std::vector<Entry> entries_;
};

/// The buffers and caches that one thread needs to encode.
struct Workspace {
  WordCache cache;
  detail::SplitPattern::Scratch match;
  detail::BpeMerges::Scratch merge;
  std::vector<Id> word;
};

/// Workspaces that wait for the next call, so that a cache outlives it.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        auto workspace = std::move(free_.back());
        free_.pop_back();
        return workspace;
      }
    }
    return std::make_unique<Workspace>();
  }
  void give(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

// Below U+0300, whose UTF-8 begins with 0xCC, no character combines with another.
bool is_plainly_nfc(std::string_view text) {
  return std::none_of(text.begin(), text.end(),
                      [](char c) { return static_cast<unsigned char>(c) >= 0xCC; });
}

std::string to_nfc(std::string_view text) {
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t bytes =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  // The text is UTF-8, so memory is all that can lack.
  if (bytes < 0) throw std::bad_alloc();
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(composed, std::free);
  return {reinterpret_cast<const char*>(composed), static_cast<std::size_t>(bytes)};
}

std::size_t white_space_begin(std::string_view text, std::size_t end, std::size_t limit) {
  while (end > limit) {
    std::size_t start = end - 1;
    while (start > limit && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!detail::is_white_space(detail::utf8_character(text, start).code)) break;
    end = start;
  }
  return end;
}

std::size_t white_space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const detail::Utf8Character character = detail::utf8_character(text, begin);
    if (!detail::is_white_space(character.code)) break;
    begin += character.length;
  }
  return begin;
}

/// Looks tokens up by their text while the vocabulary is taken apart.
class TokenIndex {
 public:
  TokenIndex(const BpeVocabulary& vocabulary, std::string_view name) : name_(name) {
    const auto& tokens = vocabulary.tokens;
    ids_.reserve(tokens.size());
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      if (tokens[id].empty()) continue;
      const auto [known, is_new] = ids_.emplace(tokens[id], static_cast<Id>(id));
      if (!is_new) {
        fail(fmt::format("tokens that differ, got '{}' as {} and {}", tokens[id], known->second,
                         id));
      }
    }
  }

  Id find(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }

  Id at(std::string_view token, std::size_t merge) const {
    const Id id = find(token);
    if (id < 0) {
      fail(fmt::format("merge {} to speak of tokens in the vocabulary, got '{}'", merge, token));
    }
    return id;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw CheckpointError(fmt::format("{}: expected {}", name_, what));
  }

  std::string_view name_;
  std::unordered_map<std::string_view, Id> ids_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(BpeVocabulary vocabulary, std::string name)
      : vocabulary_(std::move(vocabulary)),
        name_(std::move(name)),
        merges_(vocabulary_.merges.size()) {
    check_sizes();
    const TokenIndex index(vocabulary_, name_);
    add_merges(index);
    take_bytes(index);
    take_added_tokens(index);
    take_splits();
    take_fingerprint();
    // Merges now live in their table.
    vocabulary_.merges = {};
    vocabulary_.tokens = {};
  }

  std::string name() const override { return name_; }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(bytes_.size()); }
  std::int64_t bos_id() const override { return vocabulary_.bos_id; }
  std::int64_t eos_id() const override { return vocabulary_.eos_id; }
  std::int64_t pad_id() const override { return vocabulary_.pad_id; }
  std::string chat_template() const override { return vocabulary_.chat_template; }
  std::string fingerprint() const override { return fingerprint_; }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    return encode_plain(text, {});
  }

  std::vector<std::int64_t> encode_plain(std::string_view text,
                                         std::span<const TextRange> plain) const override {
    if (text.size() > kMaxText) {
      throw DataError(fmt::format("{}: expected a text of at most {} bytes, got {}", name_,
                                  kMaxText, text.size()));
    }
    std::string replaced;
    std::vector<TextRange> moved;
    if (detail::find_invalid_utf8(text) != std::string_view::npos) {
      replaced = detail::replace_invalid_utf8(text);
      moved = mapped(plain, text, detail::replace_invalid_utf8);
      plain = moved;
      text = replaced;
    }
    auto workspace = workspaces_.take();
    Ids ids;
    ids.reserve(text.size() / 3);
    encode_added(text, raw_added_, plain, ids, [&](std::string_view part) {
      const auto begin = static_cast<std::size_t>(part.data() - text.data());
      encode_part(part, within(plain, begin, begin + part.size()), *workspace, ids);
    });
    workspaces_.give(std::move(workspace));
    return ids;
  }

  std::int64_t find_control(std::string_view text) const override {
    for (const AddedTokens* tokens : {&raw_added_, &normalized_added_}) {
      for (std::size_t from = 0; !tokens->empty() && from < text.size();) {
        const auto [begin, end, token] = tokens->find(text, from);
        if (token == nullptr) break;
        if (is_control(*token)) return token->id;
        from = end;
      }
    }
    return -1;
  }

  std::string spelling(std::int64_t id) const override {
    return id < 0 || id >= vocab_size() ? std::string() : bytes_[static_cast<std::size_t>(id)];
  }

  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string text;
    for (std::int64_t id : ids) {
      if (id < 0 || id >= vocab_size() || special_[static_cast<std::size_t>(id)]) continue;
      text += bytes_[static_cast<std::size_t>(id)];
    }
    return detail::find_invalid_utf8(text) == std::string_view::npos
               ? text
               : detail::replace_invalid_utf8(text);
  }

 private:
  [[noreturn]] void fail(std::string_view expected) const {
    throw CheckpointError(fmt::format("{}: expected {}", name_, expected));
  }

  // --- Construction from the vocabulary

  void check_sizes() const {
    const auto check = [&](std::size_t count, std::string_view what) {
      if (count > kMaxTokens) {
        fail(fmt::format("at most {} {}, got {}", kMaxTokens, what, count));
      }
    };
    check(vocabulary_.tokens.size(), "tokens");
    check(vocabulary_.merges.size(), "merges");
    check(vocabulary_.added.size(), "added tokens");
  }

  void check_id(std::int64_t id, std::string_view what) const {
    if (id < -1 || id >= vocab_size()) {
      fail(fmt::format("{} in [0, {}), got {}", what, vocab_size(), id));
    }
  }

  void add_merges(const TokenIndex& index) {
    std::string merged;
    for (std::size_t i = 0; i < vocabulary_.merges.size(); ++i) {
      const auto& [left, right] = vocabulary_.merges[i];
      merged.assign(left).append(right);
      const Id left_id = index.at(left, i);
      const Id right_id = index.at(right, i);
      merges_.add(left_id, right_id, index.at(merged, i));
    }
  }

  void take_bytes(const TokenIndex& index) {
    const ByteAlphabet alphabet;
    bytes_.resize(vocabulary_.tokens.size());
    byte_ids_.fill(-1);
    for (std::size_t id = 0; id < bytes_.size(); ++id) {
      const std::string& token = vocabulary_.tokens[id];
      if (!alphabet.bytes_of(token, bytes_[id])) {
        bytes_[id] = token;  // an added token, or one that no text reaches
        continue;
      }
      if (bytes_[id].size() == 1) {
        byte_ids_[static_cast<unsigned char>(bytes_[id][0])] = static_cast<Id>(id);
      }
      if (vocabulary_.ignore_merges && !token.empty())
        whole_words_.emplace(bytes_[id], index.find(token));
    }
    check_id(vocabulary_.unknown_id, "the unknown token");
    // A token that is only an added one has its own id.
    const std::size_t limit =
        std::min(bytes_.size() + vocabulary_.added.size() + kMaxGaps, kMaxTokens);
    for (const AddedToken& added : vocabulary_.added) {
      if (added.id < 0 || added.id >= static_cast<std::int64_t>(limit)) {
        fail(fmt::format("the added token '{}' with an id in [0, {}), got {}", added.content, limit,
                         added.id));
      }
      const auto id = static_cast<std::size_t>(added.id);
      if (id >= bytes_.size()) bytes_.resize(id + 1);
    }
  }

  void take_added_tokens(const TokenIndex& index) {
    const ByteAlphabet alphabet;
    special_.assign(bytes_.size(), false);
    std::unordered_map<std::int64_t, std::string_view> taken;
    std::vector<std::pair<std::string, const AddedToken*>> raw, normalized;
    for (const AddedToken& added : vocabulary_.added) {
      if (added.content.empty())
        fail(fmt::format("the added token {} to hold text, got none", added.id));
      // One that began within a character would cut texts there.
      if (detail::find_invalid_utf8(added.content) != std::string_view::npos) {
        fail(fmt::format("the added token {} in UTF-8, got other bytes", added.id));
      }
      const Id known = index.find(added.content);
      const auto id = static_cast<std::size_t>(added.id);
      const auto refuse = [&](std::string_view why) {
        fail(fmt::format("the added token '{}' with an id of its own, got {}, which is {}",
                         added.content, added.id, why));
      };
      const bool in_vocabulary = id < vocabulary_.tokens.size() && !vocabulary_.tokens[id].empty();
      if (in_vocabulary && vocabulary_.tokens[id] != added.content) {
        refuse(fmt::format("'{}'", vocabulary_.tokens[id]));
      }
      const auto [holder, is_new] = taken.emplace(added.id, added.content);
      if (!is_new) refuse(fmt::format("'{}'", holder->second));
      if (known >= 0 && known != added.id) {
        refuse(fmt::format("not that of the vocabulary, {}", known));
      }
      const bool composed = added.normalized && vocabulary_.nfc;
      std::string content = composed ? to_nfc(added.content) : added.content;
      if (!alphabet.bytes_of(content, bytes_[id])) bytes_[id] = content;
      special_[id] = added.special;
      (added.normalized ? normalized : raw).emplace_back(std::move(content), &added);
    }
    raw_added_.set(std::move(raw));
    normalized_added_.set(std::move(normalized));
    check_id(vocabulary_.bos_id, "the begin token");
    check_id(vocabulary_.eos_id, "the end token");
    check_id(vocabulary_.pad_id, "the padding token");
  }

  void take_splits() {
    for (const WordSplit& split : vocabulary_.splits) {
      patterns_.push_back(split.pattern.empty()
                              ? std::nullopt
                              : std::optional(detail::SplitPattern(split.pattern, name_)));
    }
  }

  // Of everything that decides which tokens a text gets.
  void take_fingerprint() {
    detail::ContentHash hash;
    const auto text = [&](std::string_view part) {
      const std::uint64_t size = part.size();
      hash.update(&size, sizeof size);
      hash.update(part);
    };
    const auto number = [&](std::int64_t value) { hash.update(&value, sizeof value); };
    text("bpe 2");
    number(static_cast<std::int64_t>(vocabulary_.tokens.size()));
    for (const std::string& token : vocabulary_.tokens) text(token);
    number(static_cast<std::int64_t>(vocabulary_.merges.size()));
    for (const auto& [left, right] : vocabulary_.merges) {
      text(left);
      text(right);
    }
    number(static_cast<std::int64_t>(vocabulary_.added.size()));
    for (const AddedToken& added : vocabulary_.added) {
      text(added.content);
      for (std::int64_t value :
           {added.id, std::int64_t{added.special}, std::int64_t{added.normalized},
            std::int64_t{added.strip_left}, std::int64_t{added.strip_right}}) {
        number(value);
      }
    }
    for (const WordSplit& split : vocabulary_.splits) {
      if (split.pattern.empty() && !split.add_prefix_space) continue;  // cuts nothing
      text(split.pattern);
      number(split.matches_only);
      number(split.add_prefix_space);
    }
    for (std::int64_t value :
         {std::int64_t{vocabulary_.nfc}, std::int64_t{vocabulary_.ignore_merges},
          vocabulary_.unknown_id, std::int64_t{vocabulary_.fuse_unknown}, vocabulary_.bos_id,
          vocabulary_.eos_id}) {
      number(value);
    }
    fingerprint_ = hash.hex();
  }

  // --- From text to tokens

  /// Appends the ids of the added tokens in `text` and gives what lies between them to `rest`.
  template <class Rest>
  static void encode_added(std::string_view text, const AddedTokens& tokens,
                           std::span<const TextRange> plain, Ids& ids, const Rest& rest) {
    std::size_t done = 0;
    std::size_t from = 0;
    while (!tokens.empty() && from < text.size()) {
      const auto [begin, end, token] = tokens.find(text, from, plain);
      if (token == nullptr) break;
      const std::size_t left =
          token->strip_left ? std::max(done, white_space_begin(text, begin, 0)) : begin;
      if (left > done) rest(text.substr(done, left - done));
      ids.push_back(token->id);
      from = end;
      done = token->strip_right ? white_space_end(text, end) : end;
    }
    if (done < text.size()) rest(text.substr(done));
  }

  void encode_part(std::string_view part, std::vector<TextRange> plain, Workspace& workspace,
                   Ids& ids) const {
    std::string composed;
    if (vocabulary_.nfc && !is_plainly_nfc(part)) {
      composed = to_nfc(part);
      plain = mapped(plain, part, to_nfc);
      part = composed;
    }
    encode_added(part, normalized_added_, plain, ids,
                 [&](std::string_view rest) { split(rest, 0, workspace, ids); });
  }

  /// Cuts `text` by the splits from number `stage` on and encodes the words.
  void split(std::string_view text, std::size_t stage, Workspace& workspace, Ids& ids) const {
    if (stage == patterns_.size()) return encode_word(text, workspace, ids);
    const WordSplit& rule = vocabulary_.splits[stage];
    std::string prefixed;
    if (rule.add_prefix_space && !text.starts_with(' ')) {
      prefixed.append(1, ' ').append(text);
      text = prefixed;
    }
    if (!patterns_[stage]) return split(text, stage + 1, workspace, ids);
    std::size_t done = 0;
    while (done < text.size()) {
      const auto match = patterns_[stage]->find(text, done, workspace.match);
      const std::size_t begin = match ? match->begin : text.size();
      if (begin > done && !rule.matches_only) {
        split(text.substr(done, begin - done), stage + 1, workspace, ids);
      }
      if (!match) return;
      split(text.substr(begin, match->end - begin), stage + 1, workspace, ids);
      done = match->end;
    }
  }

  void encode_word(std::string_view word, Workspace& workspace, Ids& ids) const {
    const bool cached = WordCache::fits(word);
    const std::size_t hash = cached ? std::hash<std::string_view>()(word) : 0;
    if (cached && workspace.cache.append(word, hash, ids)) return;
    auto& symbols = workspace.word;
    symbols.clear();
    const auto whole =
        vocabulary_.ignore_merges ? whole_words_.find(std::string(word)) : whole_words_.end();
    if (whole != whole_words_.end()) {
      symbols.push_back(whole->second);
    } else {
      take_symbols(word, symbols);
      merges_.apply(symbols, workspace.merge);
    }
    if (cached) workspace.cache.put(word, hash, symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  }

  void take_symbols(std::string_view word, std::vector<Id>& symbols) const {
    bool after_unknown = false;
    for (char c : word) {
      Id id = byte_ids_[static_cast<unsigned char>(c)];
      const bool unknown = id < 0;
      if (unknown) id = static_cast<Id>(vocabulary_.unknown_id);
      const bool fused = unknown && after_unknown && vocabulary_.fuse_unknown;
      if (id >= 0 && !fused) symbols.push_back(id);
      after_unknown = unknown;
    }
  }

  BpeVocabulary vocabulary_;
  std::string name_;
  std::string fingerprint_;
  detail::BpeMerges merges_;
  std::vector<std::string> bytes_;  // of each token
  std::vector<bool> special_;
  std::array<Id, 256> byte_ids_;
  std::unordered_map<std::string, Id> whole_words_;  // filled for ignore_merges
  AddedTokens raw_added_, normalized_added_;
  std::vector<std::optional<detail::SplitPattern>> patterns_;  // of each split
  mutable WorkspacePool workspaces_;
};

}  // namespace

std::vector<WordSplit> named_word_splits(std::string_view name, std::string_view where) {
  const WordSplit gpt2{.pattern = std::string(kGpt2Pattern)};
  if (name == "gpt-2") return {gpt2};
  if (name == "smollm") return {{.pattern = std::string(kDigitPattern)}, gpt2};
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3")
    return {{.pattern = std::string(kLlama3Pattern)}};
  if (name == "qwen2") return {{.pattern = std::string(kQwen2Pattern)}};
  throw CheckpointError(fmt::format(
      "{}: expected the pre-tokenizer 'gpt-2', 'llama-bpe', 'qwen2' or 'smollm', got '{}'", where,
      name));
}

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeVocabulary vocabulary, std::string name) {
  return std::make_shared<BpeTokenizer>(std::move(vocabulary), std::move(name));
}

}  // namespace prefopt
