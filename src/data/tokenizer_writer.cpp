// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "core/json.h"
#include "core/utf8.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

SortedJson json_of_byte_level(bool add_prefix_space, bool cuts) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", cuts}};
}

/// The tokenizer's own text of a token, by id.
class TokenTexts {
 public:
  explicit TokenTexts(const BpeVocabulary& vocabulary) : vocabulary_(vocabulary) {}

  /// Empty where there is no such token.
  std::string operator()(std::int64_t id) const {
    for (const AddedToken& added : vocabulary_.added) {
      if (added.id == id) return added.content;
    }
    const bool known = id >= 0 && id < std::ssize(vocabulary_.tokens);
    return known ? vocabulary_.tokens[static_cast<std::size_t>(id)] : "";
  }

 private:
  const BpeVocabulary& vocabulary_;
};

SortedJson model_of(const BpeVocabulary& vocabulary, std::string_view where) {
  SortedJson vocab = SortedJson::object();
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string& token = vocabulary.tokens[id];
    if (token.empty()) continue;
    if (find_invalid_utf8(token) != std::string::npos) {
      throw CheckpointError(fmt::format(
          "{}: expected tokens in UTF-8, to be written as tokenizer.json, got other bytes in token "
          "{}",
          where, id));
    }
    vocab[token] = id;
  }
  SortedJson merges = SortedJson::array();
  for (const auto& [left, right] : vocabulary.merges) {
    const bool plain = left.find(' ') == std::string::npos && right.find(' ') == std::string::npos;
    // Versions of `tokenizers` before 0.20 know the first form alone.
    merges.push_back(plain ? SortedJson(fmt::format("{} {}", left, right))
                           : SortedJson::array({left, right}));
  }
  const std::string unknown = TokenTexts(vocabulary)(vocabulary.unknown_id);
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown.empty() ? SortedJson() : SortedJson(unknown)},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", vocabulary.fuse_unknown},
          {"byte_fallback", false},
          {"ignore_merges", vocabulary.ignore_merges},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

SortedJson added_tokens_of(const BpeVocabulary& vocabulary) {
  std::vector<AddedToken> added = vocabulary.added;
  // `tokenizers` gives ids in the order of the list.
  std::sort(added.begin(), added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  SortedJson list = SortedJson::array();
  for (const AddedToken& token : added) {
    list.push_back({{"id", token.id},
                    {"content", token.content},
                    {"single_word", false},
                    {"lstrip", token.strip_left},
                    {"rstrip", token.strip_right},
                    {"normalized", token.normalized},
                    {"special", token.special}});
  }
  return list;
}

SortedJson split_of(const WordSplit& split) {
  const bool digit = split.pattern == R"(\p{N})";
  if (digit || split.pattern == R"(\p{N}+)") {
    return {{"type", "Digits"}, {"individual_digits", digit}};
  }
  return {{"type", "Split"},
          {"pattern", {{"Regex", split.pattern}}},
          {"behavior", split.matches_only ? "Removed" : "Isolated"},
          {"invert", split.matches_only}};
}

SortedJson pre_tokenizer_of(const BpeVocabulary& vocabulary) {
  const std::string gpt2 = named_word_splits("gpt-2", "").front().pattern;
  SortedJson list = SortedJson::array();
  bool ended = false;  // by the ByteLevel that cuts, or adds a space
  for (std::size_t i = 0; i < vocabulary.splits.size(); ++i) {
    const WordSplit& split = vocabulary.splits[i];
    const bool last = i + 1 == vocabulary.splits.size();
    if (last && !split.matches_only && (split.pattern == gpt2 || split.pattern.empty())) {
      list.push_back(json_of_byte_level(split.add_prefix_space, !split.pattern.empty()));
      ended = true;
    } else if (!split.pattern.empty()) {
      list.push_back(split_of(split));
    }
  }
  if (!ended) list.push_back(json_of_byte_level(false, /*cuts=*/false));
  if (list.size() == 1) return list.front();
  return {{"type", "Sequence"}, {"pretokenizers", std::move(list)}};
}

// Puts the begin token before a text, where the tokenizer does.
SortedJson post_processor_of(const BpeVocabulary& vocabulary) {
  const std::string begin = TokenTexts(vocabulary)(vocabulary.bos_id);
  if (begin.empty()) return json_of_byte_level(true, true);
  const auto special = [&](int type) {
    return SortedJson{{"SpecialToken", {{"id", begin}, {"type_id", type}}}};
  };
  const auto sequence = [](const char* name, int type) {
    return SortedJson{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  const SortedJson single = SortedJson::array({special(0), sequence("A", 0)});
  const SortedJson pair =
      SortedJson::array({special(0), sequence("A", 0), special(1), sequence("B", 1)});
  const SortedJson token{{"id", begin},
                         {"ids", SortedJson::array({vocabulary.bos_id})},
                         {"tokens", SortedJson::array({begin})}};
  SortedJson special_tokens = SortedJson::object();
  special_tokens[begin] = token;
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", std::move(special_tokens)}};
}

SortedJson config_of(const BpeVocabulary& vocabulary) {
  const TokenTexts text(vocabulary);
  SortedJson config{{"clean_up_tokenization_spaces", false},
                    {"tokenizer_class", "PreTrainedTokenizerFast"}};
  const std::int64_t begin = vocabulary.begin_id >= 0 ? vocabulary.begin_id : vocabulary.bos_id;
  for (const auto& [name, id] : {std::pair{"bos_token", begin},
                                 {"eos_token", vocabulary.eos_id},
                                 {"pad_token", vocabulary.pad_id},
                                 {"unk_token", vocabulary.unknown_id}}) {
    if (const std::string token = text(id); !token.empty()) config[name] = token;
  }
  if (!vocabulary.chat_template.empty()) {
    config["chat_template"] = vocabulary.chat_template;
  }
  return config;
}

}  // namespace

FolderFiles written_tokenizer(const BpeVocabulary& vocabulary, std::string_view where) {
  const SortedJson tokenizer{
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added_tokens_of(vocabulary)},
      {"normalizer", vocabulary.nfc ? SortedJson{{"type", "NFC"}} : SortedJson()},
      {"pre_tokenizer", pre_tokenizer_of(vocabulary)},
      {"post_processor", post_processor_of(vocabulary)},
      {"decoder", json_of_byte_level(true, true)},
      {"model", model_of(vocabulary, where)}};
  return {{"tokenizer.json", dump_json(tokenizer, 1) + "\n"},
          {"tokenizer_config.json", dump_json(config_of(vocabulary), 2) + "\n"}};
}

}  // namespace prefopt::detail
