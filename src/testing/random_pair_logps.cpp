// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>

#include <vector>

#include "prefopt/losses/pair_fields.h"
#include "prefopt/testing/loss_checks.h"
#include "testing/draws.h"

namespace prefopt::testing {
namespace {

class PairDraws {
 public:
  explicit PairDraws(std::uint64_t seed) : draws_(seed) {}

  at::Tensor uniform(std::int64_t n, double low, double high) {
    std::vector<double> values(static_cast<std::size_t>(n));
    for (double& value : values) value = draws_.uniform(low, high);
    return at::tensor(values, at::kDouble);
  }

  at::Tensor lengths(std::int64_t n) { return uniform(n, 1, 31).floor().to(at::kLong); }

  void completions(std::int64_t n, double spread, at::Tensor& logps, at::Tensor& ref_logps,
                   at::Tensor& lens) {
    lens = lengths(n);
    ref_logps = -(spread + lens * uniform(n, 0.5, 2));
    logps = ref_logps + uniform(n, -spread, spread);
  }

 private:
  Draws draws_;
};

// Returns the part of a sum that belongs to the first min(n, other) tokens.
at::Tensor head(const at::Tensor& logps, const at::Tensor& lens, const at::Tensor& other_lens) {
  return logps * (at::minimum(lens, other_lens).to(at::kDouble) / lens);
}

}  // namespace

PairLogps random_pair_logps(const LossRequirements& needs, std::int64_t batch, std::uint64_t seed,
                            double spread) {
  PairDraws draw(seed);
  PairLogps in;
  draw.completions(batch, spread, in.chosen_logps, in.ref_chosen_logps, in.chosen_lens);
  draw.completions(batch, spread, in.rejected_logps, in.ref_rejected_logps, in.rejected_lens);
  in.chosen_overlap_logps = head(in.chosen_logps, in.chosen_lens, in.rejected_lens);
  in.rejected_overlap_logps = head(in.rejected_logps, in.rejected_lens, in.chosen_lens);
  in.ref_chosen_overlap_logps = head(in.ref_chosen_logps, in.chosen_lens, in.rejected_lens);
  in.ref_rejected_overlap_logps = head(in.ref_rejected_logps, in.rejected_lens, in.chosen_lens);
  // Around the log-probs themselves, so that a token is likelier or less likely than usual.
  in.chosen_log_sum_p_squared = in.chosen_logps * draw.uniform(batch, 0.6, 1.1);
  in.rejected_log_sum_p_squared = in.rejected_logps * draw.uniform(batch, 0.6, 1.1);
  in.chosen_seq_kl = draw.uniform(batch, 0, spread);
  in.rejected_seq_kl = draw.uniform(batch, 0, spread);
  at::Tensor unused;
  draw.completions(batch, spread, in.gold_logps, unused, in.gold_lens);
  draw.completions(batch, spread, in.kl_logps, in.ref_kl_logps, unused);
  in.labels = 1 - at::arange(batch, at::kLong).remainder(2);
  in.margins = draw.uniform(batch, -1, 3);
  in.weights = draw.uniform(batch, 0.2, 2);
  in.label_probs = draw.uniform(batch, 0, 1);
  in.chosen_win_rates = draw.uniform(batch, 0.05, 0.95);
  in.rejected_win_rates = draw.uniform(batch, 0.05, 0.95);
  in.advantages = draw.uniform(batch, -1, 1);
  in.from_reference = draw.uniform(batch, 0, 3).floor().to(at::kLong);
  in.groups = draw.uniform(batch, 0, static_cast<double>(batch) / 2).floor().to(at::kLong);
  in.samples_per_prompt = needs.samples_per_prompt;
  draw.completions(batch * needs.samples_per_prompt, spread, in.sample_logps, in.ref_sample_logps,
                   in.sample_lens);
  in.chosen_limited_logratios = draw.uniform(batch, -spread, spread);
  in.rejected_limited_logratios = draw.uniform(batch, -spread, spread);
  in.kl_limited_logratios = draw.uniform(batch, -spread, spread);
  in.chosen_confident_logps = in.chosen_logps * draw.uniform(batch, 0.1, 0.9);
  draw.completions(batch, spread, in.prompt_logps, unused, in.prompt_lens);
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = in.*field.value;
    if (!field.needed(needs)) {
      value = at::Tensor();
    } else if (!value.defined()) {  // an input that is new here
      const std::int64_t rows = field.per_sample() ? batch * needs.samples_per_prompt : batch;
      value = field.neutral + draw.uniform(rows, -0.5, 0.5);
    }
  }
  if (needs.running_mean) in.running = {at::scalar_tensor(0.25, at::kDouble), 12};
  return in;
}

}  // namespace prefopt::testing
