// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf.h"

#include <fmt/format.h>

#include <utility>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// llama.cpp's enum llama_token_type.
enum TokenType : std::int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// Added tokens of a type that is left out of decoded text.
bool is_special(std::int64_t type) { return type == kUnknown || type == kControl; }

// Names of one pre-tokenizer, that of Llama 3.
bool is_llama3(std::string_view pre) {
  return pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3";
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const GgufFile& file) {
  const auto id = [&](const std::string& key) {
    return file.has(key) ? file.integer(key) : std::int64_t{-1};
  };
  const auto flag = [&](const std::string& key) { return file.has(key) && file.flag(key); };
  for (const char* unknown : {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_eos_token"}) {
    if (flag(unknown)) {
      throw CheckpointError(
          fmt::format("{}: {}: expected false, which is all that is known here, got true",
                      file.path(), unknown));
    }
  }
  GgufVocabulary gguf;
  gguf.model = file.text("tokenizer.ggml.model");
  gguf.pre = file.text("tokenizer.ggml.pre");
  gguf.tokens = file.texts("tokenizer.ggml.tokens");
  gguf.merges = file.texts("tokenizer.ggml.merges");
  gguf.token_type = file.integers("tokenizer.ggml.token_type");
  gguf.bos_token_id = id("tokenizer.ggml.bos_token_id");
  gguf.eos_token_id = id("tokenizer.ggml.eos_token_id");
  gguf.padding_token_id = id("tokenizer.ggml.padding_token_id");
  if (constexpr const char* kAddBos = "tokenizer.ggml.add_bos_token"; file.has(kAddBos)) {
    gguf.add_bos_token = file.flag(kAddBos);
  }
  if (file.has("tokenizer.chat_template")) {
    gguf.chat_template = file.text("tokenizer.chat_template");
  }
  return gguf;
}

BpeVocabulary bpe_vocabulary(GgufVocabulary gguf, std::string_view where) {
  const auto fail = [&](std::string_view key, std::string_view expected, std::string_view got) {
    throw CheckpointError(
        fmt::format("{}: tokenizer.ggml.{}: expected {}, got {}", where, key, expected, got));
  };
  if (gguf.model != "gpt2") {
    fail("model", "'gpt2', which is all that is known here", fmt::format("'{}'", gguf.model));
  }
  if (gguf.token_type.size() != gguf.tokens.size()) {
    fail("token_type", fmt::format("a type for each of {} tokens", gguf.tokens.size()),
         std::to_string(gguf.token_type.size()));
  }
  BpeVocabulary result;
  result.splits = named_word_splits(gguf.pre, fmt::format("{}: tokenizer.ggml.pre", where));
  result.nfc = gguf.pre == "qwen2";
  result.ignore_merges = is_llama3(gguf.pre);
  for (std::size_t i = 0; i < gguf.tokens.size(); ++i) {
    const std::int64_t type = gguf.token_type[i];
    if (type < kNormal || type > kByte) {
      fail("token_type", fmt::format("a type in [{}, {}] of token {}", int{kNormal}, int{kByte}, i),
           std::to_string(type));
    }
    if (!is_special(type) && type != kUserDefined) continue;
    result.added.push_back({.content = gguf.tokens[i],
                            .id = static_cast<std::int64_t>(i),
                            .special = is_special(type)});
  }
  result.merges.reserve(gguf.merges.size());
  for (std::size_t i = 0; i < gguf.merges.size(); ++i) {
    const std::string& merge = gguf.merges[i];
    const std::size_t space = merge.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == merge.size()) {
      fail("merges", fmt::format("two tokens in merge {}", i), fmt::format("'{}'", merge));
    }
    result.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  result.tokens = std::move(gguf.tokens);
  result.begin_id = gguf.bos_token_id;
  // Files that were made before mid-2025 lack the key; llama.cpp's default is this.
  result.bos_id = gguf.add_bos_token.value_or(is_llama3(gguf.pre)) ? gguf.bos_token_id : -1;
  result.eos_id = gguf.eos_token_id;
  result.pad_id = gguf.padding_token_id;
  result.chat_template = std::move(gguf.chat_template);
  return result;
}

bool has_tokenizer(const GgufFile& file) {
  constexpr std::string_view kModel = "tokenizer.ggml.model";
  if (!file.has(kModel)) return false;
  const std::string model = file.text(kModel);
  return model != "none" && model != "no_vocab";
}

}  // namespace prefopt::detail
