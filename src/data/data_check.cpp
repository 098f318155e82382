// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/data_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <utility>

#include "core/json.h"
#include "data/chat_writer.h"
#include "data/data_files.h"
#include "data/pair_index.h"
#include "data/row_preparation.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/leaks.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::PairIndex;
using detail::PreparedRow;
using detail::RowDefect;
using Ids = std::vector<std::int64_t>;

constexpr std::int64_t kMaxBins = 12;

/// 1, 2, 5, 10, 20, …: the least with which `max` falls into one of kMaxBins.
std::int64_t bin_width_of(std::int64_t max) {
  for (std::int64_t power = 1;; power *= 10) {
    for (const std::int64_t digit : {1, 2, 5}) {
      if (max / (digit * power) < kMaxBins) return digit * power;
    }
  }
}

std::int64_t common_beginning(const Ids& a, const Ids& b) {
  const auto apart = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return apart.first - a.begin();
}

/// Looks at the rows of one purpose.
class Checker {
 public:
  Checker(const Tokenizer& tokenizer, const DataCheckOptions& options)
      : tokenizer_(tokenizer), options_(options) {}

  void read(const std::string& path, std::size_t file) {
    const RowNeeds* needs = options_.needs ? &*options_.needs : nullptr;
    detail::prepare_file(path, tokenizer_, options_.data, needs, options_.context_length,
                         [&](std::int64_t line, PreparedRow row) {
                           take(std::move(row), path, {.file = file, .line = line});
                         });
  }

  /// Rows that were read so far.
  std::int64_t rows() const { return check_.rows; }

  RowsCheck finish() {
    check_.prompt = summarize_lengths(std::move(prompt_lengths_));
    check_.chosen = summarize_lengths(std::move(chosen_lengths_));
    check_.rejected = summarize_lengths(std::move(rejected_lengths_));
    check_.prompts = static_cast<std::int64_t>(prompts_.size());
    return std::move(check_);
  }

  const std::vector<TokenRow>& pairs() const { return pairs_; }
  const std::vector<RowPlace>& places() const { return places_; }

 private:
  void take(PreparedRow row, const std::string& path, RowPlace place) {
    ++check_.rows;
    if (row.error) std::rethrow_exception(row.error);
    if (!row.refusal.empty()) {
      count(row.defects.front(), detail::refusal_reason(row.refusal, path, place.line), place);
      return;
    }
    if (index_.find(row.pair)) row.defects.push_back(RowDefect::kDuplicate);
    bool is_usable = true;
    for (const std::string& column : row.read) ++check_.read[column];
    for (const detail::UnreadColumn& column : row.unread) {
      ++check_.unread[column.name];
      if (!column.is_prompt) continue;
      is_usable &= count(RowDefect::kUnreadColumn,
                         fmt::format("'{}', a column of prompts, is read by nothing",
                                     detail::shown_text(column.name)),
                         place);
    }
    for (const RowDefect defect : row.defects) {
      is_usable &= count(defect, std::string(detail::defect_name(defect)), place);
    }
    if (!is_usable) return;

    ++check_.usable;
    check_.message_rows += row.from_messages ? 1 : 0;
    check_.assumed_labelled += row.assumes_label ? 1 : 0;
    count_lengths(row);
    count_kind(row.pair);
    count_cuts(row, place);
    count_end_tokens(row);
    count_counted(row.pair);
    if (check_.shown.size() < options_.shown_rows) check_.shown.push_back({place, row.pair});
    pairs_.push_back(std::move(row.pair));
    places_.push_back(place);
    index_.add(pairs_.size() - 1);
    if (prompts_.find(pairs_.back())) ++check_.shared_prompts;
    prompts_.add(pairs_.size() - 1);
  }

  /// Records the defect and returns whether its policy keeps the row.
  bool count(RowDefect defect, const std::string& name, RowPlace place) {
    const detail::AppliedPolicy applied = detail::policy_for(defect, options_.data);
    auto known = std::find_if(check_.defects.begin(), check_.defects.end(), [&](const auto& rows) {
      return rows.defect == name && rows.option == applied.option;
    });
    if (known == check_.defects.end()) {
      check_.defects.push_back({.defect = name,
                                .option = std::string(applied.option),
                                .value = std::string(applied.value),
                                .policy = applied.policy,
                                .rows = {}});
      known = check_.defects.end() - 1;
    }
    known->rows.push_back(place);
    return applied.policy == RowAction::kKeep;
  }

  void count_lengths(const PreparedRow& row) {
    prompt_lengths_.push_back(row.uncut.prompt);
    chosen_lengths_.push_back(row.uncut.chosen);
    if (!row.pair.rejected.empty()) rejected_lengths_.push_back(row.uncut.rejected);
  }

  void count_kind(const TokenRow& pair) {
    const auto prompt = std::ssize(pair.prompt);
    const auto completions = std::ssize(pair.chosen) + std::ssize(pair.rejected);
    if (!pair.rejected.empty()) {
      ++check_.pairs;
      check_.sharing.apart += 2 * prompt + completions;
      check_.sharing.prompt_once += prompt + completions;
      check_.sharing.shared += prompt + completions - common_beginning(pair.chosen, pair.rejected);
      return;
    }
    check_.sharing.apart += prompt + completions;
    check_.sharing.prompt_once += prompt + completions;
    check_.sharing.shared += prompt + completions;
    const double label = pair.columns[Column::kLabel];
    check_.labelled += std::isnan(label) ? 0 : 1;
    check_.desirable += label == 1 ? 1 : 0;
  }

