// SPDX-License-Identifier: Apache-2.0
// The output head in tiles of the vocabulary. A tile of logits is stored as [vocabulary rows,
// tokens]: the large factor is then read in place, and a SIMD lane of the softmax is a token.
#include "logps/kernels/cpu/head.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/memory_pool.h"
#include "core/parallel.h"
#include "kernels/block_tensor.h"
#include "kernels/cpu/gemm.h"
#include "logps/head_plan.h"
#include "math/wide_gradient.h"

namespace prefopt::kernels::cpu {
namespace {

template <class T>
constexpr at::ScalarType kDtype = sizeof(T) == sizeof(double) ? at::kDouble : at::kFloat;

/// Calls f(i) for i in [0, count), cut among the threads.
template <class F>
void parallel(std::size_t count, const F& f) {
  parallel_for(0, static_cast<std::int64_t>(count), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) f(static_cast<std::size_t>(i));
  });
}

/// Part of the vocabulary or of the tokens.
struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

std::vector<Range> cut(Range range, std::int64_t step) {
  std::vector<Range> parts;
  for (std::int64_t begin = range.begin; begin < range.end; begin += step) {
    parts.push_back({begin, std::min(range.end, begin + step)});
  }
  return parts;
}

/// Hidden states as the right factor of a product, a matrix for each tile of tokens: all of them
/// for the whole call, or the one in use.
template <class T>
class PackedHidden {
 public:
  enum class Layout { kTokensAsColumns, kTokensAsRows };

  PackedHidden(at::Tensor hidden, std::vector<Range> tiles, Layout layout, bool keep_all)
      : hidden_(std::move(hidden)),
        tiles_(std::move(tiles)),
        layout_(layout),
        packed_(keep_all ? tiles_.size() : 1),
        held_(packed_.size(), tiles_.size()) {}

  const PackedMatrix<T>& of(std::size_t tile) {
    const std::size_t slot = packed_.size() == 1 ? 0 : tile;
    if (held_[slot] != tile) {
      packed_[slot] = {};  // before the next one takes as much
      packed_[slot] = pack(tiles_[tile]);
      held_[slot] = tile;
    }
    return packed_[slot];
  }

 private:
  PackedMatrix<T> pack(Range tokens) const {
    const std::int64_t width = hidden_.size(1);
    const T* data = hidden_.const_data_ptr<T>() + tokens.begin * width;
    const bool columns = layout_ == Layout::kTokensAsColumns;
    const std::int64_t depth = columns ? width : tokens.size();
    const StridedMatrix<T> source{data, columns ? 1 : width, columns ? width : 1};
    PackedMatrix<T> matrix(depth, columns ? tokens.size() : width);
    parallel(static_cast<std::size_t>(matrix.panels()), [&](std::size_t p) {
      const auto panel = static_cast<std::int64_t>(p);
      matrix.pack(source, depth, panel, panel + 1);
    });
    return matrix;
  }

  at::Tensor hidden_;
  std::vector<Range> tiles_;
  Layout layout_;
  std::vector<PackedMatrix<T>> packed_;
  std::vector<std::size_t> held_;
};

/// The common part of both passes: the inputs in the type that is computed in, and the way from
/// parts of the vocabulary and of the tokens to a block of logits.
template <class T>
struct Head {
  Head(const HeadInputs& inputs, const HeadPlan& plan)
      : map(inputs.map),
        hidden(inputs.hidden.to(kDtype<T>).contiguous()),
        blocks(blocks_of(inputs.weight)),
        weight(blocks == nullptr ? inputs.weight.contiguous() : inputs.weight),
        bias(inputs.bias.defined() ? inputs.bias.to(kDtype<T>).contiguous() : at::Tensor()),
        targets(inputs.targets.contiguous()),
        token_tiles(cut({0, tokens()}, plan.tile_rows)),
        vocab_tiles(cut({0, vocab_size()}, plan.tile_vocab)),
        columns(hidden, token_tiles, PackedHidden<T>::Layout::kTokensAsColumns, plan.packs_once),
        stride(PackedMatrix<T>::padded(plan.tile_rows)),
        tile(plan.tile_vocab * stride) {}

  std::int64_t tokens() const { return hidden.size(0); }
  std::int64_t width() const { return hidden.size(1); }
  std::int64_t vocab_size() const { return weight.size(0); }
  std::int64_t kept_stride() const {
    return stride * static_cast<std::int64_t>(token_tiles.size());
  }
  std::int64_t target(std::int64_t token) const {
    return targets.template const_data_ptr<std::int64_t>()[token];
  }

