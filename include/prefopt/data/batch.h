// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "prefopt/data/records.h"
#include "prefopt/export.h"

namespace prefopt {

/// Numbers of a completion that a policy wrote, for an objective on tokens: one of each token that
/// counts, in order. Empty: not there.
struct RolloutColumns {
  std::int64_t group = 0;  ///< equal for completions of one prompt of a round
  std::vector<double> advantages = {};
  std::vector<double> old_logps = {};      ///< of the policy that the updates start from, nats
  std::vector<double> ref_logps = {};      ///< of the reference
  std::vector<double> sampler_logps = {};  ///< as the sampler reported them
  std::vector<double> old_values = {}, returns = {};
  std::vector<std::int64_t> turns = {};  ///< place of the token's turn; empty: a single turn
};

/// One row in tokens, of one to three completions. `rejected` is empty for rows that have a single
/// completion (SFT, unpaired losses), `gold` for rows without a third one.
struct TokenRow {
  std::vector<std::int64_t> prompt;
  std::vector<std::int64_t> chosen;
  std::vector<std::int64_t> rejected;
  std::vector<std::int64_t> gold = {};
  RowColumns columns = {};
  TokenWeights chosen_weights = {}, rejected_weights = {}, gold_weights = {};
  TokenMask chosen_mask = {}, rejected_mask = {}, gold_mask = {};
  RolloutColumns rollout = {};  ///< of `chosen`
};

/// Returns how many tokens of a completion count.
PREFOPT_API std::int64_t counted_tokens(std::span<const std::int64_t> completion,
                                        std::span<const std::uint8_t> mask);

/// Sequences with the same prompt. The stream holds the tokens that all of them begin with first,
/// then the rest of each, sequence after sequence.
struct PackedGroup {
  std::int64_t begin = 0;   ///< first row of the group
  std::int64_t shared = 0;  ///< rows of the common beginning
  std::int64_t scored = 0;  ///< from this row of the group on, rows predict completion tokens
  std::vector<std::int64_t> branches = {};  ///< rows of each sequence beyond the common beginning
};

/// The tokens of a batch in one stream of `N` rows without padding, common beginnings once. The
/// last token of a sequence predicts nothing and is left out.
struct PackedTokens {
  std::vector<PackedGroup> groups;
  at::Tensor input_ids;  ///< [N] int64
  at::Tensor positions;  ///< [N] int64: place of a token in its own sequence
  /// [R] int64: the row that predicts a completion token, and that token. A pair of both is listed
  /// once, however many sequences share it.
  at::Tensor rows, targets;
  /// [tokens] int64: index into `rows` of each completion token that counts, sequence after
  /// sequence.
  at::Tensor token_rows;
};

/// Right-padded sequences. `S` sequences of at most `T` tokens.
struct TokenBatch {
  at::Tensor input_ids;        ///< [S, T] int64; padding is 0, and no result depends on it
  at::Tensor attention_mask;   ///< [S, T] bool, true on real tokens
  at::Tensor completion_mask;  ///< [S, T] bool, true on completion tokens that count
  /// [S] int64 on the CPU, so that counts never need a device sync: the tokens that count.
  at::Tensor completion_lens;
  /// [tokens] float64: the factor of each completion token's log-prob in a sum, sequence after
  /// sequence; undefined: 1 each.
  at::Tensor token_weights = {};
  /// The same tokens for policies that take streams; null: only the padded form exists.
  std::shared_ptr<const PackedTokens> packed = nullptr;

  std::int64_t sequences() const { return input_ids.size(0); }
  PREFOPT_API TokenBatch to(const at::Device& device) const;
};

/// One prompt and completion, as a view for batching.
struct TokenSequence {
  std::span<const std::int64_t> prompt;
  std::span<const std::int64_t> completion;
  std::span<const double> weights = {};     ///< of the completion's tokens; empty: 1 each
  std::span<const std::uint8_t> mask = {};  ///< which of them count; empty: all
};

/// Lays out sequences as a batch. Throws ShapeError for an empty list, an empty prompt (nothing
/// predicts the first token), an empty completion, one without a token that counts, or weights or a
/// mask of another length than it.
PREFOPT_API TokenBatch make_batch(const std::vector<TokenSequence>& sequences);

/// Returns some sequences of a CPU batch, laid out again. Throws DeviceError for another device.
PREFOPT_API TokenBatch select_sequences(const TokenBatch& batch,
                                        const std::vector<std::int64_t>& sequences);

/// Returns the chosen sequences of all pairs, then the rejected ones (when `with_rejected`), then
/// the gold ones (when `with_gold`).
PREFOPT_API TokenBatch make_pair_batch(const std::vector<TokenRow>& pairs,
                                       bool with_rejected = true, bool with_gold = false);

}  // namespace prefopt
