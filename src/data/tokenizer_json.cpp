// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "core/file.h"
#include "core/json.h"
#include "data/split_pattern.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxTokens = std::uint64_t{1} << 24;
// Ids that are no token: room for them is made, so a file must not ask for much of it.
constexpr std::uint64_t kMaxGaps = std::uint64_t{1} << 16;

/// A value of the file and its place, which leads every error: `PATH: model.vocab: …`.
class Node {
 public:
  Node(const SortedJson& json, std::string file) : json_(&json), file_(std::move(file)) {}

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", where(), expected, got));
  }
  [[noreturn]] void fail(std::string_view expected) const { fail(expected, shown()); }

  /// Short enough for an error.
  std::string shown() const {
    constexpr std::size_t kMaxShown = 60;
    if (json_->is_object() || json_->is_array()) return std::string(json_type_name(*json_));
    if (json_->is_string()) {
      const auto& text = json_->get_ref<const std::string&>();
      return text.size() > kMaxShown ? "a long text" : fmt::format("'{}'", shown_text(text));
    }
    return json_->dump();
  }

  bool is_null() const { return json_->is_null(); }
  bool is_list() const { return json_->is_array(); }
  bool is_text() const { return json_->is_string(); }
  bool is_object() const { return json_->is_object(); }
  const SortedJson& json() const { return *json_; }
  std::string where() const {
    return field_.empty() ? file_ : fmt::format("{}: {}", file_, field_);
  }

  /// A missing member reads as null.
  Node member(const std::string& key) const {
    static const SortedJson null;
    if (!json_->is_object()) fail("an object");
    const auto found = json_->find(key);
    return {found == json_->end() ? null : *found, file_,
            field_.empty() ? key : fmt::format("{}.{}", field_, key)};
  }
  std::size_t size() const {
    if (!json_->is_array()) fail("a list");
    return json_->size();
  }
  Node item(std::size_t i) const { return {(*json_)[i], file_, fmt::format("{}[{}]", field_, i)}; }

  /// Members that are not named here would change results unseen.
  void only(std::initializer_list<std::string_view> known) const {
    if (!json_->is_object()) fail("an object");
    for (const auto& [key, value] : json_->items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        fail("no other fields than those known here", fmt::format("'{}'", shown_text(key)));
      }
    }
  }

  const std::string& text() const {
    if (!json_->is_string()) fail("text");
    return json_->get_ref<const std::string&>();
  }
  bool flag() const {
    if (!json_->is_boolean()) fail("true or false");
    return json_->get<bool>();
  }
  bool flag_or(bool otherwise) const { return is_null() ? otherwise : flag(); }
  std::int64_t id() const {
    if (!json_->is_number_unsigned() || json_->get<std::uint64_t>() >= kMaxTokens) {
      fail(fmt::format("an id in [0, {})", kMaxTokens));
    }
    return json_->get<std::int64_t>();
  }
  std::string type() const { return member("type").text(); }

 private:
  Node(const SortedJson& json, std::string file, std::string field)
      : json_(&json), file_(std::move(file)), field_(std::move(field)) {}

  const SortedJson* json_;
  std::string file_, field_;
};

/// Expects null, or the empty value that means "not used".
void expect_unused(const Node& node) {
  const bool unused = node.is_null() || (node.is_text() && node.text().empty()) ||
                      (node.json().is_number() && node.json().get<double>() == 0);
  if (!unused) node.fail("nothing, which is all that is known here");
}

// --- model

std::string dump_id(const SortedJson& id) {
  return id.is_number() ? id.dump() : std::string(json_type_name(id));
}

void read_vocabulary(const Node& vocab, BpeVocabulary& result) {
  if (!vocab.is_object()) vocab.fail("an object of tokens and ids");
  const std::uint64_t count = vocab.json().size();
  if (count > kMaxTokens) {
    vocab.fail(fmt::format("at most {} tokens", kMaxTokens), std::to_string(count));
  }
  const std::uint64_t limit = std::min(count + kMaxGaps, kMaxTokens);
  for (const auto& [token, id] : vocab.json().items()) {
    const bool in_range = id.is_number_unsigned() && id.get<std::uint64_t>() < limit;
    if (!in_range) {
      vocab.fail(fmt::format("an id in [0, {}) of '{}'", limit, shown_text(token)), dump_id(id));
    }
    if (token.empty()) vocab.fail("tokens of one character at least", "an empty one");
    const auto at = id.get<std::size_t>();
    if (at >= result.tokens.size()) result.tokens.resize(at + 1);
    if (!result.tokens[at].empty()) {
      vocab.fail(fmt::format("an id of its own for '{}'", shown_text(token)),
                 fmt::format("{}, which '{}' has too", at, shown_text(result.tokens[at])));
    }
    result.tokens[at] = token;
  }
}

