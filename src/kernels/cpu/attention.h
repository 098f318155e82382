// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/memory_pool.h"
#include "kernels/cpu/gemm.h"

namespace prefopt::kernels::cpu {

/// Rows of one kv head, or of the query heads that share it: row i begins at data + i * stride, and
/// those heads follow each other in it.
template <class T>
struct HeadRows {
  T* data;
  std::int64_t stride;
};

struct KeyRange {
  std::int64_t begin, length;
};

/// Queries at consecutive positions, and the keys that they see: those of both ranges, of which the
/// last `queries` are their own and seen causally.
struct AttentionTask {
  std::int64_t query, queries;
  KeyRange prefix, own;

  std::int64_t keys() const { return prefix.length + own.length; }
};

struct AttentionShape {
  std::int64_t groups;  ///< query heads of a kv head
  std::int64_t dim;
  double scale;
  std::int64_t window = 0;  ///< keys that a query sees back, its own included; 0: all
  double softcap = 0;       ///< c: scores are c tanh(s / c); 0: s
};

/// Numbers of a head in buffers: `dim` and zeros up to a multiple of every vector.
std::int64_t padded_dim(std::int64_t dim);

/// The buffers of a thread, in addition to inputs and results.
template <class T>
class AttentionWorkspace {
 public:
  AttentionWorkspace(const AttentionShape& shape, std::int64_t most_keys);

  T* key() const { return keys_.data(); }
  T* value() const { return keys_.data() + most_keys_ * dim_; }
  /// One of kTiles buffers of a tile of queries: numbers of heads or one number a key.
  T* tile(int i) const { return tiles_.data() + i * tile_size_; }

  static constexpr int kTiles = 9;

 private:
  std::int64_t most_keys_, dim_, tile_size_;
  Buffer<T> keys_, tiles_;
};

/// Inputs and results of one kv head.
template <class T>
struct AttentionForward {
  HeadRows<const T> query, key, value;
  HeadRows<T> output;
  /// Of query head g at position i: logsumexp[g * logsumexp_stride + i].
  double* logsumexp;
  std::int64_t logsumexp_stride;
};

template <class T>
struct AttentionBackward {
  HeadRows<const T> grad_output, query, key, value, output;
  const double* logsumexp;
  std::int64_t logsumexp_stride;
  HeadRows<T> grad_query;
  /// [task.keys(), padded_dim] each, of this task alone: tasks share keys.
  T *grad_key, *grad_value;
};

/// Online softmax over tiles of the scores, stored as [keys, queries]: a SIMD lane is a query
/// of one of the heads. Single-threaded; results do not depend on how tasks are shared out.
template <class T>
void attention_forward(const AttentionTask& task, const AttentionShape& shape,
                       const AttentionForward<T>& data, AttentionWorkspace<T>& workspace);

template <class T>
void attention_backward(const AttentionTask& task, const AttentionShape& shape,
                        const AttentionBackward<T>& data, AttentionWorkspace<T>& workspace);

/// Adds rows [rows, padded_dim] of a task's gradient to those of the kv head.
template <class T>
void add_task_gradient(const T* gradient, std::int64_t rows, std::int64_t dim, HeadRows<T> out);

}  // namespace prefopt::kernels::cpu
