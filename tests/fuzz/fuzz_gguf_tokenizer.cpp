// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf.h"
#include "data/tokenizers/pipeline.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/tokenizer_use.h"
#include "fuzz/verdict.h"
#include "prefopt/files/gguf.h"

namespace prefopt::fuzz {

void read_gguf_tokenizer(std::string_view bytes) {
  const MemoryFile memory(bytes);
  accepts(memory.path(), [&] {
    const GgufFile file = GgufFile::open(memory.path());
    use_tokenizer(*detail::make_pipeline(
        detail::spec_of(detail::read_gguf_vocabulary(file), file.path()), file.path()));
  });
}

}  // namespace prefopt::fuzz
