// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/tensor.h>
#include <prefopt/losses/pair/dpo.h>
#include <prefopt/version.h>

#include <cstdio>

int main() {
  if (prefopt::library_version() != PREFOPT_VERSION) return 1;
  prefopt::PairLogps logps;
  logps.chosen_logps = at::tensor({-9.0});
  logps.rejected_logps = at::tensor({-11.0});
  logps.ref_chosen_logps = at::tensor({-10.0});
  logps.ref_rejected_logps = at::tensor({-10.0});
  const prefopt::DpoLoss loss({.beta = 0.5});
  std::printf("%.6f\n", loss.forward(logps).loss.item<double>());
}
