// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>

#include "data/tokenizer_gguf.h"
#include "data/tokenizer_json.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/fingerprint.h"
#include "data/tokenizers/named_splits.h"
#include "data/tokenizers/spec.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// Of llama.cpp's enum llama_token_type.
enum WrittenType : std::int64_t {
  kNormalToken = 1,
  kUnknownToken,
  kControlToken,
  kOwnToken,
  kUnusedToken,
  kByteToken
};

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

// Parts that the name of a pre-tokenizer implies, as a key.
std::string key_of_name(const TokenizerSpec& spec) {
  TokenizerSpec parts;
  parts.normalizer = spec.normalizer;
  parts.pre_tokenizer = spec.pre_tokenizer;
  parts.model = BpeSpec{.ignore_merges = std::get<BpeSpec>(spec.model).ignore_merges};
  return fingerprint_of(parts);
}

bool is_byte_level(const TokenizerSpec& spec) {
  return std::any_of(spec.pre_tokenizer.begin(), spec.pre_tokenizer.end(),
                     [](const auto& step) { return std::holds_alternative<ByteLevel>(step); });
}

/// Writes a vocabulary as llama.cpp's files have it, byte-level BPE or SentencePiece's.
class VocabularyWriter {
 public:
  VocabularyWriter(const TokenizerSpec& spec, std::int64_t rows, std::string_view where)
      : spec_(spec), rows_(rows), where_(where) {}

  void write(GgufWriter& writer) const {
    check_added();
    const bool of_bytes = is_byte_level(spec_);
    const GgufVocabulary gguf = of_bytes ? byte_level() : sentence_piece();
    writer.text("tokenizer.ggml.model", gguf.model);
    writer.texts("tokenizer.ggml.tokens", gguf.tokens);
    writer.integers("tokenizer.ggml.token_type", gguf.token_type);
    if (of_bytes) {
      writer.text("tokenizer.ggml.pre", gguf.pre);
      writer.texts("tokenizer.ggml.merges", gguf.merges);
    } else {
      writer.text("tokenizer.ggml.pre", "default");
      writer.reals("tokenizer.ggml.scores", gguf.scores);
      writer.integer("tokenizer.ggml.unknown_token_id", gguf.unknown_token_id);
    }
    if (gguf.bos_token_id >= 0) writer.integer("tokenizer.ggml.bos_token_id", gguf.bos_token_id);
    if (spec_.pad_id >= 0) writer.integer("tokenizer.ggml.padding_token_id", spec_.pad_id);
    writer.flag("tokenizer.ggml.add_bos_token", spec_.bos_id >= 0);
    writer.flag("tokenizer.ggml.add_eos_token", false);
    writer.flag("tokenizer.ggml.add_space_prefix", gguf.add_space_prefix);
    if (!spec_.chat_template.empty()) writer.text("tokenizer.chat_template", spec_.chat_template);
  }

