// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// What to do with a row that cannot be used as it is.
enum class RowPolicy { kError, kDrop, kKeep };

struct DataOptions {
  std::string train;              ///< JSONL or JSONL.gz
  std::string eval;               ///< held-out file; empty: cut `eval_fraction` from `train`
  double eval_fraction = 0;       ///< of the rows, taken from the end of the file
  std::int64_t max_rows = 0;      ///< 0: all
  std::int64_t max_prompt_length = 512;      ///< tokens; 0: no limit. The prompt keeps its end
  std::int64_t max_completion_length = 0;    ///< tokens with the end token; 0: no limit
  std::int64_t max_length = 1024;            ///< prompt + completion; 0: no limit
  bool add_bos = true;
  bool add_eos = true;
  RowPolicy unusable = RowPolicy::kDrop;     ///< malformed, missing key, empty completion, bad UTF-8
  RowPolicy identical = RowPolicy::kDrop;    ///< chosen equals rejected
  RowPolicy long_prompt = RowPolicy::kKeep;  ///< longer than its budget: keep means truncate

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Rows that were dropped or changed, by reason, with their line numbers.
struct RowReport {
  std::int64_t rows_read = 0;
  std::int64_t rows_kept = 0;
  std::int64_t truncated_prompts = 0;
  std::int64_t truncated_completions = 0;
  std::map<std::string, std::vector<std::int64_t>> dropped;
  std::map<std::string, std::vector<std::int64_t>> kept_with;

  /// One line a defect: count, reason and the first line numbers. Empty when nothing is to say.
  PREFOPT_API std::string summary() const;
};

struct Dataset {
  std::vector<TokenPair> pairs;
  RowReport report;
};

/// Calls `row(line_number, text)` for each line of a file; .gz by content, not by name. Throws
/// DataError for a file that cannot be opened, a broken gzip stream or a line over 64 MiB.
PREFOPT_API void for_each_line(const std::string& path,
                               const std::function<void(std::int64_t, std::string_view)>& row);

/// Token ids of one row under the budgets. A completion that is cut keeps the end token.
PREFOPT_API TokenPair tokenize_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                                   const DataOptions& options, RowReport& report);

/// `need_rejected`: rows without one are unusable (named as such).
PREFOPT_API Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer,
                                 const DataOptions& options, bool need_rejected);

}  // namespace prefopt
