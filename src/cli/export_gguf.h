// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iosfwd>

#include "cli/commands.h"

namespace prefopt::cli {

/// Writes the model, its adapter merged, or the adapter alone as a GGUF file.
void export_gguf_file(const ExportArguments& arguments, std::ostream& err);

}  // namespace prefopt::cli
