// SPDX-License-Identifier: Apache-2.0
#include "data/row_preparation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/json_text.h"
#include "core/parallel.h"
#include "core/text.h"
#include "core/utf8.h"
#include "data/line_error.h"
#include "data/lines.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using Ids = std::vector<std::int64_t>;

AppliedPolicy or_unusable(DefectPolicy policy, std::string_view option,
                          const DataOptions& options) {
  switch (policy) {
    case DefectPolicy::kError:
      return {RowPolicy::kError, option};
    case DefectPolicy::kDrop:
      return {RowPolicy::kDrop, option};
    case DefectPolicy::kKeep:
      return {RowPolicy::kKeep, option};
    case DefectPolicy::kUnusable:
      break;
  }
  return {options.unusable, "unusable"};
}

RowDefect defect_of(LineDefect defect) {
  switch (defect) {
    case LineDefect::kMissingKey:
      return RowDefect::kMissingKey;
    case LineDefect::kInvalidUtf8:
      return RowDefect::kInvalidUtf8;
    case LineDefect::kNotANumber:
      return RowDefect::kNotANumber;
    case LineDefect::kMalformed:
      break;
  }
  return RowDefect::kMalformed;
}

/// Throws LineError, led by `where`, where the row lacks something.
void check_needs(const PreferenceRow& row, const RowNeeds& needs, std::string_view where) {
  const auto fail = [&](LineDefect defect, std::string_view expected, std::string_view got) {
    throw LineError(defect, fmt::format("{}: {}, got {}", where, expected, got));
  };
  if (needs.rejected && !row.has_rejected) {
    fail(LineDefect::kMissingKey, "expected a key 'rejected'", "a row with one completion");
  }
  if (needs.unpaired() && row.has_rejected) {
    fail(LineDefect::kMalformed, "expected one completion and a label", "a pair");
  }
  if (needs.gold && row.gold.empty() && row.gold_ids.empty()) {
    fail(LineDefect::kMissingKey, "expected a key 'gold'", "a row without it");
  }
  for (const Column column : needs.columns) {
    if (!std::isnan(row.columns[column])) continue;
    const std::string_view key = kColumnKeys[static_cast<std::size_t>(column)];
    fail(LineDefect::kMissingKey, fmt::format("expected a key '{}'", key), "a row without it");
  }
}

