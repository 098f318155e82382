// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/bpe_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/utf8.h"
#include "data/tokenizers/byte_alphabet.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr char32_t kNear = 0x3000;

}  // namespace

/// Appends symbols; unknown ones wait for the next known one, as in the package `tokenizers`.
class BpeModel::SymbolWriter {
 public:
  SymbolWriter(const BpeModel& model, std::vector<Id>& ids) : model_(model), ids_(ids) {}
  ~SymbolWriter() { flush(); }

  void known(Id id) {
    flush();
    ids_.push_back(id);
  }
  void unknown() {
    if (model_.unknown_id_ < 0) return;
    if (!model_.fuse_unknown_) flush();
    waits_ = true;
  }

 private:
  void flush() {
    if (waits_) ids_.push_back(model_.unknown_id_);
    waits_ = false;
  }

  const BpeModel& model_;
  std::vector<Id>& ids_;
  bool waits_ = false;
};

BpeModel::BpeModel(const std::vector<std::string>& tokens, const BpeSpec& spec,
                   std::int64_t unknown_id, bool of_bytes, std::string_view name)
    : bytes_(256, -1),
      merges_(spec.merges.size()),
      unknown_id_(static_cast<Id>(unknown_id)),
      fuse_unknown_(spec.fuse_unknown),
      of_bytes_(of_bytes) {
  const TokenIndex index(tokens);
  index.check_distinct(name);
  add_merges(index, spec, name);
  if (spec.byte_fallback) bytes_ = byte_tokens(index);
  if (of_bytes) {
    take_alphabet(index);
  } else {
    take_characters(tokens);
    find_safe_cut(spec);
  }
  if (!spec.ignore_merges) return;
  const ByteAlphabet alphabet;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    std::string word = tokens[id];
    if (word.empty() || (of_bytes && !alphabet.bytes_of(tokens[id], word))) continue;
    whole_words_.emplace(std::move(word), static_cast<Id>(id));
  }
}

void BpeModel::add_merges(const TokenIndex& index, const BpeSpec& spec, std::string_view name) {
  std::string merged;
  for (std::size_t i = 0; i < spec.merges.size(); ++i) {
    const auto id_of_token = [&](std::string_view token) {
      const Id id = index.find(token);
      if (id >= 0) return id;
      throw CheckpointError(fmt::format(
          "{}: expected merge {} to speak of tokens in the vocabulary, got '{}'", name, i, token));
    };
    const auto& [left, right] = spec.merges[i];
    merged.assign(left).append(right);
    const Id left_id = id_of_token(left);
    const Id right_id = id_of_token(right);
    merges_.add(left_id, right_id, id_of_token(merged));
  }
}

void BpeModel::take_alphabet(const TokenIndex& index) {
  const ByteAlphabet alphabet;
  byte_symbols_.resize(256);
  for (unsigned byte = 0; byte < 256; ++byte) {
    Symbol& symbol = byte_symbols_[byte];
    const std::string& character = alphabet.character_of(static_cast<unsigned char>(byte));
    symbol.id = index.find(character);
    if (symbol.id < 0) append_bytes(character, bytes_, symbol.fallback);
  }
}

void BpeModel::take_characters(const std::vector<std::string>& tokens) {
  near_ids_.assign(kNear, -1);
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) continue;
    const Utf8Character character = utf8_character(tokens[id], 0);
    if (!character.valid || character.length != tokens[id].size()) continue;
    if (character.code < kNear) {
      near_ids_[character.code] = static_cast<Id>(id);
    } else {
      far_ids_[character.code] = static_cast<Id>(id);
    }
  }
}

// No merge joins another character with a U+2581 behind it. Then words of SentencePiece are safe
// to merge one by one, though a whole text is one word to the pre-tokenizer.
void BpeModel::find_safe_cut(const BpeSpec& spec) {
  if (spec.ignore_merges || id_of(0x2581) < 0) return;
  const bool is_safe = std::all_of(spec.merges.begin(), spec.merges.end(), [](const auto& merge) {
    return !merge.second.starts_with(kMetaSpace) || merge.first.ends_with(kMetaSpace);
  });
  if (is_safe) safe_cut_ = kMetaSpace;
}

BpeModel::Id BpeModel::id_of(char32_t code) const {
  if (code < kNear) return near_ids_[code];
  const auto found = far_ids_.find(code);
  return found == far_ids_.end() ? -1 : found->second;
}

void BpeModel::take_symbols(std::string_view word, std::vector<Id>& ids) const {
  SymbolWriter writer(*this, ids);
  if (of_bytes_) {
    for (char c : word) {
      const Symbol& symbol = byte_symbols_[static_cast<unsigned char>(c)];
      if (symbol.id >= 0) {
        writer.known(symbol.id);
      } else if (symbol.fallback.empty()) {
        writer.unknown();
      } else {
        ids.insert(ids.end(), symbol.fallback.begin(), symbol.fallback.end());
      }
    }
    return;
  }
  for (std::size_t at = 0; at < word.size();) {
    const Utf8Character character = utf8_character(word, at);
    const Id id = id_of(character.code);
    if (id >= 0) {
      writer.known(id);
    } else if (!append_bytes(word.substr(at, character.length), bytes_, ids)) {
      writer.unknown();
    }
    at += character.length;
  }
}

void BpeModel::encode(std::string_view word, Scratch& scratch, std::vector<Id>& ids) const {
  if (const auto whole = whole_words_.find(word); whole != whole_words_.end()) {
    ids.push_back(whole->second);
    return;
  }
  take_symbols(word, ids);
  merges_.apply(ids, scratch.merge);
}

}  // namespace prefopt::detail
