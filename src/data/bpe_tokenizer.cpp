// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <utility>

#include "data/tokenizers/named_splits.h"
#include "data/tokenizers/pipeline.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/spec.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

/// The splits of a vocabulary as the steps of a tokenizer.json, which end in ByteLevel.
std::vector<detail::PreTokenizerStep> steps_of(const std::vector<WordSplit>& splits) {
  std::vector<detail::PreTokenizerStep> steps;
  for (std::size_t i = 0; i < splits.size(); ++i) {
    const WordSplit& split = splits[i];
    const bool is_last = i + 1 == splits.size();
    const bool is_gpt2 = split.pattern == detail::kGpt2Pattern;
    if (is_last && !split.matches_only && (is_gpt2 || split.pattern.empty())) {
      steps.emplace_back(detail::ByteLevel{split.add_prefix_space, is_gpt2});
      return steps;
    }
    if (split.add_prefix_space) {
      throw CheckpointError(fmt::format(
          "word splits: expected a space before the text in the last split alone, with GPT-2's "
          "pattern or none, got one in split {}",
          i));
    }
    if (split.pattern.empty()) continue;
    steps.emplace_back(detail::Split{.pattern = split.pattern,
                                     .behavior = split.matches_only
                                                     ? detail::SplitBehavior::kRemoved
                                                     : detail::SplitBehavior::kIsolated,
                                     .invert = split.matches_only});
  }
  steps.emplace_back(detail::ByteLevel{.add_prefix_space = false, .uses_regex = false});
  return steps;
}

}  // namespace

detail::TokenizerSpec detail::spec_of(BpeVocabulary vocabulary) {
  TokenizerSpec spec;
  spec.pre_tokenizer = steps_of(vocabulary.splits);
  spec.tokens = std::move(vocabulary.tokens);
  spec.model = BpeSpec{.merges = std::move(vocabulary.merges),
                       .fuse_unknown = vocabulary.fuse_unknown,
                       .byte_fallback = false,
                       .ignore_merges = vocabulary.ignore_merges};
  spec.unknown_id = vocabulary.unknown_id;
  spec.added = std::move(vocabulary.added);
  if (vocabulary.nfc) spec.normalizer = {UnicodeForm{.composes = true, .compatible = false}};
  spec.decoder = {ByteLevelDecoder{}};
  spec.bos_id = vocabulary.bos_id;
  spec.begin_id = vocabulary.begin_id;
  spec.eos_id = vocabulary.eos_id;
  spec.pad_id = vocabulary.pad_id;
  spec.chat_template = std::move(vocabulary.chat_template);
  return spec;
}

std::vector<WordSplit> named_word_splits(std::string_view name, std::string_view where) {
  std::vector<WordSplit> splits;
  for (const std::string_view pattern : detail::find_named_splits(name, where).patterns) {
    splits.push_back({.pattern = std::string(pattern)});
  }
  return splits;
}

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeVocabulary vocabulary, std::string name) {
  return detail::make_pipeline(detail::spec_of(std::move(vocabulary)), std::move(name));
}

}  // namespace prefopt
