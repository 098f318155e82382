// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "data/row_preparation.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/model/decoder.h"
#include "prefopt/model/sampling.h"

namespace prefopt::cli {
namespace {

using detail::Json;

struct Prompt {
  std::string text;
  std::vector<std::int64_t> ids;
};

Prompt from_text(std::string text, const Tokenizer& tokenizer, bool with_bos = true) {
  Prompt prompt{.text = std::move(text), .ids = {}};
  if (with_bos && tokenizer.bos_id() >= 0) prompt.ids.push_back(tokenizer.bos_id());
  const auto ids = tokenizer.encode(prompt.text);
  prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  return prompt;
}

Prompt from_ids(std::vector<std::int64_t> ids, const Tokenizer& tokenizer) {
  return {.text = tokenizer.decode(ids), .ids = std::move(ids)};
}

std::vector<Prompt> read_prompts(const GenerateArguments& arguments, const Tokenizer& tokenizer) {
  if (arguments.has_prompt) return {from_text(arguments.prompt, tokenizer)};
  DataOptions options;
  options.chat_format = resolve_chat_format(arguments.chat_format, tokenizer);
  read_columns(arguments.columns, options);
  std::vector<Prompt> prompts;
  detail::read_prompts(arguments.data, options, [&](const PreferenceRow& row) {
    // A chat format writes its begin token itself.
    prompts.push_back(row.tokenized
                          ? from_ids(row.prompt_ids, tokenizer)
                          : from_text(row.prompt, tokenizer, /*with_bos=*/row.end_of_turn.empty()));
  });
  if (prompts.empty()) throw DataError(arguments.data + ": expected at least one row, got none");
  return prompts;
}

}  // namespace

void run_generate(const GenerateArguments& arguments, std::ostream& out) {
  if (arguments.has_prompt != arguments.data.empty()) {
    throw ConfigError(fmt::format("generate: expected one of --prompt and --data, got {}",
                                  arguments.has_prompt ? "both" : "neither"));
  }
  if (arguments.samples < 1) {
    throw ConfigError(fmt::format("--samples: expected at least 1, got {}", arguments.samples));
  }
  SamplingOptions options{.max_new_tokens = arguments.max_new_tokens,
                          .temperature = arguments.temperature,
                          .top_k = arguments.top_k,
                          .top_p = arguments.top_p,
                          .seed = arguments.seed};
  options = checked(options, "generate");
  const auto tokenizer = load_tokenizer(arguments);
  const auto policy = load_model(arguments);
  const std::int64_t own_eos = policy->options().eos_token_id;
  options.eos_id = own_eos >= 0 ? own_eos : tokenizer->eos_id();

  const auto prompts = read_prompts(arguments, *tokenizer);
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
