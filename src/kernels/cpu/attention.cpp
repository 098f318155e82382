// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <c10/util/FunctionRef.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/simd_math-inl.h"

#ifndef PREFOPT_ATTENTION_TILES
#define PREFOPT_ATTENTION_TILES
namespace prefopt::kernels::cpu {

// Queries, in lanes, and keys of a tile of scores. With two such tiles, one of heads and as many
// keys as a tile has, a first-level cache is full.
constexpr std::int64_t kQueries = 48;
constexpr std::int64_t kKeys = 64;
// Queries, in lanes, at once where some keys are seen by some of them only.
constexpr std::int64_t kCausalQueries = 16;

}  // namespace prefopt::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
std::int64_t lanes_of() {
  return static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
}

// --- products ---------------------------------------------------------------------------------

// Vectors and rows of a block of c in registers, next to a row of b and an element of a.
#if HWY_TARGET <= HWY_AVX3
constexpr int kVectors = 4;
template <int kN>
constexpr int kRows = kN == 4 ? 6 : 8;
#else
constexpr int kVectors = 2;
template <int kN>
constexpr int kRows = 6;
#endif

// The right factor and the result of a product: rows of vectors.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
};

struct Depth {
  std::int64_t begin, end;
};

// The depth that the rows first to last, both included, are summed over.
using DepthOf = c10::function_ref<Depth(std::int64_t first, std::int64_t last)>;

template <class T, int kM, int kN>
HWY_INLINE void multiply_registers(StridedMatrix<T> a, std::int64_t depth, Rows<const T> b,
                                   Rows<T> c, bool accumulate) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[kM][kN];
  HWY_UNROLL(8)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < kN; ++j) sums[i][j] = hn::Zero(d);
  }
  const T* HWY_RESTRICT left = a.data;
  const T* HWY_RESTRICT right = b.data;
  for (std::int64_t k = 0; k < depth; ++k) {
    hn::Vec<decltype(d)> row[kN];
    HWY_UNROLL(4)
    for (int j = 0; j < kN; ++j) row[j] = hn::LoadU(d, right + j * lanes);
    HWY_UNROLL(8)
    for (int i = 0; i < kM; ++i) {
      const auto element = hn::Set(d, left[i * a.row_stride]);
      HWY_UNROLL(4)
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::MulAdd(element, row[j], sums[i][j]);
    }
    left += a.column_stride;
    right += b.stride;
  }
  // Added at the end, so that terms are not rounded to the size of what is there.
  HWY_UNROLL(8)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < kN; ++j) {
      T* target = c.data + i * c.stride + j * lanes;
      hn::StoreU(accumulate ? hn::Add(hn::LoadU(d, target), sums[i][j]) : sums[i][j], d, target);
    }
  }
}

template <class T, int kM, int kN>
HWY_INLINE std::int64_t multiply_rows(std::int64_t first, std::int64_t rows, StridedMatrix<T> a,
                                      DepthOf depth_of, Rows<const T> b, Rows<T> c,
                                      bool accumulate) {
  for (; first + kM <= rows; first += kM) {
    const Depth depth = depth_of(first, first + kM - 1);
    multiply_registers<T, kM, kN>({a.data + first * a.row_stride + depth.begin * a.column_stride,
                                   a.row_stride, a.column_stride},
                                  depth.end - depth.begin,
                                  {b.data + depth.begin * b.stride, b.stride},
                                  {c.data + first * c.stride, c.stride}, accumulate);
  }
  return first;
}

template <class T, int kN>
void multiply_columns(StridedMatrix<T> a, std::int64_t rows, DepthOf depth_of, Rows<const T> b,
                      Rows<T> c, bool accumulate) {
  std::int64_t i = multiply_rows<T, kRows<kN>, kN>(0, rows, a, depth_of, b, c, accumulate);
  i = multiply_rows<T, 4, kN>(i, rows, a, depth_of, b, c, accumulate);
  i = multiply_rows<T, 2, kN>(i, rows, a, depth_of, b, c, accumulate);
  multiply_rows<T, 1, kN>(i, rows, a, depth_of, b, c, accumulate);
}

