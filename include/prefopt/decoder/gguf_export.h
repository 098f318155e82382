// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/export.h"

namespace prefopt {

struct GgufExportOptions {
  /// Of matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_K. Vectors are F32. With Q4_0 and Q4_K the
  /// output head, or the embedding that is one, is Q6_K; rows that are no whole blocks of a type
  /// get the next one of Q4_K, Q5_0, F16 or of Q6_K, Q8_0, F16.
  std::string type = "F16";
  /// `general.name`.
  std::string name = {};
  /// As for make_tokenizer; empty or "byte": the file has none.
  std::string tokenizer = {};
  /// In the order of importance; of end_tokens().
  std::vector<std::int64_t> end_tokens = {};
};

/// How a file that was written differs from the model.
struct GgufExportRemarks {
  std::vector<std::int64_t> left_end_tokens;  ///< that found no place in it
  /// Matrices that are kept in another type than the one wanted, as "blk.*.ffn_down.weight: Q5_0 in
  /// place of Q4_K, whose blocks of 256 do not fit rows of 288".
  std::vector<std::string> other_types;
  std::int64_t ignored_window = 0;  ///< that llama.cpp does not compute in this family; 0: none
};

/// Writes a GGUF file that llama.cpp, what is made of it, and Decoder::load read. Throws
/// ConfigError for an unknown type, for an adapter that is not merged and for a model that
/// llama.cpp's file format has no architecture or metadata for; CheckpointError for a tokenizer
/// that it cannot hold; DtypeError for weights that `type` cannot.
PREFOPT_API GgufExportRemarks export_gguf(const Decoder& model, const std::string& path,
                                          const GgufExportOptions& options);

/// Writes the model's adapter alone, for llama.cpp's `--lora`. `type` is F32, F16 or BF16.
PREFOPT_API void export_gguf_adapter(const Decoder& model, const std::string& path,
                                     const std::string& name, std::string_view type = "F32");

}  // namespace prefopt
