// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <utility>

#include "core/utf8.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/named_splits.h"
#include "data/tokenizers/score_merges.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// llama.cpp's enum llama_token_type.
enum TokenType : std::int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// Added tokens of a type that is left out of decoded text.
bool is_special(std::int64_t type) { return type == kUnknown || type == kControl; }

[[noreturn]] void fail(std::string_view where, std::string_view key, std::string_view expected,
                       std::string_view got) {
  throw CheckpointError(
      fmt::format("{}: tokenizer.ggml.{}: expected {}, got {}", where, key, expected, got));
}

void check_model(std::string_view model, std::string_view where) {
  if (model == "gpt2" || model == "llama") return;
  fail(where, "model", "'gpt2' or 'llama', which are all that is known here",
       fmt::format("'{}'", model));
}

void check_types(const GgufVocabulary& gguf, std::string_view where) {
  if (gguf.token_type.size() != gguf.tokens.size()) {
    fail(where, "token_type", fmt::format("a type for each of {} tokens", gguf.tokens.size()),
         std::to_string(gguf.token_type.size()));
  }
  for (std::size_t i = 0; i < gguf.token_type.size(); ++i) {
    const std::int64_t type = gguf.token_type[i];
    if (type >= kNormal && type <= kByte) continue;
    fail(where, "token_type",
         fmt::format("a type in [{}, {}] of token {}", int{kNormal}, int{kByte}, i),
         std::to_string(type));
  }
}

std::vector<AddedToken> added_tokens(const GgufVocabulary& gguf) {
  std::vector<AddedToken> added;
  for (std::size_t i = 0; i < gguf.tokens.size(); ++i) {
    const std::int64_t type = gguf.token_type[i];
    if (!is_special(type) && type != kUserDefined) continue;
    added.push_back({.content = gguf.tokens[i],
                     .id = static_cast<std::int64_t>(i),
                     .special = is_special(type)});
  }
  return added;
}

// --- SentencePiece's vocabularies

// As in llama.cpp, which knows the model by its name: its files do not say so.
void strip_as_phi3(const GgufVocabulary& gguf, std::vector<AddedToken>& added) {
  std::string name = gguf.name;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (name.find("phi-3") == std::string::npos && name.find("phi3") == std::string::npos) return;
  for (AddedToken& token : added) {
    token.strip_right =
        token.content != "<unk>" && token.content != "<s>" && token.content != "<|endoftext|>";
  }
}

void check_byte_tokens(const GgufVocabulary& gguf, std::string_view where) {
  std::vector<bool> seen(256);
  for (const std::string& token : gguf.tokens) {
    if (unsigned char byte = 0; byte_of_token(token, byte)) seen[byte] = true;
  }
  const auto missing = std::find(seen.begin(), seen.end(), false);
  if (missing == seen.end()) return;
  fail(where, "tokens", "a token for each byte",
       fmt::format("none for {}",
                   token_of_byte(static_cast<unsigned char>(missing - seen.begin()))));
}

BpeSpec merges_of(const GgufVocabulary& gguf, std::string_view where) {
  if (gguf.scores.size() != gguf.tokens.size()) {
    fail(where, "scores", fmt::format("a score for each of {} tokens", gguf.tokens.size()),
         std::to_string(gguf.scores.size()));
  }
  ScoredTokens scored{.tokens = gguf.tokens, .scores = gguf.scores, .merges = {}};
  for (std::size_t i = 0; i < gguf.tokens.size(); ++i) {
    if (find_invalid_utf8(gguf.tokens[i]) != std::string::npos) {
      fail(where, "tokens", fmt::format("token {} in UTF-8", i), "other bytes");
    }
    if (std::isnan(gguf.scores[i])) {
      fail(where, "scores", fmt::format("a number for token {}", i), "nan");
    }
    const std::int64_t type = gguf.token_type[i];
    scored.merges.push_back((type == kNormal || type == kUnused) && !gguf.tokens[i].empty());
  }
  return {.merges = merges_by_score(scored, fmt::format("{}: tokenizer.ggml.", where)),
          .fuse_unknown = true,
          .byte_fallback = true};
}

std::int64_t id_or(std::int64_t id, std::int64_t otherwise, const GgufVocabulary& gguf) {
  return id >= 0 || otherwise >= std::ssize(gguf.tokens) ? id : otherwise;
}

