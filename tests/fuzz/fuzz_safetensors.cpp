// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>

#include <string>

#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/files/safetensors.h"

namespace prefopt::fuzz {

void read_safetensors(std::string_view bytes) {
  const MemoryFile file(bytes);
  accepts(file.path(), [&] {
    const SafetensorsFile read = prefopt::read_safetensors(file.path());
    std::size_t total = 0;
    for (const auto& [name, tensor] : read.tensors) {
      // A copy reads every byte, where the address sanitizer sees it.
      const std::string copy(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
      total += copy.size();
    }
    expect(total < bytes.size(), "tensors of more bytes than the file has");
  });
}

}  // namespace prefopt::fuzz
