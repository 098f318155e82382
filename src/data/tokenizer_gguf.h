// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/spec.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/files/gguf.h"

namespace prefopt::detail {

/// The keys `tokenizer.ggml.*` and `tokenizer.chat_template` of a GGUF file.
struct GgufVocabulary {
  std::string model;                     ///< "gpt2" for byte-level BPE, "llama" for SentencePiece's
  std::string pre = {};                  ///< the pre-tokenizer's name, of "gpt2"
  std::vector<std::string> tokens = {};  ///< in GPT-2's alphabet, or as SentencePiece has them
  std::vector<std::string> merges = {};  ///< "LEFT RIGHT", of "gpt2"
  std::vector<double> scores = {};       ///< of "llama"
  std::vector<std::int64_t> token_type =
      {};  ///< llama.cpp's: 1 normal, 3 control, 4 user-defined, …
  std::int64_t bos_token_id = -1;
  std::int64_t eos_token_id = -1;
  std::int64_t unknown_token_id = -1;
  std::int64_t padding_token_id = -1;
  std::optional<bool> add_bos_token = {};  ///< none: what model and pre-tokenizer imply
  bool add_space_prefix = false;
  std::string name = {};  ///< general.name: llama.cpp knows Phi-3 by it
  std::string chat_template = {};
};

/// Throws CheckpointError, which names file and key.
GgufVocabulary read_gguf_vocabulary(const GgufFile& file);

/// Returns the content of transformers' `tokenizer.json` of the same model, including what the name
/// of the pre-tokenizer implies: NFC for "qwen2"; ignore_merges and, as in llama.cpp, a begin token
/// for "llama-bpe". Throws CheckpointError, led by `where`, which names the key.
BpeVocabulary bpe_vocabulary(GgufVocabulary gguf, std::string_view where);

/// Returns the parts of either kind, likewise.
TokenizerSpec spec_of(GgufVocabulary gguf, std::string_view where);

/// Returns whether the file has a tokenizer at all.
bool has_tokenizer(const GgufFile& file);

}  // namespace prefopt::detail
