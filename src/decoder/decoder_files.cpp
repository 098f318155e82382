// SPDX-License-Identifier: Apache-2.0
#include "decoder/decoder_files.h"

#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "decoder/families/family.h"
#include "decoder/gguf_decoder.h"
#include "decoder/quantized_weight.h"
#include "files/gguf_encoding.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf.h"
#include "prefopt/files/safetensors.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kEmbedding = "model.embed_tokens.weight";

// Rotary frequencies, which are computed here.
bool is_left_over(const std::string& name) {
  return name.ends_with(".self_attn.rotary_emb.inv_freq");
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace

bool is_gguf_file(const std::string& path) {
  std::error_code ignored;
  return path.ends_with(".gguf") && !std::filesystem::is_directory(path, ignored);
}

bool has_score_head(const std::string& path) {
  return GgufFile::open(path).find_tensor(kGgufScore) != nullptr;
}

bool has_blocks(const std::string& path) {
  if (!is_gguf_file(path)) return false;
  const GgufFile file = GgufFile::open(path);
  return std::any_of(file.tensors().begin(), file.tensors().end(), [](const GgufTensor& tensor) {
    const GgufEncoding* encoding = find_gguf_encoding(tensor.type);
    return encoding != nullptr && encoding->decode != nullptr && tensor.shape.size() == 2;
  });
}

DecoderOptions read_model_options(const std::string& path) {
  return is_gguf_file(path) ? read_gguf_config(GgufFile::open(path)).options
                            : read_decoder_config(path + "/config.json").options;
}

std::int64_t context_length_of(const std::string& path) {
  return read_model_options(path).max_position_embeddings;
}

DecoderReader::DecoderReader(const std::string& path, std::optional<at::ScalarType> dtype,
                             bool keeps_blocks, const GgufEncoding* quantizes)
    : dtype_(dtype),
      quantizes_(quantizes),
      blocks_(keeps_blocks           ? BlockSource::kFile
              : quantizes != nullptr ? BlockSource::kMade
                                     : BlockSource::kNone) {
  if (quantizes != nullptr && has_blocks(path)) {
    throw CheckpointError(fmt::format(
        "{}: expected a model in float dtypes to quantize, got matrices in blocks, which are kept "
        "as they are without it (model.base)",
        path));
  }
  if (is_gguf_file(path)) {
    open_gguf(path, keeps_blocks);
  } else if (keeps_blocks) {
    throw CheckpointError(
        fmt::format("{}: expected a GGUF file to keep the blocks of, got a folder", path));
  } else {
    open_folder(path);
  }
}

DecoderReader DecoderReader::open(const std::string& path, std::string_view kept) {
  if (kept == "keep") return {path, std::nullopt};
  if (kept == "quantized") return {path, std::nullopt, /*keeps_blocks=*/true};
  if (const GgufEncoding* quantizes = encoding_on_load(kept)) {
    return {path, at::kFloat, /*keeps_blocks=*/false, quantizes};
  }
  return {path, parse_dtype(kept)};
}

void DecoderReader::open_folder(const std::string& directory) {
  config_ = read_decoder_config(directory + "/config.json");
  SafetensorsFile file = read_safetensors_folder(directory);
  path_ = safetensors_path(directory);
  model_ = "config.json's model";
  metadata_ = std::move(file.metadata);
  const Family& family = family_named(config_.options.family, path_);
  for (auto& [name, tensor] : file.tensors) {
    const std::string here = name_from_file(family, name);
    // Of two names of one tensor the second is left over, and refused.
    left_.emplace(
        left_.contains(here) ? name : here,
        Stored{tensor.sizes().vec(), [tensor = tensor] { return tensor; }, tensor.scalar_type()});
  }
  if (!dtype_) choose_dtypes();
}

void DecoderReader::choose_dtypes() {
  std::map<at::ScalarType, std::int64_t> matrices, vectors;
  for (const auto& [name, stored] : left_) {
    if (is_left_over(name) || !at::isFloatingType(stored.dtype)) continue;
    ++(stored.shape.size() > 1 ? matrices : vectors)[stored.dtype];
  }
  if (matrices.empty()) return;
  matrix_dtype_ = matrices.begin()->first;
  for (const auto& [dtype, count] : matrices) {
    matrix_dtype_ = c10::promoteTypes(matrix_dtype_, dtype);
  }
  // The dtype that the layers compute in holds every vector.
  if (vectors.contains(at::kDouble)) matrix_dtype_ = at::kDouble;
  const auto names = [](const std::map<at::ScalarType, std::int64_t>& counts) {
    std::vector<std::string> parts;
    for (const auto& [dtype, count] : counts) {
      parts.push_back(fmt::format("{} of {}", count, c10::toString(dtype)));
    }
    return fmt::format("{}", fmt::join(parts, ", "));
  };
  const bool one = matrices.size() == 1 &&
                   (vectors.empty() || (vectors.size() == 1 && vectors.contains(matrix_dtype_)));
  if (one) return;
  note_ = fmt::format(
      "{}: weights of several dtypes, matrices {} and vectors {}: matrices are kept in {}, vectors "
      "as they are",
      path_, names(matrices), names(vectors), c10::toString(matrix_dtype_));
}

void DecoderReader::open_gguf(const std::string& path, bool keeps_blocks) {
  path_ = path;
  const GgufFile file = GgufFile::open(path);
  config_ = read_gguf_config(file);
  model_ = "a " + file.text("general.architecture") + " decoder";
  if (!dtype_) dtype_ = at::kFloat;
  bool has_blocks = false;
  for (const GgufTensor& tensor : file.tensors()) {
    const bool is_in_config = tensor.name == kGgufRopeFactors || tensor.name == kGgufLongFactors ||
                              tensor.name == kGgufShortFactors;
    if (is_in_config) continue;
    const std::vector<std::string> names = hugging_face_names(tensor.name, config_.options);
    if (names.empty()) {
      throw CheckpointError(
          fmt::format("{}: expected the tensors of {} only, got '{}'", path, model_, tensor.name));
    }
    if (at::Tensor blocks;
        keeps_blocks && names.size() == 1 && names.front() != kScoreWeight &&
        (blocks = read_gguf_blocks(file, tensor.name, config_.options)).defined()) {
      has_blocks = true;
      left_.emplace(names.front(), Stored{tensor.shape, [blocks] { return blocks; }, *dtype_,
                                          static_cast<std::int64_t>(tensor.bytes)});
      continue;
    }
    const auto read = [file, gguf_name = tensor.name, options = config_.options, dtype = *dtype_] {
      return read_gguf_weight(file, gguf_name, options, dtype);
    };
    if (names.size() == 1) {
      left_.emplace(names.front(), Stored{tensor.shape, read, *dtype_});
    } else {
      add_parts(tensor, names, read);
    }
  }
  if (keeps_blocks && !has_blocks) {
    throw CheckpointError(
        fmt::format("{}: expected matrices in blocks to keep, got none; read it in a dtype", path));
  }
}

// Experts share a tensor, which is decoded once.
void DecoderReader::add_parts(const GgufTensor& tensor, const std::vector<std::string>& names,
                              const std::function<at::Tensor()>& read) {
  if (tensor.shape.size() != 3 || tensor.shape[0] != std::ssize(names)) {
    fail(tensor.name, fmt::format("a matrix of each of {} experts", names.size()),
         c10::str(at::IntArrayRef(tensor.shape)));
  }
  const auto whole = std::make_shared<at::Tensor>();
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto read_part = [whole, read, i] {
      if (!whole->defined()) *whole = read();
      return whole->select(0, static_cast<std::int64_t>(i));
    };
    left_.emplace(names[i], Stored{{tensor.shape[1], tensor.shape[2]}, read_part, *dtype_});
  }
}

