// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>

#include <string>

#include "decoder/gguf_decoder.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/files/gguf.h"

namespace prefopt::fuzz {
namespace {

void read_metadata(const GgufFile& file) {
  for (const std::string& key : file.keys()) {
    const auto get = [&](auto getter) { accepts(file.path(), [&] { (file.*getter)(key); }); };
    get(&GgufFile::text);
    get(&GgufFile::integer);
    get(&GgufFile::real);
    get(&GgufFile::flag);
    get(&GgufFile::texts);
    get(&GgufFile::integers);
    get(&GgufFile::reals);
  }
}

void read_tensors(const GgufFile& file, std::size_t file_bytes) {
  // A block of 256 values takes 50 bytes at least.
  constexpr std::int64_t kMostValuesPerByte = 6;
  for (const GgufTensor& tensor : file.tensors()) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      accepts(file.path(), [&] {
        const at::Tensor read = file.tensor(tensor.name, dtype);
        expect(read.sizes() == at::IntArrayRef(tensor.shape), "a tensor of another shape");
        expect(read.numel() <= kMostValuesPerByte * static_cast<std::int64_t>(file_bytes),
               "more values than the file has");
        const std::string copy(static_cast<const char*>(read.const_data_ptr()), read.nbytes());
      });
    }
  }
}

}  // namespace

void read_gguf(std::string_view bytes) {
  const MemoryFile memory(bytes);
  accepts(memory.path(), [&] {
    const GgufFile file = GgufFile::open(memory.path());
    read_metadata(file);
    read_tensors(file, bytes.size());
    detail::read_gguf_config(file);
  });
}

}  // namespace prefopt::fuzz
