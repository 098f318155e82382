// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "prefopt/dist/ranks.h"
#include "prefopt/options.h"

namespace prefopt::detail {

/// Assumptions of a plan about machines, each of `fields` a flag of `prefopt plan`. The
/// defaults are a CPU of which nothing is known; `of_gpus` has those of H100 cards, eight a node.
struct PlanAssumptions {
  std::int64_t ranks = 1;
  std::int64_t ranks_per_node = 8;
  Sharding sharding = Sharding::kNone;
  bool gpu = false;              ///< activations in the dtype of the weights, not wider ones
  double memory_gib = 0;         ///< of a rank; 0: what this machine has left, among its ranks
  double program_mib = 150;      ///< libraries and what they hold themselves
  double layers_tflops = 0.05;   ///< 10^12 operations a second of a rank in the layers
  double head_tflops = 0.05;     ///< the same in the output head
  double fixed_ms = 0;           ///< of a micro-batch, whatever its rows
  double memory_gb_s = 8;        ///< of the optimizer's pass over weights, gradients and state
  double peak_tflops = 0;        ///< of a rank, that MFU is a share of; 0: MFU is not known
  double alpha_us = 160;         ///< a hop of a collective within a node
  double alpha_far_us = 160;     ///< and between nodes
  double call_us = 15;           ///< of a collective, on any number of ranks
  double bus_gb_s = 0.5;         ///< of large collectives within a node
  double bus_far_gb_s = 0.5;     ///< and between nodes
  double overlap = 0;            ///< share of collectives that backward passes hide
  std::int64_t bucket_mib = 25;  ///< gradients that are added up in one collective

  static PlanAssumptions of_gpus(std::int64_t count);

  void fields(FieldVisitor& v);
};

}  // namespace prefopt::detail
