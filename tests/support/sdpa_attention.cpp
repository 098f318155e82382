// SPDX-License-Identifier: Apache-2.0
#include "support/sdpa_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>

#include <tuple>

namespace prefopt::testing_support {
namespace {

/// Keys that a block sees.
struct Segment {
  std::int64_t begin, length;
  bool causal;
};

std::vector<Segment> segments_of(const AttentionBlock& block) {
  std::vector<Segment> segments;
  if (block.prefix_length > 0) segments.push_back({block.prefix, block.prefix_length, false});
  if (block.past > 0) segments.push_back({block.key - block.past, block.past, false});
  segments.push_back({block.key, block.length, true});
  return segments;
}

/// Rows of [N, heads, D] as [1, heads, length, D].
at::Tensor by_head(const at::Tensor& rows, std::int64_t begin, std::int64_t length) {
  return rows.narrow(0, begin, length).transpose(0, 1).unsqueeze(0);
}

/// The same of keys or values, each head as often as query heads use it.
at::Tensor by_query_head(const at::Tensor& rows, const Segment& segment, std::int64_t heads) {
  const at::Tensor own = by_head(rows, segment.begin, segment.length);
  const std::int64_t groups = heads / rows.size(1);
  return own.unsqueeze(2)
      .expand({1, rows.size(1), groups, segment.length, rows.size(2)})
      .reshape({1, heads, segment.length, rows.size(2)});
}

void add_of_query_heads(const at::Tensor& grad, const Segment& segment, at::Tensor& out) {
  const std::int64_t kv_heads = out.size(1);
  const std::int64_t groups = grad.size(1) / kv_heads;
  out.narrow(0, segment.begin, segment.length)
      .add_(grad.view({kv_heads, groups, segment.length, grad.size(3)}).sum(1).transpose(0, 1));
}

}  // namespace

AttentionResult sdpa_attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const std::vector<AttentionBlock>& blocks,
                               double scale) {
  const std::int64_t heads = query.size(1);
  AttentionResult result{at::empty(query.sizes(), query.options()),
                         at::empty({heads, query.size(0)}, query.options())};
  for (const AttentionBlock& block : blocks) {
    if (block.length == 0) continue;
    const at::Tensor q = by_head(query, block.query, block.length);
    at::Tensor output, logsumexp;
    for (const Segment& segment : segments_of(block)) {
      const auto [o, l] = at::_scaled_dot_product_flash_attention_for_cpu(
          q, by_query_head(key, segment, heads), by_query_head(value, segment, heads),
          /*dropout_p=*/0, segment.causal, /*attn_mask=*/{}, scale);
      if (!output.defined()) {
        std::tie(output, logsumexp) = std::tie(o, l);
        continue;
      }
      const at::Tensor both = at::logaddexp(logsumexp, l);
      output = output * (logsumexp - both).exp().unsqueeze(-1) + o * (l - both).exp().unsqueeze(-1);
      logsumexp = both;
    }
    by_head(result.output, block.query, block.length).copy_(output);
    result.logsumexp.narrow(1, block.query, block.length).copy_(logsumexp.squeeze(0));
  }
  return result;
}

AttentionGradients sdpa_attention_backward(const at::Tensor& grad_output, const at::Tensor& query,
                                           const at::Tensor& key, const at::Tensor& value,
                                           const AttentionResult& forward,
                                           const std::vector<AttentionBlock>& blocks,
                                           double scale) {
  const std::int64_t heads = query.size(1);
  AttentionGradients grads{at::zeros(query.sizes(), query.options()),
                           at::zeros(key.sizes(), key.options()),
                           at::zeros(value.sizes(), value.options())};
  for (const AttentionBlock& block : blocks) {
    if (block.length == 0) continue;
    const auto rows = [&](const at::Tensor& x) { return by_head(x, block.query, block.length); };
    const at::Tensor logsumexp =
        forward.logsumexp.narrow(1, block.query, block.length).unsqueeze(0);
    for (const Segment& segment : segments_of(block)) {
      // With the merged output and logsumexp a segment's probabilities and the term that all of
      // them share are those of the whole row.
      const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          rows(grad_output), rows(query), by_query_head(key, segment, heads),
          by_query_head(value, segment, heads), rows(forward.output), logsumexp, /*dropout_p=*/0,
          segment.causal, /*attn_mask=*/{}, scale);
      rows(grads.query).add_(dq);
      add_of_query_heads(dk, segment, grads.key);
      add_of_query_heads(dv, segment, grads.value);
    }
  }
  return grads;
}

}  // namespace prefopt::testing_support
