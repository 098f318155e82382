// SPDX-License-Identifier: Apache-2.0
#include "run/run_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "data/data_files.h"
#include "policy/token_range.h"
#include "prefopt/data/leaks.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

std::size_t file_of(const Dataset& dataset, std::size_t pair) {
  return dataset.file_of.empty() ? 0 : dataset.file_of[pair];
}

/// `report`: on the files that the rows are from.
std::vector<bool> cut_rows(const Dataset& dataset, const RowReport& report) {
  std::vector<std::set<std::int64_t>> cut;
  const auto add = [&](const RowReport& file) {
    cut.emplace_back(file.truncated_lines.begin(), file.truncated_lines.end());
  };
  if (report.files.empty()) add(report);
  for (const RowReport& file : report.files) add(file);
  std::vector<bool> flags;
  for (std::size_t i = 0; i < dataset.lines.size(); ++i) {
    flags.push_back(cut[file_of(dataset, i)].contains(dataset.lines[i]));
  }
  return flags;
}

/// Returns the ranges of rows whose files one item of a list names.
std::vector<std::pair<std::size_t, std::size_t>> ranges_of_parts(const Dataset& dataset) {
  std::vector<std::pair<std::size_t, std::size_t>> ranges;
  std::size_t part = 0;
  for (std::size_t i = 0; i < dataset.pairs.size(); ++i) {
    const std::size_t of_row = dataset.files[file_of(dataset, i)].part;
    if (ranges.empty() || of_row != part) ranges.emplace_back(i, i);
    part = of_row;
    ranges.back().second = i + 1;
  }
  return ranges;
}

/// Returns the parts of an epoch; none where each has its rows once.
std::vector<EpochPart> epoch_parts(const Dataset& dataset) {
  std::vector<EpochPart> parts;
  bool is_plain = true;
  for (const auto& [begin, end] : ranges_of_parts(dataset)) {
    parts.push_back({.rows = static_cast<std::int64_t>(end - begin),
                     .weight = dataset.files[file_of(dataset, begin)].weight});
    is_plain &= parts.back().weight == 1;
  }
  return is_plain ? std::vector<EpochPart>() : parts;
}

/// Empty where all tokens of completions count.
std::string note_of_counted(const std::vector<TokenRow>& pairs) {
  std::int64_t all = 0;
  std::int64_t counted = 0;
  for (const TokenRow& pair : pairs) {
    all += std::ssize(pair.chosen) + std::ssize(pair.rejected) + std::ssize(pair.gold);
    counted += counted_tokens(pair.chosen, pair.chosen_mask) +
               counted_tokens(pair.rejected, pair.rejected_mask) +
               counted_tokens(pair.gold, pair.gold_mask);
  }
  return counted == all ? ""
                        : fmt::format("{} of {} tokens of completions count, the others are read",
                                      counted, all);
}

/// The ends of the parts of `train`, taken from it.
Dataset hold_out(Dataset& train, double fraction) {
  Dataset held_out{.pairs = {}, .lines = {}, .report = {}, .files = train.files};
  Dataset left = held_out;
  const auto move_to = [&](Dataset& rows, std::size_t i, TokenRow pair) {
    rows.pairs.push_back(std::move(pair));
    rows.lines.push_back(train.lines[i]);
    if (!train.file_of.empty()) rows.file_of.push_back(train.file_of[i]);
  };
  for (auto [i, end] : ranges_of_parts(train)) {
    const auto at = [&](std::size_t place) {
      return std::make_move_iterator(train.pairs.begin() + static_cast<std::ptrdiff_t>(place));
    };
    auto [kept, taken] = split_dataset({at(i), at(end)}, fraction);
    for (TokenRow& pair : kept) move_to(left, i++, std::move(pair));
    for (TokenRow& pair : taken) move_to(held_out, i++, std::move(pair));
  }
  left.report = std::move(train.report);
  train = std::move(left);
  return held_out;
}

void note_passed_over(std::string_view option, const std::string& path, DataSplit split,
                      const Note& note) {
  const std::string passed_over = note_on_folders(path, split);
  if (!passed_over.empty()) note(fmt::format("{}: {}", option, passed_over));
}

}  // namespace