const DecoderReader::Stored& DecoderReader::stored(const std::string& name) const {
  const auto at = left_.find(name);
  if (at != left_.end()) return at->second;
  // Only a config with its own output head asks for it.
  const std::string_view hint =
      name == "lm_head.weight"
          ? "; tie_word_embeddings in config.json is not true, which asks for its own head"
          : "";
  throw CheckpointError(
      fmt::format("{}: expected tensor '{}', got none of that name{}", path_, name, hint));
}

at::ScalarType DecoderReader::dtype_of(const std::string& name) const {
  const Stored& stored = this->stored(name);
  if (dtype_) return *dtype_;
  return stored.shape.size() > 1 ? matrix_dtype_ : stored.dtype;
}

at::Tensor DecoderReader::take(const std::string& name, const std::vector<std::int64_t>& shape) {
  const Stored stored = this->stored(name);
  left_.erase(name);
  if (stored.shape != shape) {
    fail(name, "shape " + c10::str(at::IntArrayRef(shape)),
         c10::str(at::IntArrayRef(stored.shape)));
  }
  const at::Tensor tensor = stored.read();
  if (!tensor.is_floating_point()) {
    fail(name, "a floating dtype", c10::toString(tensor.scalar_type()));
  }
  if (quantizes_ != nullptr && can_be_blocks(name, shape)) {
    if (name == kEmbedding) float_embedding_ = tensor;
    return quantized(*quantizes_, tensor, fmt::format("{}: tensor '{}'", path_, name));
  }
  if (dtype_) return tensor.to(*dtype_);
  return tensor.dim() > 1 ? tensor.to(matrix_dtype_) : tensor;
}

void DecoderReader::check_nothing_left(const at::Tensor& embedding,
                                       const std::string& embedding_name) {
  for (const auto& [name, stored] : left_) {
    if (is_left_over(name)) continue;
    if (name == "lm_head.weight" && embedding.defined()) {
      const at::Tensor& one = float_embedding_.defined() ? float_embedding_ : embedding;
      if (same_bytes(stored.read().to(one.scalar_type()), one)) continue;
      throw CheckpointError(fmt::format(
          "{}: tensor '{}': expected the bytes of '{}', as tie_word_embeddings says, got others",
          path_, name, embedding_name));
    }
    throw CheckpointError(
        fmt::format("{}: expected the tensors of {} only, got '{}'", path_, model_, name));
  }
}

void DecoderReader::fail(const std::string& name, std::string_view expected,
                         std::string_view got) const {
  throw CheckpointError(
      fmt::format("{}: tensor '{}': expected {}, got {}", path_, name, expected, got));
}

void write_decoder(const std::string& directory, const std::vector<NamedParameter>& weights,
                   const std::map<std::string, std::string>& metadata, Json config,
                   const Json& generation) {
  std::error_code why;
  std::filesystem::create_directories(directory, why);
  if (why) {
    throw CheckpointError(
        fmt::format("{}: expected to create a folder, got {}", directory, why.message()));
  }
  SafetensorsFile file{.tensors = {}, .metadata = metadata};
  for (const auto& [name, value] : weights) file.tensors.emplace_back(name, value);
  write_safetensors_folder(directory, file);
  if (!weights.empty()) set_config_dtype(config, weights.front().value.scalar_type());
  write_file<CheckpointError>(directory + "/config.json", dump_json(config, 2) + "\n");
  if (generation.is_null()) return;
  write_file<CheckpointError>(directory + "/generation_config.json",
                              dump_json(generation, 2) + "\n");
}

}  // namespace prefopt::detail
