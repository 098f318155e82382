// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "decoder/decoder_config.h"
#include "files/gguf_encoding.h"
#include "prefopt/files/gguf.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Where the blocks of a model's matrices come from.
enum class BlockSource {
  kNone,
  kFile,  ///< mapped from a GGUF file, whose numbers they are
  kMade,  ///< made of other numbers when the model was loaded
};

/// Config and weights of a decoder in a Hugging Face folder or a `.gguf` file. Throws
/// CheckpointError, led by the file's path.
class DecoderReader {
 public:
  /// Without a dtype the weights keep a folder's: matrices of several become the widest of them,
  /// and vectors keep their own. A GGUF file's, which is several, become float32, or matrices stay
  /// in their blocks where `keeps_blocks`; a file without any is refused then. With `quantizes`,
  /// matrices of float dtypes become blocks of that encoding.
  DecoderReader(const std::string& path, std::optional<at::ScalarType> dtype,
                bool keeps_blocks = false, const GgufEncoding* quantizes = nullptr);

  /// As Decoder::load reads `kept`: "keep", a dtype, "quantized" for the blocks of a GGUF file, or
  /// "q8_0" and "q4_k" for blocks that are made. Throws ConfigError for another word.
  static DecoderReader open(const std::string& path, std::string_view kept);

  const DecoderConfig& config() const { return config_; }
  /// Returns where blocks come from that matrices are left in.
  BlockSource blocks() const { return blocks_; }
  /// Of the safetensors files, to be written back.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Returns a remark on a folder with several dtypes; else empty.
  const std::string& note() const { return note_; }

  bool has(const std::string& name) const { return left_.contains(name); }
  /// Leaves a tensor out, if it is there.
  void drop(const std::string& name) { left_.erase(name); }
  /// Returns the dtype that `take` gives the weight of this name.
  at::ScalarType dtype_of(const std::string& name) const;
  /// Returns the bytes of the file's blocks that the weight of this name stays in; 0: it does not.
  std::int64_t block_bytes(const std::string& name) const { return stored(name).block_bytes; }
  /// Returns the weight of this name (Hugging Face's) and shape, once.
  at::Tensor take(const std::string& name, const std::vector<std::int64_t>& shape);

  /// Rotary frequencies are computed, and a tied head may be written twice; nothing else may be
  /// left over. `embedding` is undefined for a model with its own output head.
  void check_nothing_left(const at::Tensor& embedding, const std::string& embedding_name);

 private:
  struct Stored {
    std::vector<std::int64_t> shape;
    std::function<at::Tensor()> read;
    at::ScalarType dtype = at::kFloat;
    std::int64_t block_bytes = 0;  ///< of a matrix that stays in blocks
  };

  void open_folder(const std::string& directory);
  void open_gguf(const std::string& path, bool keeps_blocks);
  void add_parts(const GgufTensor& tensor, const std::vector<std::string>& names,
                 const std::function<at::Tensor()>& read);
  /// Decides in what dtypes weights are kept where none is wanted.
  void choose_dtypes();
  /// Throws where there is none of this name.
  const Stored& stored(const std::string& name) const;
  [[noreturn]] void fail(const std::string& name, std::string_view expected,
                         std::string_view got) const;

  std::string path_;
  std::string model_;  // in words
  std::optional<at::ScalarType> dtype_;
  const GgufEncoding* quantizes_ = nullptr;
  BlockSource blocks_ = BlockSource::kNone;
  at::Tensor float_embedding_;                ///< of a file whose embedding became blocks
  at::ScalarType matrix_dtype_ = at::kFloat;  ///< where none is wanted
  std::string note_;
  DecoderConfig config_;
  std::map<std::string, std::string> metadata_ = {{"format", "pt"}};
  std::map<std::string, Stored> left_;
};

/// Returns whether a path is to be read as a GGUF file.
bool is_gguf_file(const std::string& path);
/// Returns whether a GGUF file is of a reward model.
bool has_score_head(const std::string& path);
/// Returns whether a path is a GGUF file with matrices in blocks.
bool has_blocks(const std::string& path);

/// Returns family and shape of a model in a folder or a `.gguf` file, from its config alone. Throws
/// CheckpointError as loading the model does.
DecoderOptions read_model_options(const std::string& path);

/// Returns the context that a model in a folder or a `.gguf` file is made for, in tokens, from its
/// config alone. Throws CheckpointError as loading the model does.
std::int64_t context_length_of(const std::string& path);

/// Writes `config.json`, which names the dtype of the weights, `generation_config.json` unless that
/// is null, and the weights.
void write_decoder(const std::string& directory, const std::vector<NamedParameter>& weights,
                   const std::map<std::string, std::string>& metadata, Json config,
                   const Json& generation);

}  // namespace prefopt::detail