// c[i, j] = Σ_k a(i, k) b[k, j], plus c[i, j] where it accumulates, over whole vectors of columns
// and those k that depth_of(first, last) names for rows first to last: a(i, k) is 0 for the others.
template <class T>
void multiply(StridedMatrix<T> a, std::int64_t rows, DepthOf depth_of, Rows<const T> b, Rows<T> c,
              std::int64_t columns, bool accumulate) {
  const std::int64_t vectors = columns / lanes_of<T>();
  const std::int64_t panels = (vectors + kVectors - 1) / kVectors;
  std::int64_t left = vectors;
  for (std::int64_t panel = panels; panel > 0; --panel) {
    // Of equal width: 5 vectors are 3 + 2, not 4 + 1.
    const std::int64_t taken = (left + panel - 1) / panel;
    switch (taken) {
      case 1:
        multiply_columns<T, 1>(a, rows, depth_of, b, c, accumulate);
        break;
      case 2:
        multiply_columns<T, 2>(a, rows, depth_of, b, c, accumulate);
        break;
#if HWY_TARGET <= HWY_AVX3
      case 3:
        multiply_columns<T, 3>(a, rows, depth_of, b, c, accumulate);
        break;
      default:
        multiply_columns<T, 4>(a, rows, depth_of, b, c, accumulate);
#endif
    }
    b.data += taken * lanes_of<T>();
    c.data += taken * lanes_of<T>();
    left -= taken;
  }
}

// --- tiles ------------------------------------------------------------------------------------

// Queries [first, first + count) of a task: query r is that of head r % groups at position
// r / groups. Lanes beyond the last query, up to a whole vector, hold zeros.
struct QueryTile {
  std::int64_t first, count, lanes;
  std::int64_t groups, seen_by_all;
  std::int64_t window;  // 0: none

  // Returns how many keys, from the first on, query r of the tile sees, and the last of them all.
  std::int64_t visible_to(std::int64_t r) const { return seen_by_all + (first + r) / groups + 1; }
  std::int64_t visible() const { return visible_to(count - 1); }
  // Returns the first key that a query of the tile sees.
  std::int64_t begin() const {
    return window == 0 ? 0 : std::max<std::int64_t>(visible_to(0) - window, 0);
  }
  // Lanes from this on see the key no more.
  std::int64_t lanes_before_window(std::int64_t key) const {
    if (window == 0) return lanes;
    return std::clamp<std::int64_t>((key + window - seen_by_all) * groups - first, 0, lanes);
  }
  // Lanes below this do not see the key.
  std::int64_t hidden_lanes(std::int64_t key) const {
    return std::clamp<std::int64_t>((key - seen_by_all) * groups - first, 0, lanes);
  }
};

template <class T>
QueryTile tile_at(std::int64_t first, const AttentionTask& task, const AttentionShape& shape) {
  const std::int64_t count = std::min(kQueries, task.queries * shape.groups - first);
  const std::int64_t lanes = (count + lanes_of<T>() - 1) / lanes_of<T>() * lanes_of<T>();
  return {first, count, lanes, shape.groups, task.keys() - task.queries, shape.window};
}

// Rows of heads lie in far apart lines of inputs that a first-level cache does not hold, each line
// read once, in an order that the hardware does not foresee.
template <class T>
HWY_INLINE void prefetch_row(const T* row, std::int64_t size) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  for (std::int64_t k = 0; k < size; k += kLine) hwy::Prefetch(row + k);
}

// Prefetches what take_rows will read for the tile after this one.
template <class T>
void prefetch_next_rows(const QueryTile& tile, HeadRows<const T> source, const AttentionTask& task,
                        std::int64_t dim) {
  const std::int64_t begin = (tile.first + kQueries) / tile.groups;
  const std::int64_t end = (tile.first + 2 * kQueries + tile.groups - 1) / tile.groups;
  for (std::int64_t i = begin; i < std::min(end, task.queries); ++i) {
    prefetch_row(source.data + (task.query + i) * source.stride, tile.groups * dim);
  }
}

