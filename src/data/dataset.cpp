// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/dataset.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>

#include "data/chat_writer.h"
#include "data/data_files.h"
#include "data/defect_line.h"
#include "data/pair_index.h"
#include "data/row_judgement.h"
#include "data/row_preparation.h"
#include "data/token_cache.h"
#include "prefopt/data/chat.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::PairIndex;
using detail::PreparedRow;
using detail::RowDefect;

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
    const bool is_whole = !row.error && row.refusal.empty();
    if (is_whole && index_.find(row.pair)) row.defects.push_back(RowDefect::kDuplicate);
    if (!detail::judge_row(path_, line, options_, row, dataset_.report)) return;
    dataset_.pairs.push_back(std::move(row.pair));
    dataset_.lines.push_back(line);
    index_.add(dataset_.pairs.size() - 1);
  }

  Dataset finish() { return std::move(dataset_); }

 private:
  const std::string& path_;
  const DataOptions& options_;
  Dataset dataset_;
  PairIndex index_{dataset_.pairs, PairIndex::Key::kRow};
};

std::map<std::string, std::int64_t> count_dropped(const RowReport& report) {
  std::map<std::string, std::int64_t> counts;
  for (const auto& [reason, lines] : report.dropped) counts[reason] += std::ssize(lines);
  for (const RowReport& of_file : report.files) {
    for (const auto& [reason, lines] : of_file.dropped) counts[reason] += std::ssize(lines);
  }
  return counts;
}

/// Throws ConfigError for rows of the other kind, which are no damage but the wrong file for the
/// loss.
void check_kind(const std::string& rows, const RowReport& report) {
  const auto dropped = count_dropped(report);
  if (dropped.size() != 1) return;
  if (dropped.begin()->first == "expected one completion and a label") {
    throw ConfigError(fmt::format(
        "{}: expected rows of one completion and a label, which the loss is for, got pairs", rows));
  }
  if (dropped.begin()->first == "expected a key 'rejected'") {
    throw ConfigError(fmt::format(
        "{}: expected pairs, which the loss compares, got rows of one completion", rows));
  }
}

void check_not_empty(const std::string& rows, const Dataset& dataset) {
  const RowReport& report = dataset.report;
  if (report.rows_read == 0) {
    throw DataError(fmt::format("{}: expected a usable row, got no row at all", rows));
  }
  if (!dataset.pairs.empty()) return;
  check_kind(rows, report);
  std::string defects = report.summary();
  for (auto at = defects.find('\n'); at != std::string::npos; at = defects.find('\n')) {
    defects.replace(at, 1, "; ");
  }
  throw DataError(fmt::format("{}: expected a usable row, got none in {} read; {}", rows,
                              report.rows_read, defects));
}

/// Puts the rows of several files one after the other.
class Joiner {
 public:
  explicit Joiner(const DataOptions& options) : options_(options) {}

  void add(Dataset rows, DatasetFile file) {
    const std::vector<bool> is_again = find_again(rows, file.path);
    RowReport& report = rows.report;
    report.path = file.path;
    for (std::size_t i = 0; i < rows.pairs.size(); ++i) {
      if (is_again[i]) continue;
      joined_.pairs.push_back(std::move(rows.pairs[i]));
      joined_.lines.push_back(rows.lines[i]);
      joined_.file_of.push_back(joined_.files.size());
    }
    for (std::size_t i = indexed_; i < joined_.pairs.size(); ++i) index_.add(i);
    indexed_ = joined_.pairs.size();
    joined_.files.push_back(std::move(file));
    add_sums(report);
    joined_.report.files.push_back(std::move(report));
  }

  Dataset finish() { return std::move(joined_); }

