// SPDX-License-Identifier: Apache-2.0
#include "decoder/attention_operators.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_efficient_attention_backward.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "math/upload.h"
#include "math/wide_gradient.h"

namespace prefopt::detail {
namespace {

// --- heads ------------------------------------------------------------------------------------

// [K, kv_heads, D] to [K, kv_heads * groups, D]: each head `groups` times in a row.
at::Tensor with_all_heads(const at::Tensor& x, std::int64_t heads) {
  const std::int64_t groups = heads / x.size(1);
  if (groups == 1) return x;
  return x.unsqueeze(2).expand({-1, -1, groups, -1}).reshape({x.size(0), heads, x.size(2)});
}

// The sum over the heads that share one of keys and values.
at::Tensor of_kv_heads(const at::Tensor& gradient, std::int64_t kv_heads) {
  if (gradient.size(1) == kv_heads) return gradient;
  return gradient.view({gradient.size(0), kv_heads, -1, gradient.size(2)}).sum(2);
}

// --- all sequences at once: CUDA ----------------------------------------------------------------

AttentionResult flash(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const SequenceList& list, double scale) {
  auto result = at::_flash_attention_forward(query, key, value, list.query_ends, list.key_ends,
                                             list.most_queries, list.most_keys, /*dropout_p=*/0,
                                             list.is_causal, /*return_debug_mask=*/false, scale);
  return {std::get<0>(result), std::get<1>(result)};
}

// Read for dropout alone.
at::Tensor no_random_state(const at::Tensor& like, at::IntArrayRef shape) {
  return at::zeros(shape, like.options().dtype(at::kLong));
}

AttentionGradients flash_backward(const at::Tensor& grad_output, const at::Tensor& query,
                                  const at::Tensor& key, const at::Tensor& value,
                                  const AttentionResult& whole, const SequenceList& list,
                                  double scale) {
  auto [of_query, of_key, of_value] = at::_flash_attention_backward(
      grad_output, query, key, value, whole.output, whole.logsumexp, list.query_ends, list.key_ends,
      list.most_queries, list.most_keys, /*dropout_p=*/0, list.is_causal,
      no_random_state(query, {2}), no_random_state(query, {}), scale);
  return {of_query, of_key, of_value};
}

// xFormers' numbers of masks.
constexpr std::int64_t kNoMask = 0, kCausalMask = 1;
// Sequences of its logsumexp, [sequences, heads, columns], have a multiple of as many columns.
constexpr std::int64_t kAlignment = 32;

// Where the rows of all queries lie in a logsumexp whose sequences have `columns` each.
at::Tensor padded_places(const SequenceList& list, at::Device device) {
  const std::int64_t columns = (list.most_queries + kAlignment - 1) / kAlignment * kAlignment;
  std::vector<std::int64_t> places;
  for (std::size_t s = 0; s < list.sequences.size(); ++s) {
    for (std::int64_t i = 0; i < list.sequences[s].queries; ++i) {
      places.push_back(static_cast<std::int64_t>(s) * columns + i);
    }
  }
  return uploaded(at::tensor(places, at::kLong), device);
}

AttentionResult efficient(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const SequenceList& list, double scale) {
  const std::int64_t heads = query.size(1);
  auto result = at::_efficient_attention_forward(
      query.unsqueeze(0), with_all_heads(key, heads).unsqueeze(0),
      with_all_heads(value, heads).unsqueeze(0), /*bias=*/{}, list.query_ends, list.key_ends,
      list.most_queries, list.most_keys, /*dropout_p=*/0, list.is_causal ? kCausalMask : kNoMask,
      /*compute_log_sumexp=*/true, scale);
  const at::Tensor padded = std::get<1>(result).transpose(0, 1).flatten(1);
  return {std::get<0>(result).squeeze(0),
          padded.index_select(1, padded_places(list, query.device()))};
}

AttentionGradients efficient_backward(const at::Tensor& grad_output, const at::Tensor& query,
                                      const at::Tensor& key, const at::Tensor& value,
                                      const AttentionResult& whole, const SequenceList& list,
                                      double scale) {
  const std::int64_t heads = query.size(1), kv_heads = key.size(1);
  const std::int64_t columns = (list.most_queries + kAlignment - 1) / kAlignment * kAlignment;
  const auto count = std::ssize(list.sequences);
  at::Tensor padded = at::zeros({heads, count * columns}, whole.logsumexp.options());
  padded.index_copy_(1, padded_places(list, query.device()), whole.logsumexp);
  padded = padded.view({heads, count, columns}).transpose(0, 1).contiguous();
  auto result = at::_efficient_attention_backward(
      grad_output.unsqueeze(0), query.unsqueeze(0), with_all_heads(key, heads).unsqueeze(0),
      with_all_heads(value, heads).unsqueeze(0), /*bias=*/{}, whole.output.unsqueeze(0),
      list.query_ends, list.key_ends, list.most_queries, list.most_keys, padded, /*dropout_p=*/0,
      no_random_state(query, {}), no_random_state(query, {}),
      list.is_causal ? kCausalMask : kNoMask,
      /*bias_requires_grad=*/false, scale);
  return {std::get<0>(result).squeeze(0), of_kv_heads(std::get<1>(result).squeeze(0), kv_heads),
          of_kv_heads(std::get<2>(result).squeeze(0), kv_heads)};
}

// --- one sequence after the other ---------------------------------------------------------------

// A sequence's rows by heads, [heads, rows, D].
at::Tensor by_heads(const at::Tensor& rows, std::int64_t begin, std::int64_t count) {
  return rows.narrow(0, begin, count).transpose(0, 1);
}

AttentionResult flash_of_one(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, bool is_causal, double scale) {
  auto [output, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
      query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), /*dropout_p=*/0, is_causal,
      /*attn_mask=*/{}, scale);
  return {output.squeeze(0), logsumexp.squeeze(0)};
}

AttentionGradients flash_of_one_backward(const at::Tensor& grad, const at::Tensor& query,
                                         const at::Tensor& key, const at::Tensor& value,
                                         const AttentionResult& whole, bool is_causal,
                                         double scale) {
  auto [of_query, of_key, of_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      grad.unsqueeze(0), query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0),
      whole.output.unsqueeze(0), whole.logsumexp.unsqueeze(0), /*dropout_p=*/0, is_causal,
      /*attn_mask=*/{}, scale);
  return {of_query.squeeze(0), of_key.squeeze(0), of_value.squeeze(0)};
}

