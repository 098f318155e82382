// SPDX-License-Identifier: Apache-2.0
#include "decoder/segment_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <utility>

#include "math/upload.h"

namespace prefopt::detail {
namespace {

/// Rows that are listed, or all of them in order.
class RowList {
 public:
  void add(std::int64_t begin, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) rows_.push_back(begin + i);
  }
  std::int64_t size() const { return std::ssize(rows_); }

  /// Undefined where the list is [0, all).
  at::Tensor on(at::Device device, std::int64_t all) const {
    bool is_all = size() == all;
    for (std::int64_t i = 0; is_all && i < all; ++i) {
      is_all = rows_[static_cast<std::size_t>(i)] == i;
    }
    return is_all ? at::Tensor() : uploaded(at::tensor(rows_, at::kLong), device);
  }

 private:
  std::vector<std::int64_t> rows_;
};

/// A segment as blocks are added to it.
class SegmentBuilder {
 public:
  /// The queries of a block and keys [begin, begin + count).
  void add(const AttentionBlock& block, std::int64_t begin, std::int64_t count,
           std::int64_t ahead) {
    sequences_.push_back({queries_.size(), block.length, keys_.size(), count, ahead});
    queries_.add(block.query, block.length);
    keys_.add(begin, count);
  }

  /// The queries of a block that see the keys of the last sequence, too.
  void join(const AttentionBlock& block) {
    sequences_.back().queries += block.length;
    queries_.add(block.query, block.length);
  }

  SegmentPlan::Segment on(at::Device device, std::int64_t queries, std::int64_t keys,
                          bool is_causal) {
    if (sequences_.empty()) return {};
    return {queries_.on(device, queries), keys_.on(device, keys),
            SequenceList::make(std::move(sequences_), is_causal, device)};
  }

 private:
  RowList queries_, keys_;
  std::vector<KeyedQueries> sequences_;
};

bool has_prefix_of(const AttentionBlock& block, const AttentionBlock* other) {
  return other != nullptr && block.prefix == other->prefix &&
         block.prefix_length == other->prefix_length;
}

at::Tensor rows_in(const at::Tensor& all, const at::Tensor& rows) {
  return rows.defined() ? all.index_select(0, rows) : all;
}

/// Adds the gradient of some rows to that of all.
void add_rows(at::Tensor& sum, const at::Tensor& part, const at::Tensor& rows,
              const at::Tensor& like) {
  if (!rows.defined()) {
    sum = sum.defined() ? sum.add_(part) : part;
    return;
  }
  if (!sum.defined()) sum = at::zeros_like(like);
  sum.index_add_(0, rows, part);
}

/// The tensors of an attention call, and which operator is to compute it.
class Attention {
 public:
  Attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
            const SegmentPlan& plan, double scale, AttentionLimits limits)
      : query_(query), key_(key), value_(value), plan_(plan), scale_(scale), limits_(limits) {
    if (limits_.window >= plan.longest) limits_.window = 0;  // nothing lies beyond it
    by_ = operator_for(query, limits_);
  }

  AttentionResult forward() const {
    AttentionResult result = attend(plan_.own);
    if (!prefix().is_empty()) merge(attend(prefix()), prefix().query_rows, result);
    return result;
  }

  AttentionGradients backward(const at::Tensor& grad_output, const AttentionResult& whole) const {
    AttentionGradients sums;
    for (const SegmentPlan::Segment* segment : {&plan_.own, &prefix()}) {
      if (segment->is_empty()) continue;
      const at::Tensor& rows = segment->query_rows;
      const AttentionResult part{
          rows_in(whole.output, rows),
          rows.defined() ? whole.logsumexp.index_select(1, rows) : whole.logsumexp};
      const AttentionGradients own = attend_sequences_backward(
          by_, rows_in(grad_output, rows), rows_in(query_, rows), rows_in(key_, segment->key_rows),
          rows_in(value_, segment->key_rows), part, segment->list, scale_, limits_);
      add_rows(sums.query, own.query, rows, query_);
      add_rows(sums.key, own.key, segment->key_rows, key_);
      add_rows(sums.value, own.value, segment->key_rows, value_);
    }
    return sums;
  }

 private:
  const SegmentPlan::Segment& prefix() const {
    return limits_.window == 0 ? plan_.prefix : plan_.prefix_by_block;
  }

  AttentionResult attend(const SegmentPlan::Segment& segment) const {
    return attend_sequences(by_, rows_in(query_, segment.query_rows),
                            rows_in(key_, segment.key_rows), rows_in(value_, segment.key_rows),
                            segment.list, scale_, limits_);
  }

  static void merge(const AttentionResult& part, const at::Tensor& rows, AttentionResult& result) {
    const at::Tensor own =
        rows.defined() ? result.logsumexp.index_select(1, rows) : result.logsumexp;
    const at::Tensor both = at::logaddexp(own, part.logsumexp);
    const auto share = [&](const at::Tensor& logsumexp) {
      return (logsumexp - both).exp().t().unsqueeze(-1);
    };
    const at::Tensor merged =
        (rows_in(result.output, rows) * share(own) + part.output * share(part.logsumexp))
            .to(result.output.scalar_type());
    if (!rows.defined()) {
      result = {merged, both};
      return;
    }
    result.output = result.output.index_copy(0, rows, merged);
    result.logsumexp = result.logsumexp.index_copy(1, rows, both);
  }

  const at::Tensor &query_, &key_, &value_;
  const SegmentPlan& plan_;
  double scale_;
  AttentionLimits limits_;
  AttentionOperator by_;
};

}  // namespace

SegmentPlan SegmentPlan::make(const std::vector<AttentionBlock>& blocks, std::int64_t queries,
                              std::int64_t keys, at::Device device) {
  SegmentPlan plan;
  SegmentBuilder own, prefix, prefix_by_block;
  const AttentionBlock* last = nullptr;  // of those with a prefix
  for (const AttentionBlock& block : blocks) {
    if (block.length == 0) continue;
    plan.longest = std::max(plan.longest, block.prefix_length + block.length);
    own.add(block, block.key, block.length, /*ahead=*/0);
    if (block.prefix_length == 0) continue;
    prefix_by_block.add(block, block.prefix, block.prefix_length, block.prefix_length);
    if (has_prefix_of(block, last)) {
      prefix.join(block);
    } else {
      prefix.add(block, block.prefix, block.prefix_length, block.prefix_length);
    }
    last = &block;
  }
  plan.own = own.on(device, queries, keys, /*is_causal=*/true);
  plan.prefix = prefix.on(device, queries, keys, /*is_causal=*/false);
  plan.prefix_by_block = prefix_by_block.on(device, queries, keys, /*is_causal=*/false);
  return plan;
}

AttentionResult segment_attention(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const SegmentPlan& plan, double scale,
                                  const AttentionLimits& limits) {
  return Attention(query, key, value, plan, scale, limits).forward();
}

AttentionGradients segment_attention_backward(const at::Tensor& grad_output,
                                              const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const AttentionResult& forward_result,
                                              const SegmentPlan& plan, double scale,
                                              const AttentionLimits& limits) {
  return Attention(query, key, value, plan, scale, limits).backward(grad_output, forward_result);
}

}  // namespace prefopt::detail
