// SPDX-License-Identifier: Apache-2.0
#include "data/model_memory.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/file.h"
#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt::detail {

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
    if (!value.is_string()) fail(fmt::format("{} to be text", shown_text(name)), shown_json(value));
    if (name == "tokenizer") {
      memory.tokenizer = value.get<std::string>();
      if (memory.tokenizer != "byte") fail("tokenizer to be 'byte'", shown_json(value));
    } else if (name == "chat_format") {
      memory.chat_format = value.get<std::string>();
    } else {
      // A later version may keep more here, which could change how texts are read.
      fail("the fields tokenizer and chat_format only", fmt::format("'{}'", shown_text(name)));
    }
  }
  return memory;
}

std::string written_memory(const ModelMemory& memory) {
  Json json = Json::object();
  if (!memory.tokenizer.empty()) json["tokenizer"] = memory.tokenizer;
  if (!memory.chat_format.empty()) json["chat_format"] = memory.chat_format;
  return dump_json(json, 2) + "\n";
}

}  // namespace prefopt::detail
