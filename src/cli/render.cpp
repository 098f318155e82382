// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <ctime>
#include <filesystem>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "core/file.h"
#include "core/json.h"
#include "data/chat_template.h"
#include "data/tokenizer_config.h"
#include "jinja/failure.h"
#include "jinja/template.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;
using detail::Json;

/// A template and the special tokens that it may write.
struct Source {
  std::string text, where;
  std::vector<std::pair<std::string, std::string>> tokens;
};

/// Returns the template of this name in tokenizer_config.json.
std::string named_template(const detail::JsonNode& config, const std::string& name,
                           const std::string& where) {
  const std::string wanted = name.empty() ? "default" : name;
  std::vector<std::string> names;
  for (detail::NamedTemplate& one : detail::chat_templates(config.member("chat_template"))) {
    if (one.name == wanted) return std::move(one.text);
    names.push_back(std::move(one.name));
  }
  throw ConfigError(fmt::format(
      "{}: expected a chat template '{}', got {}", where, wanted,
      names.empty() ? "none of this name" : fmt::format("those named {}", fmt::join(names, ", "))));
}

Source folder_source(const fs::path& folder, const std::string& name) {
  Source source;
  const fs::path config_path = folder / "tokenizer_config.json",
                 own = folder / "chat_template.jinja";
  const bool has_own = name.empty() && fs::exists(own);
  if (fs::exists(config_path)) {
    source.where = config_path.string();
    const auto json = detail::parse_json<CheckpointError, detail::SortedJson>(
        detail::read_file<CheckpointError>(source.where), source.where);
    const detail::JsonNode config(json, source.where);
    for (const char* token : detail::kTokenNames) {
      if (std::string text = detail::token_text(config.member(token)); !text.empty()) {
        source.tokens.emplace_back(token, std::move(text));
      }
    }
    if (!has_own) source.text = named_template(config, name, source.where);
  } else if (!has_own) {
    throw ConfigError(fmt::format(
        "{}: expected a folder with chat_template.jinja or tokenizer_config.json, got neither",
        folder.string()));
  }
  if (has_own) {
    source.where = own.string();
    source.text = detail::read_file<CheckpointError>(source.where);
  }
  return source;
}

Source gguf_source(const std::string& path, const std::string& name) {
  const GgufFile file = GgufFile::open(path);
  const std::string key = name.empty() || name == "default" ? "tokenizer.chat_template"
                                                            : "tokenizer.chat_template." + name;
  if (!file.has(key)) {
    throw ConfigError(fmt::format("{}: expected a key '{}', got none", path, key));
  }
  Source source{.text = file.text(key), .where = path + ": " + key, .tokens = {}};
  const auto tokens = file.has("tokenizer.ggml.tokens") ? file.texts("tokenizer.ggml.tokens")
                                                        : std::vector<std::string>();
  for (const auto& [token, id_key] : {std::pair{"bos_token", "tokenizer.ggml.bos_token_id"},
                                      {"eos_token", "tokenizer.ggml.eos_token_id"},
                                      {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                      {"pad_token", "tokenizer.ggml.padding_token_id"}}) {
    if (!file.has(id_key)) continue;
    const auto id = static_cast<std::size_t>(file.integer(id_key));
    if (id < tokens.size()) source.tokens.emplace_back(token, tokens[id]);
  }
  return source;
}

Source find_source(const RenderArguments& arguments) {
  if (arguments.model.empty() == arguments.template_file.empty()) {
    throw ConfigError(fmt::format("render: expected --model or --template, got {}",
                                  arguments.model.empty() ? "neither" : "both"));
  }
  if (!arguments.template_file.empty()) {
    if (!arguments.template_name.empty()) {
      throw ConfigError("--template-name: expected a --model that has templates, got --template");
    }
    return {.text = detail::read_file<DataError>(arguments.template_file),
            .where = arguments.template_file,
            .tokens = {}};
  }
  const fs::path model(arguments.model);
  return model.extension() == ".gguf" ? gguf_source(arguments.model, arguments.template_name)
                                      : folder_source(model, arguments.template_name);
}

class LineRenderer {
 public:
  explicit LineRenderer(const RenderArguments& arguments)
      : arguments_(arguments),
        source_(find_source(arguments)),
        template_(source_.text, source_.where) {
    const std::time_t now = std::time(nullptr);
    localtime_r(&now, &options_.now);
  }

  std::string render(std::string_view line, const std::string& where) const {
    try {
      return template_.render(variables(line, where), where, options_).bytes();
    } catch (const jinja::Failure& failure) {
      throw DataError(fmt::format("{}: {}", where, failure.what()));
    }
  }

 private:
  jinja::Variables variables(std::string_view line, const std::string& where) const {
    const Json row = detail::parse_json<DataError>(line, where);
    const auto messages = row.is_object() ? row.find("messages") : row.end();
    if (messages == row.end() || !messages->is_array()) {
      throw DataError(
          fmt::format("{}: expected an object with a list 'messages', got {}", where,
                      row.is_object() ? "one without it" : detail::json_type_name(row)));
    }
    Json list = Json::array();
    for (const Json& message : *messages) {
      if (!message.is_object()) {
        throw DataError(fmt::format("{}: expected messages that are objects, got {}", where,
                                    detail::json_type_name(message)));
      }
      list.push_back(detail::with_reasoning_names(message));
    }
    jinja::Variables result{
        {"messages", jinja::value_of(list)},
        {"tools", jinja::None{}},
        {"documents", jinja::None{}},
        {"add_generation_prompt", jinja::Value(arguments_.add_generation_prompt)}};
    for (const auto& [name, text] : source_.tokens) {
      result.emplace_back(name, jinja::Value(std::string_view(text)));
    }
    if (arguments_.bos)
      result.emplace_back("bos_token", jinja::Value(std::string_view(*arguments_.bos)));
    if (arguments_.eos)
      result.emplace_back("eos_token", jinja::Value(std::string_view(*arguments_.eos)));
    add_variables(row, where, result);
    return result;
  }

  static void add_variables(const Json& row, const std::string& where, jinja::Variables& result) {
    for (const auto& [name, value] : row.items()) {
      if (name == "messages") continue;
      if (name != "chat_template_kwargs") {
        result.emplace_back(name, jinja::value_of(value));
        continue;
      }
      if (!value.is_object()) {
        throw DataError(fmt::format("{}: expected 'chat_template_kwargs' to be an object, got {}",
                                    where, detail::json_type_name(value)));
      }
      for (const auto& [own, given] : value.items())
        result.emplace_back(own, jinja::value_of(given));
    }
  }

  const RenderArguments& arguments_;
  Source source_;
  jinja::Template template_;
  jinja::RenderOptions options_;
};

}  // namespace

void run_render(const RenderArguments& arguments, std::ostream& out) {
  const LineRenderer renderer(arguments);
  for_each_line(arguments.messages, [&](std::int64_t line, std::string_view text) {
    const std::string where = fmt::format("{}:{}", arguments.messages, line);
    out << detail::dump_json(Json(renderer.render(text, where))) << '\n';
  });
}

}  // namespace prefopt::cli
