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

}  // namespace

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
  result.ignore_merges = gguf.pre == "llama-bpe";
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
  result.bos_id = gguf.add_bos_token ? gguf.bos_token_id : -1;
  result.eos_id = gguf.eos_token_id;
  result.pad_id = gguf.padding_token_id;
  result.chat_template = std::move(gguf.chat_template);
  return result;
}

}  // namespace prefopt::detail
