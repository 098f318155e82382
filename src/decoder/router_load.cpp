// SPDX-License-Identifier: Apache-2.0
#include "decoder/router_load.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "decoder/families/family.h"
#include "math/upload.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"

namespace prefopt::detail {
namespace {

thread_local RouterRecord* current_record = nullptr;

at::Tensor sum_of(const at::Tensor& a, const at::Tensor& b) { return a.defined() ? a + b : b; }

void add_last_token(std::vector<std::int64_t>& completion, TokenWeights& weights, TokenMask& mask) {
  if (completion.empty()) return;
  if (mask.empty()) mask.assign(completion.size(), 1);
  mask.push_back(0);
  if (!weights.empty()) weights.push_back(0);
  completion.push_back(0);
}

const Decoder* decoder_in(const Policy& policy) {
  if (const auto* rewards = dynamic_cast<const RewardModel*>(&policy)) return &rewards->body();
  return dynamic_cast<const Decoder*>(&policy);
}

}  // namespace

void RouterLoad::add(const RouterLoad& other) {
  if (!other.chosen.defined()) return;
  chosen = sum_of(chosen, other.chosen);
  shares = sum_of(shares, other.shares);
  pairs += other.pairs;
}

RouterRecord::RouterRecord() : outer_(current_record) { current_record = this; }
RouterRecord::~RouterRecord() { current_record = outer_; }
RouterRecord* RouterRecord::current() { return current_record; }

void RouterRecord::add(const at::Tensor& shares, const at::Tensor& chosen,
                       const at::Tensor& sequences) {
  const at::Tensor each = sequences.unsqueeze(1);
  const at::Tensor places = chosen.reshape(-1);
  const at::Tensor counts = each.expand({-1, chosen.size(1)}).reshape(-1);
  load_.add({.chosen = at::zeros({shares.size(1)}, counts.options()).index_add(0, places, counts),
             .shares = (shares.to(at::kDouble) * each).sum(0),
             .pairs = sequences.sum().item<double>()});
}

at::Tensor sequences_of_rows(const PackedTokens& tokens) {
  std::vector<double> sequences;
  for (const PackedGroup& group : tokens.groups) {
    std::int64_t own = 0;
    for (const std::int64_t length : group.branches) own += length;
    sequences.insert(sequences.end(), static_cast<std::size_t>(group.shared),
                     static_cast<double>(group.branches.size()));
    sequences.insert(sequences.end(), static_cast<std::size_t>(own), 1);
  }
  return uploaded(at::tensor(sequences, at::kDouble), tokens.positions.device());
}

std::vector<TokenRow> with_last_tokens(std::vector<TokenRow> rows) {
  for (TokenRow& row : rows) {
    add_last_token(row.chosen, row.chosen_weights, row.chosen_mask);
    add_last_token(row.rejected, row.rejected_weights, row.rejected_mask);
    add_last_token(row.gold, row.gold_weights, row.gold_mask);
  }
  return rows;
}

RouterLossSpec router_loss_of(const Policy& policy) {
  const Decoder* decoder = decoder_in(policy);
  if (decoder == nullptr) return {};
  const DecoderOptions& options = decoder->options();
  const ModelSpec spec = family_named(options.family, "decoder").spec(options, "decoder");
  return {.coefficient = spec.router_loss, .experts = experts_of(spec).count};
}

}  // namespace prefopt::detail
