// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <ostream>
#include <system_error>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;

// What transformers wants beside the weights, where the model has it.
void copy_tokenizer(const fs::path& from, const fs::path& to) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "generation_config.json", "chat_template.jinja"}) {
    std::error_code why;
    if (!fs::exists(from / name, why)) continue;
    fs::copy_file(from / name, to / name, fs::copy_options::overwrite_existing, why);
    if (why) {
      throw CheckpointError(fmt::format("{}: expected to copy it from {}, got {}",
                                        (to / name).string(), from.string(), why.message()));
    }
  }
}

}  // namespace

void run_export(const ExportArguments& arguments, std::ostream& err) {
  std::error_code ignored;
  if (fs::exists(fs::path(arguments.out) / "config.json", ignored)) {
    throw ConfigError(
        fmt::format("--out: expected a new folder, got {} with a model in it", arguments.out));
  }
  const auto model = load_model(arguments);
  if (model->adapter()) model->merge_adapter();
  model->save(arguments.out);
  copy_tokenizer(arguments.model, arguments.out);
  err << "prefopt: wrote " << detail::printable(arguments.out) << '\n';
}

}  // namespace prefopt::cli