TokenPair encode_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                     const DataOptions& options) {
  if (row.tokenized) {
    return {row.prompt_ids, row.chosen_ids,     row.rejected_ids,     row.gold_ids,
            row.columns,    row.chosen_weights, row.rejected_weights, row.gold_weights};
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

std::size_t budget(std::int64_t option) {
  return option == 0 ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(option);
}

template <class T>
void cut_to(std::vector<T>& values, std::size_t limit, bool keeps_last) {
  const T last = values.back();
  values.resize(limit);
  if (keeps_last) values.back() = last;
}

/// Gives the number of tokens that went.
std::int64_t cut_completion(Ids& ids, TokenWeights& weights, std::size_t limit, std::int64_t eos) {
  if (ids.size() <= limit) return 0;
  const auto cut = static_cast<std::int64_t>(ids.size() - limit);
  const bool ended = ids.back() == eos;
  cut_to(ids, limit, ended);
  if (!weights.empty()) cut_to(weights, limit, ended);
  return cut;
}

std::int64_t cut_prompt(Ids& ids, std::size_t limit, std::int64_t bos) {
  if (ids.size() <= limit) return 0;
  const auto cut = static_cast<std::int64_t>(ids.size() - limit);
  const bool begun = ids.front() == bos;
  ids.erase(ids.begin(), ids.begin() + cut);
  if (begun) ids.front() = bos;
  return cut;
}

Cuts apply_budgets(TokenPair& pair, std::int64_t end_id, std::int64_t bos_id,
                   const DataOptions& options) {
  const std::size_t total = budget(options.max_length);
  // One token is the least that the prompt gives way to.
  const std::size_t completion_limit = std::min(budget(options.max_completion_length), total - 1);
  Cuts cuts;
  for (const auto& [completion, weights] : {std::pair{&pair.chosen, &pair.chosen_weights},
                                            {&pair.rejected, &pair.rejected_weights},
                                            {&pair.gold, &pair.gold_weights}}) {
    const std::int64_t cut = cut_completion(*completion, *weights, completion_limit, end_id);
    cuts.completions += cut > 0 ? 1 : 0;
    cuts.tokens += cut;
  }
  const std::size_t longest =
      std::max({pair.chosen.size(), pair.rejected.size(), pair.gold.size()});
  const std::size_t prompt_limit = std::min(budget(options.max_prompt_length), total - longest);
  const std::int64_t cut = cut_prompt(pair.prompt, prompt_limit, bos_id);
  cuts.prompt = cut > 0;
  cuts.tokens += cut;
  return cuts;
}

bool is_end_alone(const Ids& completion, std::int64_t end_id) {
  return completion.size() == 1 && completion[0] == end_id;
}

/// What the tokens of a row show.
void find_defects(const RowNeeds& needs, PreparedRow& row) {
  const TokenPair& pair = row.pair;
  const auto any_completion = [&](const auto& holds) {
    return holds(pair.chosen) || (needs.rejected && holds(pair.rejected)) ||
           (needs.gold && holds(pair.gold));
  };
  if (any_completion([](const Ids& ids) { return ids.empty(); })) {
    row.defects.push_back(RowDefect::kNoToken);
  } else if (any_completion([&](const Ids& ids) { return is_end_alone(ids, row.end_id); })) {
    row.defects.push_back(RowDefect::kEmptyCompletion);
  }
  if (pair.prompt.empty()) row.defects.push_back(RowDefect::kEmptyPrompt);
  if (needs.rejected && pair.chosen == pair.rejected) row.defects.push_back(RowDefect::kIdentical);
  if (row.cuts.prompt) row.defects.push_back(RowDefect::kLongPrompt);
}

RowNeeds needs_of(const PreferenceRow& row) {
  return {.rejected = row.has_rejected, .gold = !row.gold.empty() || !row.gold_ids.empty()};
}

struct Line {
  std::int64_t number;
  std::string text;
};

PreferenceRow read_line(const std::string& path, const Line& line, const DataOptions& options,
                        const LineReading& reading, std::vector<RowDefect>& defects,
                        RowTrace& trace) {
  const std::string where = row_place(path, line.number);
  const auto read = [&](std::string_view text) {
    PreferenceRow row = parse_line(text, where, options, reading, trace);
    if (reading.needs != nullptr) check_needs(row, *reading.needs, where);
    return row;
  };
  const bool mends_utf8 = policy_for(RowDefect::kInvalidUtf8, options).policy == RowPolicy::kKeep &&
                          (find_invalid_utf8(line.text) != std::string_view::npos ||
                           find_lone_surrogate(line.text) != std::string_view::npos);
  if (!mends_utf8) return read(line.text);
  defects.push_back(RowDefect::kInvalidUtf8);
  return read(replace_lone_surrogates(replace_invalid_utf8(line.text)));
}

PreparedRow prepare_line(const std::string& path, const Line& line, const Tokenizer& tokenizer,
                         const DataOptions& options, const LineReading& reading) {
  PreparedRow result;
  PreferenceRow row;
  std::vector<RowDefect> mended;
  RowTrace trace;
  try {
    row = read_line(path, line, options, reading, mended, trace);
  } catch (const LineError& error) {
    result.defects = {defect_of(error.defect())};
    result.refusal = error.what();
    result.found = trace.found;
    return result;
  }
  try {
    result = prepare_row(row, tokenizer, options, reading.needs);
  } catch (...) {
    result.error = std::current_exception();
  }
  result.defects.insert(result.defects.begin(), mended.begin(), mended.end());
  result.unread = std::move(trace.unread);
  result.found = trace.found;
  return result;
}

std::vector<PreparedRow> prepare_lines(const std::string& path, const std::vector<Line>& lines,
                                       const Tokenizer& tokenizer, const DataOptions& options,
                                       const LineReading& reading) {
  std::vector<PreparedRow> rows(lines.size());
  parallel_for(0, std::ssize(rows), /*grain=*/1, [&](std::int64_t first, std::int64_t last) {
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      rows[i] = prepare_line(path, lines[i], tokenizer, options, reading);
    }
  });
  return rows;
}

/// `found`: the columns of the mapping that any row had. `row` is one of the rows.
void check_mapping(const RowLayout& layout, std::uint64_t found, const std::string& path,
                   const std::string& row) {
  const auto& mapping = layout.mapping();
  for (std::size_t i = 0; i < mapping.size(); ++i) {
    if ((found >> i & 1) != 0) continue;
    const auto& [field, column] = mapping[i];
    const SortedJson json = SortedJson::parse(row, nullptr, /*allow_exceptions=*/false);
    std::vector<std::string> keys;
    if (json.is_object()) {
      for (const auto& item : json.items()) keys.push_back(item.key());
    }
    throw ConfigError(fmt::format("{}: expected a column '{}', which data.columns.{} names, got no "
                                  "row that has it{}",
                                  path, column, field,
                                  did_you_mean(column, {keys.begin(), keys.end()})));
  }
}

}  // namespace

