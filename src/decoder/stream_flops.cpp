// SPDX-License-Identifier: Apache-2.0
#include "decoder/stream_flops.h"

#include <algorithm>

namespace prefopt::detail {
namespace {

/// The rows of a stream that go through a layer.
struct LayerRows {
  double all = 0;    ///< that have keys and values
  double asked = 0;  ///< that have a query, and continue
  double seen = 0;   ///< keys that the queries see, added up
};

LayerRows counted_rows(const PackedTokens& tokens, bool scored_only, std::int64_t window) {
  const auto* positions = tokens.positions.const_data_ptr<std::int64_t>();
  LayerRows rows{.all = static_cast<double>(tokens.positions.size(0))};
  for (const PackedGroup& group : tokens.groups) {
    std::int64_t end = group.begin + group.shared;
    for (const std::int64_t length : group.branches) end += length;
    for (std::int64_t row = group.begin + (scored_only ? group.scored : 0); row < end; ++row) {
      const std::int64_t visible = positions[row] + 1;
      rows.asked += 1;
      rows.seen += static_cast<double>(window > 0 ? std::min(visible, window) : visible);
    }
  }
  return rows;
}

double numel_of(const at::Tensor& matrix) { return static_cast<double>(matrix.numel()); }

bool is_trained(const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }

bool is_trained(const Linear& map) {
  return is_trained(map.weight) || is_trained(map.bias) || is_trained(map.lora_a);
}

/// Operations of a row through a map.
double map_flops(const Linear& map) {
  const double low = map.lora_a.defined() ? numel_of(map.lora_a) + numel_of(map.lora_b) : 0;
  return 2 * (numel_of(map.weight) + low);
}

/// Operations of a row's gradients of the map's weights. Those of an adapter need its low-rank
/// products once more.
double weight_grad_flops(const Linear& map) {
  const double low = is_trained(map.lora_a) ? 2 * (numel_of(map.lora_a) + numel_of(map.lora_b)) : 0;
  return 2 * ((is_trained(map.weight) ? numel_of(map.weight) : 0) + low);
}

/// The products of one layer.
class LayerCount {
 public:
  LayerCount(const Layer& layer, const LayerSpec& spec, const LayerRows& rows,
             std::int64_t query_numbers)
      : layer_(layer),
        spec_(spec),
        rows_(rows),
        attention_(4 * static_cast<double>(query_numbers) * rows.seen) {}

  double forward() const {
    return of_inputs() + attention_ + of_output() + of_gates() + of_down() + of_experts();
  }

  /// `input`: whether the gradient of the layer's input is wanted.
  double backward(bool input) const {
    // Scores again, and the gradients of values, probabilities, queries and keys: five products
    // where the forward pass has two.
    double flops = 2.5 * attention_ + of_output() + of_gates() + of_down();
    if (input || is_trained(layer_.attention_in_norm)) flops += of_inputs();
    const auto add = [&](const Linear& map, double rows) {
      if (map.weight.defined()) flops += rows * weight_grad_flops(map);
    };
    for (const Linear* map : {&layer_.key, &layer_.value}) add(*map, rows_.all);
    for (const Linear* map :
         {&layer_.query, &layer_.output, &layer_.gate, &layer_.up, &layer_.down}) {
      add(*map, rows_.asked);
    }
    return flops + (is_trained(layer_.router) ? 2 : 1) * of_experts();
  }

  double recomputed(Checkpointing checkpointing) const {
    if (checkpointing == Checkpointing::kNone) return 0;
    const double down = layer_.feed_out_norm.defined() ? of_down() : 0;
    if (checkpointing == Checkpointing::kSelective) return of_gates();
    return of_inputs() + attention_ + of_output() + of_gates() + down;
  }

  bool is_trained_at_all() const {
    bool trains = is_trained(layer_.router);
    for (const at::Tensor* norm :
         {&layer_.attention_in_norm, &layer_.attention_out_norm, &layer_.feed_in_norm,
          &layer_.feed_out_norm, &layer_.query_norm, &layer_.key_norm}) {
      trains |= is_trained(*norm);
    }
    for (const Linear* map : {&layer_.query, &layer_.key, &layer_.value, &layer_.output,
                              &layer_.gate, &layer_.up, &layer_.down}) {
      trains |= is_trained(*map);
    }
    return trains;
  }

 private:
  double of_inputs() const {
    return rows_.asked * map_flops(layer_.query) +
           rows_.all * (map_flops(layer_.key) + map_flops(layer_.value));
  }
  double of_output() const { return rows_.asked * map_flops(layer_.output); }
  double of_gates() const {
    if (!layer_.gate.weight.defined()) return 0;
    return rows_.asked * (map_flops(layer_.gate) + map_flops(layer_.up));
  }
  double of_down() const {
    return layer_.down.weight.defined() ? rows_.asked * map_flops(layer_.down) : 0;
  }
  double of_experts() const {
    if (spec_.experts.count == 0) return 0;
    const Expert& expert = layer_.experts.front();
    const double each = map_flops(expert.gate) + map_flops(expert.up) + map_flops(expert.down);
    return rows_.asked *
           (2 * numel_of(layer_.router) + static_cast<double>(spec_.experts.chosen) * each);
  }

  const Layer& layer_;
  const LayerSpec& spec_;
  LayerRows rows_;
  double attention_;
};

}  // namespace

StreamFlops& StreamFlops::operator+=(const StreamFlops& other) {
  forward += other.forward;
  backward += other.backward;
  recomputed += other.recomputed;
  return *this;
}

StreamFlops stream_flops(const Network& network, const PackedTokens& tokens,
                         Checkpointing checkpointing) {
  const std::int64_t queries = network.options.num_attention_heads * network.options.head_dim;
  StreamFlops flops;
  bool has_gradient = is_trained(network.embedding);
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    const Layer layer = network.unfused(i);
    const LayerSpec& spec = network.spec.layers[i];
    const bool is_last = i + 1 == network.layers.size();
    const LayerCount count(layer, spec, counted_rows(tokens, is_last, spec.window), queries);
    flops.forward += count.forward();
    const bool below = has_gradient;
    has_gradient |= count.is_trained_at_all();
    if (!has_gradient) continue;
    flops.backward += count.backward(below);
    flops.recomputed += count.recomputed(checkpointing);
  }
  return flops;
}

}  // namespace prefopt::detail
