// SPDX-License-Identifier: Apache-2.0
#include "cli/inputs.h"

#include <fmt/format.h>

#include <ostream>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "data/row_layout.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"

namespace prefopt::cli {

std::shared_ptr<Decoder> load_model(const ModelArguments& arguments) {
  auto model = Decoder::load(arguments.model, arguments.dtype);
  if (!arguments.adapter.empty()) model->load_adapter(arguments.adapter);
  return model;
}

std::shared_ptr<const Tokenizer> load_tokenizer(const ModelArguments& arguments) {
  return make_tokenizer(arguments.tokenizer.empty() ? tokenizer_of_model(arguments.model)
                                                    : arguments.tokenizer);
}

std::string read_json_argument(const std::string& argument) {
  return argument.starts_with('@') ? detail::read_file<ConfigError>(argument.substr(1)) : argument;
}

Loss read_loss(const std::string& argument) { return make_loss(read_json_argument(argument)); }

std::vector<TokenPair> read_pairs(const std::string& path, const Tokenizer& tokenizer,
                                  const std::string& chat_format, const RowNeeds& needs,
                                  const ColumnArguments& columns, std::ostream& err) {
  DataOptions options;
  options.max_prompt_length = 0;
  options.max_completion_length = 0;
  options.max_length = 0;
  options.unusable = RowPolicy::kError;
  options.identical = RowPolicy::kKeep;
  options.long_prompt = RowPolicy::kKeep;
  options.tool_calls = RowPolicy::kError;
  options.chat_format = chat_format;
  read_columns(columns, options);
  Dataset dataset = load_dataset(path, tokenizer, options, needs);
  if (const std::string summary = dataset.report.summary(); !summary.empty()) {
    err << summary << '\n';
  }
  return std::move(dataset.pairs);
}

void read_columns(const ColumnArguments& arguments, DataOptions& options) {
  if (!arguments.columns.empty()) {
    const std::string given = read_json_argument(arguments.columns);
    options.columns = given.find_first_of("{\"") == std::string::npos
                          ? detail::dump_json(detail::Json(given))
                          : given;
    detail::RowLayout(options.columns, "--columns");
  }
  if (arguments.unused.empty()) return;
  if (arguments.unused != "error" && arguments.unused != "note") {
    throw ConfigError(fmt::format("--unused: expected 'error' or 'note', got '{}'",
                                  detail::shown_text(arguments.unused)));
  }
  options.unused = arguments.unused == "note" ? UnusedColumns::kNote : UnusedColumns::kError;
}

std::vector<double> values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

}  // namespace prefopt::cli
