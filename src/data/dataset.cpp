// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/dataset.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <iterator>
#include <limits>

#include "core/parallel.h"
#include "data/lines.h"
#include "data/token_cache.h"
#include "prefopt/data/chat.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

constexpr std::string_view kEmptyCompletion = "empty completion";
constexpr std::string_view kEmptyPrompt = "empty prompt";
constexpr std::string_view kIdentical = "chosen equals rejected";
constexpr std::string_view kLongPrompt = "long prompt";
constexpr std::string_view kNoRejected = "expected a key 'rejected'";
constexpr std::string_view kPaired = "expected one completion and a label";

using Ids = std::vector<std::int64_t>;

void check_options(const DataOptions& options, std::string_view where) {
  if (options.unusable == RowPolicy::kKeep) {
    throw ConfigError(fmt::format(
        "{}: expected unusable to be 'error' or 'drop', got 'keep'; there is nothing to keep",
        where));
  }
  checked(options, where);
  if (options.max_length == 1) {
    throw ConfigError(fmt::format(
        "{}: expected max_length 0 or at least 2, got 1; a row is a prompt and a completion token",
        where));
  }
}

TokenPair encode_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                     const DataOptions& options) {
  if (row.tokenized) {
    return {row.prompt_ids, row.chosen_ids, row.rejected_ids, row.gold_ids, row.columns};
  }
  const bool bare = row.end_of_turn.empty();
  const auto completion = [&](std::string_view text) {
    Ids ids = tokenizer.encode(text);
    if (bare && options.add_eos && tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
    return ids;
  };
  TokenPair pair;
  pair.prompt = tokenizer.encode(row.prompt);
  if (bare && options.add_bos && tokenizer.bos_id() >= 0) {
    pair.prompt.insert(pair.prompt.begin(), tokenizer.bos_id());
  }
  pair.chosen = completion(row.chosen);
  if (row.has_rejected) pair.rejected = completion(row.rejected);
  if (!row.gold.empty()) pair.gold = completion(row.gold);
  pair.columns = row.columns;
  return pair;
}

// The token that a completion ends in.
std::int64_t end_id_of(const PreferenceRow& row, const Tokenizer& tokenizer) {
  if (row.end_of_turn.empty()) return tokenizer.eos_id();
  const Ids ids = tokenizer.encode(row.end_of_turn);
  if (ids.size() != 1) {
    throw ConfigError(fmt::format(
        "chat_format: expected a format whose end of turn is one token of the tokenizer '{}', got "
        "'{}', which is {}",
        tokenizer.name(), row.end_of_turn, ids.size()));
  }
  return ids.front();
}

bool is_empty(const Ids& completion, std::int64_t eos) {
  return completion.empty() || (completion.size() == 1 && completion[0] == eos);
}

std::size_t budget(std::int64_t option) {
  return option == 0 ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(option);
}

bool cut_completion(Ids& ids, std::size_t limit, std::int64_t eos) {
  if (ids.size() <= limit) return false;
  const bool ended = ids.back() == eos;
  ids.resize(limit);
  if (ended) ids.back() = eos;
  return true;
}

bool cut_prompt(Ids& ids, std::size_t limit, std::int64_t bos) {
  if (ids.size() <= limit) return false;
  const bool begun = ids.front() == bos;
  ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(limit));
  if (begun) ids.front() = bos;
  return true;
}

struct Cuts {
  bool prompt = false;
  std::int64_t completions = 0;

  void count_in(RowReport& report, std::int64_t line) const {
    report.truncated_prompts += prompt ? 1 : 0;
    report.truncated_completions += completions;
    if (prompt || completions > 0) report.truncated_lines.push_back(line);
  }
};

