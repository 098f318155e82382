// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/written_parts.h"

#include <string>
#include <utility>

#include "data/tokenizers/base64.h"

namespace prefopt::detail {
namespace {

SortedJson pattern_of(const std::string& pattern, bool is_regex) {
  SortedJson json = SortedJson::object();
  json[is_regex ? "Regex" : "String"] = pattern;
  return json;
}

SortedJson bare(const char* type) { return {{"type", type}}; }

SortedJson json_of(const Prepend& step) { return {{"type", "Prepend"}, {"prepend", step.text}}; }

SortedJson json_of(const Replace& step) {
  return {{"type", "Replace"},
          {"pattern", pattern_of(step.pattern, step.is_regex)},
          {"content", step.content}};
}

SortedJson json_of(const UnicodeForm& form) {
  return bare(form.compatible ? (form.composes ? "NFKC" : "NFKD")
                              : (form.composes ? "NFC" : "NFD"));
}

SortedJson json_of(const Lowercase&) { return bare("Lowercase"); }

SortedJson json_of(const Strip& step) {
  return {{"type", "Strip"}, {"strip_left", step.left}, {"strip_right", step.right}};
}

SortedJson json_of(const StripAccents&) { return bare("StripAccents"); }
SortedJson json_of(const Nmt&) { return bare("Nmt"); }

SortedJson json_of(const Charsmap& step) {
  return {{"type", "Precompiled"}, {"precompiled_charsmap", to_base64(step.bytes)}};
}

const char* name_of(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      return "Removed";
    case SplitBehavior::kMergedWithPrevious:
      return "MergedWithPrevious";
    case SplitBehavior::kMergedWithNext:
      return "MergedWithNext";
    case SplitBehavior::kContiguous:
      return "Contiguous";
    case SplitBehavior::kIsolated:
      break;
  }
  return "Isolated";
}

const char* name_of(PrependScheme scheme) {
  if (scheme == PrependScheme::kAlways) return "always";
  return scheme == PrependScheme::kFirst ? "first" : "never";
}

SortedJson json_of(const Split& step) {
  return {{"type", "Split"},
          {"pattern", pattern_of(step.pattern, step.is_regex)},
          {"behavior", name_of(step.behavior)},
          {"invert", step.invert}};
}

SortedJson json_of(const Metaspace& step) {
  return {{"type", "Metaspace"},
          {"replacement", step.replacement},
          {"prepend_scheme", name_of(step.scheme)},
          {"split", step.splits}};
}

SortedJson json_of(const ByteLevel& step) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", step.add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", step.uses_regex}};
}

SortedJson json_of(const ByteFallback&) { return bare("ByteFallback"); }
SortedJson json_of(const Fuse&) { return bare("Fuse"); }

SortedJson json_of(const StripCharacters& step) {
  return {
      {"type", "Strip"}, {"content", step.character}, {"start", step.start}, {"stop", step.stop}};
}

SortedJson json_of(const MetaspaceDecoder& step) {
  return json_of(
      Metaspace{.replacement = step.replacement,
                .scheme = step.drops_first ? PrependScheme::kAlways : PrependScheme::kNever});
}

SortedJson json_of(const ByteLevelDecoder&) {
  return json_of(ByteLevel{.add_prefix_space = true, .uses_regex = true});
}

/// Null, the only step, or a sequence whose steps are under `key`.
template <class Step>
SortedJson written(const std::vector<Step>& steps, const char* key) {
  SortedJson list = SortedJson::array();
  for (const Step& step : steps) {
    list.push_back(std::visit([](const auto& kind) { return json_of(kind); }, step));
  }
  if (list.empty()) return nullptr;
  if (list.size() == 1) return list.front();
  return {{"type", "Sequence"}, {key, std::move(list)}};
}

}  // namespace

SortedJson written_normalizer(const std::vector<NormalizerStep>& steps) {
  return written(steps, "normalizers");
}

SortedJson written_pre_tokenizer(const std::vector<PreTokenizerStep>& steps) {
  return written(steps, "pretokenizers");
}

SortedJson written_decoder(const std::vector<DecoderStep>& steps) {
  return written(steps, "decoders");
}

}  // namespace prefopt::detail
