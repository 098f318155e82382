// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// The treatment of rows with a defect.
enum class RowAction { kError, kDrop, kKeep };

/// The same for one defect, or that of the option `unusable`.
enum class DefectPolicy { kUnusable, kError, kDrop, kKeep };

/// The policy for a known prompt column that nothing reads.
enum class UnusedColumns { kError, kNote };

/// Turns of a completion that count in the loss.
enum class LossOn {
  kAssistant,  ///< all of the assistant's
  kLast,       ///< the assistant's last one
  kAll,        ///< everyone's
};

/// The policy for a completion that begins with its prompt.
enum class RepeatedPrompt { kRemove, kKeep, kDrop, kError };

/// The policy for a text that spells a control token.
enum class SpecialTokens {
  kKeep,   ///< it becomes that token, as in transformers
  kSplit,  ///< it stays text
  kError,
};

/// The part of a row over `max_length` that is kept.
enum class Truncation {
  kKeepEnd,    ///< the prompt is shortened first and keeps its end
  kKeepStart,  ///< TRL's: the first `max_length` tokens of prompt and completion
};

/// The fate of the end token of a completion that was cut.
enum class EndOfCut {
  kDrop,  ///< as in TRL: it goes with the text that it ended
  kKeep,  ///< it takes the place of the last token that is left
  kMask,  ///< likewise, but does not count
};

/// The split of a data set that is read from a folder with several.
enum class DataSplit {
  kAny,      ///< the only one
  kTrain,    ///< that with `train` in its name
  kHeldOut,  ///< the only other one
};

/// Rows that are read while they are trained on, not before.
struct StreamOptions {
  /// Rows in memory, of which the next one is drawn; 0: all rows are loaded first.
  std::int64_t buffer = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

struct DataOptions {
  /// Rows, as load_dataset takes them: a file (JSON lines, a JSON array, also gzipped; Parquet,
  /// Arrow), a folder, a pattern, or a JSON list of such, with weights.
  std::string train = {};
  std::string eval = {};     ///< held-out rows; empty: cut `eval_fraction` from `train`
  double eval_fraction = 0;  ///< of the rows, taken from the end of each item of `train`
  StreamOptions stream = {};
  std::int64_t max_rows = 0;               ///< of all files together; 0: all
  std::int64_t max_prompt_length = 512;    ///< tokens; 0: no limit
  std::int64_t max_completion_length = 0;  ///< tokens with the end token; 0: no limit
  std::int64_t max_length = 1024;          ///< prompt + longer completion; 0: no limit, else >= 2
  Truncation truncation = Truncation::kKeepEnd;
  EndOfCut end_of_cut = EndOfCut::kDrop;
  bool add_bos = true;  ///< a prompt that begins with it in text gets none
  bool add_eos = true;  ///< a completion that ends in one, or in an end of turn, gets none
  LossOn loss_on = LossOn::kAssistant;  ///< of rows of messages
  /// Malformed rows (invalid JSON, wrong type, empty prompt, …), and the three defects that follow
  /// unless their option is set otherwise. Never kept.
  RowAction unusable = RowAction::kDrop;
  DefectPolicy missing_key = DefectPolicy::kUnusable;   ///< never kKeep
  DefectPolicy invalid_utf8 = DefectPolicy::kUnusable;  ///< keep: such bytes become U+FFFD
  /// keep: trained to end at once; a completion without even an end token stays unusable.
  DefectPolicy empty_completion = DefectPolicy::kUnusable;
  RowAction identical = RowAction::kDrop;    ///< chosen equals rejected
  RowAction long_prompt = RowAction::kKeep;  ///< longer than its budget: keep means truncate
  RowAction duplicate = RowAction::kKeep;    ///< equal to an earlier row
  /// A conversation whose last turn is not the assistant's; keep: turns after the assistant's last
  /// one are left out, unless `loss_on` is kAll.
  RowAction ends_with_user = RowAction::kKeep;
  /// Of text: the completion, in a pair the chosen one, begins with a prompt of at least 3 words or
  /// 16 bytes. Of messages: a completion begins with those of the prompt, or with its last ones.
  /// Outer white space makes no difference.
  RepeatedPrompt repeated_prompt = RepeatedPrompt::kRemove;
  /// Completions that answer different questions, or under different system texts.
  RowAction different_prompts = RowAction::kDrop;
  RowAction prefix_answer = RowAction::kKeep;  ///< one answer is the other's beginning, in tokens
  /// Calls, tools and their results, for which no chat format here has a text; keep: calls and
  /// tools are left out, as by a template without support for them; results are turns of their role
  /// if the format writes any role.
  RowAction tool_calls = RowAction::kDrop;
  /// `reasoning_content` of messages, likewise; keep: it is left out.
  RowAction reasoning = RowAction::kDrop;
  /// A system message in a format without a system turn; keep: its text is put first.
  RowAction system_turn = RowAction::kKeep;
  /// In messages; for rows in text, which may be rendered templates, only kSplit and kError apply.
  SpecialTokens special_tokens_in_text = SpecialTokens::kKeep;
  RowAction long_context = RowAction::kKeep;  ///< longer than the model's context
  /// A training row whose prompt is also held out; drop: it does not train.
  RowAction leak = RowAction::kKeep;
  /// Format in which messages become text: a name of `prefopt/data/chat.h`, or "auto", for which
  /// resolve_chat_format decides. An unknown template is rendered (docs/chat-templates.md).
  std::string chat_format = "auto";
  /// JSON: an object of variables for the model's own template, as {"enable_thinking": false}; a
  /// row's win. Throws ConfigError where rows are not written by a template.
  std::string chat_template_kwargs = "{}";
  /// JSON: the name of a layout ("orca", "alpaca", "sharegpt", "openai", "pku", "shp",
  /// "ultrafeedback", "completions"), or an object {field: column} whose columns may be dotted
  /// paths; fields: prompt, system, instruction, input, question, history, chosen, rejected, gold,
  /// completion, messages, text, tools and the numbers of a row; role_key, content_key; and the
  /// names of roles, one or a list: user, assistant, system_role, tool_role. Anything else is
  /// recognized by its keys.
  std::string columns = "{}";
  UnusedColumns unused = UnusedColumns::kError;
  /// Folder for tokenized files, so that a later run need not tokenize; empty: none.
  std::string token_cache = {};

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Rows that were dropped or changed, by reason, with their line numbers. The report on several
/// files has sums alone, and those of the files in `files`.
struct RowReport {
  std::string path = {};  ///< of a report in `files`
  std::int64_t rows_read = 0;
  std::int64_t rows_kept = 0;
  std::int64_t truncated_prompts = 0;
  std::int64_t truncated_completions = 0;
  std::vector<std::int64_t> truncated_lines = {};
  std::map<std::string, std::int64_t> unread = {};  ///< text columns that nothing reads: rows
  std::map<std::string, std::vector<std::int64_t>> dropped;
  std::map<std::string, std::vector<std::int64_t>> kept_with;
  std::int64_t message_rows = 0;  ///< rows of messages, which were written in a chat format
  std::string chat_note = {};     ///< a note on that format, or empty
  std::string cache_note = {};    ///< a note on the token cache, or empty
  /// Note on the tokens that cut rows lose under these options; empty if none is cut.
  std::string cut_note = {};
  std::vector<RowReport> files = {};  ///< empty: one file

