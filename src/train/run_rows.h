// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/train/run.h"
#include "train/run_folder.h"

namespace prefopt::detail {

struct RunRows {
  std::vector<TokenPair> train;
  std::vector<TokenPair> eval;
  std::vector<bool> train_cut, eval_cut;  ///< whether budgets shortened the row
  std::int64_t message_rows = 0;          ///< rows that were written in the chat format
};

/// Of the files that the options name, held-out rows taken from the training rows where there is no
/// file of them. `note` hears what was read and what was left out. Throws ConfigError without a
/// file, else as load_dataset and settle_leaks.
RunRows load_rows(const DataOptions& options, const Tokenizer& tokenizer, const RowNeeds& needs,
                  const Note& note);

bool has_token_weights(const std::vector<TokenPair>& pairs);

/// Tokens of the largest micro-batch that the rows can make.
std::int64_t most_tokens(const std::vector<TokenPair>& pairs, const LoopOptions& options);

/// The order of pairs in the endless stream of epochs. A pure function of seed and
/// position: the generators and distributions used are the same on every platform.
class PairOrder {
 public:
  PairOrder(std::int64_t pairs, std::int64_t seed, bool shuffle);

  std::size_t at(std::int64_t position);

 private:
  void permute(std::int64_t epoch);

  std::vector<std::size_t> order_;
  std::int64_t seed_;
  bool shuffle_;
  std::int64_t epoch_ = -1;
};

}  // namespace prefopt::detail