Cuts apply_budgets(TokenPair& pair, std::int64_t end_id, std::int64_t bos_id,
                   const DataOptions& options) {
  const std::size_t total = budget(options.max_length);
  // One token is the least that the prompt gives way to.
  const std::size_t completion_limit = std::min(budget(options.max_completion_length), total - 1);
  Cuts cuts;
  for (Ids* completion : {&pair.chosen, &pair.rejected, &pair.gold}) {
    cuts.completions += cut_completion(*completion, completion_limit, end_id) ? 1 : 0;
  }
  const std::size_t longest =
      std::max({pair.chosen.size(), pair.rejected.size(), pair.gold.size()});
  const std::size_t prompt_limit = std::min(budget(options.max_prompt_length), total - longest);
  cuts.prompt = cut_prompt(pair.prompt, prompt_limit, bos_id);
  return cuts;
}

// A row after all that can be done to it apart from the others.
struct PreparedRow {
  std::string defect;        // why it cannot be used; empty where it can
  std::exception_ptr error;  // what ends the loading
  TokenPair pair;
  Cuts cuts;
  std::int64_t end_id = -1;
};

struct Line {
  std::int64_t number;
  std::string text;
};

class Loader {
 public:
  Loader(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
         const RowNeeds& needs)
      : path_(path), tokenizer_(tokenizer), options_(options), needs_(needs) {}

  void add(std::int64_t number, std::string_view text) {
    lines_.push_back({.number = number, .text = std::string(text)});
    bytes_ += text.size();
    if (lines_.size() == kMaxLines || bytes_ >= kMaxBytes) add_lines();
  }

  Dataset finish() {
    add_lines();
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
    if (dropped.begin()->first == kPaired) {
      throw ConfigError(fmt::format(
          "{}: expected rows of one completion and a label, which the loss is for, got pairs",
          path_));
    }
    if (dropped.begin()->first == kNoRejected) {
      throw ConfigError(fmt::format(
          "{}: expected pairs, which the loss compares, got rows of one completion", path_));
    }
  }

  /// Throws DataError, led by `where`, where the row lacks something.
  void check_needs(const PreferenceRow& row, const std::string& where) const {
    const auto fail = [&](std::string_view expected, std::string_view got) {
      throw DataError(fmt::format("{}: {}, got {}", where, expected, got));
    };
    if (needs_.rejected && !row.has_rejected) fail(kNoRejected, "a row with one completion");
    if (needs_.unpaired() && row.has_rejected) fail(kPaired, "a pair");
    if (needs_.gold && row.gold.empty() && row.gold_ids.empty()) {
      fail("expected a key 'gold'", "a row without it");
    }
    for (const Column column : needs_.columns) {
      if (!std::isnan(row.columns[column])) continue;
      const std::string_view key = kColumnKeys[static_cast<std::size_t>(column)];
      fail(fmt::format("expected a key '{}'", key), "a row without it");
    }
  }

  // Lines that are tokenized at a time: enough for all threads, few enough for memory.
  static constexpr std::size_t kMaxLines = 4096;
  static constexpr std::size_t kMaxBytes = std::size_t{16} << 20;

  std::string place(std::int64_t line) const { return fmt::format("{}:{}", path_, line); }

  // Tokenizes on all threads and then takes the rows in their order, so that the first defect of
  // the file is the one that is reported.
  void add_lines() {
    std::vector<PreparedRow> rows(lines_.size());
    parallel_for(0, static_cast<std::int64_t>(rows.size()), /*grain=*/1,
                 [&](std::int64_t first, std::int64_t last) {
                   for (auto i = static_cast<std::size_t>(first);
                        i < static_cast<std::size_t>(last); ++i) {
                     rows[i] = prepared(lines_[i]);
                   }
                 });
    for (std::size_t i = 0; i < rows.size(); ++i) take(lines_[i].number, std::move(rows[i]));
    lines_.clear();
    bytes_ = 0;
  }

  PreparedRow prepared(const Line& line) const {
    PreparedRow result;
    PreferenceRow row;
    try {
      const std::string where = place(line.number);
      row = parse_row(line.text, where, options_.chat_format);
      check_needs(row, where);
    } catch (const DataError& error) {
      result.defect = error.what();
      return result;
    }
    try {
      result.end_id = end_id_of(row, tokenizer_);
      result.pair = encode_row(row, tokenizer_, options_);
      // A completion that the loss never sees must not cost the others their budget.
      if (!needs_.rejected) result.pair.rejected.clear();
      if (!needs_.gold) result.pair.gold.clear();
      // First of all: completions that the budget makes equal, or empty, are defects too.
      result.cuts = apply_budgets(result.pair, result.end_id, tokenizer_.bos_id(), options_);
    } catch (...) {
      result.error = std::current_exception();
    }
    return result;
  }

