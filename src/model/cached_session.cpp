// SPDX-License-Identifier: Apache-2.0
#include "model/cached_session.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "model/decoding.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// Prompts are padded on the left, so that all sequences grow at the same column.
class CachedSession final : public DecodeSession {
 public:
  CachedSession(Network network, std::vector<std::vector<std::int64_t>> prompts)
      : network_(std::move(network)), prompts_(std::move(prompts)), caches_(network_.layers.size()) {}

  at::Tensor prefill() override {
    std::size_t longest = 0;
    for (const auto& prompt : prompts_) longest = std::max(longest, prompt.size());
    const auto width = static_cast<std::int64_t>(longest);
    const std::int64_t count = std::ssize(prompts_);
    const at::Tensor ids = at::zeros({count, width}, at::kLong);
    const at::Tensor padding = at::zeros({count, 1}, at::kLong);
    for (std::int64_t s = 0; s < count; ++s) {
      const auto& prompt = prompts_[static_cast<std::size_t>(s)];
      const std::int64_t pad = width - std::ssize(prompt);
      std::copy(prompt.begin(), prompt.end(), ids[s].mutable_data_ptr<std::int64_t>() + pad);
      padding[s] = pad;
    }
    padding_ = padding.to(network_.embedding.device());
    length_ = 0;
    return advance(ids.to(padding_.device()));
  }

  at::Tensor append(const at::Tensor& tokens) override {
    if (!padding_.defined()) {
      throw ConfigError("append: expected prefill to be called first, got append");
    }
    check_appended_tokens(tokens, std::ssize(prompts_), network_.options.vocab_size);
    return advance(tokens.to(padding_.device()).unsqueeze(1));
  }

 private:
  struct Cache {
    at::Tensor keys, values;  // [S, kv_heads, capacity, head_dim]
  };

  // Runs [S, n] further tokens; logits after the last one.
  at::Tensor advance(const at::Tensor& ids) {
    const at::NoGradGuard no_grad;
    const std::int64_t begin = length_;
    length_ += ids.size(1);
    reserve(length_);
    const at::Tensor columns = at::arange(length_, padding_.options());
    const at::Tensor rows = columns.slice(0, begin).unsqueeze(1);
    // [S, 1, n, length]: earlier real tokens. A padding token sees itself, because a softmax over
    // nothing would be NaN.
    const at::Tensor visible = (columns.ge(padding_).unsqueeze(1).logical_and(columns.le(rows)))
                                   .logical_or(columns.eq(rows))
                                   .unsqueeze(1);
    const at::Tensor positions = (columns.slice(0, begin) - padding_).clamp_min(0);
    const at::Tensor hidden = network_.hidden_states(
        ids, positions,
        [&](std::size_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
          return attend(caches_[layer], begin, q, k, v, visible);
        });
    const at::Tensor last = hidden.view({ids.size(0), ids.size(1), -1}).select(1, ids.size(1) - 1);
    return at::mm(last, network_.head().t());
  }

  at::Tensor attend(Cache& cache, std::int64_t begin, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& visible) const {
    cache.keys.slice(2, begin, length_).copy_(k);
    cache.values.slice(2, begin, length_).copy_(v);
    const at::Tensor keys = cache.keys.slice(2, 0, length_);
    const at::Tensor values = cache.values.slice(2, 0, length_);
    const std::int64_t groups = network_.groups();
    if (q.size(2) == 1) {
      // One query a head: the heads of a group stand in as its time steps, and no key is copied.
      const at::Tensor grouped = q.reshape({q.size(0), q.size(1) / groups, groups, q.size(3)});
      return at::scaled_dot_product_attention(grouped, keys, values, visible).reshape(q.sizes());
    }
    return at::scaled_dot_product_attention(q, repeat_heads(keys, groups),
                                            repeat_heads(values, groups), visible);
  }

  void reserve(std::int64_t length) {
    if (length <= capacity_) return;
    const std::int64_t old = capacity_;
    capacity_ = std::max(length, 2 * old);
    for (Cache& cache : caches_) {
      for (at::Tensor* stored : {&cache.keys, &cache.values}) {
        at::Tensor grown = at::empty({std::ssize(prompts_), network_.options.num_key_value_heads,
                                      capacity_, network_.options.head_dim},
                                     network_.embedding.options().requires_grad(false));
        if (old > 0) grown.slice(2, 0, old).copy_(*stored);
        *stored = std::move(grown);
      }
    }
  }

  Network network_;
  std::vector<std::vector<std::int64_t>> prompts_;
  std::vector<Cache> caches_;
  at::Tensor padding_;  // [S, 1] tokens in front of each prompt
  std::int64_t length_ = 0;
  std::int64_t capacity_ = 0;
};

}  // namespace

std::unique_ptr<DecodeSession> make_cached_session(Network network,
                                                   std::vector<std::vector<std::int64_t>> prompts) {
  return std::make_unique<CachedSession>(std::move(network), std::move(prompts));
}

}  // namespace prefopt::detail