std::string_view defect_name(RowDefect defect) {
  switch (defect) {
    case RowDefect::kMalformed:
      return "malformed row";
    case RowDefect::kMissingKey:
      return "missing key";
    case RowDefect::kInvalidUtf8:
      return "invalid UTF-8";
    case RowDefect::kNotANumber:
      return "not a number";
    case RowDefect::kNoToken:
    case RowDefect::kEmptyCompletion:
      return "empty completion";
    case RowDefect::kEmptyPrompt:
      return "empty prompt";
    case RowDefect::kIdentical:
      return "chosen equals rejected";
    case RowDefect::kLongPrompt:
      return "long prompt";
    case RowDefect::kDuplicate:
      return "same as an earlier row";
    case RowDefect::kUnreadColumn:
      return "unread column of a prompt";
  }
  return "";
}

AppliedPolicy policy_for(RowDefect defect, const DataOptions& options) {
  switch (defect) {
    case RowDefect::kMissingKey:
      return or_unusable(options.missing_key, "missing_key", options);
    case RowDefect::kInvalidUtf8:
      return or_unusable(options.invalid_utf8, "invalid_utf8", options);
    case RowDefect::kEmptyCompletion:
      return or_unusable(options.empty_completion, "empty_completion", options);
    case RowDefect::kNoToken: {
      const AppliedPolicy given = policy_for(RowDefect::kEmptyCompletion, options);
      if (given.policy != RowPolicy::kKeep) return given;
      break;  // nothing to keep
    }
    case RowDefect::kIdentical:
      return {options.identical, "identical"};
    case RowDefect::kLongPrompt:
      return {options.long_prompt, "long_prompt"};
    case RowDefect::kDuplicate:
      return {options.duplicate, "duplicate"};
    case RowDefect::kUnreadColumn:
      return {options.unused == UnusedColumns::kError ? RowPolicy::kError : RowPolicy::kKeep,
              "unused"};
    case RowDefect::kNotANumber:
    case RowDefect::kMalformed:
    case RowDefect::kEmptyPrompt:
      break;
  }
  return {options.unusable, "unusable"};
}

void check_data_options(const DataOptions& options, std::string_view where) {
  const auto nothing_to_keep = [&](std::string_view option) {
    return ConfigError(
        fmt::format("{}: expected {} to be 'error' or 'drop', got 'keep'; there is nothing to keep",
                    where, option));
  };
  if (options.unusable == RowPolicy::kKeep) throw nothing_to_keep("unusable");
  if (options.missing_key == DefectPolicy::kKeep) throw nothing_to_keep("missing_key");
  checked(options, where);
  RowLayout(options.columns, fmt::format("{}: columns", where));
  if (options.max_length == 1) {
    throw ConfigError(fmt::format(
        "{}: expected max_length 0 or at least 2, got 1; a row is a prompt and a completion token",
        where));
  }
}

