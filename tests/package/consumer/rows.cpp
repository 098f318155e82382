// SPDX-License-Identifier: Apache-2.0
// Prints how many pairs the files have that its arguments name.
#include <prefopt/data/dataset.h>
#include <prefopt/data/tokenizer.h>

#include <cstdio>

int main(int argc, char** argv) {
  std::size_t pairs = 0;
  for (int i = 1; i < argc; ++i) {
    pairs += prefopt::load_dataset(argv[i], prefopt::ByteTokenizer(), {}).pairs.size();
  }
  std::printf("%zu\n", pairs);
}
