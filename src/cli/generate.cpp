// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "data/chat_writer.h"
#include "data/row_preparation.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::cli {
namespace {

using detail::Json;

struct Prompt {
  std::string text;
  std::vector<std::int64_t> ids;
};

Prompt from_text(std::string text, const Tokenizer& tokenizer, bool with_bos = true) {
  Prompt prompt{.text = std::move(text), .ids = {}};
  const auto ids = tokenizer.encode(prompt.text);
  // Not a second time where the text spells it.
  const bool begins = !ids.empty() && ids.front() == tokenizer.bos_id();
  if (with_bos && !begins && tokenizer.bos_id() >= 0) prompt.ids.push_back(tokenizer.bos_id());
  prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  return prompt;
}

Prompt from_ids(std::vector<std::int64_t> ids, const Tokenizer& tokenizer) {
  return {.text = tokenizer.decode(ids), .ids = std::move(ids)};
}

/// Reads prompts of rows and writes messages in the chat format.
class PromptReader {
 public:
  PromptReader(const GenerateArguments& arguments, const Tokenizer& tokenizer)
      : arguments_(arguments),
        tokenizer_(tokenizer),
        format_(detail::chat_format_for_rows(arguments.chat_format, tokenizer)) {}

  std::vector<Prompt> read() {
    std::vector<Prompt> prompts;
    for (const std::string& text : arguments_.prompts) {
      prompts.push_back(from_text(text, tokenizer_));
    }
    for (const std::string& text : arguments_.messages) prompts.push_back(from_message(text));
    if (!arguments_.data.empty()) read_rows(prompts);
    return prompts;
  }

  /// A remark on the chat format; else empty.
  std::string note() const {
    return detail::chat_format_note(arguments_.chat_format, tokenizer_, message_rows_);
  }

 private:
  void read_rows(std::vector<Prompt>& prompts) {
    DataOptions options;
    options.chat_format = format_;
    read_columns(arguments_.columns, options);
    detail::read_prompts(arguments_.data, options, [&](const PreferenceRow& row) {
      message_rows_ += row.from_messages ? 1 : 0;
      // A chat format writes its begin token itself.
      prompts.push_back(
          row.tokenized ? from_ids(row.prompt_ids, tokenizer_)
                        : from_text(row.prompt, tokenizer_, /*with_bos=*/row.end_of_turn.empty()));
    });
    if (prompts.empty()) throw DataError(arguments_.data + ": expected at least one row, got none");
  }

  Prompt from_message(const std::string& text) {
    std::vector<Message> messages;
    if (arguments_.system) messages.push_back({.role = "system", .content = *arguments_.system});
    messages.push_back({.role = "user", .content = text});
    ++message_rows_;
    const detail::ChatWriter chat(format_, "--message");
    if (arguments_.system && !chat.has_system_turn()) {
      throw ConfigError(fmt::format(
          "--system: expected a chat format that has a turn for it, got '{}'", chat.name()));
    }
    return from_text(chat.text(messages, /*open_assistant_turn=*/true, "--message"), tokenizer_,
                     /*with_bos=*/chat.end_of_turn().empty());
  }

  const GenerateArguments& arguments_;
  const Tokenizer& tokenizer_;
  std::string format_;
  std::int64_t message_rows_ = 0;
};

void check(const GenerateArguments& arguments) {
  const int sources = (arguments.prompts.empty() ? 0 : 1) + (arguments.messages.empty() ? 0 : 1) +
                      (arguments.data.empty() ? 0 : 1);
  if (sources != 1) {
    throw ConfigError(
        fmt::format("generate: expected one of --prompt, --message and --data, got {}",
                    sources == 0 ? "none" : "several"));
  }
  if (arguments.system && arguments.messages.empty()) {
    throw ConfigError("--system: expected a --message that it goes before, got none");
  }
  if (arguments.samples < 1) {
    throw ConfigError(fmt::format("--samples: expected at least 1, got {}", arguments.samples));
  }
}

}  // namespace

void run_generate(const GenerateArguments& arguments, std::ostream& out, std::ostream& err) {
  check(arguments);
  SamplingOptions options{.max_new_tokens = arguments.max_new_tokens,
                          .temperature = arguments.temperature,
                          .top_k = arguments.top_k,
                          .top_p = arguments.top_p,
                          .seed = arguments.seed};
  options = checked(options, "generate");
  const auto tokenizer = load_tokenizer(arguments);
  const auto policy = load_model(arguments, err);
  options =
      with_end_tokens(options, arguments.end_tokens, *policy, *tokenizer, arguments.chat_format);

  PromptReader reader(arguments, *tokenizer);
  const auto prompts = reader.read();
  if (const std::string note = reader.note(); !note.empty()) err << "prefopt: " << note << '\n';
  const auto samples = static_cast<std::size_t>(arguments.samples);
  const std::size_t total = prompts.size() * samples;
  // In parts, so that a long file needs no more memory than a short one; first_index makes the
  // draws those of one call.
  constexpr std::size_t kPart = 64;
  for (std::size_t first = 0; first < total; first += kPart) {
    std::vector<std::vector<std::int64_t>> part;
    for (std::size_t i = first; i < std::min(first + kPart, total); ++i) {
      part.push_back(prompts[i / samples].ids);
    }
    options.first_index = static_cast<std::int64_t>(first);
    const auto completions = sample(*policy, part, options);
    for (std::size_t i = 0; i < completions.size(); ++i) {
      const std::string completion = tokenizer->decode(completions[i]);
      if (arguments.json) {
        const Json line{{"prompt", prompts[(first + i) / samples].text},
                        {"completion", completion},
                        {"ids", completions[i]}};
        out << detail::dump_json(line) << '\n';
      } else {
        out << completion << '\n';
      }
    }
  }
}

}  // namespace prefopt::cli
