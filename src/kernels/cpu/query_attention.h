// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace prefopt::kernels::cpu {

struct QueryShape {
  std::int64_t groups;  ///< query heads of a kv head
  std::int64_t head_dim;
  double scale;
  double softcap = 0;  ///< c: scores are c tanh(s / c); 0: s
};

/// Keys and values of one kv head, `length` rows of head_dim without gaps.
template <class T>
struct KeyRows {
  const T* key = nullptr;
  const T* value = nullptr;
  std::int64_t length = 0;
};

/// One token's queries of the heads that share a kv head, [groups, head_dim], and what they see:
/// the prompt, which other sequences may see too, and what was said since. The result goes to
/// `output`, in the same shape.
template <class T>
struct QueryTask {
  const T* query;
  KeyRows<T> prompt, own;
  T* output;
};

/// o = Σ_j e^(s_j − l) v_j with s_j = scale · q · k_j and l = log Σ_j e^(s_j), for each task on its
/// own. Where a token is one of many in a sequence, tree_attention is for it.
template <class T>
void query_attention(std::span<const QueryTask<T>> tasks, const QueryShape& shape);

}  // namespace prefopt::kernels::cpu
