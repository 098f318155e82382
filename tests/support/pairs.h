// SPDX-License-Identifier: Apache-2.0
#pragma once

// One batch of per-sequence log-probs as Eigen arrays, and the same as tensors.

#include <Eigen/Core>
#include <random>

#include "prefopt/exact/pair_logps.h"
#include "support/catch.h"

namespace prefopt::testing_support {

inline at::Tensor to_tensor(const Eigen::ArrayXd& x, at::ScalarType dtype = at::kDouble) {
  return at::tensor(at::ArrayRef<double>(x.data(), static_cast<std::size_t>(x.size())), at::kDouble)
      .to(dtype);
}

inline Eigen::ArrayXd to_array(const at::Tensor& x) {
  const at::Tensor flat = x.detach().to(at::kDouble).contiguous();
  return Eigen::Map<const Eigen::ArrayXd>(flat.const_data_ptr<double>(), flat.numel());
}

inline PairLogps to_tensors(const ExactPairLogps& in, at::ScalarType dtype = at::kDouble) {
  PairLogps out;
  out.chosen_logps = to_tensor(in.chosen_logps, dtype);
  out.rejected_logps = to_tensor(in.rejected_logps, dtype);
  out.ref_chosen_logps = to_tensor(in.ref_chosen_logps, dtype);
  out.ref_rejected_logps = to_tensor(in.ref_rejected_logps, dtype);
  out.chosen_lens = to_tensor(in.chosen_lens).to(at::kLong);
  out.rejected_lens = to_tensor(in.rejected_lens).to(at::kLong);
  out.samples_per_prompt = in.samples_per_prompt;
  if (in.samples_per_prompt > 0) {
    out.sample_logps = to_tensor(in.sample_logps, dtype);
    out.ref_sample_logps = to_tensor(in.ref_sample_logps, dtype);
    out.sample_lens = to_tensor(in.sample_lens).to(at::kLong);
  }
  out.totals = in.totals;
  return out;
}

inline ExactPairLogps random_pairs(int batch, int samples_per_prompt, unsigned seed,
                                   double spread = 3) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal(0, spread);
  std::uniform_int_distribution<int> length(1, 30);
  const auto draw = [&](int n, double center) {
    Eigen::ArrayXd x(n);
    for (double& v : x) v = center + normal(rng);
    return x;
  };
  const auto lengths = [&](int n) {
    Eigen::ArrayXd x(n);
    for (double& v : x) v = length(rng);
    return x;
  };
  ExactPairLogps in;
  in.chosen_logps = draw(batch, -40);
  in.rejected_logps = draw(batch, -42);
  in.ref_chosen_logps = draw(batch, -40);
  in.ref_rejected_logps = draw(batch, -42);
  in.chosen_lens = lengths(batch);
  in.rejected_lens = lengths(batch);
  in.samples_per_prompt = samples_per_prompt;
  in.sample_logps = draw(batch * samples_per_prompt, -35);
  in.ref_sample_logps = draw(batch * samples_per_prompt, -35);
  in.sample_lens = lengths(batch * samples_per_prompt);
  return in;
}

/// Rows `first` to `first + count` of a batch.
inline ExactPairLogps slice(const ExactPairLogps& in, int first, int count) {
  const auto k = static_cast<int>(in.samples_per_prompt);
  ExactPairLogps out;
  out.chosen_logps = in.chosen_logps.segment(first, count);
  out.rejected_logps = in.rejected_logps.segment(first, count);
  out.ref_chosen_logps = in.ref_chosen_logps.segment(first, count);
  out.ref_rejected_logps = in.ref_rejected_logps.segment(first, count);
  out.chosen_lens = in.chosen_lens.segment(first, count);
  out.rejected_lens = in.rejected_lens.segment(first, count);
  out.samples_per_prompt = k;
  out.sample_logps = in.sample_logps.segment(first * k, count * k);
  out.ref_sample_logps = in.ref_sample_logps.segment(first * k, count * k);
  out.sample_lens = in.sample_lens.segment(first * k, count * k);
  out.totals = in.totals;
  return out;
}

}  // namespace prefopt::testing_support
