// SPDX-License-Identifier: Apache-2.0
#include "run/run_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "policy/token_range.h"
#include "prefopt/data/leaks.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

std::vector<bool> cut_rows(const Dataset& dataset, const RowReport& report) {
  const std::set<std::int64_t> cut(report.truncated_lines.begin(), report.truncated_lines.end());
  std::vector<bool> flags;
  for (const std::int64_t line : dataset.lines) flags.push_back(cut.contains(line));
  return flags;
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

/// The end of `train`, taken from it.
Dataset hold_out(Dataset& train, double fraction) {
  Dataset held_out;
  std::tie(train.pairs, held_out.pairs) = split_dataset(std::move(train.pairs), fraction);
  const auto cut = train.lines.begin() + std::ssize(train.pairs);
  held_out.lines.assign(cut, train.lines.end());
  train.lines.erase(cut, train.lines.end());
  return held_out;
}

}  // namespace

Dataset load_noted(std::string_view option, const std::string& path, const Tokenizer& tokenizer,
                   const DataOptions& options, const RowNeeds& needs, const Note& note) {
  Dataset dataset = load_dataset(path, tokenizer, options, needs);
  const RowReport& report = dataset.report;
  note(fmt::format("{}: {} of {} rows of {} are used", option, report.rows_kept, report.rows_read,
                   path));
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
  Dataset train = load_noted("data.train", options.train, tokenizer, options, needs, note);
  Dataset held_out;
  if (!options.eval.empty()) {
    held_out = load_noted("data.eval", options.eval, tokenizer, options, needs, note);
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
  return {std::move(train.pairs), std::move(held_out.pairs), std::move(train_cut),
          std::move(eval_cut), train.report.message_rows + held_out.report.message_rows};
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
