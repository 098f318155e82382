// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/utf8.h"
#include "data/tokenizer_gguf.h"
#include "data/tokenizer_json.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// Of llama.cpp's enum llama_token_type.
enum WrittenType : std::int64_t { kNormalToken = 1, kControlToken = 3, kOwnToken, kUnusedToken };

// Names of pre-tokenizers that are known here, one for each.
constexpr std::array kPreNames =
    std::to_array<std::string_view>({"gpt-2", "smollm", "llama-bpe", "qwen2"});

// Keys for end tokens: of a text, a turn and a message.
constexpr std::array kEndKeys = std::to_array<std::string_view>(
    {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"});

using EndSlots = std::array<std::int64_t, kEndKeys.size()>;

// Puts each token that has no slot yet into the first free one; returns those for which there is
// none.
std::vector<std::int64_t> fill_slots(EndSlots& slots, const std::vector<std::int64_t>& ends) {
  std::vector<std::int64_t> left;
  for (const std::int64_t end : ends) {
    if (std::find(slots.begin(), slots.end(), end) != slots.end()) continue;
    const auto free = std::find(slots.begin(), slots.end(), -1);
    if (free == slots.end()) {
      left.push_back(end);
    } else {
      *free = end;
    }
  }
  return left;
}

std::vector<std::int64_t> write_ends(EndSlots slots, const std::vector<std::int64_t>& ends,
                                     GgufWriter& writer) {
  std::vector<std::int64_t> left = fill_slots(slots, ends);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] >= 0) writer.integer(kEndKeys[i], slots[i]);
  }
  return left;
}

bool same_split(const WordSplit& a, const WordSplit& b) {
  return a.pattern == b.pattern && a.matches_only == b.matches_only &&
         a.add_prefix_space == b.add_prefix_space;
}

// Without those that cut nothing.
std::vector<WordSplit> cuts(std::vector<WordSplit> splits) {
  std::erase_if(splits, [](const WordSplit& split) { return same_split(split, {}); });
  return splits;
}

bool same_splits(const std::vector<WordSplit>& a, const std::vector<WordSplit>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_split);
}

// Whether a token is one letter of GPT-2's alphabet, in which each byte has one.
bool is_byte(std::string_view token) {
  if (token.empty()) return false;
  const Utf8Character letter = utf8_character(token, 0);
  const char32_t code = letter.code;
  const bool printable = (code >= 0x21 && code <= 0x7e) || (code >= 0xa1 && code != 0xad);
  return letter.valid && letter.length == token.size() && printable && code < 0x100 + 68;
}

class BpeWriter {
 public:
  BpeWriter(const BpeVocabulary& vocabulary, std::int64_t rows, std::string_view where)
      : vocabulary_(vocabulary), rows_(rows), where_(where) {}

  void write(GgufWriter& writer) const {
    check();
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", pre_name());
    write_tokens(writer);
    std::vector<std::string> merges;
    for (const auto& [left, right] : vocabulary_.merges) {
      merges.push_back(fmt::format("{} {}", left, right));
    }
    writer.texts("tokenizer.ggml.merges", merges);
    const std::int64_t begin = vocabulary_.bos_id >= 0 ? vocabulary_.bos_id : vocabulary_.begin_id;
    if (begin >= 0) writer.integer("tokenizer.ggml.bos_token_id", begin);
    if (vocabulary_.pad_id >= 0) {
      writer.integer("tokenizer.ggml.padding_token_id", vocabulary_.pad_id);
    }
    writer.flag("tokenizer.ggml.add_bos_token", vocabulary_.bos_id >= 0);
    writer.flag("tokenizer.ggml.add_eos_token", false);
    writer.flag("tokenizer.ggml.add_space_prefix", false);
    if (!vocabulary_.chat_template.empty()) {
      writer.text("tokenizer.chat_template", vocabulary_.chat_template);
    }
  }