  /// Rows of the weight in T; a low precision is widened, blocks are decoded.
  at::Tensor weight_rows(Range vocab) const {
    if (blocks != nullptr) {
      at::Tensor rows = empty_from_pool({vocab.size(), width()}, at::kFloat);
      decode_slice(blocks->matrix, {vocab.begin, vocab.size(), 0, width()},
                   rows.mutable_data_ptr<float>());
      return rows;
    }
    const at::Tensor rows = weight.slice(0, vocab.begin, vocab.end);
    if (weight.scalar_type() == kDtype<T>) return rows;
    return empty_from_pool(rows.sizes(), kDtype<T>).copy_(rows);
  }

  /// Returns the place of the logits of a part of a vocabulary tile.
  LogitBlock<T> in_tile(Range part, Range vocab, std::size_t token_tile) {
    return {tile.data() + (part.begin - vocab.begin) * stride, part.size(),
            columns.of(token_tile).padded_columns(), stride};
  }
  LogitBlock<T> in_kept(const at::Tensor& kept, Range part, std::size_t token_tile) {
    return {kept.data_ptr<T>() + part.begin * kept_stride() +
                static_cast<std::int64_t>(token_tile) * stride,
            part.size(), columns.of(token_tile).padded_columns(), kept_stride()};
  }

  void fill(const LogitBlock<T>& block, const T* weight_of_part, Range part,
            std::size_t token_tile) {
    const PackedMatrix<T>& right = columns.of(token_tile);
    multiply<T>({weight_of_part, width(), 1}, part.size(), width(), right, 0, right.panels(),
                {block.data, block.stride, block.columns, /*accumulate=*/false});
    if (bias.defined() || !map.is_identity()) {
      map_block(block, bias.defined() ? bias.const_data_ptr<T>() + part.begin : nullptr, map);
    }
  }

  /// out[token, :] += Σ_v block[v, token] w_v, over a tile: the threads share tokens and panels.
  void add_rows_of_weight(std::size_t token_tile, std::int64_t depth,
                          const PackedMatrix<T>& packed_weight, bool accumulate, at::Tensor& out) {
    const Range tokens_of_tile = token_tiles[token_tile];
    const std::vector<Range> parts = cut({0, tokens_of_tile.size()}, kBlockVocab);
    // Where the left factor is packed, all panels share it.
    const std::vector<Range> panels =
        cut({0, packed_weight.panels()},
            packed_weight.unit() == ProductUnit::kTiles ? packed_weight.panels() : 1);
    T* rows = out.data_ptr<T>() + tokens_of_tile.begin * width();
    parallel(parts.size() * panels.size(), [&](std::size_t task) {
      const Range part = parts[task / panels.size()], of_panels = panels[task % panels.size()];
      multiply<T>({tile.data() + part.begin, 1, stride}, part.size(), depth, packed_weight,
                  of_panels.begin, of_panels.end,
                  {rows + part.begin * width(), width(), width(), accumulate});
    });
  }

  /// Rows of the weight that are the tokens' targets.
  at::Tensor target_rows() const {
    return blocks != nullptr ? rows_at(*blocks, targets)
                             : weight.index_select(0, targets).to(kDtype<T>);
  }

  LogitMap map;
  at::Tensor hidden;
  const StoredBlocks* blocks;  ///< of the weight, or null
  at::Tensor weight, bias, targets;
  std::vector<Range> token_tiles, vocab_tiles;
  PackedHidden<T> columns;
  std::int64_t stride;
  Buffer<T> tile;
};

template <class T>
PackedMatrix<T> pack_weight(const at::Tensor& rows, PackedMatrix<T> matrix) {
  const StridedMatrix<T> source{rows.const_data_ptr<T>(), rows.size(1), 1};
  parallel(static_cast<std::size_t>(matrix.panels()), [&](std::size_t p) {
    const auto panel = static_cast<std::int64_t>(p);
    matrix.pack(source, rows.size(0), panel, panel + 1);
  });
  return matrix;
}

/// Returns a column [n, 1] of numbers that stay where they are.
template <class T>
at::Tensor column_of(std::vector<T>& values) {
  return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size()), 1}, kDtype<T>);
}

/// out[token, :] += shares[token] w_target.
template <class T>
void add_rows_of_targets(const Head<T>& head, std::vector<T>& shares, at::Tensor& out) {
  out.addcmul_(head.target_rows(), column_of(shares));
}