 private:
  /// Returns which rows are left out, as rows of an earlier file equal them. Those of their own
  /// file are known.
  std::vector<bool> find_again(Dataset& rows, const std::string& path) {
    std::vector<bool> is_again(rows.pairs.size());
    const RowAction policy = options_.duplicate;
    const std::string name(detail::defect_name(RowDefect::kDuplicate));
    // In order.
    const std::vector<std::int64_t> within_file = rows.report.kept_with.contains(name)
                                                      ? rows.report.kept_with[name]
                                                      : std::vector<std::int64_t>();
    for (std::size_t i = 0; i < rows.pairs.size(); ++i) {
      if (!index_.find(rows.pairs[i])) continue;
      const std::int64_t line = rows.lines[i];
      if (policy == RowAction::kError) {
        throw DataError(
            detail::refusal_of(RowDefect::kDuplicate, options_, detail::row_place(path, line)));
      }
      is_again[i] = policy == RowAction::kDrop;
      rows.report.rows_kept -= is_again[i] ? 1 : 0;
      auto& lines = (is_again[i] ? rows.report.dropped : rows.report.kept_with)[name];
      const bool is_known = std::binary_search(within_file.begin(), within_file.end(), line);
      if (is_again[i] || !is_known) lines.push_back(line);
    }
    return is_again;
  }

  void add_sums(const RowReport& report) {
    RowReport& sums = joined_.report;
    sums.rows_read += report.rows_read;
    sums.rows_kept += report.rows_kept;
    sums.truncated_prompts += report.truncated_prompts;
    sums.truncated_completions += report.truncated_completions;
    sums.message_rows += report.message_rows;
    for (const auto& [column, count] : report.unread) sums.unread[column] += count;
  }

  const DataOptions& options_;
  Dataset joined_;
  PairIndex index_{joined_.pairs, PairIndex::Key::kRow};
  std::size_t indexed_ = 0;
};

}  // namespace

void StreamOptions::fields(FieldVisitor& v) {
  v.integer({"buffer",
             "rows in memory, of which the next one is drawn while files are read; 0: all rows are "
             "loaded first"},
            buffer, Range::between(0, 1e9));
}

void DataOptions::fields(FieldVisitor& v) {
  const std::vector<std::string_view> drop_policies = {"error", "drop"};
  const std::vector<std::string_view> policies = {"error", "drop", "keep"};
  const std::vector<std::string_view> defect_policies = {"unusable", "error", "drop", "keep"};
  v.text_or_list(
      {"train",
       "rows to train on: a file (JSON lines, a JSON array, Parquet, Arrow), a folder, a "
       "pattern, or a list of such or of {\"path\", \"weight\"}"},
      train);
  v.text_or_list({"eval", "held-out rows; empty: eval_fraction is cut from train"}, eval);
  v.real({"eval_fraction", "part of the rows of train to hold out, from the end of each item"},
         eval_fraction, Range::half_open(0, 1));
  // Texts from before this group lack it, and are the same without it.
  if (!v.writes() || stream.buffer > 0) {
    v.group({"stream", "Rows that are read while they are trained on"}, stream);
  }
  v.integer({"max_rows", "rows to read, of all files together; 0: all"}, max_rows,
            Range::at_least(0));
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
  v.choice({"duplicate", "rows that an earlier one equals, in tokens"}, duplicate, policies);
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
            "messages with reasoning next to their content, for which no chat format has a text; "
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
  // Texts from before this option lack it, and are the same without it.
  if (!v.writes() || chat_template_kwargs != DataOptions().chat_template_kwargs) {
    v.json({"chat_template_kwargs",
            "variables for the model's own chat template, as {\"enable_thinking\": false}; a "
            "row's win"},
           chat_template_kwargs);
  }
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
  const std::string begin = path.empty() ? "" : path + ": ";
  const auto add = [&](const std::string& line) { parts.push_back(begin + line); };
  for (const auto& [reason, lines] : dropped) add(detail::defect_line("dropped", reason, lines));
  for (const auto& [reason, lines] : kept_with) add(detail::defect_line("kept", reason, lines));
  std::vector<std::string> cut;
  if (truncated_prompts > 0) cut.push_back(detail::counted(truncated_prompts, "prompt"));
  if (truncated_completions > 0)
    cut.push_back(detail::counted(truncated_completions, "completion"));
  if (!cut.empty() && files.empty()) {
    add(fmt::format("truncated {} {}", fmt::join(cut, ", "), detail::places(truncated_lines)));
  }
  for (const RowReport& file : files) {
    if (std::string lines = file.summary(); !lines.empty()) parts.push_back(std::move(lines));
  }
  const bool is_of_all = path.empty();  // the columns of files are those of their sum
  if (is_of_all && !unread.empty()) add(detail::unread_line(unread, rows_read));
  return fmt::format("{}", fmt::join(parts, "\n"));
}