  void take(std::int64_t line, PreparedRow row) {
    RowReport& report = dataset_.report;
    ++report.rows_read;
    if (row.error) std::rethrow_exception(row.error);
    if (!row.defect.empty()) return refuse(line, row.defect);
    TokenPair& pair = row.pair;
    const std::int64_t end = row.end_id;
    if ((is_empty(pair.chosen, end) || (needs_.rejected && is_empty(pair.rejected, end)) ||
         (needs_.gold && is_empty(pair.gold, end))) &&
        !keeps(options_.unusable, "unusable", kEmptyCompletion, line)) {
      return;
    }
    if (pair.prompt.empty() && !keeps(options_.unusable, "unusable", kEmptyPrompt, line)) return;
    const bool identical = needs_.rejected && pair.chosen == pair.rejected;
    if (identical && !keeps(options_.identical, "identical", kIdentical, line)) return;
    if (row.cuts.prompt && !keeps(options_.long_prompt, "long_prompt", kLongPrompt, line)) return;

    // Counted last: a row that was dropped for one defect was not kept with another.
    if (identical) report.kept_with[std::string(kIdentical)].push_back(line);
    row.cuts.count_in(report, line);
    ++report.rows_kept;
    dataset_.pairs.push_back(std::move(pair));
  }

  void refuse(std::int64_t line, const std::string& defect) {
    if (options_.unusable == RowPolicy::kError) throw DataError(defect);
    // Without the place and what was found there, rows with one defect share one reason.
    const std::string_view expected = std::string_view(defect).substr(place(line).size() + 2);
    drop(expected.substr(0, expected.find(", got ")), line);
  }

  void drop(std::string_view reason, std::int64_t line) {
    dataset_.report.dropped[std::string(reason)].push_back(line);
  }

  bool keeps(RowPolicy policy, std::string_view option, std::string_view reason,
             std::int64_t line) {
    switch (policy) {
      case RowPolicy::kError:
        throw DataError(
            fmt::format("{}: expected a usable row, got one with '{}'; the option {} = 'drop' "
                        "leaves such rows out",
                        place(line), reason, option));
      case RowPolicy::kDrop:
        drop(reason, line);
        return false;
      case RowPolicy::kKeep:
        break;
    }
    return true;
  }

  const std::string& path_;
  const Tokenizer& tokenizer_;
  const DataOptions& options_;
  const RowNeeds& needs_;
  std::vector<Line> lines_;  // not yet tokenized
  std::size_t bytes_ = 0;    // of them
  Dataset dataset_;
};

std::string counted(std::int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

// `(lines 2, 7, 19)`
std::string places(const std::vector<std::int64_t>& lines) {
  constexpr std::size_t kMaxLines = 5;
  std::string list;
  for (std::size_t i = 0; i < std::min(lines.size(), kMaxLines); ++i) {
    list += fmt::format("{}{}", i > 0 ? ", " : "", lines[i]);
  }
  if (lines.size() > kMaxLines) list += ", …";
  return fmt::format("({} {})", lines.size() == 1 ? "line" : "lines", list);
}

// `dropped 3 rows: empty completion (lines 2, 7, 19)`
std::string defect_line(std::string_view verb, std::string_view reason,
                        const std::vector<std::int64_t>& lines) {
  return fmt::format("{} {}: {} {}", verb, counted(static_cast<std::int64_t>(lines.size()), "row"),
                     reason, places(lines));
}

}  // namespace