/// The formula itself, for a sequence [heads, rows, D], in at least float32.
class PlainAttention {
 public:
  PlainAttention(const at::Tensor& query, const at::Tensor& key, const KeyedQueries& of,
                 bool is_causal, double scale, const AttentionLimits& limits)
      : query_(wide(query)), key_(wide(key)), scale_(scale), softcap_(limits.softcap) {
    scores_ = at::matmul(query_, key_.transpose(-1, -2)) * scale;
    if (softcap_ != 0) scores_ = (scores_ / softcap_).tanh() * softcap_;
    const auto options = query.options().dtype(at::kLong);
    const at::Tensor at_query = (at::arange(of.queries, options) + of.ahead).unsqueeze(1);
    const at::Tensor at_key = at::arange(of.keys, options);
    if (is_causal) hide(at_key > at_query);
    if (limits.window != 0) hide(at_key <= at_query - limits.window);
  }

  AttentionResult forward(const at::Tensor& value) const {
    const at::Tensor logsumexp = at::logsumexp(masked(), at::IntArrayRef{-1});
    return {at::matmul(probabilities(logsumexp), wide(value)).to(value.scalar_type()), logsumexp};
  }

  AttentionGradients backward(const at::Tensor& narrow_grad, const at::Tensor& value,
                              const AttentionResult& whole) const {
    const at::Tensor grad = wide(narrow_grad);
    const at::Tensor p = probabilities(whole.logsumexp);
    const at::Tensor common = (grad * wide(whole.output)).sum(-1, /*keepdim=*/true);
    at::Tensor of_scores = p * (at::matmul(grad, wide(value).transpose(-1, -2)) - common) * scale_;
    if (softcap_ != 0) of_scores = of_scores * (1 - (scores_ / softcap_).square());
    const auto dtype = value.scalar_type();
    return {at::matmul(of_scores, key_).to(dtype),
            at::matmul(of_scores.transpose(-1, -2), query_).to(dtype),
            at::matmul(p.transpose(-1, -2), grad).to(dtype)};
  }

 private:
  static at::Tensor wide(const at::Tensor& x) { return x.to(at_least_float32(x.scalar_type())); }

  void hide(const at::Tensor& places) {
    hidden_ = hidden_.defined() ? hidden_.logical_or(places) : places;
  }
  at::Tensor masked() const {
    if (!hidden_.defined()) return scores_;
    return scores_.masked_fill(hidden_, -std::numeric_limits<double>::infinity());
  }
  // Zeros for a query that sees no key.
  at::Tensor probabilities(const at::Tensor& logsumexp) const {
    const at::Tensor finite = logsumexp.masked_fill(logsumexp.isinf(), 0);
    return (masked() - finite.unsqueeze(-1)).exp();
  }

  at::Tensor query_, key_, scores_, hidden_;
  double scale_, softcap_;
};