Dataset load_noted(std::string_view option, const std::string& path, const Tokenizer& tokenizer,
                   const DataOptions& options, const RowNeeds& needs, const Note& note,
                   DataSplit split) {
  Dataset dataset = load_dataset(path, tokenizer, options, needs, split);
  const RowReport& report = dataset.report;
  const std::size_t files = report.files.size();
  note(fmt::format("{}: {} of {} rows of {}{} are used", option, report.rows_kept, report.rows_read,
                   path, files > 0 ? fmt::format(" ({} files)", files) : ""));
  note_passed_over(option, path, split, note);
  for (const RowReport& file : report.files) {
    if (!file.cache_note.empty()) note(fmt::format("{}: {}", option, file.cache_note));
  }
  if (!report.chat_note.empty()) note(fmt::format("{}: {}", option, report.chat_note));
  if (!report.cache_note.empty()) note(fmt::format("{}: {}", option, report.cache_note));
  if (const std::string counted = note_of_counted(dataset.pairs); !counted.empty()) {
    note(fmt::format("{}: {}", option, counted));
  }
  if (!report.cut_note.empty()) note(fmt::format("{}: {}", option, report.cut_note));
  const auto summary = report.summary();
  for (std::size_t begin = 0; begin < summary.size();) {
    const auto end = std::min(summary.find('\n', begin), summary.size());
    note(fmt::format("{}: {}", option, summary.substr(begin, end - begin)));
    begin = end + 1;
  }
  return dataset;
}

RunRows load_rows(const DataOptions& options, const Tokenizer& tokenizer, const RowNeeds& needs,
                  const Note& note) {
  if (options.train.empty()) throw ConfigError("data.train: expected a file, got ''");
  Dataset train =
      load_noted("data.train", options.train, tokenizer, options, needs, note, DataSplit::kTrain);
  Dataset held_out;
  if (!options.eval.empty()) {
    held_out =
        load_noted("data.eval", options.eval, tokenizer, options, needs, note, DataSplit::kHeldOut);
  } else {
    held_out = hold_out(train, options.eval_fraction);
    if (!held_out.pairs.empty()) {
      note(fmt::format("data.train: the last {} rows are held out, {} train", held_out.pairs.size(),
                       train.pairs.size()));
    }
  }
  const auto leaks = apply_leak_policy(train, held_out, options.leak, options.train);
  if (!leaks.empty()) note("data.train: " + leaks);
  auto train_cut = cut_rows(train, train.report);
  auto eval_cut = cut_rows(held_out, options.eval.empty() ? train.report : held_out.report);
  auto parts = epoch_parts(train);
  return {.train = std::move(train.pairs),
          .eval = std::move(held_out.pairs),
          .train_cut = std::move(train_cut),
          .eval_cut = std::move(eval_cut),
          .message_rows = train.report.message_rows + held_out.report.message_rows,
          .parts = std::move(parts)};
}

RunRows load_held_out(const DataOptions& options, const Tokenizer& tokenizer, const RowNeeds& needs,
                      const Note& note) {
  if (options.train.empty()) throw ConfigError("data.train: expected a file, got ''");
  note(
      fmt::format("data.train: a stream with {} rows in memory; rows that equal earlier ones are "
                  "not looked for",
                  options.stream.buffer));
  note_passed_over("data.train", options.train, DataSplit::kTrain, note);
  if (options.eval.empty()) return {};
  Dataset held_out =
      load_noted("data.eval", options.eval, tokenizer, options, needs, note, DataSplit::kHeldOut);
  auto cut = cut_rows(held_out, held_out.report);
  return {
      .train = {}, .eval = std::move(held_out.pairs), .train_cut = {}, .eval_cut = std::move(cut)};
}

bool has_token_weights(const std::vector<TokenRow>& pairs) {
  return std::any_of(pairs.begin(), pairs.end(), [](const TokenRow& pair) {
    return !pair.chosen_weights.empty() || !pair.rejected_weights.empty() ||
           !pair.gold_weights.empty();
  });
}

std::int64_t most_tokens(const std::vector<TokenRow>& pairs, const BatchOptions& options) {
  std::vector<std::int64_t> sizes;
  for (const auto& pair : pairs) sizes.push_back(tokens_of(pair));
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  const auto micro = options.micro_rows > 0 ? options.micro_rows : options.rows;
  const auto count = std::min(std::ssize(sizes), micro);
  const std::int64_t largest = sizes.front();
  const std::int64_t all = std::accumulate(sizes.begin(), sizes.begin() + count, std::int64_t{0});
  return options.micro_tokens > 0 ? std::min(all, std::max(largest, options.micro_tokens)) : all;
}

}  // namespace prefopt::detail