// "a b" or ["a", "b"].
void read_merges(const Node& merges, BpeVocabulary& result) {
  const std::size_t count = merges.size();
  if (count > kMaxTokens) {
    merges.fail(fmt::format("at most {} merges", kMaxTokens), std::to_string(count));
  }
  result.merges.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const SortedJson& merge = merges.json()[i];
    std::string left, right;
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const std::size_t space = text.find(' ');
      if (space != std::string::npos) {
        left = text.substr(0, space);
        right = text.substr(space + 1);
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    }
    if (left.empty() || right.empty() ||
        (merge.is_string() && right.find(' ') != std::string::npos)) {
      merges.item(i).fail("two tokens");
    }
    result.merges.emplace_back(std::move(left), std::move(right));
  }
}

void read_model(const Node& model, BpeVocabulary& result) {
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  const Node type = model.member("type");  // older files lack it
  if (!type.is_null() && type.text() != "BPE") type.fail("'BPE', which is all that is known here");
  for (const char* unused : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    expect_unused(model.member(unused));
  }
  read_vocabulary(model.member("vocab"), result);
  read_merges(model.member("merges"), result);
  result.ignore_merges = model.member("ignore_merges").flag_or(false);
  result.fuse_unknown = model.member("fuse_unk").flag_or(false);
  const Node unknown = model.member("unk_token");
  if (!unknown.is_null()) {
    const auto found = std::find(result.tokens.begin(), result.tokens.end(), unknown.text());
    // As in `tokenizers`, one that is an added token only is never used.
    if (found != result.tokens.end()) result.unknown_id = found - result.tokens.begin();
  }
  // With a token for each byte nothing is left to fall back from.
  if (model.member("byte_fallback").flag_or(false)) {
    model.member("byte_fallback").fail("false for a tokenizer of bytes");
  }
}

// --- what comes before the model

void read_added(const Node& added, BpeVocabulary& result) {
  if (added.is_null()) return;
  for (std::size_t i = 0; i < added.size(); ++i) {
    const Node node = added.item(i);
    node.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    if (node.member("single_word").flag_or(false)) {
      node.member("single_word").fail("false, which is all that is known here");
    }
    AddedToken token{.content = node.member("content").text(), .id = node.member("id").id()};
    token.special = node.member("special").flag();
    token.normalized = node.member("normalized").flag_or(!token.special);
    token.strip_left = node.member("lstrip").flag_or(false);
    token.strip_right = node.member("rstrip").flag_or(false);
    if (token.content.empty()) node.member("content").fail("text");
    result.added.push_back(std::move(token));
  }
}

void read_normalizer(const Node& normalizer, BpeVocabulary& result) {
  if (normalizer.is_null()) return;
  const std::string type = normalizer.type();
  if (type == "Sequence") {
    normalizer.only({"type", "normalizers"});
    const Node list = normalizer.member("normalizers");
    for (std::size_t i = 0; i < list.size(); ++i) read_normalizer(list.item(i), result);
  } else if (type == "NFC") {
    normalizer.only({"type"});
    result.nfc = true;
  } else {
    normalizer.member("type").fail("'NFC' or 'Sequence', which is all that is known here");
  }
}

WordSplit read_split(const Node& node) {
  node.only({"type", "pattern", "behavior", "invert"});
  const Node pattern = node.member("pattern");
  pattern.only({"Regex", "String"});
  const Node regex = pattern.member("Regex");
  const bool inverted = node.member("invert").flag_or(false);
  const Node behavior = node.member("behavior");
  WordSplit split{.pattern = regex.is_null() ? quote_pattern(pattern.member("String").text())
                                             : regex.text()};
  split.matches_only = behavior.text() == "Removed" && inverted;
  if (behavior.text() != "Isolated" && !split.matches_only) {
    behavior.fail("'Isolated', or 'Removed' with invert, which are all that is known here");
  }
  SplitPattern(split.pattern, pattern.where());  // refused here, where its place is known
  return split;
}

void read_pre_tokenizer(const Node& node, BpeVocabulary& result, bool last) {
  if (node.is_null()) node.fail("a pre-tokenizer that ends in 'ByteLevel'");
  const std::string type = node.type();
  if (type == "Sequence") {
    node.only({"type", "pretokenizers"});
    const Node list = node.member("pretokenizers");
    const std::size_t count = list.size();
    if (count == 0) list.fail("a list that ends in 'ByteLevel'", "an empty one");
    for (std::size_t i = 0; i < count; ++i) {
      read_pre_tokenizer(list.item(i), result, last && i + 1 == count);
    }
    return;
  }
  if ((type == "ByteLevel") != last) {
    node.member("type").fail("'ByteLevel' at the end, and only there");
  }
  if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    WordSplit split{.add_prefix_space = node.member("add_prefix_space").flag()};
    if (node.member("use_regex").flag_or(true)) {
      split.pattern = named_word_splits("gpt-2", node.where()).front().pattern;
    }
    result.splits.push_back(std::move(split));
  } else if (type == "Digits") {
    node.only({"type", "individual_digits"});
    const bool alone = node.member("individual_digits").flag_or(false);
    result.splits.push_back({.pattern = alone ? R"(\p{N})" : R"(\p{N}+)"});
  } else if (type == "Split") {
    result.splits.push_back(read_split(node));
  } else {
    node.member("type").fail(
        "'Sequence', 'Split', 'Digits' or 'ByteLevel', which are all that is known here");
  }
}

