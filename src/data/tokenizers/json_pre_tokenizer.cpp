// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "core/utf8.h"
#include "data/split_pattern.h"
#include "data/tokenizers/json_parts.h"

namespace prefopt::detail {
namespace {

// Rust's `\w`: Alphabetic, marks, decimal digits, connectors and joiners. The letters among
// symbols, which have no category of theirs, are U+24B6 to U+24E9 and three runs from U+1F130 on.
#define PREFOPT_WORD_CHARACTERS                                                        \
  R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc})"                                                    \
  "\xE2\x80\x8C\xE2\x80\x8D\xE2\x92\xB6-\xE2\x93\xA9\xF0\x9F\x84\xB0-\xF0\x9F\x85\x89" \
  "\xF0\x9F\x85\x90-\xF0\x9F\x85\xA9\xF0\x9F\x85\xB0-\xF0\x9F\x86\x89"
constexpr std::string_view kWords =
    "[" PREFOPT_WORD_CHARACTERS "]+|[^" PREFOPT_WORD_CHARACTERS R"(\s]+)";
#undef PREFOPT_WORD_CHARACTERS
constexpr std::string_view kPunctuation = R"([!-\/:-@\[-`\{-~\p{P}])";

SplitBehavior read_behavior(const JsonNode& node) {
  constexpr SplitBehavior kBehaviors[] = {
      SplitBehavior::kRemoved, SplitBehavior::kIsolated, SplitBehavior::kMergedWithPrevious,
      SplitBehavior::kMergedWithNext, SplitBehavior::kContiguous};
  return kBehaviors[node.choice(
      {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"})];
}

Split read_split(const JsonNode& node) {
  node.only({"type", "pattern", "behavior", "invert"});
  JsonPattern pattern = read_pattern(node.member("pattern"));
  return {.pattern = std::move(pattern.text),
          .is_regex = pattern.is_regex,
          .behavior = read_behavior(node.member("behavior")),
          .invert = node.member("invert").flag_or(false)};
}

ByteLevel read_byte_level(const JsonNode& node) {
  node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  return {.add_prefix_space = node.member("add_prefix_space").flag(),
          .uses_regex = node.member("use_regex").flag_or(true)};
}

Split read_digits(const JsonNode& node) {
  node.only({"type", "individual_digits"});
  const bool alone = node.member("individual_digits").flag_or(false);
  return {.pattern = alone ? R"(\p{N})" : R"(\p{N}+)"};
}

Split read_punctuation(const JsonNode& node) {
  node.only({"type", "behavior"});
  const JsonNode behavior = node.member("behavior");
  return {.pattern = std::string(kPunctuation),
          .behavior = behavior.is_null() ? SplitBehavior::kIsolated : read_behavior(behavior)};
}

void append_steps(const JsonNode& node, std::vector<PreTokenizerStep>& steps) {
  const std::string type = node.type();
  if (type == "Sequence") {
    node.only({"type", "pretokenizers"});
    const JsonNode list = node.member("pretokenizers");
    for (std::size_t i = 0; i < list.size(); ++i) append_steps(list.item(i), steps);
  } else if (type == "ByteLevel") {
    steps.emplace_back(read_byte_level(node));
  } else if (type == "Split") {
    steps.emplace_back(read_split(node));
  } else if (type == "Metaspace") {
    steps.emplace_back(read_metaspace(node));
  } else if (type == "Digits") {
    steps.emplace_back(read_digits(node));
  } else if (type == "Punctuation") {
    steps.emplace_back(read_punctuation(node));
  } else if (type == "Whitespace") {
    node.only({"type"});
    steps.emplace_back(
        Split{.pattern = std::string(kWords), .behavior = SplitBehavior::kRemoved, .invert = true});
  } else if (type == "WhitespaceSplit") {
    node.only({"type"});
    steps.emplace_back(Split{.pattern = R"(\s)", .behavior = SplitBehavior::kRemoved});
  } else {
    node.member("type").fail(
        "'Sequence', 'Split', 'Metaspace', 'ByteLevel', 'Digits', 'Punctuation', 'Whitespace' or "
        "'WhitespaceSplit', which are all that is known here");
  }
}

}  // namespace

Metaspace read_metaspace(const JsonNode& node) {
  node.only({"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  const JsonNode replacement = node.member("replacement");
  Metaspace step{.replacement = replacement.text(), .splits = node.member("split").flag_or(true)};
  if (step.replacement.empty() ||
      utf8_character(step.replacement, 0).length != step.replacement.size()) {
    replacement.fail("one character");
  }
  constexpr PrependScheme kSchemes[] = {PrependScheme::kAlways, PrependScheme::kFirst,
                                        PrependScheme::kNever};
  const JsonNode scheme = node.member("prepend_scheme");
  if (!scheme.is_null()) step.scheme = kSchemes[scheme.choice({"always", "first", "never"})];
  // The older field has to say the same, as in `tokenizers`.
  const JsonNode prefix = node.member("add_prefix_space");
  if (!prefix.flag_or(true) && step.scheme != PrependScheme::kNever) {
    prefix.fail("true, but for the prepend_scheme 'never'");
  }
  return step;
}

std::vector<PreTokenizerStep> read_pre_tokenizer(const JsonNode& pre_tokenizer) {
  std::vector<PreTokenizerStep> steps;
  if (!pre_tokenizer.is_null()) append_steps(pre_tokenizer, steps);
  return steps;
}

}  // namespace prefopt::detail