  void count_cuts(const PreparedRow& row, RowPlace place) {
    check_.truncated_prompts += row.cuts.prompt ? 1 : 0;
    check_.truncated_completions += row.cuts.completions;
    check_.truncated_tokens += row.cuts.tokens;
    if (row.cuts.tokens > 0) check_.truncated.push_back(place);
  }

  void count_counted(const TokenRow& pair) {
    check_.completion_tokens +=
        std::ssize(pair.chosen) + std::ssize(pair.rejected) + std::ssize(pair.gold);
    check_.counted_tokens += counted_tokens(pair.chosen, pair.chosen_mask) +
                             counted_tokens(pair.rejected, pair.rejected_mask) +
                             counted_tokens(pair.gold, pair.gold_mask);
  }

  void count_end_tokens(const PreparedRow& row) {
    EndTokens& ends = check_.end_tokens;
    ends.completions += row.pair.rejected.empty() ? 1 : 2;
    ends.ended += row.ended_before;
    for (const Ids* completion : {&row.pair.chosen, &row.pair.rejected}) {
      ends.ended_after += row.ends.end(*completion) ? 1 : 0;
    }
  }

  const Tokenizer& tokenizer_;
  const DataCheckOptions& options_;
  RowsCheck check_;
  std::vector<std::int64_t> prompt_lengths_, chosen_lengths_, rejected_lengths_;
  std::vector<TokenRow> pairs_;   // that are usable
  std::vector<RowPlace> places_;  // of them
  PairIndex index_{pairs_, PairIndex::Key::kRow};
  PairIndex prompts_{pairs_, PairIndex::Key::kPrompt};
};

std::vector<LeakedRow> leaked_rows(const Checker& train, const Checker& held_out) {
  std::vector<LeakedRow> rows;
  for (const Leak& leak : find_leaks(train.pairs(), held_out.pairs())) {
    rows.push_back({.train = train.places()[leak.train],
                    .held_out = held_out.places()[leak.held_out],
                    .whole_row = leak.whole_row});
  }
  return rows;
}

/// Reads the files that each of the paths names, and adds them to `files`; weights make no
/// difference here.
void read_all(const std::vector<std::string>& paths, DataSplit split, Checker& checker,
              std::vector<std::string>& files) {
  for (const std::string& path : paths) {
    const std::int64_t before = checker.rows();
    for (const detail::DataPart& part : detail::find_data_files(path, split)) {
      for (const std::string& file : part.files) {
        files.push_back(file);
        checker.read(file, files.size() - 1);
      }
    }
    if (checker.rows() > before) continue;
    throw DataError(fmt::format("{}: expected at least one row, got none", path));
  }
}

}  // namespace

LengthSummary summarize_lengths(std::vector<std::int64_t> lengths) {
  LengthSummary summary;
  if (lengths.empty()) return summary;
  std::sort(lengths.begin(), lengths.end());
  const auto part = [&](std::size_t percent) {
    return lengths[(lengths.size() * percent + 99) / 100 - 1];
  };
  summary.count = std::ssize(lengths);
  summary.total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  summary.mean = static_cast<double>(summary.total) / static_cast<double>(summary.count);
  summary.min = lengths.front();
  summary.median = part(50);
  summary.p95 = part(95);
  summary.p99 = part(99);
  summary.max = lengths.back();
  summary.bin_width = bin_width_of(summary.max);
  summary.bins.resize(static_cast<std::size_t>(summary.max / summary.bin_width) + 1);
  for (const std::int64_t length : lengths) {
    ++summary.bins[static_cast<std::size_t>(length / summary.bin_width)];
  }
  return summary;
}

std::int64_t DataCheck::refused() const {
  const std::int64_t leaked = leak_policy == RowAction::kKeep ? 0 : std::ssize(leaks);
  return train.refused() + held_out.refused() + leaked;
}

DataCheck check_data(const std::vector<std::string>& train,
                     const std::vector<std::string>& held_out, const Tokenizer& tokenizer,
                     const DataCheckOptions& options) {
  detail::check_data_options(options.data, "check_data");
  DataCheckOptions resolved = options;
  const std::string& asked = options.data.chat_format;
  resolved.data.chat_format = detail::chat_format_for_rows(asked, tokenizer);
  DataCheck check;
  Checker training(tokenizer, resolved);
  Checker holding_out(tokenizer, resolved);
  read_all(train, DataSplit::kTrain, training, check.files);
  read_all(held_out, DataSplit::kHeldOut, holding_out, check.files);
  check.leaks = leaked_rows(training, holding_out);
  check.leak_policy = options.data.leak;
  check.train = training.finish();
  check.held_out = holding_out.finish();
  check.chat_format = resolved.data.chat_format;
  check.chat_note = detail::chat_format_note(
      asked, tokenizer, check.train.message_rows + check.held_out.message_rows);
  return check;
}

}  // namespace prefopt
