// SPDX-License-Identifier: Apache-2.0
#include <iterator>
#include <utility>

#include "data/tokenizers/base64.h"
#include "data/tokenizers/charsmap.h"
#include "data/tokenizers/json_parts.h"
#include "data/tokenizers/normalizer.h"

namespace prefopt::detail {
namespace {

Strip read_ends(const JsonNode& node) {
  node.only({"type", "strip_left", "strip_right"});
  return {.left = node.member("strip_left").flag(), .right = node.member("strip_right").flag()};
}

Charsmap read_charsmap(const JsonNode& node) {
  node.only({"type", "precompiled_charsmap"});
  const JsonNode bytes = node.member("precompiled_charsmap");
  const auto decoded = from_base64(bytes.text());
  if (!decoded) bytes.fail("base64");
  Charsmap step{*decoded};
  CharsmapTable(step.bytes, bytes.where());  // refused here, where its place is known
  return step;
}

Prepend read_prepend(const JsonNode& node) {
  node.only({"type", "prepend"});
  return {node.member("prepend").text()};
}

void append_steps(const JsonNode& node, std::vector<NormalizerStep>& steps) {
  const std::string type = node.type();
  if (type == "Sequence") {
    node.only({"type", "normalizers"});
    const JsonNode list = node.member("normalizers");
    for (std::size_t i = 0; i < list.size(); ++i) append_steps(list.item(i), steps);
    return;
  }
  if (type == "Prepend") return steps.emplace_back(read_prepend(node)), void();
  if (type == "Replace") return steps.emplace_back(read_replace(node)), void();
  if (type == "Strip") return steps.emplace_back(read_ends(node)), void();
  if (type == "Precompiled") return steps.emplace_back(read_charsmap(node)), void();
  static const std::pair<std::string_view, NormalizerStep> kBare[] = {
      {"NFC", UnicodeForm{.composes = true, .compatible = false}},
      {"NFD", UnicodeForm{.composes = false, .compatible = false}},
      {"NFKC", UnicodeForm{.composes = true, .compatible = true}},
      {"NFKD", UnicodeForm{.composes = false, .compatible = true}},
      {"Lowercase", Lowercase{}},
      {"StripAccents", StripAccents{}},
      {"Nmt", Nmt{}}};
  const auto bare = std::find_if(std::begin(kBare), std::end(kBare),
                                 [&](const auto& known) { return known.first == type; });
  if (bare == std::end(kBare)) {
    node.member("type").fail(
        "'Sequence', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Strip', 'StripAccents', "
        "'Prepend', 'Replace', 'Nmt' or 'Precompiled', which are all that is known here");
  }
  node.only({"type"});
  steps.push_back(bare->second);
}

}  // namespace

JsonPattern read_pattern(const JsonNode& pattern) {
  pattern.only({"Regex", "String"});
  const JsonNode regex = pattern.member("Regex");
  JsonPattern result{.text = regex.is_null() ? pattern.member("String").text() : regex.text(),
                     .is_regex = !regex.is_null()};
  if (result.text.empty()) pattern.fail("a pattern of one character at least", "an empty one");
  if (result.is_regex) SplitPattern(result.text, pattern.where());  // likewise
  return result;
}

Replace read_replace(const JsonNode& node) {
  node.only({"type", "pattern", "content"});
  JsonPattern pattern = read_pattern(node.member("pattern"));
  return {.pattern = std::move(pattern.text),
          .is_regex = pattern.is_regex,
          .content = node.member("content").text()};
}

std::vector<NormalizerStep> read_normalizer(const JsonNode& normalizer) {
  std::vector<NormalizerStep> steps;
  if (!normalizer.is_null()) append_steps(normalizer, steps);
  return steps;
}

}  // namespace prefopt::detail
