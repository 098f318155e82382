// SPDX-License-Identifier: Apache-2.0
#pragma once

// The needs of the load-balancing loss of routed experts (2101.03961) from a forward pass.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "prefopt/data/batch.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// The choices of all routers of a model, added up over tokens.
struct RouterLoad {
  at::Tensor chosen = {};  ///< [experts] float64: (token, layer) pairs that chose each expert
  at::Tensor shares = {};  ///< [experts] float64: sums of the routers' probabilities, with a graph
  double pairs = 0;        ///< (token, layer) pairs

  void add(const RouterLoad& other);
};

/// While one lives, the packed streams of decoders on its thread take all their tokens through all
/// routers, and their choices are added to its load. A token that sequences share counts once for
/// each of them. A stream has no row for the last token of a sequence: sequences have to end in one
/// that is not meant (`with_last_tokens`).
class RouterRecord {
 public:
  RouterRecord();
  ~RouterRecord();
  RouterRecord(const RouterRecord&) = delete;
  RouterRecord& operator=(const RouterRecord&) = delete;

  /// Returns the innermost one of this thread, or null.
  static RouterRecord* current();

  /// `shares` [N, experts] are probabilities, `chosen` [N, k] the experts of each row, `sequences`
  /// [N] float64 the sequences that share it.
  void add(const at::Tensor& shares, const at::Tensor& chosen, const at::Tensor& sequences);
  const RouterLoad& load() const { return load_; }

 private:
  RouterLoad load_;
  RouterRecord* outer_;
};

/// Returns how many sequences share each row of a stream, [N] float64 on its device.
at::Tensor sequences_of_rows(const PackedTokens& tokens);

/// Returns rows with one more token at the end of each completion, which does not count.
std::vector<TokenRow> with_last_tokens(std::vector<TokenRow> rows);

/// The fields of a model's config for the loss of its routers.
struct RouterLossSpec {
  double coefficient = 0;    ///< 0: none is asked for
  std::int64_t experts = 0;  ///< of a layer
};

/// Returns that of a decoder, or of the one in a reward model; none of other policies.
RouterLossSpec router_loss_of(const Policy& policy);

}  // namespace prefopt::detail
