// SPDX-License-Identifier: Apache-2.0
#pragma once

// The preparation of a row by itself: from a line to token ids under the budgets, with its
// defects.

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/line_error.h"
#include "data/row_file.h"
#include "data/row_layout.h"
#include "prefopt/data/dataset.h"

namespace prefopt::detail {

enum class RowDefect {
  kMalformed,
  kMissingKey,
  kInvalidUtf8,
  kNotANumber,
  kNoToken,          ///< a completion without even an end token
  kEmptyCompletion,  ///< the end token alone
  kEmptyPrompt,
  kNoCountedToken,  ///< a completion of which no token counts, or none is left by the budgets
  kIdentical,
  kPrefixAnswer,
  kLongPrompt,
  kLongContext,
  kDuplicate,
  kUnreadColumn,  ///< of a prompt
  kEndsWithUser,
  kRepeatedPrompt,
  kDifferentPrompts,
  kToolCalls,
  kToolTurn,  ///< of a role that the format has no turn for
  kReasoning,
  kSystemTurn,
  kControlToken,  ///< spelled in a message, or in any text where the option speaks of all
  kGivenBegin,    ///< the begin token in the text, so that none was added
  kGivenEnd,
};

/// Returns the name in reports.
std::string_view defect_name(RowDefect defect);

/// The policy of the options for a defect, and the option that sets it with its value.
struct AppliedPolicy {
  RowAction policy;
  std::string_view option;
  std::string_view value;
};
AppliedPolicy policy_for(RowDefect defect, const DataOptions& options);

/// Counts of what the budgets cut.
struct Cuts {
  bool prompt = false;
  std::int64_t completions = 0;
  std::int64_t tokens = 0;
};

struct TokenCounts {
  std::int64_t prompt = 0;
  std::int64_t chosen = 0;
  std::int64_t rejected = 0;
};

/// Tokens that end a completion.
class EndIds {
 public:
  void add(std::int64_t id);  ///< -1: ignored
  bool has(std::int64_t id) const;
  bool end(const std::vector<std::int64_t>& completion) const {
    return !completion.empty() && has(completion.back());
  }

 private:
  std::vector<std::int64_t> ids_;
};

struct PreparedRow {
  std::exception_ptr error;  ///< what ends the reading, whatever the policies
  /// In the order in which policies are asked. A row that could not be read has one, and `refusal`.
  std::vector<RowDefect> defects;
  std::string refusal;  ///< what was expected and found, led by the place
  std::vector<UnreadColumn> unread;
  std::vector<std::string> read;  ///< columns that the texts are made of
  std::uint64_t found = 0;        ///< columns of the mapping that the row has, as in RowTrace
  TokenRow pair;
  TokenCounts uncut;  ///< tokens before the budgets
  Cuts cuts;
  EndIds ends;
  bool from_messages = false;     ///< written in the chat format
  bool assumes_label = false;     ///< as in RowTrace
  std::int64_t ended_before = 0;  ///< of chosen and rejected, how many did before the budgets
};

/// Throws ConfigError, led by `where`.
void check_data_options(const DataOptions& options, std::string_view where);

/// Tokens and defects of a row. `needs` null: whatever completions it has. `context_length` 0: not
/// known.
PreparedRow prepare_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                        const DataOptions& options, const RowNeeds* needs,
                        std::int64_t context_length);

/// Tokens of the prompt alone, whole, and the defects that reading and encoding it show.
PreparedRow prepare_prompt(const PreferenceRow& row, const Tokenizer& tokenizer,
                           const DataOptions& options);

/// Returns the sentence that refuses a row for a defect whose policy is kError.
std::string refusal_of(RowDefect defect, const DataOptions& options, std::string_view where);

/// prepare_row for each line of a file that is not blank, up to max_rows of them: calls `take` with
/// the rows in their order, while they are prepared in parts on LibTorch's threads. `chat_format`
/// of the options is what chat_format_for_rows gives. Throws ConfigError for a mapping of columns
/// that names one that no row has.
void prepare_file(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                  const RowNeeds* needs, std::int64_t context_length,
                  const std::function<void(std::int64_t line, PreparedRow row)>& take);

/// A row of one of several files.
struct PlacedRow {
  const std::string* path;
  FileRow row;
};

/// prepare_row for each of the rows, on LibTorch's threads. `chat_format` of the options is what
/// chat_format_for_rows gives.
std::vector<PreparedRow> prepare_rows(const std::vector<PlacedRow>& rows,
                                      const Tokenizer& tokenizer, const DataOptions& options,
                                      const LineReading& reading);

/// Throws ConfigError, led by `where`, where a column of the mapping is in none of the rows that
/// `found` is of; `row` is one of them.
void check_mapping(const RowLayout& layout, std::uint64_t found, const std::string& where,
                   const std::string& row);

/// The rows of a file for their prompts, with their lines: completions may be missing, and a
/// conversation is taken up to its last answer. `chat_format` of the options is what
/// chat_format_for_rows gives. Throws DataError for a row that cannot be read, whatever the
/// policies, for one with a defect of its prompt that the options do not keep, and for a column of
/// a prompt that nothing reads; ConfigError as prepare_file.
void read_prompts(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                  const std::function<void(const PreferenceRow& row, const RowTrace& trace)>& take);

/// Returns a refusal without the place and what was found there: rows with one defect share it.
std::string refusal_reason(const std::string& refusal, const std::string& path, std::int64_t line);

/// `PATH:LINE`.
std::string row_place(const std::string& path, std::int64_t line);

}  // namespace prefopt::detail