// --- what comes after it

void expect_byte_level(const Node& decoder) {
  const std::string type = decoder.is_null() ? "" : decoder.type();
  if (type == "Sequence" && decoder.member("decoders").size() == 1) {
    return expect_byte_level(decoder.member("decoders").item(0));
  }
  if (type != "ByteLevel")
    decoder.fail("'ByteLevel', which is all that is known here",
                 type.empty() ? "nothing" : fmt::format("'{}'", type));
}

/// The tokens that a post-processor puts around a text.
struct Ends {
  std::string begin, end;
};

void read_template(const Node& node, Ends& ends) {
  const Node single = node.member("single");
  bool text_seen = false;
  for (std::size_t i = 0; i < single.size(); ++i) {
    const Node piece = single.item(i);
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

void read_post_processor(const Node& node, Ends& ends) {
  if (node.is_null()) return;
  const std::string type = node.type();
  if (type == "Sequence") {
    const Node list = node.member("processors");
    for (std::size_t i = 0; i < list.size(); ++i) read_post_processor(list.item(i), ends);
  } else if (type == "TemplateProcessing") {
    read_template(node, ends);
  } else if (type != "ByteLevel") {  // that one changes offsets only
    node.member("type").fail(
        "'TemplateProcessing', 'ByteLevel' or 'Sequence', which are all that is known here");
  }
}

// --- tokenizer_config.json

/// Reads "<s>" or {"content": "<s>", …}; empty if there is none.
std::string token_text(const Node& node) {
  if (node.is_null()) return "";
  return node.is_text() ? node.text() : node.member("content").text();
}

// One text, or a list of named ones.
std::string template_text(const Node& node) {
  if (node.is_null()) return "";
  if (!node.is_list()) return node.text();
  for (std::size_t i = 0; i < node.size(); ++i) {
    if (node.item(i).member("name").text() == "default") {
      return node.item(i).member("template").text();
    }
  }
  return "";
}

std::int64_t id_of(const std::string& token, const BpeVocabulary& vocabulary) {
  for (const AddedToken& added : vocabulary.added) {
    if (added.content == token) return added.id;
  }
  const auto found = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), token);
  return found == vocabulary.tokens.end() ? -1 : found - vocabulary.tokens.begin();
}

std::int64_t id_of(const Node& node, const BpeVocabulary& vocabulary) {
  const std::string token = token_text(node);
  if (token.empty()) return -1;
  const std::int64_t id = id_of(token, vocabulary);
  if (id < 0) node.fail("a token of tokenizer.json", fmt::format("'{}'", token));
  return id;
}

void read_config(const fs::path& path, bool text_begins, BpeVocabulary& result) {
  const std::string file = path.string();
  const SortedJson json =
      parse_json<CheckpointError, SortedJson>(read_file<CheckpointError>(file), file);
  const Node config(json, file);
  // The configuration wins where it speaks, as in transformers.
  const bool adds_bos = config.member("add_bos_token").flag_or(text_begins);
  const std::int64_t bos = id_of(config.member("bos_token"), result);
  result.begin_id = bos;
  if (!adds_bos) result.bos_id = -1;
  if (adds_bos && result.bos_id < 0) result.bos_id = bos;
  if (const auto eos = id_of(config.member("eos_token"), result); eos >= 0) result.eos_id = eos;
  result.pad_id = id_of(config.member("pad_token"), result);
  result.chat_template = template_text(config.member("chat_template"));
}

}  // namespace

BpeVocabulary read_tokenizer_json(const std::string& path) {
  const SortedJson json =
      parse_json<CheckpointError, SortedJson>(read_file<CheckpointError>(path), path);
  const Node file(json, path);
  file.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
             "post_processor", "decoder", "model"});
  BpeVocabulary result;
  read_model(file.member("model"), result);
  read_added(file.member("added_tokens"), result);
  read_normalizer(file.member("normalizer"), result);
  read_pre_tokenizer(file.member("pre_tokenizer"), result, /*last=*/true);
  expect_byte_level(file.member("decoder"));
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
