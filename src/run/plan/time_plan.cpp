// SPDX-License-Identifier: Apache-2.0
#include "run/plan/time_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace prefopt::detail {

Interconnect::Interconnect(const PlanAssumptions& machine)
    : ranks_(static_cast<double>(machine.ranks)), call_(machine.call_us * 1e-6) {
  const auto per_node = static_cast<double>(std::min(machine.ranks, machine.ranks_per_node));
  const double nodes = std::ceil(ranks_ / static_cast<double>(machine.ranks_per_node));
  const bool is_far = nodes > 1;
  // A ring within a node, a tree over nodes; there and back.
  const double hops = 2 * (per_node - 1) + 2 * std::ceil(std::log2(nodes));
  hops_seconds_ = hops * (is_far ? machine.alpha_far_us : machine.alpha_us) * 1e-6;
  bus_ = (is_far ? machine.bus_far_gb_s : machine.bus_gb_s) * 1e9;
}

double Interconnect::sum(double bytes) const {
  if (ranks_ == 1) return 0;
  return call_ + hops_seconds_ + 2 * (ranks_ - 1) / ranks_ * bytes / bus_;
}

double Interconnect::half(double bytes) const {
  if (ranks_ == 1) return 0;
  return call_ + hops_seconds_ / 2 + (ranks_ - 1) / ranks_ * bytes / bus_;
}

std::vector<Collective> collectives_of(const ModelBytes& bytes, const PlanAssumptions& machine,
                                       double micro_batches, bool has_live_reference) {
  if (machine.ranks == 1) return {};
  const Interconnect net(machine);
  std::vector<Collective> collectives;
  const auto add = [&](const char* name, double count, double each, double seconds) {
    collectives.push_back({name, count, count * each, count * seconds});
  };
  const auto wait = [&](const char* name, double count, double each) {
    add(name, count, each, net.half(each));
    collectives.back().waits = true;
  };
  const auto gradients = static_cast<double>(bytes.gradients);
  const auto weights = static_cast<double>(bytes.adapter > 0 ? bytes.adapter : bytes.weights);
  switch (machine.sharding) {
    case Sharding::kNone: {
      const double bucket = static_cast<double>(machine.bucket_mib << 20);
      const double count = std::ceil(gradients / bucket);
      add("sum of gradients", count, gradients / count, net.sum(gradients / count));
      break;
    }
    case Sharding::kOptimizer:
      add("shares of gradients", 1, gradients, net.half(gradients));
      add("gathered weights", 1, weights, net.half(weights));
      break;
    case Sharding::kGradients:
      add("shares of gradients", micro_batches, gradients, net.half(gradients));
      add("gathered weights", 1, weights, net.half(weights));
      break;
    case Sharding::kWeights: {
      // In the forward and the backward pass, and for a reference in its own.
      const double passes = has_live_reference ? 3 : 2;
      const auto layers = static_cast<double>(bytes.layers);
      const double layer = static_cast<double>(bytes.layer_numbers);
      const double of_layer = layer * static_cast<double>(bytes.narrowest);
      const auto of_head = static_cast<double>(bytes.head_bytes);
      // The embedding in forward passes, the head in backward passes too.
      const double ends = has_live_reference ? 5 : 3;
      wait("gathered layers", micro_batches * layers * passes, of_layer);
      wait("gathered embedding and head", micro_batches * ends, of_head);
      const double asked = 8 * static_cast<double>(machine.ranks);
      wait("requests", micro_batches * (layers * passes + ends), asked);
      add("shares of gradients", micro_batches, gradients, net.half(gradients));
      break;
    }
  }
  // Metrics, flags and texts: a length and a few KiB.
  constexpr double kText = 4096;
  add("metrics", 2, kText, net.half(kText * static_cast<double>(machine.ranks)));
  return collectives;
}

std::string StepTime::bottleneck() const {
  const std::array<std::pair<double, const char*>, 7> parts = {{{layers, "layers"},
                                                                {head, "output head"},
                                                                {reference, "reference"},
                                                                {fixed, "fixed"},
                                                                {imbalance, "imbalance"},
                                                                {exposed, "collectives"},
                                                                {optimizer, "optimizer"}}};
  return std::max_element(parts.begin(), parts.end(),
                          [](const auto& a, const auto& b) { return a.first < b.first; })
      ->second;
}

StepTime time_of_share(const StepWork& work, double parts, const PlanAssumptions& machine) {
  const double layers_rate = machine.layers_tflops * 1e12;
  const double head_rate = machine.head_tflops * 1e12;
  return {.layers = (work.layer_flops() - work.reference_layers) / layers_rate,
          .head = (work.head_flops() - work.reference_head) / head_rate,
          .reference = work.reference_layers / layers_rate + work.reference_head / head_rate,
          .fixed = parts * machine.fixed_ms * 1e-3};
}

double exposed_seconds(const std::vector<Collective>& collectives, double compute,
                       double micro_batches, const PlanAssumptions& machine) {
  double seconds = 0, waited = 0;
  for (const Collective& one : collectives) (one.waits ? waited : seconds) += one.seconds;
  // Gradients in slices travel in every backward pass, others during the last backward pass.
  const bool is_each = machine.sharding >= Sharding::kGradients;
  const double hiding = is_each ? compute : compute / micro_batches;
  return waited + std::max(seconds - hiding, (1 - machine.overlap) * seconds);
}

double optimizer_traffic(const ModelBytes& bytes) {
  const std::int64_t trained = bytes.masters > 0   ? bytes.masters
                               : bytes.adapter > 0 ? bytes.adapter
                                                   : bytes.weights;
  return static_cast<double>(2 * (bytes.optimizer + trained) + bytes.gradients);
}

double optimizer_seconds(const ModelBytes& bytes, const PlanAssumptions& machine) {
  const double ranks = machine.sharding == Sharding::kNone ? 1 : static_cast<double>(machine.ranks);
  return optimizer_traffic(bytes) / ranks / (machine.memory_gb_s * 1e9);
}

}  // namespace prefopt::detail
