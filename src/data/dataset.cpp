// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/dataset.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <iterator>
#include <utility>

#include "data/chat_writer.h"
#include "data/defect_line.h"
#include "data/line_error.h"
#include "data/pair_index.h"
#include "data/row_preparation.h"
#include "data/token_cache.h"
#include "prefopt/data/chat.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::PairIndex;
using detail::PreparedRow;
using detail::RowDefect;

void count_cuts(const detail::Cuts& cuts, std::int64_t line, RowReport& report) {
  report.truncated_prompts += cuts.prompt ? 1 : 0;
  report.truncated_completions += cuts.completions;
  if (cuts.prompt || cuts.completions > 0) report.truncated_lines.push_back(line);
}

/// Returns the note on what cut rows lose.
std::string note_of_cuts(const DataOptions& options) {
  const bool keeps_end = options.truncation == Truncation::kKeepEnd;
  const auto of_end = [&]() -> std::pair<std::string_view, std::string_view> {
    switch (options.end_of_cut) {
      case EndOfCut::kKeep:
        return {"keeps its end token", "keep"};
      case EndOfCut::kMask:
        return {"keeps its end token, which does not count", "mask"};
      case EndOfCut::kDrop:
        break;
    }
    return {"loses its end token", "drop"};
  };
  return fmt::format(
      "a row over its budget loses {} (truncation = '{}'), a completion that is cut "
      "{} (end_of_cut = '{}')",
      keeps_end ? "the beginning of its prompt" : "its end", keeps_end ? "keep_end" : "keep_start",
      of_end().first, of_end().second);
}

/// Takes the rows of a file in their order, so that its first defect is the one that is reported.
class Loader {
 public:
  Loader(const std::string& path, const DataOptions& options) : path_(path), options_(options) {}

  void take(std::int64_t line, PreparedRow row) {
    RowReport& report = dataset_.report;
    ++report.rows_read;
    if (row.error) std::rethrow_exception(row.error);
    if (!row.refusal.empty()) return refuse(line, row);
    for (const detail::UnreadColumn& column : row.unread) ++report.unread[column.name];
    detail::check_unread(row.unread, options_, detail::row_place(path_, line));
    if (index_.find(row.pair)) row.defects.push_back(RowDefect::kDuplicate);
    for (const RowDefect defect : row.defects) {
      if (!keeps(defect, line)) return;
    }

    // Counted last: a row that was dropped for one defect was not kept with another.
    for (const RowDefect defect : row.defects) {
      // A long prompt was cut, and cuts are counted anyway.
      if (defect == RowDefect::kLongPrompt) continue;
      report.kept_with[std::string(detail::defect_name(defect))].push_back(line);
    }
    count_cuts(row.cuts, line, report);
    report.message_rows += row.from_messages ? 1 : 0;
    ++report.rows_kept;
    dataset_.pairs.push_back(std::move(row.pair));
    dataset_.lines.push_back(line);
    index_.add(dataset_.pairs.size() - 1);
  }

  Dataset finish() {
    const RowReport& report = dataset_.report;
    if (report.rows_read == 0) {
      throw DataError(fmt::format("{}: expected a usable row, got no row at all", path_));
    }
    if (dataset_.pairs.empty()) {
      check_kind();
      std::string defects = report.summary();
      for (auto at = defects.find('\n'); at != std::string::npos; at = defects.find('\n')) {
        defects.replace(at, 1, "; ");
      }
      throw DataError(fmt::format("{}: expected a usable row, got none in {} read; {}", path_,
                                  report.rows_read, defects));
    }
    return std::move(dataset_);
  }

 private:
  /// Rows of the other kind are no damage but the wrong file for the loss.
  void check_kind() const {
    const auto& dropped = dataset_.report.dropped;
    if (dropped.size() != 1) return;
    if (dropped.begin()->first == "expected one completion and a label") {
      throw ConfigError(fmt::format(
          "{}: expected rows of one completion and a label, which the loss is for, got pairs",
          path_));
    }
    if (dropped.begin()->first == "expected a key 'rejected'") {
      throw ConfigError(fmt::format(
          "{}: expected pairs, which the loss compares, got rows of one completion", path_));
    }
  }

  void refuse(std::int64_t line, const PreparedRow& row) {
    const auto policy = detail::policy_for(row.defects.front(), options_).policy;
    if (policy == RowAction::kError) throw DataError(row.refusal);
    drop(detail::refusal_reason(row.refusal, path_, line), line);
  }

