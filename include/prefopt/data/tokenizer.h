// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/data/records.h"
#include "prefopt/export.h"

namespace prefopt {

/// The surroundings of a part of a text that is turned into tokens by itself.
struct TextPlace {
  std::string_view before = {};  ///< the text before the part
  bool is_last = true;           ///< no text follows
};

/// A tokenizer, safe to use from several threads at a time.
class PREFOPT_API Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;
  /// Returns the token ids of `text`, without begin or end tokens.
  virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
  /// Returns the same, except that text within `plain`, ranges in order that do not overlap,
  /// becomes no control token, whatever it spells.
  virtual std::vector<std::int64_t> encode_plain(std::string_view text,
                                                 std::span<const TextRange> plain) const;
  /// Returns the tokens of `text` as a part of a longer text: nothing merges across its ends, and
  /// what the tokenizer puts before a text, or strips from its ends, it does so only where the
  /// whole text has them: at the beginning, at the end, and next to added tokens.
  virtual std::vector<std::int64_t> encode_part(std::string_view text,
                                                std::span<const TextRange> plain,
                                                const TextPlace& place) const;
  /// Returns the first control token that `text` spells, or -1. Control tokens are the special
  /// ones, which decode() leaves out, and other added ones that are written `<|…|>`.
  virtual std::int64_t find_control(std::string_view text) const;
  /// Returns the text that spells a token, also for begin, end and padding tokens.
  virtual std::string spelling(std::int64_t id) const;
  /// Returns the text of `ids`; begin, end and padding tokens are left out.
  virtual std::string decode(const std::vector<std::int64_t>& ids) const = 0;
  /// Returns the same for ids that follow `before`, so that encode_part() gives them again: a space
  /// that decode() drops from the beginning of a text stays.
  virtual std::string decode_part(const std::vector<std::int64_t>& ids,
                                  const std::vector<std::int64_t>& before) const;
  virtual std::int64_t vocab_size() const = 0;
  /// Returns the token that is put before a text, or -1.
  virtual std::int64_t bos_id() const = 0;
  virtual std::int64_t eos_id() const = 0;  ///< -1: no such token
  virtual std::int64_t pad_id() const = 0;  ///< -1: no such token
  /// Returns the model's own chat template, in Jinja, or an empty text.
  virtual std::string chat_template() const { return {}; }
  /// Returns the chat format of the run that made the model; empty if not recorded.
  virtual std::string chat_format() const { return {}; }
  /// Returns a key for caches on disk, equal for tokenizers that give equal tokens.
  virtual std::string fingerprint() const { return name(); }

  /// Returns encode() of each text, on LibTorch's threads; the same for any number of them.
  std::vector<std::vector<std::int64_t>> encode_batch(
      std::span<const std::string_view> texts) const;
};

/// Ids 0 to 255 are the bytes of UTF-8 text; 256 begin, 257 end, 258 padding.
class PREFOPT_API ByteTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  std::vector<std::int64_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<std::int64_t>& ids) const override;
  std::string spelling(std::int64_t id) const override;
  std::int64_t vocab_size() const override { return 259; }
  std::int64_t bos_id() const override { return 256; }
  std::int64_t eos_id() const override { return 257; }
  std::int64_t pad_id() const override { return 258; }
};

/// A token that is searched for in the text before anything else is done to it.
struct AddedToken {
  std::string content = {};
  std::int64_t id = -1;
  bool special = false;     ///< left out by decode()
  bool normalized = false;  ///< searched for after normalization
  bool strip_left = false;  ///< includes the white space before it
  bool strip_right = false;
  bool single_word = false;  ///< not where a letter, digit or mark touches it
};

/// One step of cutting a text into words, between which nothing merges.
struct WordSplit {
  std::string pattern = {};       ///< regular expression; empty: the text stays whole
  bool matches_only = false;      ///< text between matches is dropped; else it is a word
  bool add_prefix_space = false;  ///< before the cut, unless the text begins with one
};