AttentionResult one_by_one(AttentionOperator by, const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value, const SequenceList& list, double scale,
                           const AttentionLimits& limits) {
  std::vector<at::Tensor> outputs, logsumexps;
  for (const KeyedQueries& of : list.sequences) {
    const at::Tensor q = by_heads(query, of.query, of.queries);
    const at::Tensor k = by_heads(key, of.key, of.keys), v = by_heads(value, of.key, of.keys);
    const AttentionResult one =
        by == AttentionOperator::kFlashCpu
            ? flash_of_one(q, k, v, list.is_causal, scale)
            : PlainAttention(q, k, of, list.is_causal, scale, limits).forward(v);
    outputs.push_back(one.output.transpose(0, 1));
    logsumexps.push_back(one.logsumexp);
  }
  return {at::cat(outputs), at::cat(logsumexps, 1)};
}

AttentionGradients one_by_one_backward(AttentionOperator by, const at::Tensor& grad_output,
                                       const at::Tensor& query, const at::Tensor& key,
                                       const at::Tensor& value, const AttentionResult& whole,
                                       const SequenceList& list, double scale,
                                       const AttentionLimits& limits) {
  std::vector<at::Tensor> of_query, of_key, of_value;
  for (const KeyedQueries& of : list.sequences) {
    const at::Tensor q = by_heads(query, of.query, of.queries);
    const at::Tensor k = by_heads(key, of.key, of.keys), v = by_heads(value, of.key, of.keys);
    const at::Tensor grad = by_heads(grad_output, of.query, of.queries);
    const AttentionResult part{by_heads(whole.output, of.query, of.queries),
                               whole.logsumexp.narrow(1, of.query, of.queries)};
    const AttentionGradients one =
        by == AttentionOperator::kFlashCpu
            ? flash_of_one_backward(grad, q, k, v, part, list.is_causal, scale)
            : PlainAttention(q, k, of, list.is_causal, scale, limits).backward(grad, v, part);
    of_query.push_back(one.query.transpose(0, 1));
    of_key.push_back(one.key.transpose(0, 1));
    of_value.push_back(one.value.transpose(0, 1));
  }
  return {at::cat(of_query), at::cat(of_key), at::cat(of_value)};
}

}  // namespace

SequenceList SequenceList::make(std::vector<KeyedQueries> sequences, bool is_causal,
                                at::Device device) {
  SequenceList list;
  list.sequences = std::move(sequences);
  list.is_causal = is_causal;
  std::vector<std::int32_t> query_ends{0}, key_ends{0};
  for (const KeyedQueries& of : list.sequences) {
    list.most_queries = std::max(list.most_queries, of.queries);
    list.most_keys = std::max(list.most_keys, of.keys);
    query_ends.push_back(static_cast<std::int32_t>(of.query + of.queries));
    key_ends.push_back(static_cast<std::int32_t>(of.key + of.keys));
  }
  list.query_ends = uploaded(at::tensor(query_ends, at::kInt), device);
  list.key_ends = uploaded(at::tensor(key_ends, at::kInt), device);
  return list;
}

AttentionOperator operator_for(const at::Tensor& query, const AttentionLimits& limits) {
  constexpr std::int64_t kMostDim = 256, kDimStep = 8;
  if (limits.window != 0 || limits.softcap != 0) return AttentionOperator::kPlain;
  if (!query.is_cuda()) return AttentionOperator::kFlashCpu;
  const std::int64_t dim = query.size(2);
  if (query.scalar_type() == at::kDouble || dim % kDimStep != 0 || dim > kMostDim) {
    return AttentionOperator::kPlain;
  }
  return is_narrow(query.scalar_type()) ? AttentionOperator::kFlash : AttentionOperator::kEfficient;
}

AttentionResult attend_sequences(AttentionOperator by, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const SequenceList& list, double scale,
                                 const AttentionLimits& limits) {
  switch (by) {
    case AttentionOperator::kFlash:
      return flash(query, key, value, list, scale);
    case AttentionOperator::kEfficient:
      return efficient(query, key, value, list, scale);
    default:
      return one_by_one(by, query, with_all_heads(key, query.size(1)),
                        with_all_heads(value, query.size(1)), list, scale, limits);
  }
}

AttentionGradients attend_sequences_backward(AttentionOperator by, const at::Tensor& grad_output,
                                             const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const AttentionResult& whole,
                                             const SequenceList& list, double scale,
                                             const AttentionLimits& limits) {
  switch (by) {
    case AttentionOperator::kFlash:
      return flash_backward(grad_output, query, key, value, whole, list, scale);
    case AttentionOperator::kEfficient:
      return efficient_backward(grad_output, query, key, value, whole, list, scale);
    default: {
      AttentionGradients all =
          one_by_one_backward(by, grad_output, query, with_all_heads(key, query.size(1)),
                              with_all_heads(value, query.size(1)), whole, list, scale, limits);
      all.key = of_kv_heads(all.key, key.size(1));
      all.value = of_kv_heads(all.value, key.size(1));
      return all;
    }
  }
}

}  // namespace prefopt::detail
