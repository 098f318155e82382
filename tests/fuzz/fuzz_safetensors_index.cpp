// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <memory>
#include <string>

#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/files/safetensors.h"

namespace prefopt::fuzz {
namespace {

/// A folder whose tensors "a" and "b" are in shard "1" and "c" in shard "2".
std::unique_ptr<const InputFolder> make_shards() {
  auto folder = std::make_unique<InputFolder>();
  const at::Tensor zeros = at::zeros({2});
  write_safetensors(folder->file("1"), {.tensors = {{"a", zeros}, {"b", zeros}}, .metadata = {}});
  write_safetensors(folder->file("2"), {.tensors = {{"c", zeros}}, .metadata = {}});
  return folder;
}

}  // namespace

void read_safetensors_index(std::string_view bytes) {
  static const auto folder = make_shards();
  folder->put("model.safetensors.index.json", bytes);
  accepts(folder->path(), [&] {
    expect(read_safetensors_folder(folder->path()).tensors.size() <= 3,
           "tensors that no shard has");
  });
}

}  // namespace prefopt::fuzz
