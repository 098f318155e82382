// SPDX-License-Identifier: Apache-2.0
#pragma once

// One batch of per-sequence log-probs as Eigen arrays, and the same as tensors.

#include <Eigen/Core>
#include <cstddef>
#include <random>
#include <string_view>

#include "prefopt/exact/pair_logps.h"
#include "prefopt/losses/pair_fields.h"
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

/// Counts become int64, the other columns that are no log-probs stay float64.
inline PairLogps to_tensors(const ExactPairLogps& in, at::ScalarType dtype = at::kDouble) {
  PairLogps out;
  for (std::size_t i = 0; i < kPairFields<at::Tensor>.size(); ++i) {
    const auto& from = kPairFields<Eigen::ArrayXd>[i];
    const auto& to = kPairFields<at::Tensor>[i];
    const Eigen::ArrayXd& x = in.*from.value;
    if (x.size() == 0) continue;
    const bool count = std::string_view(to.name).ends_with("_lens");
    const bool logps = !to.is_number();
    out.*to.value = to_tensor(x, count ? at::kLong : logps ? dtype : at::kDouble);
  }
  out.samples_per_prompt = in.samples_per_prompt;
  out.running = {at::scalar_tensor(in.running.mean, at::dtype(dtype)), in.running.count};
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

  const auto uniform = [&](double low, double high) {
    std::uniform_real_distribution<double> distribution(low, high);
    Eigen::ArrayXd x(batch);
    for (double& v : x) v = distribution(rng);
    return x;
  };
  // The shorter completion has no tail.
  const auto head = [&](const Eigen::ArrayXd& logps, const Eigen::ArrayXd& lens,
                        const Eigen::ArrayXd& other_lens) -> Eigen::ArrayXd {
    return (lens <= other_lens).select(logps, logps * uniform(0.2, 0.9));
  };
  in.chosen_overlap_logps = head(in.chosen_logps, in.chosen_lens, in.rejected_lens);
  in.rejected_overlap_logps = head(in.rejected_logps, in.rejected_lens, in.chosen_lens);
  in.ref_chosen_overlap_logps = head(in.ref_chosen_logps, in.chosen_lens, in.rejected_lens);
  in.ref_rejected_overlap_logps = head(in.ref_rejected_logps, in.rejected_lens, in.chosen_lens);
  // Mostly above the log-probs; below where the tokens are likelier than a sample's, so that the
  // weights of WPO come out on both sides of 1.
  in.chosen_log_sum_p_squared = in.chosen_logps * uniform(0.6, 1.1);
  in.rejected_log_sum_p_squared = in.rejected_logps * uniform(0.6, 1.1);
  in.chosen_seq_kl = draw(batch, 0).abs();
  in.rejected_seq_kl = draw(batch, 0).abs();
  in.gold_logps = draw(batch, -38);
  in.gold_lens = lengths(batch);
  in.labels =
      Eigen::ArrayXd::NullaryExpr(batch, [](Eigen::Index i) { return i % 2 == 0 ? 1.0 : 0.0; });
  in.kl_logps = draw(batch, -43);
  in.ref_kl_logps = draw(batch, -45);
  in.margins = draw(batch, 1);
  in.weights = uniform(0.2, 2);
  in.label_probs = uniform(0, 1);
  in.chosen_win_rates = uniform(0.05, 0.95);
  in.rejected_win_rates = uniform(0.05, 0.95);
  in.advantages = uniform(-1, 1);
  in.from_reference = uniform(0, 3).floor();
  in.groups = uniform(0, batch / 2.0).floor();
  in.running = {.mean = 0.25, .count = 12};
  in.chosen_limited_logratios = draw(batch, 0);
  in.rejected_limited_logratios = draw(batch, 0);
  in.kl_limited_logratios = draw(batch, 1);
  in.chosen_confident_logps = in.chosen_logps * uniform(0.1, 0.9);
  in.prompt_logps = draw(batch, -30);
  in.prompt_lens = lengths(batch);
  for (const auto& field : kPairFields<Eigen::ArrayXd>) {
    Eigen::ArrayXd& x = in.*field.value;
    if (x.size() > 0) continue;  // the rest is for inputs that are new
    x = field.neutral + draw(field.per_sample() ? batch * samples_per_prompt : batch, 0).tanh() / 2;
  }
  return in;
}

/// Rows `first` to `first + count` of a batch.
inline ExactPairLogps slice(const ExactPairLogps& in, int first, int count) {
  const auto k = static_cast<int>(in.samples_per_prompt);
  ExactPairLogps out;
  for (const auto& field : kPairFields<Eigen::ArrayXd>) {
    const Eigen::ArrayXd& x = in.*field.value;
    if (x.size() == 0) continue;
    const int each = field.per_sample() ? k : 1;
    out.*field.value = x.segment(first * each, count * each);
  }
  out.samples_per_prompt = k;
  out.running = in.running;
  out.totals = in.totals;
  return out;
}

}  // namespace prefopt::testing_support
