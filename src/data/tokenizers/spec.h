// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "prefopt/data/tokenizer.h"

// The parts of a tokenizer as `tokenizer.json` spells them out: normalizer, pre-tokenizer, model
// and decoder. Every form that a tokenizer is stored in is read into a TokenizerSpec.

namespace prefopt::detail {

/// How SentencePiece writes a space: U+2581.
inline constexpr std::string_view kMetaSpace = "\xE2\x96\x81";

// --- Steps of the normalizer

/// Puts a text before another one that is not empty.
struct Prepend {
  std::string text;
};

/// Puts `content` in the place of each match; a step of decoders too.
struct Replace {
  std::string pattern;
  bool is_regex = false;
  std::string content;
};

struct UnicodeForm {
  bool composes = true;     ///< NFC and NFKC
  bool compatible = false;  ///< NFKC and NFKD
};

struct Lowercase {};

/// Drops white space at the ends.
struct Strip {
  bool left = false, right = false;
};

struct StripAccents {};

/// SentencePiece's rules of nmt for control characters and white space.
struct Nmt {};

/// SentencePiece's compiled table of replacements.
struct Charsmap {
  std::string bytes;
};

using NormalizerStep =
    std::variant<Prepend, Replace, UnicodeForm, Lowercase, Strip, StripAccents, Nmt, Charsmap>;

// --- Steps of the pre-tokenizer

/// The treatment of the matches between which a text is cut.
enum class SplitBehavior {
  kIsolated,
  kRemoved,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,  ///< matches in a row are one word
};

struct Split {
  std::string pattern;
  bool is_regex = true;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  ///< what lies between matches is a match, and the other way round
};

/// When Metaspace puts its character before a text that lacks it.
enum class PrependScheme { kAlways, kFirst, kNever };

/// Writes spaces as another character, which begins the words.
struct Metaspace {
  std::string replacement = std::string(kMetaSpace);
  PrependScheme scheme = PrependScheme::kAlways;
  bool splits = true;
};

/// Cuts as GPT-2 does and writes bytes in its alphabet.
struct ByteLevel {
  bool add_prefix_space = false;
  bool uses_regex = true;
};

using PreTokenizerStep = std::variant<Split, Metaspace, ByteLevel>;

// --- Models

/// Pairs of neighbours that become one token. Without `byte_fallback` and ByteLevel, characters
/// that are no token are unknown.
struct BpeSpec {
  std::vector<std::pair<std::string, std::string>> merges = {};  ///< in order of rank
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

/// Tokens with a score each, of which the best sum is taken.
struct UnigramSpec {
  std::vector<double> scores = {};  ///< by id
  bool byte_fallback = false;
};

// --- Steps of the decoder

/// Joins the bytes of tokens such as <0x0A>.
struct ByteFallback {};

/// Joins all tokens to one.
struct Fuse {};

/// Drops up to so many of a character from the ends of each token.
struct StripCharacters {
  std::string character;
  std::size_t start = 0, stop = 0;
};

/// Writes spaces again, and drops one that Metaspace put before the text.
struct MetaspaceDecoder {
  std::string replacement;
  bool drops_first = true;
};

struct ByteLevelDecoder {};

using DecoderStep =
    std::variant<Replace, ByteFallback, Fuse, StripCharacters, MetaspaceDecoder, ByteLevelDecoder>;

struct TokenizerSpec {
  std::vector<std::string> tokens;  ///< by id; an empty one is a gap
  std::variant<BpeSpec, UnigramSpec> model;
  std::int64_t unknown_id = -1;
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::vector<DecoderStep> decoder;
  bool joins_with_spaces = false;  ///< without a decoder, as the package `tokenizers` does
  std::int64_t bos_id = -1;        ///< -1 also if texts begin without it
  std::int64_t begin_id = -1;      ///< the begin token, whether texts begin with it or not
  std::int64_t eos_id = -1;
  std::int64_t pad_id = -1;
  std::string chat_template;
};

/// Returns the parts of a byte-level BPE tokenizer.
TokenizerSpec spec_of(BpeVocabulary vocabulary);

}  // namespace prefopt::detail
