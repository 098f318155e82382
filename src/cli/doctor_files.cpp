// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/finding.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "core/text.h"
#include "data/chat_template.h"
#include "data/chat_writer.h"
#include "data/data_files.h"
#include "decoder/adapters/adapter_config.h"
#include "policy/token_range.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/error.h"
#include "prefopt/options.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;
using detail::Json;

bool has_file(const fs::path& folder, const char* name) {
  std::error_code ignored;
  return fs::exists(folder / name, ignored);
}

/// Returns the name of the model that an adapter was made for; empty where it names none.
std::string base_of(const std::string& adapter) {
  const Json base = detail::base_model_of(adapter);
  return base.is_string() ? base.get<std::string>() : "";
}

/// Returns the last part of a path or of a hub's name.
std::string short_name(std::string path) {
  while (path.ends_with('/')) path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

void place_once(std::string& place, const std::string& path, std::string_view kind) {
  if (!place.empty()) {
    throw ConfigError(fmt::format("{}: expected one {}, got '{}' as well", path, kind, place));
  }
  place = path;
}

/// CLI11 splits a list at its commas where a name takes any number of words.
void check_is_path(const std::string& path) {
  if (!path.starts_with('"') && !path.starts_with('{')) return;
  throw ConfigError(fmt::format(
      "PATH: expected a file or a folder, got {} of a list; --data takes a whole list", path));
}

/// Puts each path to where its kind belongs, which its content tells.
DoctorArguments placed(DoctorArguments arguments) {
  for (const std::string& path : std::exchange(arguments.paths, {})) {
    check_is_path(path);
    if (has_file(path, "adapter_config.json")) {
      arguments.adapters.push_back(path);
    } else if (has_file(path, "config.json") || path.ends_with(".gguf")) {
      place_once(arguments.model, path, "model");
    } else if (has_file(path, "tokenizer.json") || path.ends_with("tokenizer.json")) {
      place_once(arguments.tokenizer, path, "tokenizer");
    } else {
      arguments.data.push_back(path);
    }
  }
  for (const std::string& adapter : arguments.adapters) {
    if (!arguments.model.empty()) break;
    const std::string base = base_of(adapter);
    std::error_code ignored;
    if (fs::exists(base, ignored)) arguments.model = base;
  }
  // The tokenizer of the only one goes before its model's.
  if (arguments.adapters.size() == 1) arguments.adapter = arguments.adapters.front();
  return arguments;
}

/// Names and values of `options` that are not those of `normal`.
std::string described(const Json& options, const Json& normal) {
  std::vector<std::string> parts;
  for (const auto& [name, value] : options.items()) {
    if (value == normal.value(name, Json())) continue;
    parts.push_back(name + ' ' + (value.is_string() ? value.get<std::string>() : value.dump()));
  }
  return parts.empty() ? "all options at their defaults"
                       : fmt::format("{}", fmt::join(parts, ", "));
}

template <class Options>
std::string described(const Options& options) {
  return described(Json::parse(options_to_json(options)), Json::parse(options_to_json(Options())));
}

std::string described_model(DecoderOptions options) {
  const std::string family = std::exchange(options.family, DecoderOptions().family);
  return fmt::format("{}, {}", family, described(options));
}

/// Looks at each file, whatever the others are like.
class FileExam {
 public:
  explicit FileExam(const DoctorArguments& arguments) : arguments_(arguments) {}

  std::vector<Finding> findings() {
    if (!arguments_.model.empty()) {
      look("model " + arguments_.model, [this] { return model(); });
      if (model_) look("weights", [this] { return weights(); });
    }
    for (const std::string& path : arguments_.adapters) {
      look("adapter " + path, [&] { return adapter(path); });
    }
    if (!arguments_.model.empty() || !arguments_.tokenizer.empty()) {
      look("tokenizer", [this] { return tokenizer(); });
    }
    if (tokenizer_) look("chat template", [this] { return chat_template(); });
    if (tokenizer_ && model_) look("end tokens", [this] { return ends(); });
    for (const std::string& path : arguments_.data) {
      look("data " + path, [&] { return data(path); });
    }
    return std::move(findings_);
  }

 private:
  template <class Look>
  void look(const std::string& subject, Look&& examine) {
    Finding finding = finding_of(subject, examine);
    finding.subject = subject;
    findings_.push_back(std::move(finding));
  }

  Finding model() {
    const ModelArguments bare = without_adapter();
    std::ostringstream notes;
    if (names_reward_model(bare)) {
      reward_model_ = load_reward_model(bare, *load_tokenizer(bare), notes);
      model_ = std::shared_ptr<Decoder>(reward_model_, &reward_model_->body());
    } else {
      model_ = load_model(bare, notes);
    }
    return {.found = fmt::format("{}{}", reward_model_ ? "a reward model: " : "",
                                 described_model(model_->options())),
            .advice = model_->load_note()};
  }

  Finding weights() const {
    const at::NoGradGuard no_grad;
    std::int64_t size = 0;
    for (const NamedParameter& parameter : model_->named_parameters()) {
      size += parameter.value.numel();
      if (!at::isfinite(parameter.value).all().item<bool>()) {
        throw CheckpointError(fmt::format("{}: expected finite weights, got others in {}",
                                          arguments_.model, parameter.name));
      }
    }
    return {.found =
                fmt::format("{} parameters, all finite, {} tokens", size, model_->vocab_size())};
  }

  ModelArguments without_adapter() const {
    ModelArguments bare = arguments_;
    bare.adapter.clear();
    return bare;
  }

  /// Each by itself on the model.
  std::shared_ptr<Decoder> adapted_by(const std::string& path) const {
    if (!reward_model_) return model_->with_adapter(path);
    std::ostringstream notes;
    const ModelArguments bare = without_adapter();
    const auto model = load_reward_model(bare, *load_tokenizer(bare), notes);
    model->load_adapter(path);
    return std::shared_ptr<Decoder>(model, &model->body());
  }

  Finding adapter(const std::string& path) const {
    if (!model_) {
      return {.status = Status::kWarning,
              .found = "not looked at, as its model is not known",
              .advice = "name the model that it adapts, too"};
    }
    Finding finding{.found = described(*adapted_by(path)->adapter())};
    const std::string base = base_of(path);
    if (!base.empty() && short_name(base) != short_name(arguments_.model)) {
      finding.status = Status::kWarning;
      finding.advice = fmt::format("it was made for '{}': is that this model?", base);
    }
    return finding;
  }

  Finding tokenizer() {
    const auto read = load_tokenizer(arguments_);
    if (arguments_.tokenizer.empty() &&
        find_tokenizer(arguments_.model, arguments_.adapter).empty()) {
      return {.status = Status::kWarning,
              .found = "the model brings none, so rows of ids alone can be read",
              .advice = "name a tokenizer, or say byte for a model of bytes"};
    }
    if (model_ && read->vocab_size() > model_->vocab_size()) {
      throw ConfigError(
          fmt::format("{}: expected a tokenizer of at most the model's {} tokens, got '{}' with {}",
                      arguments_.model, model_->vocab_size(), read->name(), read->vocab_size()));
    }
    tokenizer_ = read;
    return {.found = fmt::format("{}, {} tokens, begin token {}, end token {}, padding token {}",
                                 read->name(), read->vocab_size(), shown(read->bos_id()),
                                 shown(read->eos_id()), shown(read->pad_id()))};
  }

  Finding chat_template() const {
    const std::string format = detail::chat_format_for_rows(arguments_.chat_format, *tokenizer_);
    const bool has_own = !tokenizer_->chat_template().empty();
    if (format != "auto") {
      return {.found = fmt::format("{}; messages are written as '{}'",
                                   has_own ? "the model's own" : "none", format)};
    }
    // Whether it can be rendered shows on a short conversation.
    const detail::Turns turns{{"user", "Hello."}};
    const detail::ChatTemplate own(*tokenizer_);
    own.render(turns, {}, /*opens_answer=*/true, "chat template");
    return {.found = fmt::format("the model's own, which is rendered; {}",
                                 own.end_of_turn().empty()
                                     ? "no token ends an answer"
                                     : fmt::format("'{}' ends an answer", own.end_of_turn()))};
  }

  Finding ends() const {
    std::vector<std::string> texts;
    for (const std::int64_t id : end_tokens(*model_, *tokenizer_, arguments_.chat_format)) {
      texts.push_back(shown(id));
    }
    return {.status = texts.empty() ? Status::kWarning : Status::kOk,
            .found = texts.empty() ? "none" : fmt::format("{}", fmt::join(texts, ", ")),
            .advice = texts.empty() ? "completions end at max_new_tokens alone" : ""};
  }

  Finding data(const std::string& path) const {
    const auto tokenizer = tokenizer_ ? tokenizer_ : named_tokenizer();
    DataOptions options = run_options(row_memory(arguments_));
    options.unusable = RowAction::kError;
    options.identical = RowAction::kKeep;
    options.chat_format = arguments_.chat_format;
    RowNeeds needs;
    needs.rejected = false;  // of pairs and of single completions
    const Dataset dataset = load_dataset(path, *tokenizer, options, needs);
    if (model_) detail::check_token_range(dataset.pairs, model_->vocab_size(), path);
    Finding finding{.found = fmt::format("{} rows that can be used; `prefopt data check` says more",
                                         dataset.pairs.size())};
    std::vector<std::string> advice;
    std::vector<std::string> unread;
    for (const auto& [column, rows] : dataset.report.unread) unread.push_back("'" + column + "'");
    if (!unread.empty()) {
      advice.push_back(fmt::format("nothing reads the column{} {}", unread.size() > 1 ? "s" : "",
                                   fmt::join(unread, ", ")));
    }
    const std::string passed_over = detail::note_on_folders(path, DataSplit::kAny);
    if (!passed_over.empty()) advice.push_back(passed_over);
    if (!advice.empty()) finding.status = Status::kWarning;
    finding.advice = fmt::format("{}", fmt::join(advice, "; "));
    return finding;
  }

  std::shared_ptr<const Tokenizer> named_tokenizer() const {
    const bool is_named = !arguments_.model.empty() || !arguments_.tokenizer.empty();
    return is_named ? load_tokenizer(arguments_) : make_tokenizer("byte");
  }

  /// An id with its text.
  std::string shown(std::int64_t id) const {
    if (id < 0) return "none";
    return tokenizer_ ? fmt::format("{} '{}'", id, detail::shown_text(tokenizer_->spelling(id)))
                      : std::to_string(id);
  }

  const DoctorArguments& arguments_;
  std::vector<Finding> findings_;
  std::shared_ptr<RewardModel> reward_model_;
  std::shared_ptr<Decoder> model_;  ///< or the layers of the reward model
  std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace

std::vector<Finding> examine_files(const DoctorArguments& arguments) {
  const DoctorArguments all = placed(arguments);
  return FileExam(all).findings();
}

}  // namespace prefopt::cli
