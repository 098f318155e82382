// SPDX-License-Identifier: Apache-2.0
#include "cli/inputs.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <ostream>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "data/chat_writer.h"
#include "data/data_files.h"
#include "data/row_preparation.h"
#include "data/tokenizer_difference.h"
#include "decoder/decoder_files.h"
#include "decoder/quantized_weight.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/device.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/policy/guided_policy.h"

namespace prefopt::cli {
namespace {

// An id, -1 for none, or a text that is one token.
std::int64_t end_token(const std::string& name, const Decoder& model, const Tokenizer& tokenizer) {
  std::int64_t id = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
  if (error == std::errc() && end == name.data() + name.size()) {
    if (id >= -1 && id < model.vocab_size()) return id;
    throw ConfigError(
        fmt::format("--end-tokens: expected ids in [-1, {}), got {}", model.vocab_size(), id));
  }
  const auto ids = tokenizer.encode(name);
  if (ids.size() == 1) return ids.front();
  throw ConfigError(
      fmt::format("--end-tokens: expected ids or texts of one token each, got '{}', which is {}",
                  name, ids.size()));
}

}  // namespace

const std::string& dtype_for(const std::string& path, const std::string& dtype) {
  const bool makes_blocks = detail::encoding_on_load(dtype) != nullptr;
  const bool keeps_blocks = dtype == "quantized";
  std::error_code ignored;
  const bool is_adapter = std::filesystem::exists(path + "/adapter_config.json", ignored);
  if ((!makes_blocks && !keeps_blocks) || is_adapter) return dtype;
  const bool has_blocks = detail::has_blocks(path);
  if (keeps_blocks && !has_blocks) {
    throw ConfigError(fmt::format(
        "--dtype: expected a GGUF file with blocks to keep them ({}), got '{}'", dtype, path));
  }
  if (makes_blocks && has_blocks) {
    throw ConfigError(fmt::format(
        "--dtype: expected weights without blocks to make some ({}), got '{}', whose own quantized "
        "keeps",
        dtype, path));
  }
  return dtype;
}

std::shared_ptr<Decoder> load_model(const ModelArguments& arguments, std::ostream& err) {
  const at::Device device = parse_device(arguments.device, "--device");
  auto model = Decoder::load(arguments.model, dtype_for(arguments.model, arguments.dtype));
  if (!model->load_note().empty()) err << "prefopt: " << model->load_note() << '\n';
  if (!arguments.adapter.empty()) model->load_adapter(arguments.adapter);
  model->to(device);
  return model;
}

namespace {

Guide load_guide(const std::string& argument, const std::string& dtype, const Tokenizer& tokenizer,
                 std::ostream& err) {
  const auto colon = argument.rfind(':');
  double weight = 0;
  const char* const end = argument.data() + argument.size();
  const bool has_weight = colon != std::string::npos && colon > 0 &&
                          std::from_chars(argument.data() + colon + 1, end, weight).ptr == end &&
                          colon + 1 < argument.size() && std::isfinite(weight);
  if (!has_weight) {
    throw ConfigError(fmt::format(
        "--guide: expected a model and its weight, as in runs/arm:2, got '{}'", argument));
  }
  const std::string path = argument.substr(0, colon);
  auto model = Decoder::load(path, dtype_for(path, dtype));
  if (!model->load_note().empty()) err << "prefopt: " << model->load_note() << '\n';
  check_same_tokens(tokenizer, path, /*named=*/false, err);
  return {.model = std::move(model), .weight = weight};
}

}  // namespace

std::shared_ptr<Policy> with_guides(std::shared_ptr<Decoder> model,
                                    const std::vector<std::string>& guides,
                                    const std::string& dtype, const Tokenizer& tokenizer,
                                    std::ostream& err) {
  if (guides.empty()) return model;
  std::vector<Guide> loaded;
  for (const std::string& argument : guides) {
    loaded.push_back(load_guide(argument, dtype, tokenizer, err));
  }
  return std::make_shared<GuidedPolicy>(std::move(model), std::move(loaded));
}

std::shared_ptr<RewardModel> load_reward_model(const ModelArguments& arguments,
                                               const Tokenizer& tokenizer, std::ostream& err) {
  const at::Device device = parse_device(arguments.device, "--device");
  const bool has_adapter = !arguments.adapter.empty();
  auto model = RewardModel::load(arguments.model, dtype_for(arguments.model, arguments.dtype),
                                 has_adapter ? ScoreHead::kFreshIfNone : ScoreHead::kRequired);
  const std::string& note = model->body().load_note();
  if (!note.empty()) err << "prefopt: " << note << '\n';
  if (has_adapter) model->load_adapter(arguments.adapter);
  if (model->body().adapter()) model->complete_pad_token(tokenizer);
  model->to(device);
  return model;
}

bool names_reward_model(const ModelArguments& arguments) {
  return is_reward_model(arguments.model) || is_reward_model(arguments.adapter);
}

std::string recorded_format(const std::string& asked, const Tokenizer& tokenizer) {
  return asked == "auto" ? tokenizer.chat_format() : resolve_chat_format(asked, tokenizer);
}

std::string format_of_ends(const std::string& format, const Tokenizer& tokenizer) {
  if (!format.empty()) return format;
  return detail::chat_format_for_rows("auto", tokenizer) == "auto" ? "auto" : "plain";
}

std::shared_ptr<const Tokenizer> load_tokenizer(const ModelArguments& arguments) {
  return open_tokenizer(arguments.tokenizer, arguments.model, arguments.adapter);
}

SamplingOptions with_end_tokens(SamplingOptions options, const std::vector<std::string>& names,
                                const Decoder& model, const Tokenizer& tokenizer,
                                const std::string& chat_format) {
  if (names.empty()) {
    return with_end_tokens(std::move(options), model, tokenizer, chat_format);
  }
  std::vector<std::int64_t> ids;
  for (const std::string& name : names) ids.push_back(end_token(name, model, tokenizer));
  options.eos_id = ids.front();
  options.extra_eos_ids.assign(ids.begin() + 1, ids.end());
  std::erase(options.extra_eos_ids, -1);
  return options;
}

std::string read_json_argument(const std::string& argument) {
  return argument.starts_with('@') ? detail::read_file<ConfigError>(argument.substr(1)) : argument;
}

Loss read_loss(const std::string& argument) {
  const std::string config = read_json_argument(argument);
  if (is_token_objective(config)) {
    throw ConfigError(
        "loss: expected a loss on rows, got an objective on tokens, which takes rollouts (`prefopt "
        "loss --rollouts`)");
  }
  return make_loss(config);
}

RowMemory row_memory(const ModelArguments& arguments) {
  return detail::remembered_rows({arguments.adapter, arguments.model});
}

Dataset read_pairs(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                   const RowNeeds& needs, const RowMemory& memory, std::ostream& err) {
  Dataset dataset = load_dataset(path, tokenizer, options, needs);
  RowReport& report = dataset.report;
  for (const std::string* note : {&report.chat_note, &report.cut_note}) {
    if (!note->empty()) err << "prefopt: " << path << ": " << *note << '\n';
  }
  // Whether a row is worth training on is not asked here.
  for (const auto defect : {detail::RowDefect::kPrefixAnswer, detail::RowDefect::kIdentical,
                            detail::RowDefect::kDuplicate}) {
    const std::string name(detail::defect_name(defect));
    report.kept_with.erase(name);
    for (RowReport& file : report.files) file.kept_with.erase(name);
  }
  for (const std::string& lines :
       {detail::note_on_folders(path, DataSplit::kAny), report.summary()}) {
    if (!lines.empty()) err << lines << '\n';
  }
  note_uncut(dataset.pairs, memory, options, err);
  return dataset;
}

void check_same_tokens(const Tokenizer& tokenizer, const std::string& model, bool named,
                       std::ostream& err) {
  const std::string difference = detail::tokenizer_difference(tokenizer, model);
  if (difference.empty()) return;
  if (!named) {
    throw ConfigError(fmt::format(
        "{}: expected a model that tokenizes as {} does, got one by which {}; --tokenizer names "
        "one for both",
        model, tokenizer.name(), difference));
  }
  err << fmt::format("prefopt: {} gets the tokens of {}, but by its own tokenizer {}\n", model,
                     tokenizer.name(), difference);
}

std::vector<double> values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

}  // namespace prefopt::cli
