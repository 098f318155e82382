// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

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
PREFOPT_API SafetensorsFile read_safetensors(const std::string& path);

/// Written beside the target, then renamed over it. Tensors go to the CPU and become contiguous.
PREFOPT_API void write_safetensors(const std::string& path, const SafetensorsFile& file);

}  // namespace prefopt
