// SPDX-License-Identifier: Apache-2.0
#include "decoder/device_session.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "decoder/packed_layer.h"
#include "math/upload.h"
#include "math/wide_gradient.h"
#include "math/wide_product.h"
#include "policy/decoding.h"
#include "policy/output_head.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Rows of prompts that go through the layers at once.
constexpr std::int64_t kPromptRowsAtOnce = 4096;
/// A cache grows by at least as many tokens.
constexpr std::int64_t kCacheStep = 64;

class DeviceSession final : public DecodeSession {
 public:
  DeviceSession(const Network& network, const std::vector<std::vector<std::int64_t>>& prompts)
      : network_(network), caches_(network.layers.size()) {
    std::map<std::vector<std::int64_t>, std::size_t> place_of;
    for (const auto& tokens : prompts) {
      const auto [at, is_new] = place_of.emplace(tokens, prompts_.size());
      if (is_new) prompts_.push_back(tokens);
      prompt_of_.push_back(at->second);
    }
  }

  at::Tensor prefill() override {
    const at::NoGradGuard no_grad;
    lengths_.clear();
    std::int64_t longest = 0;
    for (const std::size_t prompt : prompt_of_) {
      lengths_.push_back(std::ssize(prompts_[prompt]));
      longest = std::max(longest, lengths_.back());
    }
    for (LayerCache& cache : caches_) cache = {};
    reserve(longest + kCacheStep);
    std::vector<at::Tensor> logits;
    for (std::size_t first = 0, last = 0; first < prompts_.size(); first = last) {
      std::int64_t rows = 0;
      while (last < prompts_.size() && (last == first || rows < kPromptRowsAtOnce)) {
        rows += std::ssize(prompts_[last++]);
      }
      logits.push_back(fill(first, last));
    }
    const std::vector<std::int64_t> rows(prompt_of_.begin(), prompt_of_.end());
    return at::cat(logits).index_select(0, on_device(rows));
  }

  at::Tensor append(const at::Tensor& tokens) override {
    if (lengths_.empty())
      throw ConfigError("append: expected prefill to be called first, got append");
    check_appended_tokens(tokens, std::ssize(lengths_), network_.options.vocab_size);
    check_lengths();
    const at::NoGradGuard no_grad;
    const std::int64_t longest = *std::max_element(lengths_.begin(), lengths_.end());
    if (longest == caches_.front().keys.size(2)) reserve(2 * longest);
    const at::Tensor positions = on_device(lengths_);
    for (std::int64_t& length : lengths_) ++length;
    const auto plan = plan_at(positions, on_device(lengths_));
    const at::Tensor sequences = at::arange(std::ssize(lengths_), positions.options());
    plan->attend = [&](std::int64_t index, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value) {
      LayerCache& cache = caches_[static_cast<std::size_t>(index)];
      cache.keys.index_put_({sequences, std::nullopt, positions}, key);
      cache.values.index_put_({sequences, std::nullopt, positions}, value);
      return attend_to_cache(query, cache, positions, longest + 1, spec_of(index));
    };
    return logits_of_rows(through_layers(uploaded(tokens, device()), plan));
  }

  void keep(const std::vector<std::int64_t>& sequences) override {
    check_kept(sequences, std::ssize(prompt_of_));
    std::vector<std::size_t> prompt_of;
    std::vector<std::int64_t> lengths;
    for (const std::int64_t s : sequences) {
      prompt_of.push_back(prompt_of_[static_cast<std::size_t>(s)]);
      if (!lengths_.empty()) lengths.push_back(lengths_[static_cast<std::size_t>(s)]);
    }
    prompt_of_ = std::move(prompt_of);
    if (lengths_.empty()) return;
    lengths_ = std::move(lengths);
    const at::Tensor kept = on_device(sequences);
    for (LayerCache& cache : caches_) {
      cache = {cache.keys.index_select(0, kept), cache.values.index_select(0, kept)};
    }
  }

 private:
  /// Of a layer, [sequences, kv_heads, capacity, D]: a token's at its place in its sequence.
  struct LayerCache {
    at::Tensor keys, values;
  };

  at::Device device() const { return network_.embedding.device(); }
  const LayerSpec& spec_of(std::int64_t layer) const {
    return network_.spec.layers[static_cast<std::size_t>(layer)];
  }
  at::Tensor on_device(const std::vector<std::int64_t>& numbers) const {
    return uploaded(at::tensor(numbers, at::kLong), device());
  }

  void check_lengths() const {
    const std::int64_t most = network_.spec.longest();
    const std::int64_t length = *std::max_element(lengths_.begin(), lengths_.end()) + 1;
    if (most == 0 || length <= most) return;
    throw DataError(fmt::format(
        "append: expected at most {} tokens, the context of a model with dynamic rotary scaling, "
        "got {}; fewer new tokens or a shorter prompt fit",
        most, length));
  }

  /// Gives the caches room for `capacity` tokens a sequence, and leaves what they hold.
  void reserve(std::int64_t capacity) {
    const DecoderOptions& options = network_.options;
    for (LayerCache& cache : caches_) {
      for (at::Tensor* tensor : {&cache.keys, &cache.values}) {
        at::Tensor grown = at::zeros(
            {std::ssize(prompt_of_), options.num_key_value_heads, capacity, options.head_dim},
            at::TensorOptions(network_.stream_dtype()).device(device()));
        if (tensor->defined()) grown.narrow(2, 0, tensor->size(2)).copy_(*tensor);
        *tensor = std::move(grown);
      }
    }
  }