 private:
  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format(
        "{}: expected {}, got {}; export a folder (--out) for programs that read tokenizer.json",
        where_, expected, got));
  }

  // What a GGUF file has no place for.
  void check() const {
    for (const AddedToken& token : vocabulary_.added) {
      if (token.strip_left || token.strip_right) {
        fail("added tokens that leave white space alone, as all are in a GGUF file",
             fmt::format("'{}' with {}", token.content, token.strip_left ? "lstrip" : "rstrip"));
      }
      if (token.normalized && vocabulary_.nfc) {
        fail("added tokens that are found before normalization, as all are in a GGUF file",
             fmt::format("'{}' with normalized", token.content));
      }
    }
    for (const auto& [left, right] : vocabulary_.merges) {
      if (left.find(' ') == std::string::npos && right.find(' ') == std::string::npos) continue;
      fail("merges of tokens without spaces, as a GGUF file has them",
           fmt::format("'{}' and '{}'", left, right));
    }
    if (vocabulary_.unknown_id >= 0) check_bytes();
  }

  // With a token for each byte nothing is unknown.
  void check_bytes() const {
    constexpr int kBytes = 256;
    const auto letters = std::count_if(vocabulary_.tokens.begin(), vocabulary_.tokens.end(),
                                       [](const std::string& token) { return is_byte(token); });
    if (letters == kBytes) return;
    fail("a token for each byte, or no unknown token",
         fmt::format("those of {} bytes, and unknown token {}", letters, vocabulary_.unknown_id));
  }

  std::string_view pre_name() const {
    for (const std::string_view name : kPreNames) {
      GgufVocabulary empty;
      empty.model = "gpt2";
      empty.pre = name;
      const BpeVocabulary known = bpe_vocabulary(std::move(empty), where_);
      if (same_splits(cuts(known.splits), cuts(vocabulary_.splits)) &&
          known.nfc == vocabulary_.nfc && known.ignore_merges == vocabulary_.ignore_merges) {
        return name;
      }
    }
    std::string patterns;
    for (const WordSplit& split : cuts(vocabulary_.splits)) {
      patterns += fmt::format("{}'{}'", patterns.empty() ? "" : ", ", split.pattern);
    }
    fail("a pre-tokenizer that llama.cpp has a name for, of gpt-2, smollm, llama-bpe and qwen2",
         fmt::format("{}{}{}", patterns, vocabulary_.nfc ? " with NFC" : "",
                     vocabulary_.ignore_merges ? " with ignore_merges" : ""));
  }

  void write_tokens(GgufWriter& writer) const {
    std::vector<std::string> tokens = vocabulary_.tokens;
    std::vector<std::int64_t> types(tokens.size(), kNormalToken);
    for (const AddedToken& token : vocabulary_.added) {
      const auto id = static_cast<std::size_t>(token.id);
      if (id >= tokens.size()) {
        tokens.resize(id + 1);
        types.resize(id + 1, kNormalToken);
      }
      tokens[id] = token.content;
      types[id] = token.special ? kControlToken : kOwnToken;
    }
    if (std::ssize(tokens) > rows_) {
      fail(fmt::format("at most {} tokens, as the model has", rows_),
           fmt::format("{}", tokens.size()));
    }
    tokens.resize(static_cast<std::size_t>(rows_));
    types.resize(static_cast<std::size_t>(rows_), kNormalToken);
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      if (!tokens[id].empty()) continue;
      tokens[id] = fmt::format("[PAD{}]", id);
      types[id] = kUnusedToken;
    }
    writer.texts("tokenizer.ggml.tokens", tokens);
    writer.integers("tokenizer.ggml.token_type", types);
  }

  const BpeVocabulary& vocabulary_;
  std::int64_t rows_;
  std::string_view where_;
};

std::vector<std::int64_t> copy_tokenizer(const std::string& path, std::int64_t rows,
                                         const std::vector<std::int64_t>& ends,
                                         GgufWriter& writer) {
  const GgufFile file = GgufFile::open(path);
  for (const std::string& key : file.keys()) {
    if (key.starts_with("tokenizer.")) writer.copy(file, key);
  }
  if (constexpr const char* kTokens = "tokenizer.ggml.tokens"; file.has(kTokens)) {
    if (const auto given = std::ssize(file.texts(kTokens)); given != rows) {
      throw CheckpointError(fmt::format("{}: {}: expected {} tokens, as the model has, got {}",
                                        path, kTokens, rows, given));
    }
  }
  EndSlots slots;
  std::transform(kEndKeys.begin(), kEndKeys.end(), slots.begin(), [&](std::string_view key) {
    return file.has(key) ? file.integer(key) : std::int64_t{-1};
  });
  return write_ends(slots, ends, writer);
}

BpeVocabulary read_byte_level(const std::string& path) {
  try {
    return read_tokenizer_json(path);
  } catch (const CheckpointError& error) {
    throw CheckpointError(fmt::format(
        "{}; only byte-level BPE is written to a GGUF file here: export a folder (--out) and give "
        "that to llama.cpp's convert_hf_to_gguf.py",
        error.what()));
  }
}

}  // namespace

std::vector<std::int64_t> write_gguf_tokenizer(const std::string& name, std::int64_t rows,
                                               const std::vector<std::int64_t>& ends,
                                               GgufWriter& writer) {
  namespace fs = std::filesystem;
  if (name.ends_with(".gguf")) return copy_tokenizer(name, rows, ends, writer);
  if (name.empty() || name == "byte") {
    writer.text("tokenizer.ggml.model", "none");
    return write_ends({-1, -1, -1}, ends, writer);
  }
  std::error_code ignored;
  const std::string path =
      fs::is_directory(name, ignored) ? (fs::path(name) / "tokenizer.json").string() : name;
  const BpeVocabulary vocabulary = read_byte_level(path);
  BpeWriter(vocabulary, rows, path).write(writer);
  return write_ends({vocabulary.eos_id, -1, -1}, ends, writer);
}

}  // namespace prefopt::detail