void DataOptions::fields(FieldVisitor& v) {
  const std::vector<std::string_view> drop_policies = {"error", "drop"};
  const std::vector<std::string_view> policies = {"error", "drop", "keep"};
  v.text({"train", "rows to train on: JSONL, or gzipped JSONL"}, train);
  v.text({"eval", "held-out rows; empty: eval_fraction is cut from train"}, eval);
  v.real({"eval_fraction", "part of the rows of train to hold out, from the end of the file"},
         eval_fraction, Range::half_open(0, 1));
  v.integer({"max_rows", "rows to read; 0: all"}, max_rows, Range::at_least(0));
  v.integer({"max_prompt_length",
             "tokens of the prompt with its begin token, which keeps its end; "
             "0: no limit"},
            max_prompt_length, Range::at_least(0));
  v.integer({"max_completion_length", "tokens of a completion with its end token; 0: no limit"},
            max_completion_length, Range::at_least(0));
  v.integer({"max_length",
             "tokens of prompt and longer completion, at least 2; the prompt gives "
             "way first; 0: no limit"},
            max_length, Range::at_least(0));
  v.flag({"add_bos", "put the tokenizer's begin token before a prompt in text"}, add_bos);
  v.flag({"add_eos", "put the tokenizer's end token after a completion in text"}, add_eos);
  v.choice({"unusable", "rows that are malformed, lack a key or have an empty completion"},
           unusable, drop_policies);
  v.choice({"identical", "rows whose chosen equals rejected"}, identical, policies);
  v.choice({"long_prompt", "rows whose prompt is over its budget; keep: cut its beginning"},
           long_prompt, policies);
  v.text({"chat_format",
          "text that messages become: chatml, smollm2, qwen2, qwen2.5, llama3, zephyr, alpaca, "
          "plain, dialogue, or auto: that of the tokenizer's own template"},
         chat_format);
  v.text({"token_cache", "folder that keeps tokenized files; empty: none"}, token_cache);
}

std::string RowReport::summary() const {
  std::vector<std::string> parts;
  for (const auto& [reason, lines] : dropped) {
    parts.push_back(defect_line("dropped", reason, lines));
  }
  for (const auto& [reason, lines] : kept_with) parts.push_back(defect_line("kept", reason, lines));
  std::vector<std::string> cut;
  if (truncated_prompts > 0) cut.push_back(counted(truncated_prompts, "prompt"));
  if (truncated_completions > 0) cut.push_back(counted(truncated_completions, "completion"));
  if (!cut.empty()) {
    parts.push_back(fmt::format("truncated {} {}", fmt::join(cut, ", "), places(truncated_lines)));
  }
  return fmt::format("{}", fmt::join(parts, "\n"));
}

TokenPair tokenize_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                       const DataOptions& options, RowReport& report) {
  check_options(options, "tokenize_row");
  TokenPair pair = encode_row(row, tokenizer, options);
  const Cuts cuts = apply_budgets(pair, end_id_of(row, tokenizer), tokenizer.bos_id(), options);
  cuts.count_in(report, row.line);
  return pair;
}

Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer,
                     const DataOptions& options, const RowNeeds& needs) {
  check_options(options, "load_dataset");
  DataOptions resolved = options;
  resolved.chat_format = resolve_chat_format(options.chat_format, tokenizer);
  const auto load = [&] {
    Loader loader(path, tokenizer, resolved, needs);
    std::int64_t rows = 0;
    detail::read_lines(path, [&](std::int64_t line, std::string_view text) {
      loader.add(line, text);
      return ++rows != options.max_rows;
    });
    return loader.finish();
  };
  if (options.token_cache.empty()) return load();
  const detail::TokenCache cache(options.token_cache, path, tokenizer, resolved, needs);
  return cache.get_or_make(load);
}

std::pair<std::vector<TokenPair>, std::vector<TokenPair>> split_dataset(
    std::vector<TokenPair> pairs, double eval_fraction) {
  if (!Range::half_open(0, 1).contains(eval_fraction)) {
    throw ConfigError(
        fmt::format("split_dataset: expected eval_fraction in [0, 1), got {}", eval_fraction));
  }
  std::vector<TokenPair> held_out;
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