TokenizerSpec sentence_piece(GgufVocabulary gguf, std::string_view where) {
  check_types(gguf, where);
  check_byte_tokens(gguf, where);
  const std::string meta(kMetaSpace);
  TokenizerSpec spec;
  spec.model = merges_of(gguf, where);
  spec.added = added_tokens(gguf);
  strip_as_phi3(gguf, spec.added);
  spec.decoder = {Replace{.pattern = meta, .is_regex = false, .content = " "}, ByteFallback{},
                  Fuse{}};
  if (gguf.add_space_prefix) {
    spec.normalizer.emplace_back(Prepend{meta});
    spec.decoder.emplace_back(StripCharacters{.character = " ", .start = 1, .stop = 0});
  }
  spec.normalizer.emplace_back(Replace{.pattern = " ", .is_regex = false, .content = meta});
  // Where the file is silent, llama.cpp's ids and choices hold.
  spec.unknown_id = id_or(gguf.unknown_token_id, 0, gguf);
  spec.begin_id = id_or(gguf.bos_token_id, 1, gguf);
  spec.bos_id = gguf.add_bos_token.value_or(true) ? spec.begin_id : -1;
  spec.eos_id = id_or(gguf.eos_token_id, 2, gguf);
  spec.pad_id = gguf.padding_token_id;
  spec.tokens = std::move(gguf.tokens);
  spec.chat_template = std::move(gguf.chat_template);
  return spec;
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const GgufFile& file) {
  const auto id = [&](const std::string& key) {
    return file.has(key) ? file.integer(key) : std::int64_t{-1};
  };
  const auto flag = [&](const char* key, bool otherwise) {
    return file.has(key) ? file.flag(key) : otherwise;
  };
  GgufVocabulary gguf;
  gguf.model = file.text("tokenizer.ggml.model");
  check_model(gguf.model, file.path());
  gguf.tokens = file.texts("tokenizer.ggml.tokens");
  gguf.token_type = file.integers("tokenizer.ggml.token_type");
  constexpr const char* kSpacePrefix = "tokenizer.ggml.add_space_prefix";
  gguf.add_space_prefix = flag(kSpacePrefix, /*otherwise=*/gguf.model == "llama");
  if (gguf.model == "llama") {
    gguf.scores = file.reals("tokenizer.ggml.scores");
  } else {
    if (gguf.add_space_prefix) {
      throw CheckpointError(
          fmt::format("{}: {}: expected false, which is all that is known here, got true",
                      file.path(), kSpacePrefix));
    }
    gguf.pre = file.text("tokenizer.ggml.pre");
    gguf.merges = file.texts("tokenizer.ggml.merges");
  }
  gguf.bos_token_id = id("tokenizer.ggml.bos_token_id");
  gguf.eos_token_id = id("tokenizer.ggml.eos_token_id");
  gguf.unknown_token_id = id("tokenizer.ggml.unknown_token_id");
  gguf.padding_token_id = id("tokenizer.ggml.padding_token_id");
  if (constexpr const char* kAddBos = "tokenizer.ggml.add_bos_token"; file.has(kAddBos)) {
    gguf.add_bos_token = file.flag(kAddBos);
  }
  if (file.has("general.name")) gguf.name = file.text("general.name");
  if (file.has("tokenizer.chat_template")) {
    gguf.chat_template = file.text("tokenizer.chat_template");
  }
  return gguf;
}

BpeVocabulary bpe_vocabulary(GgufVocabulary gguf, std::string_view where) {
  check_types(gguf, where);
  BpeVocabulary result;
  const std::string place = fmt::format("{}: tokenizer.ggml.pre", where);
  const NamedSplits& splits = find_named_splits(gguf.pre, place);
  result.splits = named_word_splits(gguf.pre, place);
  result.nfc = splits.nfc;
  result.ignore_merges = splits.ignore_merges;
  result.added = added_tokens(gguf);
  result.merges.reserve(gguf.merges.size());
  for (std::size_t i = 0; i < gguf.merges.size(); ++i) {
    const std::string& merge = gguf.merges[i];
    const std::size_t space = merge.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == merge.size()) {
      fail(where, "merges", fmt::format("two tokens in merge {}", i), fmt::format("'{}'", merge));
    }
    result.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  result.tokens = std::move(gguf.tokens);
  result.begin_id = gguf.bos_token_id;
  // Files that were made before mid-2025 lack the key; llama.cpp's default is this.
  result.bos_id = gguf.add_bos_token.value_or(splits.adds_bos) ? gguf.bos_token_id : -1;
  result.eos_id = gguf.eos_token_id;
  result.pad_id = gguf.padding_token_id;
  result.chat_template = std::move(gguf.chat_template);
  return result;
}

TokenizerSpec spec_of(GgufVocabulary gguf, std::string_view where) {
  check_model(gguf.model, where);
  if (gguf.model == "llama") return sentence_piece(std::move(gguf), where);
  return spec_of(bpe_vocabulary(std::move(gguf), where));
}

bool has_tokenizer(const GgufFile& file) {
  constexpr std::string_view kModel = "tokenizer.ggml.model";
  if (!file.has(kModel)) return false;
  const std::string model = file.text(kModel);
  return model != "none" && model != "no_vocab";
}

}  // namespace prefopt::detail