// The tile's rows of heads, times `factor`, with zeros up to `lanes` and padded_dim.
template <class T>
void take_rows(const QueryTile& tile, HeadRows<const T> source, const AttentionTask& task,
               std::int64_t dim, T factor, T* out) {
  const std::int64_t padded = padded_dim(dim);
  for (std::int64_t i = 0; i < tile.count; ++i, out += padded) {
    const std::int64_t row = tile.first + i;
    const T* in =
        source.data + (task.query + row / tile.groups) * source.stride + row % tile.groups * dim;
    for (std::int64_t k = 0; k < dim; ++k) out[k] = in[k] * factor;
    std::fill(out + dim, out + padded, T(0));
  }
  std::fill_n(out, (tile.lanes - tile.count) * padded, T(0));
}

template <class T>
void put_rows(const QueryTile& tile, const T* in, const AttentionTask& task, std::int64_t dim,
              HeadRows<T> target) {
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const std::int64_t row = tile.first + i;
    std::copy_n(
        in + i * padded_dim(dim), dim,
        target.data + (task.query + row / tile.groups) * target.stride + row % tile.groups * dim);
  }
}

// [lanes, padded_dim] to [padded_dim, kQueries].
template <class T>
void transpose(const T* HWY_RESTRICT in, std::int64_t rows, std::int64_t padded,
               T* HWY_RESTRICT out) {
  const hn::ScalableTag<T> d;
  const std::int64_t lanes = lanes_of<T>();
  std::int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const T* row = in + i * padded;
    for (std::int64_t k = 0; k < padded; k += lanes) {
      HWY_ALIGN T columns[4 * HWY_MAX_BYTES / sizeof(T)];
      hn::StoreInterleaved4(hn::LoadU(d, row + k), hn::LoadU(d, row + padded + k),
                            hn::LoadU(d, row + 2 * padded + k), hn::LoadU(d, row + 3 * padded + k),
                            d, columns);
      for (std::int64_t j = 0; j < lanes; ++j) {
        std::copy_n(columns + 4 * j, 4, out + (k + j) * kQueries + i);
      }
    }
  }
  for (; i < rows; ++i) {
    for (std::int64_t k = 0; k < padded; ++k) out[k * kQueries + i] = in[i * padded + k];
  }
}

// Keys or values of both ranges, one after the other, padded.
template <class T>
void take_keys(const AttentionTask& task, HeadRows<const T> source, std::int64_t dim, T* out) {
  const std::int64_t padded = padded_dim(dim);
  for (const KeyRange& range : {task.prefix, task.own}) {
    constexpr std::int64_t kAhead = 8;
    const T* in = source.data + range.begin * source.stride;
    for (std::int64_t i = 0; i < range.length; ++i, in += source.stride, out += padded) {
      if (i + kAhead < range.length) prefetch_row(in + kAhead * source.stride, dim);
      std::copy_n(in, dim, out);
      std::fill(out + dim, out + padded, T(0));
    }
  }
}

// Keys [first, first + keys) of a tile of scores: what is not seen becomes `value`.
template <class T>
void hide(const QueryTile& tile, std::int64_t first, std::int64_t keys, T value, T* scores) {
  const std::int64_t causal = std::max(first, tile.seen_by_all);
  for (std::int64_t j = causal; j < first + keys; ++j) {
    std::fill_n(scores + (j - first) * kQueries, tile.hidden_lanes(j), value);
  }
  for (std::int64_t j = first; tile.window > 0 && j < first + keys; ++j) {
    T* row = scores + (j - first) * kQueries;
    std::fill(row + tile.lanes_before_window(j), row + tile.lanes, value);
  }
}

// Scores s become c tanh(s / c).
template <class T>
void cap(const QueryTile& tile, std::int64_t keys, double softcap, T* HWY_RESTRICT scores) {
  const hn::ScalableTag<T> d;
  const auto most = hn::Set(d, static_cast<T>(softcap));
  const auto inverse = hn::Set(d, static_cast<T>(1 / softcap));
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t i = 0; i < tile.lanes; i += lanes_of<T>()) {
      T* score = scores + j * kQueries + i;
      hn::StoreU(hn::Mul(most, tanh_of(d, hn::Mul(hn::LoadU(d, score), inverse))), d, score);
    }
  }
}