  // --- the layers -------------------------------------------------------------------------------

  c10::intrusive_ptr<StreamPlan> plan_at(const at::Tensor& positions,
                                         const at::Tensor& lengths) const {
    auto plan = c10::make_intrusive<StreamPlan>();
    plan->spec = network_.spec;
    plan->head_dim = network_.options.head_dim;
    plan->lora_scale = network_.lora_scale;
    plan->key_rotaries = network_.rotaries_at(positions, lengths,
                                              at_least_float32(network_.embedding.scalar_type()));
    plan->query_rotaries = plan->key_rotaries;
    return plan;
  }

  at::Tensor through_layers(const at::Tensor& ids,
                            const c10::intrusive_ptr<StreamPlan>& plan) const {
    at::Tensor x = at::embedding(network_.embedding, ids);
    if (network_.spec.embedding_scale != 1) x = x * network_.spec.embedding_scale;
    for (std::size_t i = 0; i < network_.layers.size(); ++i) {
      x = packed_layer(x, network_.unfused(i), static_cast<std::int64_t>(i), plan);
    }
    return x;
  }

  at::Tensor logits_of_rows(const at::Tensor& x) const {
    const at::Tensor hidden = rms_norm(x, network_.norm, network_.spec.norm);
    const at::Tensor logits = wide_product(hidden, network_.head().t());
    transform_logits_(logits, network_.spec.logits);
    return logits;
  }

  /// Logits after each of the prompts [first, last), whose keys and values go to the caches.
  at::Tensor fill(std::size_t first, std::size_t last) {
    std::vector<std::int64_t> ids, positions, lengths, ends;
    std::vector<AttentionBlock> blocks;
    for (std::size_t p = first; p < last; ++p) {
      const std::int64_t begin = std::ssize(ids), length = std::ssize(prompts_[p]);
      blocks.push_back({.query = begin, .key = begin, .length = length});
      for (std::int64_t i = 0; i < length; ++i) positions.push_back(i);
      lengths.insert(lengths.end(), prompts_[p].size(), length);
      ids.insert(ids.end(), prompts_[p].begin(), prompts_[p].end());
      ends.push_back(std::ssize(ids) - 1);
    }
    const auto plan = plan_at(on_device(positions), on_device(lengths));
    const auto segments = SegmentPlan::make(blocks, std::ssize(ids), std::ssize(ids), device());
    plan->attend = [&](std::int64_t index, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value) {
      LayerCache& cache = caches_[static_cast<std::size_t>(index)];
      keep_prompts(first, blocks, key, cache.keys);
      keep_prompts(first, blocks, value, cache.values);
      const LayerSpec& of = spec_of(index);
      return segment_attention(query, key, value, segments, of.query_scale,
                               {.window = of.window, .softcap = of.attention_softcap})
          .output;
    };
    const at::Tensor x = through_layers(on_device(ids), plan);
    return logits_of_rows(x.index_select(0, on_device(ends)));
  }

  void keep_prompts(std::size_t first, const std::vector<AttentionBlock>& blocks,
                    const at::Tensor& rows, const at::Tensor& cache) const {
    for (std::size_t s = 0; s < prompt_of_.size(); ++s) {
      if (prompt_of_[s] < first || prompt_of_[s] >= first + blocks.size()) continue;
      const AttentionBlock& block = blocks[prompt_of_[s] - first];
      cache.select(0, static_cast<std::int64_t>(s))
          .narrow(1, 0, block.length)
          .copy_(rows.narrow(0, block.key, block.length).transpose(0, 1));
    }
  }

  /// Attention of one query a sequence [S, heads, D] to the first `length` places of the cache, up
  /// to its own.
  static at::Tensor attend_to_cache(const at::Tensor& query, const LayerCache& cache,
                                    const at::Tensor& positions, std::int64_t length,
                                    const LayerSpec& of) {
    const at::Tensor keys = cache.keys.narrow(2, 0, length);
    const at::Tensor values = cache.values.narrow(2, 0, length);
    const at::Tensor grouped =
        query.view({query.size(0), keys.size(1), -1, query.size(2)});  // by kv heads
    const auto wide = at_least_float32(query.scalar_type());
    at::Tensor scores = at::matmul(grouped, keys.transpose(-1, -2)).to(wide) * of.query_scale;
    if (const double cap = of.attention_softcap; cap != 0) scores = (scores / cap).tanh() * cap;
    const at::Tensor places = at::arange(length, positions.options());
    const at::Tensor last = positions.unsqueeze(1);
    at::Tensor hidden = places > last;
    if (of.window != 0) hidden = hidden.logical_or(places <= last - of.window);
    const at::Tensor shares =
        scores
            .masked_fill(hidden.unsqueeze(1).unsqueeze(1), -std::numeric_limits<double>::infinity())
            .softmax(-1)
            .to(query.scalar_type());
    return at::matmul(shares, values).reshape(query.sizes());
  }

  Network network_;
  std::vector<std::vector<std::int64_t>> prompts_;  // that differ
  std::vector<std::size_t> prompt_of_;              // of each unfinished sequence
  std::vector<std::int64_t> lengths_;               // tokens that the model saw; empty: no prefill
  std::vector<LayerCache> caches_;
};

}  // namespace

std::unique_ptr<DecodeSession> make_device_session(
    const Network& network, const std::vector<std::vector<std::int64_t>>& prompts) {
  return std::make_unique<DeviceSession>(network, prompts);
}

}  // namespace prefopt::detail
