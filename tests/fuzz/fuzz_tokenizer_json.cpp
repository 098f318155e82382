// SPDX-License-Identifier: Apache-2.0
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/tokenizer_use.h"
#include "fuzz/verdict.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::fuzz {

/// tokenizer.json, a zero byte, tokenizer_config.json.
void read_tokenizer_json(std::string_view bytes) {
  static const InputFolder folder;
  const auto [tokenizer, config] = split_input(bytes);
  folder.put("tokenizer.json", tokenizer);
  folder.put("tokenizer_config.json", config.empty() ? "{}" : config);
  accepts(folder.path(), [&] { use_tokenizer(*make_tokenizer(folder.path())); });
}

}  // namespace prefopt::fuzz