  /// Returns one line per defect: count, reason and the first line numbers, of several files each
  /// behind its path. Empty without defects.
  PREFOPT_API std::string summary() const;
};

/// The parts of a row that a loss needs.
struct RowNeeds {
  bool rejected = true;
  bool gold = false;
  std::vector<Column> columns = {};
  std::int64_t context_length = 0;  ///< tokens of the model's context; 0: not known

  bool has(Column column) const {
    return std::find(columns.begin(), columns.end(), column) != columns.end();
  }
  /// Returns whether rows have one completion and a label.
  bool unpaired() const { return has(Column::kLabel); }
};

/// One of several files of a data set.
struct DatasetFile {
  std::string path;
  std::size_t part = 0;  ///< item of the list that names it
  double weight = 1;     ///< how often an epoch has each of its rows
};

struct Dataset {
  std::vector<TokenRow> pairs;
  std::vector<std::int64_t> lines = {};  ///< 1-based line, or row, of each pair in its file
  RowReport report;
  std::vector<DatasetFile> files = {};
  std::vector<std::size_t> file_of = {};  ///< place in `files` of each pair

  /// Returns `FILE:LINE` of a pair.
  PREFOPT_API std::string place(std::size_t pair) const;
};

/// Calls `row(line_number, text)` for each line that is not blank; .gz by content, not by name.
/// Line ends may be CRLF and a UTF-8 byte order mark is left out; blank lines count. Throws
/// DataError for a file that cannot be opened, a broken gzip stream or a line over 64 MiB.
PREFOPT_API void for_each_line(const std::string& path,
                               const std::function<void(std::int64_t, std::string_view)>& row);

/// Returns the token ids of one row under the budgets. Prompt and completions are tokenized
/// separately, so that the boundary is between tokens; ids given in the row are used unchanged. The
/// prompt is shortened first and keeps its begin token and its end, down to one token; with
/// Truncation::kKeepStart the row keeps its first tokens. In a chat format the end of the turn is
/// the end token, and `add_bos` and `add_eos` add nothing to the format's text. Cuts are counted in
/// `report`. Throws ConfigError if the end of a turn is not a single token of the tokenizer.
PREFOPT_API TokenRow tokenize_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                                  const DataOptions& options, RowReport& report);

/// Loads the rows of a file, of the files of a folder or of those that match a pattern (`*`, `?`,
/// `[…]`), or of a JSON list of such, each a text or {"path": …, "weight": …}: see
/// docs/data-files.md. Files are read in the order of their names, numbers in them as numbers; of a
/// folder with several splits those of `split`. Rows that lack a needed part are unusable (and
/// named as such); completions that are not needed are left out. Unpaired rows must not have a
/// rejected completion. Rows are tokenized on LibTorch's threads; the result does not depend on
/// their number. With `token_cache`, the result is kept under a hash of the file's content, the
/// tokenizer and the options; a damaged entry is replaced, and a cache that cannot be written is
/// skipped, with a note in the report. Throws ConfigError if the file holds pairs for an unpaired
/// loss or single completions for a pairwise one, or if `columns` names a column that no row has,
/// and DataError if a policy asks for it, if no row can be used, or if a row has a prompt column
/// that nothing reads (`unused`).
PREFOPT_API Dataset load_dataset(const std::string& rows, const Tokenizer& tokenizer,
                                 const DataOptions& options, const RowNeeds& needs = {},
                                 DataSplit split = DataSplit::kAny);

/// Returns {training, held out}: the last `eval_fraction` of the pairs is held out, at least one
/// pair and never all of them, if there are two or more. Throws ConfigError outside of [0, 1).
PREFOPT_API std::pair<std::vector<TokenRow>, std::vector<TokenRow>> split_dataset(
    std::vector<TokenRow> pairs, double eval_fraction);

}  // namespace prefopt
