// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// Files that are made where they are written: the tokenizer of a GGUF file as JSON takes as long
/// as loading the model.
using FilesLater = std::function<FolderFiles()>;

/// As model_companions. Whatever can fail has been done when this returns; a GGUF file stays open.
FilesLater model_companions_later(const std::string& tokenizer, const std::string& model,
                                  const std::string& chat_format, const std::string& row_options);

}  // namespace prefopt::detail
