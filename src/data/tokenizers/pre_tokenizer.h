// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/split_pattern.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/spec.h"

namespace prefopt::detail {

inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Receives the words of a text.
class WordSink {
 public:
  virtual ~WordSink() = default;
  virtual void word(std::string_view text) = 0;
};

/// The beginning of a part of a text.
struct PartStart {
  bool is_text_start = true;     ///< at the first character of the whole text
  bool takes_prefix = true;      ///< not in the middle of a text that is encoded in parts
  std::string_view before = {};  ///< what lies before such a middle
};

/// Cuts a text into words, between which nothing merges.
class PreTokenizer {
 public:
  /// With `gives_bytes` a ByteLevel at the end leaves the bytes themselves in place of GPT-2's
  /// alphabet. Throws CheckpointError, led by `where`, for a pattern that is not known.
  PreTokenizer(const std::vector<PreTokenizerStep>& steps, bool gives_bytes,
               std::string_view where);

  void cut(std::string_view text, PartStart start, SplitPattern::Scratch& scratch,
           WordSink& sink) const {
    cut(text, start, 0, scratch, sink);
  }

  /// Returns whether words are cut before something is put before them: then what lies before a
  /// part decides whether it begins a word.
  bool puts_before_words() const { return puts_before_words_; }

 private:
  /// A step with its compiled pattern.
  struct Step {
    PreTokenizerStep rule;
    std::optional<SplitPattern> pattern;
  };

  void cut(std::string_view text, PartStart start, std::size_t stage,
           SplitPattern::Scratch& scratch, WordSink& sink) const;
  void cut(std::string_view text, PartStart start, const Split& rule, std::size_t stage,
           SplitPattern::Scratch& scratch, WordSink& sink) const;
  void cut(std::string_view text, PartStart start, const Metaspace& rule, std::size_t stage,
           SplitPattern::Scratch& scratch, WordSink& sink) const;
  void cut(std::string_view text, PartStart start, const ByteLevel& rule, std::size_t stage,
           SplitPattern::Scratch& scratch, WordSink& sink) const;
  std::string in_alphabet(std::string_view text) const;
  bool begins_piece(std::string_view text, std::string_view before, const Split& rule,
                    std::size_t stage, SplitPattern::Scratch& scratch) const;
  template <class Emit>
  void split(std::string_view text, const Split& rule, std::size_t stage,
             SplitPattern::Scratch& scratch, Emit emit) const;

  std::vector<Step> steps_;
  ByteAlphabet alphabet_;
  bool gives_bytes_;
  bool puts_before_words_ = false;
};

}  // namespace prefopt::detail
