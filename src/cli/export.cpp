// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <ostream>
#include <system_error>

#include "cli/commands.h"
#include "cli/export_gguf.h"
#include "cli/inputs.h"
#include "core/text.h"
#include "decoder/decoder_files.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;

// Null where it is of a kind that is not read here, which is no reason not to export the weights.
std::shared_ptr<const Tokenizer> open_if_known(const ExportArguments& arguments,
                                               std::ostream& err) {
  try {
    return load_tokenizer(arguments);
  } catch (const CheckpointError& error) {
    err << "prefopt: the tokenizer is not one that is read here: " << error.what() << '\n';
    return nullptr;
  }
}

// The files that transformers, and the next command, want next to the weights.
FolderFiles companions_of(const ExportArguments& arguments, const Decoder& model,
                          const Tokenizer* tokenizer, std::ostream& err) {
  const std::string rows = row_memory(arguments).options;
  if (!tokenizer) return model_companions("", arguments.model, "", rows);
  const std::string source = arguments.tokenizer.empty()
                                 ? find_tokenizer(arguments.model, arguments.adapter)
                                 : arguments.tokenizer;
  if (source.empty()) {
    err << "prefopt: " << arguments.model << " brings no tokenizer, so " << arguments.out
        << " has none\n";
  }
  const std::string format = recorded_format(arguments.chat_format, *tokenizer);
  FolderFiles files = model_companions(source, arguments.model, format, rows);
  const std::string generation = generation_config_with(
      model, end_tokens(model, *tokenizer, format_of_ends(format, *tokenizer)));
  if (!generation.empty()) files["generation_config.json"] = generation;
  return files;
}

/// Blocks that an adapter is merged into become numbers, of which there are several kinds.
void check_dtype_of_merge(const ExportArguments& arguments) {
  const bool is_number = arguments.dtype.starts_with("float") || arguments.dtype == "bfloat16";
  if (arguments.adapter.empty() || is_number || !detail::has_blocks(arguments.model)) return;
  throw ConfigError(fmt::format(
      "--dtype: expected float32, float64, bfloat16 or float16 to merge an adapter into a model in "
      "blocks, got {}",
      arguments.dtype));
}

}  // namespace

void run_export(const ExportArguments& arguments, std::ostream& err) {
  if (arguments.out.empty() == arguments.gguf.empty()) {
    throw ConfigError(fmt::format("export: expected --out or --gguf, got {}",
                                  arguments.out.empty() ? "neither" : "both"));
  }
  if (!arguments.gguf.empty()) return export_gguf_file(arguments, err);
  if (arguments.adapter_only) {
    throw ConfigError(
        "--adapter-only: expected --gguf, got --out; the adapter is a folder already");
  }
  if (arguments.gguf_type != ExportArguments().gguf_type) {
    throw ConfigError(
        fmt::format("--gguf-type: expected --gguf, got --out, whose weights have --dtype, and {}",
                    arguments.gguf_type));
  }
  std::error_code ignored;
  if (fs::exists(fs::path(arguments.out) / "config.json", ignored)) {
    throw ConfigError(
        fmt::format("--out: expected a new folder, got {} with a model in it", arguments.out));
  }
  check_dtype_of_merge(arguments);
  const auto tokenizer = open_if_known(arguments, err);
  std::shared_ptr<const Policy> policy;
  std::shared_ptr<Decoder> layers;  // the policy, or those of a reward model
  if (names_reward_model(arguments)) {
    if (!tokenizer) {
      throw ConfigError(
          "--tokenizer: expected one that is read here, which says where a reward model's texts "
          "end, got none");
    }
    const auto model = load_reward_model(arguments, *tokenizer, err);
    layers = std::shared_ptr<Decoder>(model, &model->body());
    policy = model;
  } else {
    policy = layers = load_model(arguments, err);
  }
  if (layers->adapter()) layers->merge_adapter();
  const FolderFiles companions = companions_of(arguments, *layers, tokenizer.get(), err);
  policy->save(arguments.out);
  prefopt::write_files(companions, arguments.out);
  err << "prefopt: wrote " << detail::printable(arguments.out) << '\n';
}

}  // namespace prefopt::cli
