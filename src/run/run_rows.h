// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/run/run.h"
#include "prefopt/train/epoch_rows.h"
#include "run/run_folder.h"

namespace prefopt::detail {

struct RunRows {
  std::vector<TokenRow> train;
  std::vector<TokenRow> eval;
  std::vector<bool> train_cut, eval_cut;  ///< whether budgets shortened the row
  std::int64_t message_rows = 0;          ///< rows that were written in the chat format
  std::vector<EpochPart> parts = {};      ///< of `train`; empty: each row once an epoch
};

/// Returns the rows of files as load_dataset does. `note` hears, under the name of `option`, what
/// was read, left out and cut.
Dataset load_noted(std::string_view option, const std::string& path, const Tokenizer& tokenizer,
                   const DataOptions& options, const RowNeeds& needs, const Note& note,
                   DataSplit split);

/// Of the files that the options name, held-out rows taken from the training rows where there is no
/// file of them. `note` hears what was read and what was left out. Throws ConfigError without a
/// file, else as load_dataset and apply_leak_policy.
RunRows load_rows(const DataOptions& options, const Tokenizer& tokenizer, const RowNeeds& needs,
                  const Note& note);

/// Of a stream of training rows, whose held-out rows are in another file.
RunRows load_held_out(const DataOptions& options, const Tokenizer& tokenizer, const RowNeeds& needs,
                      const Note& note);

bool has_token_weights(const std::vector<TokenRow>& pairs);

/// Tokens of the largest micro-batch that the rows can make.
std::int64_t most_tokens(const std::vector<TokenRow>& pairs, const BatchOptions& options);

}  // namespace prefopt::detail
