// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"

namespace prefopt {

/// A prompt that waits for completions.
struct Prompt {
  std::vector<std::int64_t> ids;
  std::string text;      ///< as the model reads it, with the chat format around messages
  std::string question;  ///< the last message that is not the assistant's; without messages `text`
  bool from_messages = false;
};

/// Loads the prompts of files in their order: text, messages or ids, in any layout and any files
/// that load_dataset reads, without weights. Prompts are whole, whatever the budgets of `options`.
/// Throws DataError, led by file and line, for a row that is no prompt, that has a completion as
/// well, or whose defect the options do not keep, and for a file without prompts; ConfigError as
/// load_dataset.
PREFOPT_API std::vector<Prompt> load_prompts(const std::string& rows, const Tokenizer& tokenizer,
                                             const DataOptions& options = {},
                                             DataSplit split = DataSplit::kAny);

}  // namespace prefopt
