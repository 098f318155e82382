// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "decoder/network.h"
#include "decoder/stream_flops.h"
#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/logps/token_logps.h"
#include "prefopt/losses/loss.h"

namespace prefopt::detail {

/// The models of a step, by their sizes, and how they are used.
struct StepModels {
  Network policy;                         ///< as executors see it
  std::optional<Network> reference = {};  ///< of which each step takes a forward pass
  LossRequirements needs = {};
  Checkpointing checkpointing = Checkpointing::kNone;
  std::int64_t head_budget_bytes = std::int64_t{1} << 30;
  bool has_head_in_blocks = false;  ///< of the policy
};

/// The work of a micro-batch, or of several. Operations are those of matrix products, a
/// multiply-add as two.
struct StepWork {
  std::int64_t pairs = 0;
  std::int64_t sequences = 0;
  std::int64_t total_tokens = 0;   ///< inputs of all sequences, each by itself
  std::int64_t unique_tokens = 0;  ///< rows of the packed stream: common beginnings once
  std::int64_t scored_tokens = 0;  ///< rows that the output head is applied to
  StreamFlops layers;              ///< of the policy
  double measured_first = 0;  ///< a forward pass more, of a loss that sees the whole step first
  double head = 0;            ///< of the policy, forward and backward
  double head_recomputed = 0;
  double head_measured_first = 0;
  double reference_layers = 0, reference_head = 0;

  double layer_flops() const {
    return layers.forward + layers.backward + layers.recomputed + measured_first + reference_layers;
  }
  double head_flops() const {
    return head + head_recomputed + head_measured_first + reference_head;
  }
  double flops() const { return layer_flops() + head_flops(); }
  /// Returns the operations that nothing computes a second time.
  double useful_flops() const {
    return layers.forward + layers.backward + head + reference_layers + reference_head;
  }

  StepWork& operator+=(const StepWork& other);
};

/// Returns the work of the policy's output head on some rows.
HeadWork head_work(const StepModels& models, std::int64_t rows);

/// Returns the work of one micro-batch. `measures_first`: whether its step is in several.
StepWork work_of(const StepModels& models, const TokenBatch& batch, bool measures_first = false);
StepWork work_of(const StepModels& models, const std::vector<TokenRow>& rows,
                 bool measures_first = false);

/// Throws ConfigError for a loss with further passes, which a plan does not count.
void check_plannable(const LossRequirements& needs, std::string_view loss);

}  // namespace prefopt::detail
