// SPDX-License-Identifier: Apache-2.0
#include "run/plan/assumptions.h"

namespace prefopt::detail {

PlanAssumptions PlanAssumptions::of_gpus(std::int64_t count) {
  constexpr double kPeak = 989;  // dense bfloat16 of an H100 SXM, by its data sheet
  constexpr double kReached = 0.42;
  PlanAssumptions gpus;
  gpus.ranks = count;
  gpus.gpu = true;
  gpus.memory_gib = 80e9 / (1 << 30);
  gpus.program_mib = 1000;
  gpus.layers_tflops = kReached * kPeak;
  gpus.head_tflops = kReached * kPeak;
  gpus.memory_gb_s = 2600;
  gpus.peak_tflops = kPeak;
  gpus.alpha_us = 6;
  gpus.alpha_far_us = 12;
  gpus.bus_gb_s = 370;
  gpus.bus_far_gb_s = 320;
  gpus.overlap = 0.8;
  return gpus;
}

void PlanAssumptions::fields(FieldVisitor& v) {
  v.integer({"ranks", "Processes that train together"}, ranks, Range::between(1, 1e6));
  v.integer({"ranks_per_node", "Of them, on one machine"}, ranks_per_node, Range::between(1, 1e4));
  v.choice({"sharding",
            "What ranks hold in shares: nothing, the optimizer's state (ZeRO-1), gradients too "
            "(ZeRO-2), weights too (ZeRO-3)"},
           sharding, {"none", "optimizer", "gradients", "weights"});
  v.real({"memory_gib", "Memory of a rank; 0: what this machine has left, shared by its ranks"},
         memory_gib, Range::at_least(0));
  v.real({"program_mib", "Memory of the program, its libraries and their work space"}, program_mib,
         Range::at_least(0));
  v.real({"layers_tflops", "10^12 operations a second that a rank reaches in the layers"},
         layers_tflops, Range::above(0));
  v.real({"head_tflops", "10^12 operations a second that a rank reaches in the output head"},
         head_tflops, Range::above(0));
  v.real({"fixed_ms", "Milliseconds of a micro-batch, whatever its rows"}, fixed_ms,
         Range::at_least(0));
  v.real({"memory_gb_s", "10^9 bytes a second of the optimizer's pass over its tensors"},
         memory_gb_s, Range::above(0));
  v.real({"peak_tflops", "10^12 operations a second that MFU is a share of; 0: unknown"},
         peak_tflops, Range::at_least(0));
  v.real({"alpha_us", "Microseconds of a hop of a collective within a node"}, alpha_us,
         Range::at_least(0));
  v.real({"alpha_far_us", "Microseconds of a hop between nodes"}, alpha_far_us, Range::at_least(0));
  v.real({"call_us", "Microseconds of a collective on any number of ranks"}, call_us,
         Range::at_least(0));
  v.real({"bus_gb_s", "10^9 bytes a second of large collectives within a node"}, bus_gb_s,
         Range::above(0));
  v.real({"bus_far_gb_s", "10^9 bytes a second of large collectives of several nodes"},
         bus_far_gb_s, Range::above(0));
  v.real({"overlap", "Share of collectives that the last backward pass can hide"}, overlap,
         Range::between(0, 1));
  v.integer({"bucket_mib", "Gradients in MiB that one collective adds up"}, bucket_mib,
            Range::between(1, 1e6));
}

}  // namespace prefopt::detail