/// Moments of all rows, gathered block by block in the order of the vocabulary, so that the number
/// of threads changes no bit.
template <class T>
class OnlineMoments {
 public:
  OnlineMoments(std::int64_t tokens, std::int64_t blocks, std::int64_t stride, bool all)
      : all_(all), stride_(stride), of_blocks_((all ? 5 : 2) * blocks * stride) {
    RowMoments none{};
    none.max = static_cast<double>(std::numeric_limits<T>::lowest());
    rows_.assign(static_cast<std::size_t>(tokens), none);
  }

  RowMoments& row(std::int64_t token) { return rows_[static_cast<std::size_t>(token)]; }
  const std::vector<RowMoments>& rows() const { return rows_; }

  BlockMoments<T> of_block(std::size_t block) const {
    T* base = of_blocks_.data() + static_cast<std::int64_t>(block) * (all_ ? 5 : 2) * stride_;
    if (!all_) return {base, base + stride_, nullptr, nullptr, nullptr};
    return {base, base + stride_, base + 2 * stride_, base + 3 * stride_, base + 4 * stride_};
  }

  /// Adds blocks [0, blocks) of a tile of tokens. Returns the factor that each token's earlier sums
  /// were scaled by.
  std::vector<T> merge(Range tokens, std::size_t blocks) {
    std::vector<T> factors(static_cast<std::size_t>(tokens.size()));
    parallel_for(0, tokens.size(), 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        RowMoments& sums = row(tokens.begin + i);
        double max = sums.max;
        for (std::size_t b = 0; b < blocks; ++b) {
          max = std::max(max, static_cast<double>(of_block(b).max[i]));
        }
        factors[static_cast<std::size_t>(i)] = static_cast<T>(rescale(sums, max));
        for (std::size_t b = 0; b < blocks; ++b) add(sums, of_block(b), i);
      }
    });
    return factors;
  }

 private:
  void add(RowMoments& sums, const BlockMoments<T>& block, std::int64_t i) const {
    RowMoments other{};
    other.max = static_cast<double>(block.max[i]);
    other.sum = static_cast<double>(block.sum[i]);
    if (all_) {
      other.shifted = static_cast<double>(block.shifted[i]);
      other.sum_e_squared = static_cast<double>(block.sum_e_squared[i]);
      sums.sum_z += static_cast<double>(block.sum_z[i]);
    }
    rescale(other, sums.max);
    sums.sum += other.sum;
    sums.shifted += other.shifted;
    sums.sum_e_squared += other.sum_e_squared;
  }

  bool all_;
  std::int64_t stride_;
  Buffer<T> of_blocks_;
  std::vector<RowMoments> rows_;
};

template <class T>
HeadForward forward(const HeadInputs& inputs, const HeadPlan& plan, bool all) {
  Head<T> head(inputs, plan);
  const bool frozen = plan.path == HeadPath::kFrozenHead;
  HeadForward result;
  result.kept = frozen ? at::zeros({head.tokens(), head.width()}, kDtype<T>)
                       : empty_from_pool({plan.kept_vocab, head.kept_stride()}, kDtype<T>);
  OnlineMoments<T> moments(head.tokens(), (plan.tile_vocab + kBlockVocab - 1) / kBlockVocab,
                           head.stride, all);
  PackedMatrix<T> packed_weight;
  if (frozen) packed_weight = PackedMatrix<T>(plan.tile_vocab, head.width());
  Buffer<T> max(frozen ? head.stride : 0);

  for (const Range vocab : head.vocab_tiles) {
    const at::Tensor weight = head.weight_rows(vocab);
    if (frozen) packed_weight = pack_weight<T>(weight, std::move(packed_weight));
    const std::vector<Range> parts = cut(vocab, kBlockVocab);
    for (std::size_t tile = 0; tile < head.token_tiles.size(); ++tile) {
      const Range tokens = head.token_tiles[tile];
      head.columns.of(tile);  // packs before the threads part
      parallel(parts.size(), [&](std::size_t b) {
        const Range part = parts[b];
        const LogitBlock<T> block = part.begin < plan.kept_vocab
                                        ? head.in_kept(result.kept, part, tile)
                                        : head.in_tile(part, vocab, tile);
        head.fill(block, weight.const_data_ptr<T>() + (part.begin - vocab.begin) * head.width(),
                  part, tile);
        block_moments(block, moments.of_block(b));
        for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
          const std::int64_t row = head.target(token) - part.begin;
          if (row < 0 || row >= part.size()) continue;
          moments.row(token).target =
              static_cast<double>(block.data[row * block.stride + token - tokens.begin]);
        }
      });
      std::vector<T> factors = moments.merge(tokens, parts.size());
      if (!frozen) continue;

      // kept = kept · factor + Σ_v e^(z_v − max) dz/du w_v: an online softmax of the weight's rows.
      std::fill_n(max.data(), head.stride, T(0));
      for (std::int64_t i = 0; i < tokens.size(); ++i) {
        max.data()[i] = static_cast<T>(moments.row(tokens.begin + i).max);
      }
      result.kept.slice(0, tokens.begin, tokens.end).mul_(column_of(factors));
      parallel(parts.size(), [&](std::size_t b) {
        block_weights(head.in_tile(parts[b], vocab, tile), max.data(), head.map);
      });
      head.add_rows_of_weight(tile, vocab.size(), packed_weight, /*accumulate=*/true, result.kept);
    }
  }

  if (frozen) {
    // From sums over the vocabulary to dz_y/du w_y − Σ p_v dz_v/du w_v.
    std::vector<T> shares, inverses;
    for (const RowMoments& sums : moments.rows()) {
      shares.push_back(static_cast<T>(slope(head.map, sums.target)));
      inverses.push_back(static_cast<T>(-1 / sums.sum));
    }
    result.kept.mul_(column_of(inverses));
    add_rows_of_targets(head, shares, result.kept);
  }
  result.statistics = statistics_of(moments.rows(), head.vocab_size(), all);
  return result;
}