 private:
  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format(
        "{}: expected {}, got {}; export a folder (--out) for programs that read tokenizer.json",
        where_, expected, got));
  }

  const BpeSpec& bpe() const {
    if (const auto* model = std::get_if<BpeSpec>(&spec_.model)) return *model;
    fail("byte-level or SentencePiece's BPE, which are all that is written to a GGUF file",
         "Unigram");
  }

  // A GGUF file has no place for these.
  void check_added() const {
    for (const AddedToken& token : spec_.added) {
      if (token.strip_left || token.strip_right) {
        fail("added tokens that leave white space alone, as all are in a GGUF file",
             fmt::format("'{}' with {}", token.content, token.strip_left ? "lstrip" : "rstrip"));
      }
      if (token.single_word) {
        fail("added tokens that are found within words, as all are in a GGUF file",
             fmt::format("'{}' with single_word", token.content));
      }
      if (token.normalized && !spec_.normalizer.empty()) {
        fail("added tokens that are found before normalization, as all are in a GGUF file",
             fmt::format("'{}' with normalized", token.content));
      }
    }
  }

  GgufVocabulary byte_level() const {
    GgufVocabulary gguf = tokens();
    gguf.model = "gpt2";
    for (const auto& [left, right] : bpe().merges) {
      if (left.find(' ') != std::string::npos || right.find(' ') != std::string::npos) {
        fail("merges of tokens without spaces, as a GGUF file has them",
             fmt::format("'{}' and '{}'", left, right));
      }
      gguf.merges.push_back(fmt::format("{} {}", left, right));
    }
    if (spec_.unknown_id >= 0) check_bytes();
    gguf.pre = pre_name();
    return gguf;
  }

  // With a token for each byte nothing is unknown.
  void check_bytes() const {
    constexpr int kBytes = 256;
    const ByteAlphabet alphabet;
    std::string bytes;
    const auto letters =
        std::count_if(spec_.tokens.begin(), spec_.tokens.end(), [&](const std::string& token) {
          return alphabet.bytes_of(token, bytes) && bytes.size() == 1;
        });
    if (letters == kBytes) return;
    fail("a token for each byte, or no unknown token",
         fmt::format("those of {} bytes, and unknown token {}", letters, spec_.unknown_id));
  }

  std::string pre_name() const {
    const std::string key = key_of_name(spec_);
    for (const NamedSplits& named : all_named_splits()) {
      GgufVocabulary empty;
      empty.model = "gpt2";
      empty.pre = named.names.front();
      if (key_of_name(spec_of(empty, where_)) == key) return empty.pre;
    }
    std::string patterns;
    for (const PreTokenizerStep& step : spec_.pre_tokenizer) {
      const auto* split = std::get_if<Split>(&step);
      const auto* level = std::get_if<ByteLevel>(&step);
      if (level != nullptr && !level->uses_regex) continue;
      patterns += fmt::format("{}'{}'", patterns.empty() ? "" : ", ",
                              split != nullptr   ? std::string_view(split->pattern)
                              : level != nullptr ? std::string_view("ByteLevel")
                                                 : std::string_view("Metaspace"));
    }
    fail("a pre-tokenizer that llama.cpp has a name for",
         fmt::format("{}{}{}", patterns, spec_.normalizer.empty() ? "" : " after a normalizer",
                     bpe().ignore_merges ? " with ignore_merges" : ""));
  }

  GgufVocabulary sentence_piece() const {
    GgufVocabulary gguf = tokens();
    gguf.model = "llama";
    gguf.unknown_token_id = spec_.unknown_id;
    gguf.eos_token_id = spec_.eos_id;
    gguf.padding_token_id = spec_.pad_id;
    gguf.add_bos_token = spec_.bos_id >= 0;
    gguf.add_space_prefix =
        std::any_of(spec_.normalizer.begin(), spec_.normalizer.end(),
                    [](const auto& step) { return std::holds_alternative<Prepend>(step); });
    gguf.scores = scores();
    for (std::size_t id = 0; id < gguf.tokens.size(); ++id) {
      unsigned char byte = 0;
      if (gguf.token_type[id] == kNormalToken && byte_of_token(gguf.tokens[id], byte)) {
        gguf.token_type[id] = kByteToken;
      }
    }
    if (spec_.unknown_id >= 0) {
      gguf.token_type[static_cast<std::size_t>(spec_.unknown_id)] = kUnknownToken;
    }
    check_same(gguf);
    return gguf;
  }

  // Tokens in the order of their merges: what is merged first has the highest score.
  std::vector<double> scores() const {
    std::unordered_map<std::string, double> order;
    for (const auto& [left, right] : bpe().merges) {
      order.try_emplace(left + right, -1.0 - static_cast<double>(order.size()));
    }
    std::vector<double> scores(static_cast<std::size_t>(rows_));
    for (std::size_t id = 0; id < spec_.tokens.size(); ++id) {
      const auto found = order.find(spec_.tokens[id]);
      if (found != order.end()) scores[id] = found->second;
    }
    return scores;
  }

  // Read again, the file has to give the tokens of the original: scores need not tell all that
  // merges do.
  void check_same(const GgufVocabulary& gguf) const {
    TokenizerSpec again = spec_of(gguf, where_);
    again.tokens.resize(spec_.tokens.size());
    TokenizerSpec given = spec_;
    for (TokenizerSpec* spec : {&again, &given}) {
      for (const AddedToken& token : spec->added) {
        const auto id = static_cast<std::size_t>(token.id);
        if (id < spec->tokens.size()) spec->tokens[id] = token.content;
      }
      std::sort(spec->added.begin(), spec->added.end(),
                [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
      for (AddedToken& token : spec->added) token.normalized = false;  // there is no difference
    }
    if (fingerprint_of(again) == fingerprint_of(given)) return;
    fail("SentencePiece's BPE as in Llama 2's tokenizer.json, which scores of tokens can tell",
         "another form of it");
  }

  /// Tokens, types and ids, with a row for each of the model.
  GgufVocabulary tokens() const {
    GgufVocabulary gguf;
    gguf.tokens = spec_.tokens;
    gguf.token_type.assign(gguf.tokens.size(), kNormalToken);
    for (const AddedToken& token : spec_.added) {
      const auto id = static_cast<std::size_t>(token.id);
      if (id >= gguf.tokens.size()) {
        gguf.tokens.resize(id + 1);
        gguf.token_type.resize(id + 1, kNormalToken);
      }
      gguf.tokens[id] = token.content;
      gguf.token_type[id] = token.special ? kControlToken : kOwnToken;
    }
    if (std::ssize(gguf.tokens) > rows_) {
      fail(fmt::format("at most {} tokens, as the model has", rows_),
           fmt::format("{}", gguf.tokens.size()));
    }
    gguf.tokens.resize(static_cast<std::size_t>(rows_));
    gguf.token_type.resize(static_cast<std::size_t>(rows_), kNormalToken);
    for (std::size_t id = 0; id < gguf.tokens.size(); ++id) {
      if (!gguf.tokens[id].empty()) continue;
      gguf.tokens[id] = fmt::format("[PAD{}]", id);
      gguf.token_type[id] = kUnusedToken;
    }
    gguf.bos_token_id = spec_.bos_id >= 0 ? spec_.bos_id : spec_.begin_id;
    return gguf;
  }

  const TokenizerSpec& spec_;
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
  const TokenizerSpec spec = read_tokenizer_json(path);
  VocabularyWriter(spec, rows, path).write(writer);
  return write_ends({spec.eos_id, -1, -1}, ends, writer);
}

}  // namespace prefopt::detail
