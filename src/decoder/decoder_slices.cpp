// SPDX-License-Identifier: Apache-2.0
// Slices of a decoder's weights.

#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "decoder/decoder_impl.h"
#include "decoder/network.h"
#include "kernels/block_tensor.h"
#include "math/sliced_weight.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/error.h"

namespace prefopt {
namespace detail {
namespace {

[[noreturn]] void refuse(std::string_view expected, const std::string& got,
                         std::string_view why = {}) {
  throw ConfigError(fmt::format("distributed.sharding: expected {} for slices of weights, got {}{}",
                                expected, got, why));
}

void check_weight(const std::string& name, const at::Tensor& weight) {
  if (const kernels::StoredBlocks* blocks = kernels::blocks_of(weight)) {
    refuse("numbers of a floating dtype", fmt::format("'{}' in {} blocks", name, blocks->encoding),
           "; load the model in a dtype (model.base, reference.dtype)");
  }
  if (name.find(".experts.") != std::string::npos) {
    refuse("layers without experts", fmt::format("'{}'", name),
           "; autograd would keep whole experts until the backward pass");
  }
  if (!weight.is_contiguous()) {
    refuse("contiguous weights", fmt::format("'{}' with other strides", name));
  }
}

void check_adapter(const AdapterParts& parts) {
  for (const LowRank& part : parts.low_rank) {
    const bool is_dora = part.magnitude.defined();
    if (!is_dora && part.module.kind == ModuleKind::kLinear) continue;
    refuse("an adapter of low-rank products of linear maps",
           fmt::format("{} '{}'", is_dora ? "use_dora on" : "one of", part.module.name),
           ", which makes a whole matrix");
  }
}

/// Returns which weights are one unit: the layer of one, or its own name.
std::string unit_of(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  return name.starts_with(kLayers) ? name.substr(0, name.find('.', kLayers.size())) : name;
}

template <class Visit>
void for_each_sliced(const Layer& layer, Visit&& visit) {
  const auto visit_sliced = [&](const at::Tensor& tensor) {
    if (is_sliced(tensor)) visit(tensor);
  };
  for_each_tensor(layer, visit_sliced);
  for (const Linear* fused : {&layer.qkv, &layer.gate_up}) {
    visit_sliced(fused->weight);
    visit_sliced(fused->bias);
  }
}

bool has_slices(const Network& network) {
  bool has = is_sliced(network.embedding) || is_sliced(network.norm) || is_sliced(network.lm_head);
  for (const Layer& layer : network.layers) {
    for_each_sliced(layer, [&](const at::Tensor&) { has = true; });
  }
  return has;
}

}  // namespace

std::vector<HeldWeights> hold(const Layer& layer) {
  std::vector<HeldWeights> held;
  for_each_sliced(layer, [&](const at::Tensor& weight) { held.emplace_back(weight); });
  return held;
}

Network with_whole_weights(Network network) {
  if (!has_slices(network)) return network;
  HeldWeights held;  // until the next layer is
  network.for_each_weight([&](const std::string&, at::Tensor& weight, const auto&) {
    held = HeldWeights(weight);
    if (is_sliced(weight)) weight = whole(weight);
  });
  return network;
}

}  // namespace detail

void Decoder::keep_slices(const std::shared_ptr<Ranks>& ranks) {
  const auto gatherer = std::dynamic_pointer_cast<detail::WeightGatherer>(ranks);
  if (!gatherer) {
    throw ConfigError(
        "distributed.sharding: expected ranks of join_ranks with sharding weights, got others");
  }
  detail::check_adapter(impl_->parts);
  std::string present;
  std::vector<at::Tensor> unit;
  const auto slice = [&] {
    if (!unit.empty()) detail::WeightUnit::slice(unit, gatherer);
    unit.clear();
  };
  impl_->network.for_each_weight([&](const std::string& name, const at::Tensor& weight,
                                     const auto&) { detail::check_weight(name, weight); });
  impl_->network.for_each_weight(
      [&](const std::string& name, const at::Tensor& weight, const auto&) {
        const std::string of = detail::unit_of(name);
        if (of != present) slice();
        present = of;
        if (!detail::is_sliced(weight)) unit.push_back(weight);
      });
  slice();
}

}  // namespace prefopt
