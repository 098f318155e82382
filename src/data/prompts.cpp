// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/json.h"
#include "data/chat_writer.h"
#include "data/data_files.h"
#include "data/row_preparation.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::RowDefect;

std::string question_of(const PreferenceRow& row) {
  const TextParts& parts = row.prompt_parts;
  const auto is_asked = [&](const TextRange& content) {
    return std::none_of(parts.answers.begin(), parts.answers.end(),
                        [&](const TextRange& answer) { return answer.begin == content.begin; });
  };
  const auto last = std::find_if(parts.contents.rbegin(), parts.contents.rend(), is_asked);
  if (last == parts.contents.rend()) return row.prompt;
  return row.prompt.substr(last->begin, last->end - last->begin);
}

Prompt make_prompt(const PreferenceRow& row, const Tokenizer& tokenizer, const DataOptions& options,
                   const std::string& where) {
  detail::PreparedRow prepared = detail::prepare_prompt(row, tokenizer, options);
  for (const RowDefect defect : prepared.defects) {
    if (detail::policy_for(defect, options).policy != RowAction::kError) continue;
    throw DataError(detail::refusal_of(defect, options, where));
  }
  Prompt prompt{.ids = std::move(prepared.pair.prompt),
                .text = row.prompt,
                .question = {},
                .from_messages = row.from_messages};
  if (prompt.ids.empty()) {
    throw DataError(fmt::format("{}: expected a prompt with at least one token, got none", where));
  }
  if (row.tokenized) prompt.text = tokenizer.decode(prompt.ids);
  prompt.question = row.from_messages ? question_of(row) : prompt.text;
  return prompt;
}

}  // namespace

std::vector<Prompt> load_prompts(const std::string& rows, const Tokenizer& tokenizer,
                                 const DataOptions& options, DataSplit split) {
  detail::check_data_options(options, "load_prompts");
  DataOptions resolved = options;
  resolved.chat_format = detail::chat_format_for_rows(options.chat_format, tokenizer);
  std::vector<Prompt> prompts;
  for (const std::string& path : detail::find_files_of_rows(rows, split)) {
    detail::read_prompts(
        path, tokenizer, resolved, [&](const PreferenceRow& row, const detail::RowTrace& trace) {
          const std::string where = detail::row_place(path, row.line);
          if (!trace.answers.empty()) {
            throw DataError(fmt::format("{}: expected a prompt alone, got a completion in '{}'",
                                        where, detail::shown_text(trace.answers.front())));
          }
          prompts.push_back(make_prompt(row, tokenizer, resolved, where));
        });
  }
  if (prompts.empty()) {
    throw DataError(fmt::format("{}: expected at least one prompt, got none", rows));
  }
  return prompts;
}

}  // namespace prefopt
