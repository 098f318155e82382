// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "data/tokenizer_config.h"
#include "data/tokenizers/json_parts.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

void read_added(const JsonNode& added, TokenizerSpec& result) {
  if (added.is_null()) return;
  for (std::size_t i = 0; i < added.size(); ++i) {
    const JsonNode node = added.item(i);
    node.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token{.content = node.member("content").text(), .id = node.member("id").id()};
    token.special = node.member("special").flag();
    token.normalized = node.member("normalized").flag_or(!token.special);
    token.strip_left = node.member("lstrip").flag_or(false);
    token.strip_right = node.member("rstrip").flag_or(false);
    token.single_word = node.member("single_word").flag_or(false);
    if (token.content.empty()) node.member("content").fail("text");
    result.added.push_back(std::move(token));
  }
}

/// The tokens that a post-processor puts around a text.
struct Ends {
  std::string begin, end;
};

void read_template(const JsonNode& node, Ends& ends) {
  const JsonNode single = node.member("single");
  bool text_seen = false;
  for (std::size_t i = 0; i < single.size(); ++i) {
    const JsonNode piece = single.item(i);
    piece.only({"Sequence", "SpecialToken"});
    if (!piece.member("Sequence").is_null()) {
      if (text_seen) piece.fail("the text once", "it twice");
      text_seen = true;
      continue;
    }
    std::string& token = text_seen ? ends.end : ends.begin;
    if (!token.empty()) piece.fail("one token at most on each side of the text", "two");
    token = piece.member("SpecialToken").member("id").text();
  }
  if (!text_seen) single.fail("the text somewhere", "none");
}

void read_post_processor(const JsonNode& node, Ends& ends) {
  if (node.is_null()) return;
  const std::string type = node.type();
  if (type == "Sequence") {
    const JsonNode list = node.member("processors");
    for (std::size_t i = 0; i < list.size(); ++i) read_post_processor(list.item(i), ends);
  } else if (type == "TemplateProcessing") {
    read_template(node, ends);
  } else if (type != "ByteLevel") {  // that one changes offsets only
    node.member("type").fail(
        "'TemplateProcessing', 'ByteLevel' or 'Sequence', which are all that is known here");
  }
}

// --- tokenizer_config.json

std::string default_template(const JsonNode& field) {
  for (NamedTemplate& one : chat_templates(field)) {
    if (one.name == "default") return std::move(one.text);
  }
  return "";
}

std::int64_t id_of(const std::string& token, const TokenizerSpec& spec) {
  if (token.empty()) return -1;
  for (const AddedToken& added : spec.added) {
    if (added.content == token) return added.id;
  }
  const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), token);
  return found == spec.tokens.end() ? -1 : found - spec.tokens.begin();
}

std::int64_t id_of(const JsonNode& node, const TokenizerSpec& spec) {
  const std::string token = token_text(node);
  if (token.empty()) return -1;
  const std::int64_t id = id_of(token, spec);
  if (id < 0) node.fail("a token of tokenizer.json", fmt::format("'{}'", token));
  return id;
}

void read_config(const fs::path& path, bool text_begins, TokenizerSpec& result) {
  const std::string file = path.string();
  const SortedJson json =
      parse_json<CheckpointError, SortedJson>(read_file<CheckpointError>(file), file);
  const JsonNode config(json, file);
  // The configuration wins where it speaks, as in transformers.
  const bool adds_bos = config.member("add_bos_token").flag_or(text_begins);
  const std::int64_t bos = id_of(config.member("bos_token"), result);
  result.begin_id = bos;
  if (!adds_bos) result.bos_id = -1;
  if (adds_bos && result.bos_id < 0) result.bos_id = bos;
  if (const auto eos = id_of(config.member("eos_token"), result); eos >= 0) result.eos_id = eos;
  // transformers would add a padding token that the vocabulary lacks; nothing is padded here.
  result.pad_id = id_of(token_text(config.member("pad_token")), result);
  result.chat_template = default_template(config.member("chat_template"));
}

}  // namespace

TokenizerSpec read_tokenizer_json(const std::string& path) {
  const SortedJson json =
      parse_json<CheckpointError, SortedJson>(read_file<CheckpointError>(path), path);
  const JsonNode file(json, path);
  file.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
             "post_processor", "decoder", "model"});
  TokenizerSpec result;
  read_model(file.member("model"), result);
  read_added(file.member("added_tokens"), result);
  result.normalizer = read_normalizer(file.member("normalizer"));
  result.pre_tokenizer = read_pre_tokenizer(file.member("pre_tokenizer"));
  result.decoder = read_decoder(file.member("decoder"));
  result.joins_with_spaces = file.member("decoder").is_null();
  Ends ends;
  read_post_processor(file.member("post_processor"), ends);
  for (const auto& [token, id] :
       {std::pair{&ends.begin, &result.bos_id}, {&ends.end, &result.eos_id}}) {
    if (token->empty()) continue;
    *id = id_of(*token, result);
    if (*id < 0) {
      file.member("post_processor").fail("tokens of the vocabulary", fmt::format("'{}'", *token));
    }
  }

  const fs::path folder = fs::path(path).parent_path();
  std::error_code ignored;
  if (const auto config = folder / "tokenizer_config.json"; fs::exists(config, ignored)) {
    read_config(config, result.bos_id >= 0, result);
  }
  if (const auto jinja = folder / "chat_template.jinja"; fs::exists(jinja, ignored)) {
    result.chat_template = read_file<CheckpointError>(jinja.string());
  }
  return result;
}

}  // namespace prefopt::detail