/// The share of a row's own target in the gradient of its logits. Hidden states get it apart: a sum
/// of many small terms must not be added to one large number.
template <class T>
struct TargetShare {
  T* element;
  T value;
  T before = 0;

  void add() {
    before = *element;
    *element += value;
  }
  void take_back() const { *element = before; }
};

template <class T>
std::array<at::Tensor, 3> backward(const HeadInputs& inputs, const HeadPlan& plan,
                                   const at::Tensor& factors, const at::Tensor& logsumexp,
                                   const at::Tensor& kept, std::array<bool, 3> needed) {
  if (needed[1]) check_trainable(inputs.weight, "linear_token_logps");
  Head<T> head(inputs, plan);
  const std::int64_t kept_vocab = kept.size(0);
  const at::Tensor sum = needed[1] ? detail::wide_gradient(inputs.weight) : at::Tensor();
  const bool narrow = inputs.weight.scalar_type() != kDtype<T> && !sum.defined();
  std::array<at::Tensor, 3> grads;
  if (needed[0]) grads[0] = at::zeros({head.tokens(), head.width()}, kDtype<T>);
  if (needed[1] && !sum.defined()) {
    grads[1] = empty_from_pool({head.vocab_size(), head.width()}, inputs.weight.scalar_type());
    if (head.tokens() == 0) grads[1].zero_();
  }
  if (needed[2]) grads[2] = at::zeros({head.vocab_size()}, kDtype<T>);

  // Per token, with zeros for the padding.
  const std::int64_t padded = head.kept_stride();
  const FactorsOfRows factors_of(factors);
  Buffer<T> high(padded), low(padded), of_p(padded);
  Buffer<T> of_p_log_p(factors_of.has_all() ? padded : 0);
  for (const Buffer<T>* buffer : {&high, &low, &of_p}) std::fill_n(buffer->data(), padded, T(0));
  if (factors_of.has_all()) std::fill_n(of_p_log_p.data(), padded, T(0));
  const auto place = [&](std::size_t tile) {
    return static_cast<std::int64_t>(tile) * head.stride;
  };
  for (std::size_t tile = 0; tile < head.token_tiles.size(); ++tile) {
    const Range tokens = head.token_tiles[tile];
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
      const std::int64_t at = place(tile) + token - tokens.begin;
      const double sum = logsumexp.const_data_ptr<double>()[token];
      high.data()[at] = static_cast<T>(sum);
      low.data()[at] = static_cast<T>(sum - static_cast<double>(high.data()[at]));
      of_p.data()[at] = static_cast<T>(factors_of(token).of_p);
      if (factors_of.has_all()) {
        of_p_log_p.data()[at] = static_cast<T>(factors_of(token).of_p_log_p);
      }
    }
  }

  PackedHidden<T> hidden_rows(head.hidden, head.token_tiles, PackedHidden<T>::Layout::kTokensAsRows,
                              plan.packs_once);
  PackedMatrix<T> packed_weight;
  if (needed[0]) packed_weight = PackedMatrix<T>(plan.tile_vocab, head.width());
  std::vector<T> target_share(static_cast<std::size_t>(head.tokens()));
  Buffer<T> widened_grad(needed[1] && narrow ? plan.tile_vocab * head.width() : 0);

  for (const Range vocab : head.vocab_tiles) {
    const at::Tensor weight = head.weight_rows(vocab);
    if (needed[0]) packed_weight = pack_weight<T>(weight, std::move(packed_weight));
    T* weight_grad = nullptr;
    if (needed[1]) {
      const at::Tensor& whole = sum.defined() ? sum : grads[1];
      weight_grad = narrow ? widened_grad.data() : whole.data_ptr<T>() + vocab.begin * head.width();
    }
    const std::vector<Range> parts = cut(vocab, kBlockVocab);
    for (std::size_t tile = 0; tile < head.token_tiles.size(); ++tile) {
      const Range tokens = head.token_tiles[tile];
      head.columns.of(tile);
      if (needed[1]) hidden_rows.of(tile);
      parallel(parts.size(), [&](std::size_t b) {
        const Range part = parts[b];
        const std::int64_t offset = (part.begin - vocab.begin) * head.width();
        LogitBlock<T> gradient = head.in_tile(part, vocab, tile);
        LogitBlock<T> logits = gradient;
        if (part.begin < kept_vocab) {
          logits = head.in_kept(kept, part, tile);
        } else {
          head.fill(logits, weight.const_data_ptr<T>() + offset, part, tile);
        }
        std::vector<TargetShare<T>> shares;
        for (std::int64_t i = 0; i < tokens.size(); ++i) {
          const std::int64_t token = tokens.begin + i;
          const std::int64_t row = head.target(token) - part.begin;
          if (row < 0 || row >= part.size()) continue;
          const double z = static_cast<double>(logits.data[row * logits.stride + i]);
          const T share = static_cast<T>(factors_of(token).of_target * slope(head.map, z));
          target_share[static_cast<std::size_t>(token)] = share;
          shares.push_back({gradient.data + row * gradient.stride + i, share});
        }
        block_gradient<T>(
            logits,
            {high.data() + place(tile), low.data() + place(tile), of_p.data() + place(tile),
             factors_of.has_all() ? of_p_log_p.data() + place(tile) : nullptr},
            head.map, gradient);
        for (TargetShare<T>& share : shares) share.add();
        if (needed[1]) {
          const PackedMatrix<T>& right = hidden_rows.of(tile);
          multiply<T>({gradient.data, gradient.stride, 1}, part.size(), tokens.size(), right, 0,
                      right.panels(),
                      {weight_grad + offset, head.width(), head.width(),
                       /*accumulate=*/tile > 0 || sum.defined()});
        }
        if (needed[2]) {
          T* bias_grad = grads[2].data_ptr<T>();
          for (std::int64_t row = 0; row < part.size(); ++row) {
            const T* values = gradient.data + row * gradient.stride;
            double sum = 0;
            for (std::int64_t i = 0; i < tokens.size(); ++i) sum += static_cast<double>(values[i]);
            bias_grad[part.begin + row] += static_cast<T>(sum);
          }
        }
        for (const TargetShare<T>& share : shares) share.take_back();
      });
      if (needed[0]) {
        head.add_rows_of_weight(tile, vocab.size(), packed_weight, /*accumulate=*/true, grads[0]);
      }
    }
    if (needed[1] && narrow && head.tokens() > 0) {
      grads[1]
          .slice(0, vocab.begin, vocab.end)
          .copy_(at::from_blob(weight_grad, {vocab.size(), head.width()}, kDtype<T>));
    }
  }
  if (needed[0]) add_rows_of_targets(head, target_share, grads[0]);
  if (sum.defined()) sum.unsafeGetTensorImpl()->bump_version();
  return grads;
}

}  // namespace

HeadForward head_forward(const HeadInputs& inputs, const HeadPlan& plan, bool all_statistics) {
  return inputs.weight.scalar_type() == at::kDouble ? forward<double>(inputs, plan, all_statistics)
                                                    : forward<float>(inputs, plan, all_statistics);
}

std::array<at::Tensor, 3> head_backward(const HeadInputs& inputs, const HeadPlan& plan,
                                        const at::Tensor& factors, const at::Tensor& logsumexp,
                                        const at::Tensor& kept, std::array<bool, 3> needed) {
  return inputs.weight.scalar_type() == at::kDouble
             ? backward<double>(inputs, plan, factors, logsumexp, kept, needed)
             : backward<float>(inputs, plan, factors, logsumexp, kept, needed);
}

}  // namespace prefopt::kernels::cpu
