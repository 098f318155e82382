// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/tokenizer_use.h"
#include "fuzz/verdict.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/files/gguf.h"

namespace prefopt::fuzz {

void read_gguf_tokenizer(std::string_view bytes) {
  const MemoryFile memory(bytes);
  accepts(memory.path(), [&] {
    const GgufFile file = GgufFile::open(memory.path());
    use_tokenizer(*make_bpe_tokenizer(
        detail::bpe_vocabulary(detail::read_gguf_vocabulary(file), file.path()), file.path()));
  });
}

}  // namespace prefopt::fuzz