// From scores to e^(s − max), in place. `max` and `sum` are what they were for earlier keys and
// become those of all so far; `factor` is what sums of earlier keys have to be scaled by.
template <class T>
void online_softmax(const QueryTile& tile, std::int64_t keys, T* HWY_RESTRICT scores,
                    T* HWY_RESTRICT max, T* HWY_RESTRICT sum, T* HWY_RESTRICT factor) {
  const hn::ScalableTag<T> d;
  for (std::int64_t i = 0; i < tile.lanes; i += lanes_of<T>()) {
    const auto before = hn::LoadU(d, max + i);
    auto most = before;
    for (std::int64_t j = 0; j < keys; ++j) {
      most = hn::Max(most, hn::LoadU(d, scores + j * kQueries + i));
    }
    const auto scaled = exp_of(d, hn::Sub(before, most));
    auto total = hn::Mul(hn::LoadU(d, sum + i), scaled);
    for (std::int64_t j = 0; j < keys; ++j) {
      T* score = scores + j * kQueries + i;
      const auto e = exp_of(d, hn::Sub(hn::LoadU(d, score), most));
      hn::StoreU(e, d, score);
      total = hn::Add(total, e);
    }
    hn::StoreU(most, d, max + i);
    hn::StoreU(total, d, sum + i);
    hn::StoreU(scaled, d, factor + i);
  }
}

// scores[j, i] = left[j, :] · columns[:, i] over the keys of a tile and the queries that see them,
// by blocks of lanes. left is [keys, dim].
template <class T>
void multiply_visible(const QueryTile& tile, std::int64_t first, std::int64_t keys,
                      Rows<const T> left, std::int64_t dim, const T* columns, T* scores) {
  const auto all_of_it = [dim](std::int64_t, std::int64_t) { return Depth{0, dim}; };
  const std::int64_t seen_by_all = std::clamp<std::int64_t>(tile.visible_to(0) - first, 0, keys);
  const StridedMatrix<T> a{left.data, left.stride, 1};
  multiply<T>(a, seen_by_all, all_of_it, {columns, kQueries}, {scores, kQueries}, tile.lanes,
              /*accumulate=*/false);
  for (std::int64_t i = 0; i < tile.lanes; i += kCausalQueries) {
    const std::int64_t lanes = std::min(kCausalQueries, tile.lanes - i);
    const std::int64_t end =
        std::clamp<std::int64_t>(tile.visible_to(i + lanes - 1) - first, seen_by_all, keys);
    multiply<T>({left.data + seen_by_all * left.stride, left.stride, 1}, end - seen_by_all,
                all_of_it, {columns + i, kQueries}, {scores + seen_by_all * kQueries + i, kQueries},
                lanes, /*accumulate=*/false);
  }
}

template <class T>
void scale_rows(std::int64_t rows, std::int64_t padded, const T* HWY_RESTRICT factor,
                T* HWY_RESTRICT data) {
  const hn::ScalableTag<T> d;
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto by = hn::Set(d, factor[i]);
    for (std::int64_t k = 0; k < padded; k += lanes_of<T>()) {
      hn::StoreU(hn::Mul(hn::LoadU(d, data + i * padded + k), by), d, data + i * padded + k);
    }
  }
}