  void drop(std::string_view reason, std::int64_t line) {
    dataset_.report.dropped[std::string(reason)].push_back(line);
  }

  bool keeps(RowDefect defect, std::int64_t line) {
    switch (detail::policy_for(defect, options_).policy) {
      case RowAction::kError:
        throw DataError(detail::refusal_of(defect, options_, detail::row_place(path_, line)));
      case RowAction::kDrop:
        drop(detail::defect_name(defect), line);
        return false;
      case RowAction::kKeep:
        break;
    }
    return true;
  }

  const std::string& path_;
  const DataOptions& options_;
  Dataset dataset_;
  PairIndex index_{dataset_.pairs, PairIndex::Key::kRow};
};

}  // namespace

void DataOptions::fields(FieldVisitor& v) {
  const std::vector<std::string_view> drop_policies = {"error", "drop"};
  const std::vector<std::string_view> policies = {"error", "drop", "keep"};
  const std::vector<std::string_view> defect_policies = {"unusable", "error", "drop", "keep"};
  v.text({"train", "rows to train on: JSON lines or a JSON array, also gzipped"}, train);
  v.text({"eval", "held-out rows; empty: eval_fraction is cut from train"}, eval);
  v.real({"eval_fraction", "part of the rows of train to hold out, from the end of the file"},
         eval_fraction, Range::half_open(0, 1));
  v.integer({"max_rows", "rows to read; 0: all"}, max_rows, Range::at_least(0));
  v.integer({"max_prompt_length", "tokens of the prompt with its begin token; 0: no limit"},
            max_prompt_length, Range::at_least(0));
  v.integer({"max_completion_length", "tokens of a completion with its end token; 0: no limit"},
            max_completion_length, Range::at_least(0));
  v.integer({"max_length", "tokens of prompt and longer completion, at least 2; 0: no limit"},
            max_length, Range::at_least(0));
  v.choice({"truncation",
            "what is kept of a row over max_length: keep_end: the end of its prompt and its "
            "completions; keep_start: its first tokens, as in TRL",
            {"truncation_mode"}},
           truncation, {"keep_end", "keep_start"});
  v.choice({"end_of_cut",
            "the end token of a completion that is cut; mask: kept, but it does not count"},
           end_of_cut, {"drop", "keep", "mask"});
  v.flag({"add_bos", "put the tokenizer's begin token before a prompt in text that has none"},
         add_bos);
  v.flag({"add_eos", "put the tokenizer's end token after a completion in text that has no end"},
         add_eos);
  v.choice({"loss_on",
            "turns of a completion in messages that count: all of the assistant's, its last one, "
            "or all"},
           loss_on, {"assistant", "last", "all"});
  v.choice(
      {"unusable", "rows that are malformed, lack a key, are no UTF-8 or have an empty completion"},
      unusable, drop_policies);
  v.choice({"missing_key", "rows without a key that is needed; unusable: as that option"},
           missing_key, {"unusable", "error", "drop"});
  v.choice({"invalid_utf8",
            "rows that are no UTF-8; keep: such bytes become U+FFFD; unusable: as that option"},
           invalid_utf8, defect_policies);
  v.choice({"empty_completion",
            "rows with a completion of no token but the end token; unusable: as that option"},
           empty_completion, defect_policies);
  v.choice({"identical", "rows whose chosen equals rejected", {"identical_pair"}}, identical,
           policies);
  v.choice({"long_prompt", "rows whose prompt is over its budget; keep: cut its beginning"},
           long_prompt, policies);
  v.choice({"duplicate", "rows that an earlier one of their file equals, in tokens"}, duplicate,
           policies);
  v.choice({"ends_with_user",
            "conversations whose last turn is not the assistant's; keep: what follows its last "
            "turn is left out"},
           ends_with_user, policies);
  v.choice(
      {"repeated_prompt", "completions that begin with their prompt; remove: it is taken once"},
      repeated_prompt, {"remove", "keep", "drop", "error"});
  v.choice({"different_prompts",
            "completions that answer different questions, or under different system texts"},
           different_prompts, policies);
  v.choice({"prefix_answer", "pairs in which one answer begins the other"}, prefix_answer,
           policies);
  v.choice({"tool_calls",
            "messages with tool calls, tools or their results, for which no chat format has a "
            "text; keep: calls and tools are left out"},
           tool_calls, policies);
  v.choice({"reasoning",
            "messages with reasoning beside their content, for which no chat format has a text; "
            "keep: it is left out"},
           reasoning, policies);
  v.choice({"system_turn", "system messages in a chat format that has no turn for them"},
           system_turn, policies);
  v.choice({"special_tokens_in_text",
            "messages that spell a control token; keep: it becomes that token, split: it stays "
            "text, which goes for rows in text too"},
           special_tokens_in_text, {"keep", "split", "error"});
  v.choice({"long_context", "rows longer than the model's context, after the budgets"},
           long_context, policies);
  v.choice({"leak", "training rows whose prompt is held out too; drop: they do not train"}, leak,
           policies);
  v.text({"chat_format",
          "text that messages become: chatml, smollm2, qwen2, qwen2.5, llama3, zephyr, alpaca, "
          "plain, dialogue, or auto: that of the run that made the model, else of the tokenizer's "
          "own template, else dialogue"},
         chat_format);
  v.json({"columns",
          "columns of the rows: a layout (orca, alpaca, sharegpt, openai, pku, shp, ultrafeedback, "
          "completions) or {field: column}; {}: recognized by their keys"},
         columns);
  v.choice({"unused",
            "columns of prompts (system, question, input, …) that nothing reads; note: they are "
            "left out, which is said"},
           unused, {"error", "note"});
  v.text({"token_cache", "folder that keeps tokenized files; empty: none"}, token_cache);
}

