// SPDX-License-Identifier: Apache-2.0
#include "data/model_memory.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/file.h"
#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Returns the options of rows in `json`, all of them, as a later version may have other defaults.
/// Throws CheckpointError, led by `where`.
std::string checked_rows(const Json& json, const std::string& where) {
  for (const std::string_view name : kNotOfRows) {
    if (!json.contains(std::string(name))) continue;
    throw CheckpointError(
        fmt::format("{}: expected options that say how rows are read, got '{}'", where, name));
  }
  try {
    return row_memory(options_from_json<DataOptions>(dump_json(json), where));
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
}

}  // namespace

ModelMemory read_memory(const std::string& folder) {
  const std::string path = fmt::format("{}/{}", folder, kMemoryFile);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  const Json json = parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
  const auto fail = [&](std::string_view expected, std::string_view got) {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", path, expected, got));
  };
  if (!json.is_object()) fail("an object", json_type_name(json));
  ModelMemory memory;
  for (const auto& [name, value] : json.items()) {
    if (name == "data") {
      memory.data = checked_rows(value, path + ": data");
      continue;
    }
    if (!value.is_string()) fail(fmt::format("{} to be text", shown_text(name)), shown_json(value));
    if (name == "tokenizer") {
      memory.tokenizer = value.get<std::string>();
      if (memory.tokenizer != "byte") fail("tokenizer to be 'byte'", shown_json(value));
    } else if (name == "chat_format") {
      memory.chat_format = value.get<std::string>();
    } else {
      // A later version may keep more here, which could change how texts are read.
      fail("the fields tokenizer, chat_format and data only",
           fmt::format("'{}'", shown_text(name)));
    }
  }
  return memory;
}

std::string written_memory(const ModelMemory& memory) {
  Json json = Json::object();
  if (!memory.tokenizer.empty()) json["tokenizer"] = memory.tokenizer;
  if (!memory.chat_format.empty()) json["chat_format"] = memory.chat_format;
  if (!memory.data.empty()) json["data"] = parse_json<ConfigError>(memory.data, kMemoryFile);
  return dump_json(json, 2) + "\n";
}

std::string row_memory(const DataOptions& options) {
  Json json = parse_json<ConfigError>(options_to_json(options), kMemoryFile);
  for (const std::string_view name : kNotOfRows) json.erase(std::string(name));
  return dump_json(json);
}

RowMemory remembered_rows(const std::vector<std::string>& folders) {
  for (const std::string& folder : folders) {
    std::error_code ignored;
    if (folder.empty() || !std::filesystem::is_directory(folder, ignored)) continue;
    if (std::string options = read_memory(folder).data; !options.empty()) {
      return {folder, std::move(options)};
    }
  }
  return {};
}

}  // namespace prefopt::detail