// Scores become p = e^(s − logsumexp), products dp become ds = p (dp − shared). With a soft-cap c
// the scores are in front of it, t = tanh(s / c): p = e^(c t − logsumexp), ds = p (dp − shared)
// (1 − t²).
template <class T, bool kCapped>
void softmax_gradient(const QueryTile& tile, std::int64_t keys, const T* HWY_RESTRICT high,
                      const T* HWY_RESTRICT low, const T* HWY_RESTRICT shared, double softcap,
                      T* HWY_RESTRICT scores, T* HWY_RESTRICT products) {
  const hn::ScalableTag<T> d;
  const auto cap = hn::Set(d, static_cast<T>(softcap));
  const auto inverse = hn::Set(d, static_cast<T>(kCapped ? 1 / softcap : 0));
  for (std::int64_t i = 0; i < tile.lanes; i += lanes_of<T>()) {
    const auto most = hn::LoadU(d, high + i);
    const auto rest = hn::LoadU(d, low + i);
    const auto part = hn::LoadU(d, shared + i);
    for (std::int64_t j = 0; j < keys; ++j) {
      T* score = scores + j * kQueries + i;
      T* product = products + j * kQueries + i;
      auto s = hn::LoadU(d, score);
      auto slope = hn::Set(d, T(1));
      if constexpr (kCapped) {
        const auto t = tanh_of(d, hn::Mul(s, inverse));
        s = hn::Mul(cap, t);
        slope = hn::NegMulAdd(t, t, slope);
      }
      const auto p = exp_of(d, hn::Sub(hn::Sub(s, most), rest));
      hn::StoreU(p, d, score);
      auto gradient = hn::Mul(p, hn::Sub(hn::LoadU(d, product), part));
      if constexpr (kCapped) gradient = hn::Mul(gradient, slope);
      hn::StoreU(gradient, d, product);
    }
  }
}

