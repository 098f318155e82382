// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "core/json.h"
#include "core/utf8.h"
#include "data/tokenizers/written_parts.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// The tokenizer's own text of a token, by id.
class TokenTexts {
 public:
  explicit TokenTexts(const TokenizerSpec& spec) : spec_(spec) {}

  /// Empty where there is no such token.
  std::string operator()(std::int64_t id) const {
    for (const AddedToken& added : spec_.added) {
      if (added.id == id) return added.content;
    }
    const bool known = id >= 0 && id < std::ssize(spec_.tokens);
    return known ? spec_.tokens[static_cast<std::size_t>(id)] : "";
  }

 private:
  const TokenizerSpec& spec_;
};

SortedJson json_of(const TokenizerSpec& spec, const BpeSpec& model) {
  SortedJson vocab = SortedJson::object();
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.tokens[id].empty()) vocab[spec.tokens[id]] = id;
  }
  SortedJson merges = SortedJson::array();
  for (const auto& [left, right] : model.merges) {
    const bool plain = left.find(' ') == std::string::npos && right.find(' ') == std::string::npos;
    // Versions of `tokenizers` before 0.20 know the first form alone.
    merges.push_back(plain ? SortedJson(fmt::format("{} {}", left, right))
                           : SortedJson::array({left, right}));
  }
  const std::string unknown = TokenTexts(spec)(spec.unknown_id);
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown.empty() ? SortedJson() : SortedJson(unknown)},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", model.fuse_unknown},
          {"byte_fallback", model.byte_fallback},
          {"ignore_merges", model.ignore_merges},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

SortedJson json_of(const TokenizerSpec& spec, const UnigramSpec& model) {
  SortedJson vocab = SortedJson::array();
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) {
    vocab.push_back(SortedJson::array({spec.tokens[id], model.scores[id]}));
  }
  return {{"type", "Unigram"},
          {"unk_id", spec.unknown_id},
          {"vocab", std::move(vocab)},
          {"byte_fallback", model.byte_fallback}};
}

SortedJson added_tokens_of(const TokenizerSpec& spec) {
  std::vector<AddedToken> added = spec.added;
  // `tokenizers` gives ids in the order of the list.
  std::sort(added.begin(), added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  SortedJson list = SortedJson::array();
  for (const AddedToken& token : added) {
    list.push_back({{"id", token.id},
                    {"content", token.content},
                    {"single_word", token.single_word},
                    {"lstrip", token.strip_left},
                    {"rstrip", token.strip_right},
                    {"normalized", token.normalized},
                    {"special", token.special}});
  }
  return list;
}

// Puts the begin token before a text, where the tokenizer does.
SortedJson post_processor_of(const TokenizerSpec& spec) {
  const std::string begin = TokenTexts(spec)(spec.bos_id);
  // One that changes offsets alone: in its place transformers would make one up.
  if (begin.empty()) {
    return {{"type", "ByteLevel"},
            {"add_prefix_space", true},
            {"trim_offsets", true},
            {"use_regex", true}};
  }
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
                         {"ids", SortedJson::array({spec.bos_id})},
                         {"tokens", SortedJson::array({begin})}};
  SortedJson special_tokens = SortedJson::object();
  special_tokens[begin] = token;
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", std::move(special_tokens)}};
}

SortedJson config_of(const TokenizerSpec& spec) {
  const TokenTexts text(spec);
  SortedJson config{{"clean_up_tokenization_spaces", false},
                    {"tokenizer_class", "PreTrainedTokenizerFast"}};
  const std::int64_t begin = spec.begin_id >= 0 ? spec.begin_id : spec.bos_id;
  for (const auto& [name, id] : {std::pair{"bos_token", begin},
                                 {"eos_token", spec.eos_id},
                                 {"pad_token", spec.pad_id},
                                 {"unk_token", spec.unknown_id}}) {
    if (const std::string token = text(id); !token.empty()) config[name] = token;
  }
  if (!spec.chat_template.empty()) {
    config["chat_template"] = spec.chat_template;
  }
  return config;
}

}  // namespace

void check_writable(const TokenizerSpec& spec, std::string_view where) {
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) {
    if (find_invalid_utf8(spec.tokens[id]) == std::string::npos) continue;
    throw CheckpointError(fmt::format(
        "{}: expected tokens in UTF-8, to be written as tokenizer.json, got other bytes in token "
        "{}",
        where, id));
  }
}

FolderFiles written_tokenizer(const TokenizerSpec& spec, std::string_view where) {
  check_writable(spec, where);
  const SortedJson model =
      std::visit([&](const auto& kind) { return json_of(spec, kind); }, spec.model);
  const SortedJson tokenizer{{"version", "1.0"},
                             {"truncation", nullptr},
                             {"padding", nullptr},
                             {"added_tokens", added_tokens_of(spec)},
                             {"normalizer", written_normalizer(spec.normalizer)},
                             {"pre_tokenizer", written_pre_tokenizer(spec.pre_tokenizer)},
                             {"post_processor", post_processor_of(spec)},
                             {"decoder", written_decoder(spec.decoder)},
                             {"model", model}};
  return {{"tokenizer.json", dump_json(tokenizer, 1) + "\n"},
          {"tokenizer_config.json", dump_json(config_of(spec), 2) + "\n"}};
}

}  // namespace prefopt::detail
