// SPDX-License-Identifier: Apache-2.0
#include "run/plan/memory_plan.h"

#include <algorithm>
#include <map>

#include "train/optimizer.h"

namespace prefopt::detail {
namespace {

std::int64_t share_of(std::int64_t bytes, std::int64_t ranks) {
  return (bytes + ranks - 1) / ranks;
}

std::int64_t largest_layer(const ModelShape& shape) {
  std::map<std::string, std::int64_t> layers;
  for (const auto& [name, weight] : shape.parameters()) {
    constexpr std::string_view kLayers = "model.layers.";
    if (!name.starts_with(kLayers)) continue;
    layers[name.substr(0, name.find('.', kLayers.size()))] += weight.numel();
  }
  std::int64_t most = 0;
  for (const auto& [name, numbers] : layers) most = std::max(most, numbers);
  return most;
}

}  // namespace

std::int64_t MemoryPlan::total() const {
  std::int64_t sum = 0;
  for (const MemoryPart& part : parts) sum += part.bytes;
  return sum;
}

ModelBytes model_bytes(const ModelShape& shape, const OptimizerOptions& optimizer) {
  const std::vector<NamedParameter> parameters = shape.parameters();
  const OptimizerBytes trained = Optimizer(parameters, optimizer).bytes();
  const ModelShape::WeightBytes weights = shape.weight_bytes();
  ModelBytes bytes{.weights = weights.all - weights.mapped,
                   .mapped = weights.mapped,
                   .gradients = trained.gradients,
                   .masters = trained.masters,
                   .optimizer = trained.state,
                   .layers = shape.options().num_hidden_layers,
                   .layer_numbers = largest_layer(shape)};
  const at::Tensor& embedding = shape.network().embedding;
  bytes.head_bytes = static_cast<std::int64_t>(embedding.nbytes());
  bytes.narrowest = static_cast<std::int64_t>(embedding.itemsize());
  for (const auto& [name, value] : parameters) {
    if (!value.requires_grad()) continue;
    bytes.trained_numbers += value.numel();
    if (shape.adapter()) bytes.adapter += static_cast<std::int64_t>(value.nbytes());
  }
  return bytes;
}

void add_model_parts(const ModelBytes& bytes, const PlanAssumptions& machine, MemoryPlan& plan) {
  const auto has = [&](Sharding least) { return machine.sharding >= least; };
  const auto held = [&](std::int64_t whole, Sharding from) {
    return has(from) ? share_of(whole, machine.ranks) : whole;
  };
  const auto add = [&](const char* name, std::int64_t size, const std::string& note) {
    plan.parts.push_back({name, size, note});
  };
  if (!has(Sharding::kWeights)) {
    add("weights", bytes.weights, "");
  } else {
    const std::int64_t most = std::max(bytes.layer_numbers * bytes.narrowest, bytes.head_bytes);
    const std::int64_t pieces = std::min(most, machine.bucket_mib << 20);
    add("weights", share_of(bytes.weights, machine.ranks) + most + pieces,
        "a share, and a layer or the head gathered in pieces");
  }
  if (bytes.mapped > 0) add("mapped pages", bytes.mapped, "blocks of the model's file");
  if (bytes.adapter > 0) add("adapter", bytes.adapter, "");
  if (bytes.masters > 0) {
    add("masters", held(bytes.masters, Sharding::kOptimizer), "float32, of narrow weights");
  }
  std::int64_t gradients = held(bytes.gradients, Sharding::kGradients);
  // Those of a layer are whole until they are added up and cut.
  if (has(Sharding::kGradients)) {
    gradients += 2 * bytes.layer_numbers * bytes.narrowest;
  }
  add("gradients", gradients, "");
  add("optimizer", held(bytes.optimizer, Sharding::kOptimizer), "");
}

std::int64_t frozen_bytes(const ModelShape& shape, const PlanAssumptions& machine) {
  const std::int64_t bytes = shape.weight_bytes().all;
  return machine.sharding == Sharding::kWeights ? share_of(bytes, machine.ranks) : bytes;
}

}  // namespace prefopt::detail