template <class T>
T dot(const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, std::int64_t size) {
  const hn::ScalableTag<T> d;
  auto sum = hn::Zero(d);
  for (std::int64_t k = 0; k < size; k += lanes_of<T>()) {
    sum = hn::MulAdd(hn::LoadU(d, a + k), hn::LoadU(d, b + k), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// --- passes -----------------------------------------------------------------------------------

template <class T>
void forward(const AttentionTask& task, const AttentionShape& shape,
             const AttentionForward<T>& data, AttentionWorkspace<T>& workspace) {
  const std::int64_t padded = padded_dim(shape.dim);
  T* const key = workspace.key();
  T* const value = workspace.value();
  T* const rows = workspace.tile(0);
  T* const columns = workspace.tile(1);
  T* const scores = workspace.tile(2);
  T* const output = workspace.tile(3);
  T* const max = workspace.tile(4);
  T* const sum = max + kQueries;
  T* const factor = sum + kQueries;
  take_keys(task, data.key, shape.dim, key);
  take_keys(task, data.value, shape.dim, value);

  for (std::int64_t first = 0; first < task.queries * shape.groups; first += kQueries) {
    const QueryTile tile = tile_at<T>(first, task, shape);
    take_rows(tile, data.query, task, shape.dim, static_cast<T>(shape.scale), rows);
    prefetch_next_rows(tile, data.query, task, shape.dim);
    transpose(rows, tile.lanes, padded, columns);
    std::fill_n(max, tile.lanes, std::numeric_limits<T>::lowest());
    std::fill_n(sum, tile.lanes, T(0));
    for (std::int64_t j = tile.begin(); j < tile.visible(); j += kKeys) {
      const std::int64_t keys = std::min(kKeys, tile.visible() - j);
      multiply_visible<T>(tile, j, keys, {key + j * padded, padded}, shape.dim, columns, scores);
      if (shape.softcap > 0) cap(tile, keys, shape.softcap, scores);
      hide(tile, j, keys, std::numeric_limits<T>::lowest(), scores);
      online_softmax(tile, keys, scores, max, sum, factor);
      if (j > tile.begin()) scale_rows(tile.count, padded, factor, output);
      const auto seen = [&](std::int64_t, std::int64_t last) {
        return Depth{0, std::clamp<std::int64_t>(tile.visible_to(last) - j, 0, keys)};
      };
      multiply<T>({scores, 1, kQueries}, tile.count, seen, {value + j * padded, padded},
                  {output, padded}, padded, /*accumulate=*/j > tile.begin());
    }
    for (std::int64_t i = 0; i < tile.count; ++i) {
      const std::int64_t row = first + i;
      factor[i] = T(1) / sum[i];
      data.logsumexp[row % shape.groups * data.logsumexp_stride + task.query + row / shape.groups] =
          static_cast<double>(max[i]) + std::log(static_cast<double>(sum[i]));
    }
    scale_rows(tile.count, padded, factor, output);
    put_rows(tile, output, task, shape.dim, data.output);
  }
}

template <class T>
void backward(const AttentionTask& task, const AttentionShape& shape,
              const AttentionBackward<T>& data, AttentionWorkspace<T>& workspace) {
  const std::int64_t padded = padded_dim(shape.dim);
  T* const key = workspace.key();
  T* const value = workspace.value();
  T* const query_rows = workspace.tile(0);
  T* const query_columns = workspace.tile(1);
  T* const grad_rows = workspace.tile(2);
  T* const grad_columns = workspace.tile(3);
  T* const scores = workspace.tile(4);
  T* const products = workspace.tile(5);
  T* const grad_query = workspace.tile(6);
  T* const output = workspace.tile(7);
  T* const high = workspace.tile(8);
  T* const low = high + kQueries;
  T* const shared = low + kQueries;
  take_keys(task, data.key, shape.dim, key);
  take_keys(task, data.value, shape.dim, value);
  std::fill_n(data.grad_key, task.keys() * padded, T(0));
  std::fill_n(data.grad_value, task.keys() * padded, T(0));

  for (std::int64_t first = 0; first < task.queries * shape.groups; first += kQueries) {
    const QueryTile tile = tile_at<T>(first, task, shape);
    take_rows(tile, data.query, task, shape.dim, static_cast<T>(shape.scale), query_rows);
    take_rows(tile, data.grad_output, task, shape.dim, T(1), grad_rows);
    take_rows(tile, data.output, task, shape.dim, T(1), output);
    for (const HeadRows<const T>& next : {data.query, data.grad_output, data.output}) {
      prefetch_next_rows(tile, next, task, shape.dim);
    }
    transpose(query_rows, tile.lanes, padded, query_columns);
    transpose(grad_rows, tile.lanes, padded, grad_columns);
    for (std::int64_t i = 0; i < tile.lanes; ++i) {
      // Lanes beyond the last query take part like a query of zeros that sees one key.
      const std::int64_t row = first + i;
      const double logsumexp = i < tile.count
                                   ? data.logsumexp[row % shape.groups * data.logsumexp_stride +
                                                    task.query + row / shape.groups]
                                   : 0;
      high[i] = static_cast<T>(logsumexp);
      low[i] = static_cast<T>(logsumexp - static_cast<double>(high[i]));
      shared[i] = dot(grad_rows + i * padded, output + i * padded, padded);
    }
    for (std::int64_t j = tile.begin(); j < tile.visible(); j += kKeys) {
      const std::int64_t keys = std::min(kKeys, tile.visible() - j);
      multiply_visible<T>(tile, j, keys, {key + j * padded, padded}, shape.dim, query_columns,
                          scores);
      multiply_visible<T>(tile, j, keys, {value + j * padded, padded}, shape.dim, grad_columns,
                          products);
      const auto softmax =
          shape.softcap > 0 ? softmax_gradient<T, true> : softmax_gradient<T, false>;
      softmax(tile, keys, high, low, shared, shape.softcap, scores, products);
      hide(tile, j, keys, T(0), scores);
      hide(tile, j, keys, T(0), products);
      const auto seeing = [&](std::int64_t first_key, std::int64_t) {
        return Depth{std::min(tile.hidden_lanes(j + first_key), tile.count), tile.count};
      };
      const auto seen = [&](std::int64_t, std::int64_t last) {
        return Depth{0, std::clamp<std::int64_t>(tile.visible_to(last) - j, 0, keys)};
      };
      multiply<T>({scores, kQueries, 1}, keys, seeing, {grad_rows, padded},
                  {data.grad_value + j * padded, padded}, padded, /*accumulate=*/true);
      multiply<T>({products, kQueries, 1}, keys, seeing, {query_rows, padded},
                  {data.grad_key + j * padded, padded}, padded, /*accumulate=*/true);
      multiply<T>({products, 1, kQueries}, tile.count, seen, {key + j * padded, padded},
                  {grad_query, padded}, padded, /*accumulate=*/j > tile.begin());
    }
    std::fill_n(shared, tile.count, static_cast<T>(shape.scale));
    scale_rows(tile.count, padded, shared, grad_query);
    put_rows(tile, grad_query, task, shape.dim, data.grad_query);
  }
}

template <class T>
void add(const T* HWY_RESTRICT from, std::int64_t rows, std::int64_t dim, HeadRows<T> to) {
  for (std::int64_t i = 0; i < rows; ++i, from += padded_dim(dim)) {
    T* HWY_RESTRICT out = to.data + i * to.stride;
    for (std::int64_t k = 0; k < dim; ++k) out[k] += from[k];
  }
}

void forward_float(const AttentionTask& task, const AttentionShape& shape,
                   const AttentionForward<float>& data, AttentionWorkspace<float>& workspace) {
  forward(task, shape, data, workspace);
}
void forward_double(const AttentionTask& task, const AttentionShape& shape,
                    const AttentionForward<double>& data, AttentionWorkspace<double>& workspace) {
  forward(task, shape, data, workspace);
}
void backward_float(const AttentionTask& task, const AttentionShape& shape,
                    const AttentionBackward<float>& data, AttentionWorkspace<float>& workspace) {
  backward(task, shape, data, workspace);
}
void backward_double(const AttentionTask& task, const AttentionShape& shape,
                     const AttentionBackward<double>& data, AttentionWorkspace<double>& workspace) {
  backward(task, shape, data, workspace);
}
void add_float(const float* from, std::int64_t rows, std::int64_t dim, HeadRows<float> to) {
  add(from, rows, dim, to);
}
void add_double(const double* from, std::int64_t rows, std::int64_t dim, HeadRows<double> to) {
  add(from, rows, dim, to);
}

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace prefopt::kernels::cpu {
namespace {

HWY_EXPORT(forward_float);
HWY_EXPORT(forward_double);
HWY_EXPORT(backward_float);
HWY_EXPORT(backward_double);
HWY_EXPORT(add_float);
HWY_EXPORT(add_double);

}  // namespace

std::int64_t padded_dim(std::int64_t dim) {
  constexpr std::int64_t kGrain = 16;
  return (dim + kGrain - 1) / kGrain * kGrain;
}

template <class T>
AttentionWorkspace<T>::AttentionWorkspace(const AttentionShape& shape, std::int64_t most_keys)
    : most_keys_(most_keys),
      dim_(padded_dim(shape.dim)),
      tile_size_(kQueries * std::max(dim_, kKeys)),
      keys_(2 * most_keys_ * dim_),
      tiles_(kTiles * tile_size_) {}

template class AttentionWorkspace<float>;
template class AttentionWorkspace<double>;

template <>
void attention_forward(const AttentionTask& task, const AttentionShape& shape,
                       const AttentionForward<float>& data, AttentionWorkspace<float>& workspace) {
  HWY_DYNAMIC_DISPATCH(forward_float)(task, shape, data, workspace);
}

template <>
void attention_forward(const AttentionTask& task, const AttentionShape& shape,
                       const AttentionForward<double>& data,
                       AttentionWorkspace<double>& workspace) {
  HWY_DYNAMIC_DISPATCH(forward_double)(task, shape, data, workspace);
}

template <>
void attention_backward(const AttentionTask& task, const AttentionShape& shape,
                        const AttentionBackward<float>& data,
                        AttentionWorkspace<float>& workspace) {
  HWY_DYNAMIC_DISPATCH(backward_float)(task, shape, data, workspace);
}

template <>
void attention_backward(const AttentionTask& task, const AttentionShape& shape,
                        const AttentionBackward<double>& data,
                        AttentionWorkspace<double>& workspace) {
  HWY_DYNAMIC_DISPATCH(backward_double)(task, shape, data, workspace);
}

template <>
void add_task_gradient(const float* gradient, std::int64_t rows, std::int64_t dim,
                       HeadRows<float> out) {
  HWY_DYNAMIC_DISPATCH(add_float)(gradient, rows, dim, out);
}

template <>
void add_task_gradient(const double* gradient, std::int64_t rows, std::int64_t dim,
                       HeadRows<double> out) {
  HWY_DYNAMIC_DISPATCH(add_double)(gradient, rows, dim, out);
}

}  // namespace prefopt::kernels::cpu
#endif
