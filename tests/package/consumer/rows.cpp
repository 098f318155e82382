// SPDX-License-Identifier: Apache-2.0
// Prints how many pairs the files have that its arguments name.
#include <prefopt/data/dataset.h>
#include <prefopt/data/tokenizer.h>

#include <cstdio>

int main(int argc, char** argv) {
  prefopt::DataOptions options;
  options.unused = prefopt::UnusedColumns::kNote;
  std::size_t pairs = 0;
  for (int i = 1; i < argc; ++i) {
    pairs += prefopt::load_dataset(argv[i], prefopt::ByteTokenizer(), options).pairs.size();
  }
  std::printf("%zu\n", pairs);
}
