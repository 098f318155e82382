// SPDX-License-Identifier: Apache-2.0
#include "cli/inputs.h"

#include <ostream>
#include <utility>

#include "core/file.h"
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
                                  std::ostream& err) {
  DataOptions options;
  options.max_prompt_length = 0;
  options.max_completion_length = 0;
  options.max_length = 0;
  options.unusable = RowPolicy::kError;
  options.identical = RowPolicy::kKeep;
  options.long_prompt = RowPolicy::kKeep;
  options.tool_calls = RowPolicy::kError;
  options.chat_format = chat_format;
  Dataset dataset = load_dataset(path, tokenizer, options, needs);
  if (const std::string summary = dataset.report.summary(); !summary.empty()) {
    err << summary << '\n';
  }
  return std::move(dataset.pairs);
}

std::vector<double> values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

}  // namespace prefopt::cli
