// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Contents of one safetensors file, in the order of the file's data.
struct SafetensorsFile {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  std::map<std::string, std::string> metadata;
};

/// Every size is checked against the file before anything is allocated. Throws CheckpointError with
/// file and field or offset. Limits: header 100 MB, rank 8.
///
/// The file is mapped, not read: tensors are views that keep the mapping alive, copies where their
/// place in the file does not align them. The mapping is private, so that writing to a tensor never
/// reaches the file; the file must not be cut while a tensor is in use.
PREFOPT_API SafetensorsFile read_safetensors(const std::string& path);

/// Written next to the target, then renamed over it. Tensors go to the CPU and become contiguous
/// one at a time.
PREFOPT_API void write_safetensors(const std::string& path, const SafetensorsFile& file);

/// Where a Hugging Face folder has its weights: `model.safetensors` or, where there is none,
/// `model.safetensors.index.json`.
PREFOPT_API std::string safetensors_path(const std::string& directory);

/// Returns the files: one, or all shards that the index names. CheckpointError where shards and
/// index do not agree.
PREFOPT_API SafetensorsFile read_safetensors_folder(const std::string& directory);

/// One file, or shards of at most `max_shard_bytes` of tensors (a larger tensor has its own) and
/// the index, named as transformers names them. Weights that the folder held before are removed
/// once the new ones are in place.
PREFOPT_API void write_safetensors_folder(const std::string& directory, const SafetensorsFile& file,
                                          std::uint64_t max_shard_bytes = 5'000'000'000);

}  // namespace prefopt