/// All parts of a byte-level BPE tokenizer, however it was stored. Tokens are written in GPT-2's
/// alphabet, in which each byte is a printable character.
struct BpeVocabulary {
  std::vector<std::string> tokens;                               ///< by id; an empty one is a gap
  std::vector<std::pair<std::string, std::string>> merges = {};  ///< in order of rank
  std::vector<AddedToken> added = {};
  std::vector<WordSplit> splits = {};
  bool nfc = false;            ///< normalize to Unicode's form C first
  bool ignore_merges = false;  ///< a word that is a token becomes that token
  /// Token for bytes without a token; -1: they are dropped, as by the package `tokenizers`.
  std::int64_t unknown_id = -1;
  bool fuse_unknown = false;   ///< unknown bytes in a row become one token
  std::int64_t bos_id = -1;    ///< -1 also if texts begin without it
  std::int64_t begin_id = -1;  ///< the begin token, whether texts begin with it or not
  std::int64_t eos_id = -1;
  std::int64_t pad_id = -1;
  std::string chat_template = {};
};

/// Returns the cuts of a pre-tokenizer by its name in GGUF files (`tokenizer.ggml.pre`): "gpt-2",
/// "smollm" (GPT-2's with single digits), "llama-bpe", "llama3" or "llama-v3" (Llama 3), "qwen2".
/// Throws CheckpointError, led by `where`, for another one.
PREFOPT_API std::vector<WordSplit> named_word_splits(std::string_view name, std::string_view where);

/// Returns byte-level BPE, token for token as in the package `tokenizers`. Text that looks like an
/// added token, special or not, becomes that token. Invalid UTF-8 becomes U+FFFD first, cut as
/// Python's `errors="replace"` does. decode() drops special tokens and unknown ids, and returns any
/// UTF-8 text that encode() was given, but for NFC, `strip_left` and `strip_right`; bytes of ids
/// that form no UTF-8 become U+FFFD. Throws CheckpointError, prefixed with `name`, if the
/// vocabulary is invalid.
PREFOPT_API std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeVocabulary vocabulary,
                                                                std::string name);

/// Opens "byte", or the path of a Hugging Face `tokenizer.json`, of a folder that holds one, or of
/// a GGUF file (`.gguf`) with byte-level BPE in its metadata. `tokenizer_config.json` and
/// `chat_template.jinja` next to it give the begin, end and padding token and the chat template.
/// `truncation` and `padding` in the file are left to DataOptions. Throws ConfigError for an
/// unknown name and CheckpointError, which names file and field, for a file that is damaged or has
/// an unknown feature that would change tokens.
PREFOPT_API std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view name);

/// Returns the name for make_tokenizer of a model folder or file: itself if it has a tokenizer,
/// "byte" for a model that was made with it (by its `prefopt.json`, or its vocabulary of 259).
/// Throws ConfigError, with the way out, for any other model: its tokens are not known.
PREFOPT_API std::string tokenizer_of_model(const std::string& model);

/// Returns make_tokenizer(name), or if `name` is empty the tokenizer of the adapter's folder, else
/// of the model, with the chat format of the run that made them. A model without a tokenizer gets
/// one for ids alone: encode() throws the ConfigError of tokenizer_of_model, and decode() shows
/// ids, as in "[5][7]".
PREFOPT_API std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name,
                                                            const std::string& model,
                                                            const std::string& adapter = {});

/// Returns the same choice by name, for make_tokenizer; empty if the model has no tokenizer.
PREFOPT_API std::string find_tokenizer(const std::string& model, const std::string& adapter = {});

/// Contents of files by name.
using FolderFiles = std::map<std::string, std::string>;

/// Returns the files that make a folder's tokenizer the one of `name`, for make_tokenizer and for
/// `transformers`: copies of those in its folder; from a GGUF file `tokenizer.json` and
/// `tokenizer_config.json` made from its vocabulary. `prefopt.json` records the byte tokenizer,
/// `chat_format` and `row_options` (a JSON object of the DataOptions for reading rows), unless they
/// are empty. An empty name gives at most that one.
PREFOPT_API FolderFiles tokenizer_files(const std::string& name,
                                        const std::string& chat_format = {},
                                        const std::string& row_options = {});

/// Returns tokenizer_files of `tokenizer`; if that is empty, copies of the files of `model`, if it
/// is a folder: a model whose tokenizer is not read here keeps it.
PREFOPT_API FolderFiles model_companions(const std::string& tokenizer, const std::string& model,
                                         const std::string& chat_format = {},
                                         const std::string& row_options = {});

/// Writes each file into `folder`, which is created if necessary. Throws CheckpointError.
PREFOPT_API void write_files(const FolderFiles& files, const std::string& folder);

}  // namespace prefopt
