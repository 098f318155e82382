// SPDX-License-Identifier: Apache-2.0
#include "cli/export_gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <memory>
#include <ostream>
#include <system_error>
#include <vector>

#include "cli/inputs.h"
#include "core/text.h"
#include "decoder/decoder_config.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;

void check_arguments(const ExportArguments& arguments) {
  std::error_code ignored;
  if (fs::exists(arguments.gguf, ignored)) {
    throw ConfigError(fmt::format("--gguf: expected a new file, got {}", arguments.gguf));
  }
  if (names_reward_model(arguments)) {
    throw ConfigError(
        "--gguf: expected a model that writes, got a reward model; export a folder (--out)");
  }
  if (arguments.adapter_only && arguments.adapter.empty()) {
    throw ConfigError("--adapter-only: expected an --adapter, got none");
  }
}

// A merge in the few bits of a 16-bit type would lose what small updates add.
ModelArguments read_for_merge(ModelArguments arguments) {
  if (!arguments.adapter.empty() && arguments.dtype == "keep") arguments.dtype = "float32";
  return arguments;
}

std::string tokenizer_source(const ExportArguments& arguments) {
  if (!arguments.tokenizer.empty()) return arguments.tokenizer;
  const std::string source = find_tokenizer(arguments.model, arguments.adapter);
  return source.empty() ? tokenizer_of_model(arguments.model) : source;
}

/// Ends and form of texts, as a tokenizer has them.
struct TextForm {
  std::vector<std::int64_t> end_tokens;
  std::string chat_format = "plain";
  bool has_template = false;
};

TextForm text_form(const ExportArguments& arguments, const std::string& source,
                   const Decoder& model) {
  std::shared_ptr<const Tokenizer> tokenizer;
  try {
    tokenizer = open_tokenizer(source, arguments.model, arguments.adapter);
  } catch (const CheckpointError&) {
    // That of a GGUF file is copied, whether it is read here or not; others are refused there.
    return {.end_tokens = detail::end_tokens_of(model.options())};
  }
  const std::string format = recorded_format(arguments.chat_format, *tokenizer);
  return {.end_tokens = end_tokens(model, *tokenizer, format_of_ends(format, *tokenizer)),
          .chat_format = format.empty() ? "plain" : format,
          .has_template = !tokenizer->chat_template().empty()};
}

void report(const GgufExportRemarks& remarks, const std::string& path, std::ostream& err) {
  for (const std::string& remark : remarks.other_types) {
    err << fmt::format("prefopt: {} has {}\n", path, remark);
  }
  if (remarks.ignored_window > 0) {
    err << fmt::format(
        "prefopt: {} has a sliding window that llama.cpp does not compute; keep contexts within {} "
        "tokens\n",
        path, remarks.ignored_window);
  }
  if (!remarks.left_end_tokens.empty()) {
    err << fmt::format(
        "prefopt: {} names three end tokens, and {} found no place; llama.cpp ends at those that "
        "it knows by their text\n",
        path, fmt::join(remarks.left_end_tokens, ", "));
  }
}

void export_model(const ExportArguments& arguments, const std::string& name, std::ostream& err) {
  const std::string source = tokenizer_source(arguments);
  const auto model = load_model(read_for_merge(arguments), err);
  if (model->adapter()) model->merge_adapter();
  const TextForm form = text_form(arguments, source, *model);
  const GgufExportRemarks remarks = export_gguf(*model, arguments.gguf,
                                                {.type = arguments.gguf_type,
                                                 .name = name,
                                                 .tokenizer = source,
                                                 .end_tokens = form.end_tokens});
  if (source == "byte") {
    err << "prefopt: " << arguments.gguf << " has no tokenizer: llama.cpp has none for bytes\n";
  }
  report(remarks, arguments.gguf, err);
  if (form.chat_format != "plain" && !form.has_template) {
    err << fmt::format(
        "prefopt: {} has no chat template; the model's messages were written as '{}'\n",
        arguments.gguf, form.chat_format);
  }
}

}  // namespace

void export_gguf_file(const ExportArguments& arguments, std::ostream& err) {
  check_arguments(arguments);
  const std::string name = fs::path(arguments.gguf).stem().string();
  if (arguments.adapter_only) {
    export_gguf_adapter(*load_model(read_for_merge(arguments), err), arguments.gguf, name,
                        arguments.gguf_type);
  } else {
    export_model(arguments, name, err);
  }
  err << "prefopt: wrote " << detail::printable(arguments.gguf) << '\n';
}

}  // namespace prefopt::cli
