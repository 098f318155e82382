// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "data/tokenizers/json_parts.h"

namespace prefopt::detail {
namespace {

/// Expects null, or the empty value that means "not used".
void expect_unused(const JsonNode& node) {
  const bool unused = node.is_null() || (node.is_text() && node.text().empty()) ||
                      (node.json().is_number() && node.json().get<double>() == 0);
  if (!unused) node.fail("nothing, which is all that is known here");
}

std::string dump_id(const SortedJson& id) {
  return id.is_number() ? id.dump() : std::string(json_type_name(id));
}

void check_count(const JsonNode& list, std::uint64_t count, std::string_view what) {
  if (count <= kMaxTokenIds) return;
  list.fail(fmt::format("at most {} {}", kMaxTokenIds, what), std::to_string(count));
}

void read_ids(const JsonNode& vocab, std::vector<std::string>& tokens) {
  if (!vocab.is_object()) vocab.fail("an object of tokens and ids");
  const std::uint64_t count = vocab.json().size();
  check_count(vocab, count, "tokens");
  const std::uint64_t limit = std::min(count + kMaxIdGaps, kMaxTokenIds);
  for (const auto& [token, id] : vocab.json().items()) {
    const bool in_range = id.is_number_unsigned() && id.get<std::uint64_t>() < limit;
    if (!in_range) {
      vocab.fail(fmt::format("an id in [0, {}) of '{}'", limit, shown_text(token)), dump_id(id));
    }
    if (token.empty()) vocab.fail("tokens of one character at least", "an empty one");
    const auto at = id.get<std::size_t>();
    if (at >= tokens.size()) tokens.resize(at + 1);
    if (!tokens[at].empty()) {
      vocab.fail(fmt::format("its own id for '{}'", shown_text(token)),
                 fmt::format("{}, which '{}' has too", at, shown_text(tokens[at])));
    }
    tokens[at] = token;
  }
}

using Merges = std::vector<std::pair<std::string, std::string>>;

// "a b" or ["a", "b"].
void read_merges(const JsonNode& merges, Merges& result) {
  const std::size_t count = merges.size();
  check_count(merges, count, "merges");
  result.reserve(count);
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
    result.emplace_back(std::move(left), std::move(right));
  }
}

void read_bpe(const JsonNode& model, TokenizerSpec& spec) {
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  for (const char* unused : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    expect_unused(model.member(unused));
  }
  read_ids(model.member("vocab"), spec.tokens);
  BpeSpec bpe;
  read_merges(model.member("merges"), bpe.merges);
  bpe.ignore_merges = model.member("ignore_merges").flag_or(false);
  bpe.fuse_unknown = model.member("fuse_unk").flag_or(false);
  bpe.byte_fallback = model.member("byte_fallback").flag_or(false);
  spec.model = std::move(bpe);
  const JsonNode unknown = model.member("unk_token");
  if (unknown.is_null()) return;
  const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), unknown.text());
  // As in `tokenizers`, one that is an added token only is never used.
  if (found != spec.tokens.end()) spec.unknown_id = found - spec.tokens.begin();
}

// Tokens with their scores: [["▁the", -3.2], …].
void read_unigram(const JsonNode& model, TokenizerSpec& spec) {
  model.only({"type", "unk_id", "vocab", "byte_fallback"});
  const JsonNode vocab = model.member("vocab");
  const std::size_t count = vocab.size();
  check_count(vocab, count, "tokens");
  UnigramSpec unigram{.byte_fallback = model.member("byte_fallback").flag_or(false)};
  spec.tokens.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const SortedJson& entry = vocab.json()[i];
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      vocab.item(i).fail("a token and its score");
    }
    spec.tokens.push_back(entry[0].get<std::string>());
    unigram.scores.push_back(entry[1].get<double>());
    if (spec.tokens.back().empty()) vocab.item(i).fail("a token of one character", "an empty one");
  }
  const JsonNode unknown = model.member("unk_id");
  if (unknown.is_null()) unknown.fail("the id of the unknown token");
  spec.unknown_id = unknown.id();
  if (spec.unknown_id >= std::ssize(spec.tokens)) {
    unknown.fail(fmt::format("an id in [0, {})", spec.tokens.size()));
  }
  spec.model = std::move(unigram);
}

}  // namespace

void read_model(const JsonNode& model, TokenizerSpec& spec) {
  const JsonNode type = model.member("type");  // older files lack it
  if (type.is_null() || type.text() == "BPE") return read_bpe(model, spec);
  if (type.text() == "Unigram") return read_unigram(model, spec);
  type.fail("'BPE' or 'Unigram', which are all that is known here");
}

}  // namespace prefopt::detail
