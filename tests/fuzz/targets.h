// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string_view>

// One function a reader, each in its own file. A new one: its file, named in CMakeLists.txt,
// a line in each of the two lists below, and seeds in corpus/NAME.

namespace prefopt::fuzz {

// Each hands `bytes` to its reader and uses what the reader made of them. Bytes that the reader
// refuses as it should pass; whatever is thrown from here is a fault.
void read_adapter(std::string_view bytes);
void read_arrow_rows(std::string_view bytes);
void read_chat(std::string_view bytes);
void read_checkpoint(std::string_view bytes);
void read_config(std::string_view bytes);
void read_decoder_config(std::string_view bytes);
void read_gguf(std::string_view bytes);
void read_gguf_tokenizer(std::string_view bytes);
void read_gguf_writer(std::string_view bytes);
void read_logps(std::string_view bytes);
void read_rollout_file(std::string_view bytes);
void read_rollouts(std::string_view bytes);
void read_rows(std::string_view bytes);
void read_safetensors(std::string_view bytes);
void read_safetensors_index(std::string_view bytes);
void read_template(std::string_view bytes);
void read_tokenizer_json(std::string_view bytes);

struct Target {
  std::string_view name;
  void (*read)(std::string_view bytes);
};

inline constexpr auto kTargets = std::to_array<Target>({
    {"adapter", read_adapter},
    {"arrow_rows", read_arrow_rows},
    {"chat", read_chat},
    {"checkpoint", read_checkpoint},
    {"config", read_config},
    {"decoder_config", read_decoder_config},
    {"gguf", read_gguf},
    {"gguf_tokenizer", read_gguf_tokenizer},
    {"gguf_writer", read_gguf_writer},
    {"logps", read_logps},
    {"rollout_file", read_rollout_file},
    {"rollouts", read_rollouts},
    {"rows", read_rows},
    {"safetensors", read_safetensors},
    {"safetensors_index", read_safetensors_index},
    {"template", read_template},
    {"tokenizer_json", read_tokenizer_json},
});

}  // namespace prefopt::fuzz