std::string RowReport::summary() const {
  std::vector<std::string> parts;
  for (const auto& [reason, lines] : dropped) {
    parts.push_back(detail::defect_line("dropped", reason, lines));
  }
  for (const auto& [reason, lines] : kept_with)
    parts.push_back(detail::defect_line("kept", reason, lines));
  std::vector<std::string> cut;
  if (truncated_prompts > 0) cut.push_back(detail::counted(truncated_prompts, "prompt"));
  if (truncated_completions > 0)
    cut.push_back(detail::counted(truncated_completions, "completion"));
  if (!cut.empty()) {
    parts.push_back(
        fmt::format("truncated {} {}", fmt::join(cut, ", "), detail::places(truncated_lines)));
  }
  if (!unread.empty()) parts.push_back(detail::unread_line(unread, rows_read));
  return fmt::format("{}", fmt::join(parts, "\n"));
}

TokenRow tokenize_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                      const DataOptions& options, RowReport& report) {
  detail::check_data_options(options, "tokenize_row");
  PreparedRow prepared = detail::prepare_row(row, tokenizer, options, nullptr, 0);
  count_cuts(prepared.cuts, row.line, report);
  return std::move(prepared.pair);
}

Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer,
                     const DataOptions& options, const RowNeeds& needs) {
  detail::check_data_options(options, "load_dataset");
  DataOptions resolved = options;
  resolved.chat_format = detail::chat_format_for_rows(options.chat_format, tokenizer);
  const auto noted = [&](Dataset dataset) {
    dataset.report.chat_note =
        detail::chat_format_note(options.chat_format, tokenizer, dataset.report.message_rows);
    return dataset;
  };
  const auto load = [&] {
    Loader loader(path, resolved);
    detail::prepare_file(
        path, tokenizer, resolved, &needs, needs.context_length,
        [&](std::int64_t line, PreparedRow row) { loader.take(line, std::move(row)); });
    return loader.finish();
  };
  Dataset dataset = [&] {
    if (options.token_cache.empty()) return noted(load());
    const detail::TokenCache cache(options.token_cache, path, tokenizer, resolved, needs);
    return noted(cache.get_or_make(load));
  }();
  if (!dataset.report.truncated_lines.empty()) dataset.report.cut_note = note_of_cuts(resolved);
  return dataset;
}

std::pair<std::vector<TokenRow>, std::vector<TokenRow>> split_dataset(std::vector<TokenRow> pairs,
                                                                      double eval_fraction) {
  if (!Range::half_open(0, 1).contains(eval_fraction)) {
    throw ConfigError(
        fmt::format("split_dataset: expected eval_fraction in [0, 1), got {}", eval_fraction));
  }
  std::vector<TokenRow> held_out;
  if (eval_fraction > 0 && pairs.size() >= 2) {
    const auto rows = static_cast<std::ptrdiff_t>(pairs.size());
    const auto wanted = std::llround(eval_fraction * static_cast<double>(rows));
    const auto begin = pairs.end() - std::clamp<std::ptrdiff_t>(wanted, 1, rows - 1);
    held_out.assign(std::make_move_iterator(begin), std::make_move_iterator(pairs.end()));
    pairs.erase(begin, pairs.end());
  }
  return {std::move(pairs), std::move(held_out)};
}

}  // namespace prefopt