std::string Dataset::place(std::size_t pair) const {
  const std::size_t file = file_of.empty() ? 0 : file_of[pair];
  return detail::row_place(files.empty() ? "rows" : files[file].path, lines[pair]);
}

TokenRow tokenize_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                      const DataOptions& options, RowReport& report) {
  detail::check_data_options(options, "tokenize_row");
  PreparedRow prepared = detail::prepare_row(row, tokenizer, options, nullptr, 0);
  detail::count_cuts(prepared.cuts, row.line, report);
  return std::move(prepared.pair);
}

namespace {

/// The rows of one file, none if it has none.
Dataset load_file(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                  const RowNeeds& needs) {
  const auto load = [&] {
    Loader loader(path, options);
    detail::prepare_file(
        path, tokenizer, options, &needs, needs.context_length,
        [&](std::int64_t line, PreparedRow row) { loader.take(line, std::move(row)); });
    return loader.finish();
  };
  if (options.token_cache.empty()) return load();
  const detail::TokenCache cache(options.token_cache, path, tokenizer, options, needs);
  return cache.get_or_make(load);
}

/// The rows of all files, up to max_rows of them together.
Dataset load_files(const std::vector<detail::DataPart>& parts, const Tokenizer& tokenizer,
                   DataOptions options, const RowNeeds& needs) {
  Joiner joiner(options);
  const bool has_limit = options.max_rows > 0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    for (const std::string& path : parts[part].files) {
      Dataset rows = load_file(path, tokenizer, options, needs);
      const std::int64_t read = rows.report.rows_read;
      joiner.add(std::move(rows), {.path = path, .part = part, .weight = parts[part].weight});
      if (has_limit && read >= options.max_rows) return joiner.finish();
      if (has_limit) options.max_rows -= read;
    }
  }
  return joiner.finish();
}

}  // namespace

Dataset load_dataset(const std::string& rows, const Tokenizer& tokenizer,
                     const DataOptions& options, const RowNeeds& needs, DataSplit split) {
  detail::check_data_options(options, "load_dataset");
  DataOptions resolved = options;
  resolved.chat_format = detail::chat_format_for_rows(options.chat_format, tokenizer);
  const std::vector<detail::DataPart> parts =
      split == DataSplit::kTrain
          ? detail::find_data_files(rows, split)
          : std::vector<detail::DataPart>{{.files = detail::find_files_of_rows(rows, split)}};
  const bool is_one_file = parts.size() == 1 && parts.front().files.size() == 1;
  Dataset dataset;
  if (is_one_file) {
    const std::string& path = parts.front().files.front();
    dataset = load_file(path, tokenizer, resolved, needs);
    dataset.files = {{.path = path, .weight = parts.front().weight}};
  } else {
    dataset = load_files(parts, tokenizer, resolved, needs);
  }
  check_not_empty(is_one_file ? dataset.files.front().path : rows, dataset);
  RowReport& report = dataset.report;
  report.chat_note = detail::chat_format_note(options.chat_format, tokenizer, report.message_rows);
  if (report.truncated_prompts + report.truncated_completions > 0) {
    report.cut_note = note_of_cuts(resolved);
  }
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