PreparedRow prepare_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                        const DataOptions& options, const RowNeeds* needs) {
  const RowNeeds wanted = needs != nullptr ? *needs : needs_of(row);
  PreparedRow result;
  result.end_id = end_id_of(row, tokenizer);
  TokenPair& pair = result.pair;
  pair = encode_row(row, tokenizer, options);
  // A completion that the loss never sees must not cost the others their budget.
  if (!wanted.rejected) {
    pair.rejected.clear();
    pair.rejected_weights.clear();
  }
  if (!wanted.gold) {
    pair.gold.clear();
    pair.gold_weights.clear();
  }
  result.uncut = {.prompt = std::ssize(pair.prompt),
                  .chosen = std::ssize(pair.chosen),
                  .rejected = std::ssize(pair.rejected)};
  for (const Ids* completion : {&pair.chosen, &pair.rejected}) {
    result.ended_before += ends_in(*completion, result.end_id) ? 1 : 0;
  }
  // Before defects are looked for: completions that the budget makes equal, or empty, are some.
  result.cuts = apply_budgets(pair, result.end_id, tokenizer.bos_id(), options);
  find_defects(wanted, result);
  return result;
}

void prepare_file(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                  const RowNeeds* needs,
                  const std::function<void(std::int64_t line, PreparedRow row)>& take) {
  // Lines that are prepared at a time: enough for all threads, few enough for memory.
  constexpr std::size_t kMaxLines = 4096;
  constexpr std::size_t kMaxBytes = std::size_t{16} << 20;
  const RowLayout layout(options.columns);
  const LineReading reading{.layout = layout, .needs = needs};
  std::vector<Line> lines;
  std::size_t bytes = 0;
  std::uint64_t found = 0;
  std::string first;
  const auto take_lines = [&] {
    auto rows = prepare_lines(path, lines, tokenizer, options, reading);
    if (first.empty() && !lines.empty()) first = lines.front().text;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      found |= rows[i].found;
      take(lines[i].number, std::move(rows[i]));
    }
    lines.clear();
    bytes = 0;
  };
  std::int64_t count = 0;
  read_rows(path, [&](std::int64_t number, std::string_view text) {
    lines.push_back({.number = number, .text = std::string(text)});
    bytes += text.size();
    if (lines.size() == kMaxLines || bytes >= kMaxBytes) take_lines();
    return ++count != options.max_rows;
  });
  take_lines();
  if (count > 0) check_mapping(layout, found, path, first);
}

void read_prompts(const std::string& path, const DataOptions& options,
                  const std::function<void(const PreferenceRow& row)>& take) {
  const RowLayout layout(options.columns);
  std::uint64_t found = 0;
  std::string first;
  read_rows(path, [&](std::int64_t number, std::string_view text) {
    if (first.empty()) first = text;
    const std::string where = row_place(path, number);
    RowTrace trace;
    try {
      take(parse_line(text, where, options, {.layout = layout, .prompt_alone = true}, trace));
    } catch (const LineError& error) {
      throw DataError(error.what());
    }
    check_unread(trace.unread, options, where);
    found |= trace.found;
    return true;
  });
  if (!first.empty()) check_mapping(layout, found, path, first);
}

std::string refusal_reason(const std::string& refusal, const std::string& path, std::int64_t line) {
  const std::string_view expected =
      std::string_view(refusal).substr(row_place(path, line).size() + 2);
  return std::string(expected.substr(0, expected.find(", got ")));
}

bool ends_in(const Ids& completion, std::int64_t end_id) {
  return !completion.empty() && completion.back() == end_id;
}

std::string row_place(const std::string& path, std::int64_t line) {
  return fmt::format("{}:{}", path, line);
}

}  // namespace prefopt::detail
