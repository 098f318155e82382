// SPDX-License-Identifier: Apache-2.0
#pragma once

// The content of files of preference rows, checked before a run trains on them.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"

namespace prefopt {

/// A line of one of the files that were checked.
struct RowPlace {
  std::size_t file = 0;   ///< place in the list of files
  std::int64_t line = 0;  ///< 1-based
};

/// Rows with one defect, and the policy that the options have for them.
struct DefectRows {
  std::string defect;  ///< as RowReport names it
  std::string option;  ///< of DataOptions, which decides
  std::string value;   ///< of that option
  RowAction policy = RowAction::kKeep;
  std::vector<RowPlace> rows;
};

/// Token counts. Order statistics are those of the sorted list, the q-th part being its element
/// ceil(q · count), from 1.
struct LengthSummary {
  std::int64_t count = 0;
  std::int64_t total = 0;
  std::int64_t min = 0, median = 0, p95 = 0, p99 = 0, max = 0;
  double mean = 0;
  /// Bin i counts lengths in [i · bin_width, (i + 1) · bin_width); the last holds `max`. The width
  /// is the least of 1, 2, 5, 10, 20, … that needs at most 12 bins.
  std::int64_t bin_width = 1;
  std::vector<std::int64_t> bins = {};
};

PREFOPT_API LengthSummary summarize_lengths(std::vector<std::int64_t> lengths);

/// Completions, and how many of them end in their end token: before and after the budgets.
struct EndTokens {
  std::int64_t completions = 0;
  std::int64_t ended = 0;
  std::int64_t ended_after = 0;
};

/// Tokens that go through a model for the pairs, by the part of a stream that is shared.
struct PrefixSharing {
  std::int64_t apart = 0;        ///< 2 P + C + R: each sequence by itself
  std::int64_t prompt_once = 0;  ///< P + C + R
  std::int64_t shared = 0;       ///< less the tokens that both completions begin with
};

/// A row as the model sees it.
struct ShownRow {
  RowPlace place;
  TokenRow pair;  ///< after the budgets
};

/// Rows of one purpose, from one or several files. All but `rows` and `defects` is about the rows
/// that can be used: those that no policy of the options drops or refuses.
struct RowsCheck {
  std::int64_t rows = 0;  ///< that were read
  std::int64_t usable = 0;
  std::int64_t pairs = 0;
  std::int64_t labelled = 0;      ///< of one completion and a label
  std::int64_t desirable = 0;     ///< of them, with the label 1
  std::int64_t message_rows = 0;  ///< of messages, which were written in a chat format
  /// Conversations with a label that were read as a prompt and its last answer, as no `needs` say
  /// that all of their answers are wanted.
  std::int64_t assumed_labelled = 0;
  std::vector<DefectRows> defects = {};
  LengthSummary prompt = {}, chosen = {}, rejected = {};  ///< before the budgets
  std::int64_t truncated_prompts = 0;
  std::int64_t truncated_completions = 0;
  std::int64_t truncated_tokens = 0;  ///< that the budgets take away
  std::vector<RowPlace> truncated = {};
  EndTokens end_tokens = {};
  std::int64_t completion_tokens = 0;  ///< after the budgets
  std::int64_t counted_tokens = 0;     ///< those among them that count in the loss
  PrefixSharing sharing = {};
  std::int64_t prompts = 0;         ///< that differ
  std::int64_t shared_prompts = 0;  ///< rows whose prompt an earlier one has
  /// Columns with text that nothing reads, and the rows that have it, usable or not.
  std::map<std::string, std::int64_t> unread = {};
  std::map<std::string, std::int64_t> read = {};  ///< columns that texts are made of, and rows
  std::vector<ShownRow> shown = {};               ///< the first that can be used

  /// Returns how many rows the options drop or refuse.
  std::int64_t refused() const { return rows - usable; }
};

/// A training row whose prompt is held out.
struct LeakedRow {
  RowPlace train, held_out;
  bool whole_row = false;
};

struct DataCheckOptions {
  DataOptions data = {};  ///< budgets, policies and format; files and eval_fraction do not count
  std::optional<RowNeeds> needs = {};  ///< of a loss; none: whatever the rows have
  std::int64_t context_length = 0;     ///< tokens of the model's context; 0: not known
  std::size_t shown_rows = 3;
};

struct DataCheck {
  std::vector<std::string> files;  ///< those that `train` names, then those of `held_out`
  RowsCheck train, held_out;
  std::vector<LeakedRow> leaks;
  RowAction leak_policy = RowAction::kKeep;
  std::string chat_format = {};  ///< of messages; "auto": rows of messages would be an error
  std::string chat_note = {};    ///< a note on that format, or empty

  /// Returns how many rows a run with these options would not take.
  PREFOPT_API std::int64_t refused() const;
};

/// Reads all files that the paths name, as those of load_dataset do, to their end, whatever the
/// defects of their rows: a policy `error` is reported, not thrown. Equal rows are found across the
/// files of one purpose. Throws DataError for a file that cannot be read or holds no row, and
/// ConfigError as load_dataset does, for instance for a column of the options that no row has.
PREFOPT_API DataCheck check_data(const std::vector<std::string>& train,
                                 const std::vector<std::string>& held_out,
                                 const Tokenizer& tokenizer, const DataCheckOptions& options = {});

}  // namespace prefopt
