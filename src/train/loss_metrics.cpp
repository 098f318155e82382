// SPDX-License-Identifier: Apache-2.0
#include "train/loss_metrics.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gt.h>

#include <string>
#include <string_view>

namespace prefopt::detail {
namespace {

/// Sums over `values` of desirable rows, or tokens of such, and over those of the others.
struct LabelSums {
  const at::Tensor& is_desirable;
  double desirable, undesirable;
  StepMetrics& metrics;

  void add_chosen(const std::string& name, const at::Tensor& values) const {
    add(name, values, is_desirable, desirable);
  }
  void add_both(const std::string& name, const at::Tensor& values) const {
    add(name + "/chosen", values, is_desirable, desirable);
    add(name + "/rejected", values, is_desirable.logical_not(), undesirable);
  }

 private:
  void add(const std::string& name, const at::Tensor& values, const at::Tensor& which,
           double count) const {
    if (!values.defined() || count == 0) return;
    metrics.add_mean(name, values.masked_fill(which.logical_not(), 0).sum(at::kDouble), count);
  }
};

void add_pair_metrics(const PairLogps& logps, const LossOutput& out, bool has_logps, double pairs,
                      StepMetrics& metrics) {
  const auto add = [&](std::string_view name, const at::Tensor& values) {
    if (values.defined()) metrics.add_mean(name, values.sum(), pairs);
  };
  add("rewards/chosen", out.chosen_rewards);
  add("rewards/rejected", out.rejected_rewards);
  if (out.chosen_rewards.defined() && out.rejected_rewards.defined()) {
    add("rewards/accuracies", at::gt(out.chosen_rewards, out.rejected_rewards));
  }
  add("rewards/margins", out.margins);
  if (!has_logps) return;
  const bool are_sums = !out.logged_chosen_logps.defined();
  add("logps/chosen", are_sums ? logps.chosen_logps : out.logged_chosen_logps);
  add("logps/rejected", are_sums ? logps.rejected_logps : out.logged_rejected_logps);
  if (!are_sums) return;  // the reference's sums would be compared with something else
  add("logps/ref_chosen", logps.ref_chosen_logps);
  add("logps/ref_rejected", logps.ref_rejected_logps);
}

/// Of unpaired rows: desirable ones count as chosen, the others as rejected, as in TRL.
void add_label_metrics(const PairLogps& logps, const LossOutput& out, const StepCounts& counts,
                       StepMetrics& metrics) {
  const auto desirable = static_cast<double>(counts.desirable_rows);
  const at::Tensor labels = logps.labels.gt(0.5);
  const LabelSums sums{labels, desirable, static_cast<double>(counts.rows) - desirable, metrics};
  sums.add_both("rewards", out.chosen_rewards);
  sums.add_both("logps", logps.chosen_logps);
}

}  // namespace

void add_token_metrics(const SequenceLogps& current, const StepCounts& counts, bool with_rejected,
                       StepMetrics& metrics) {
  const auto& by = current.by_products;
  const auto chosen_rows = static_cast<double>(counts.chosen);
  metrics.add_mean("entropy", by.entropy.sum(at::kDouble), static_cast<double>(by.entropy.size(0)));
  metrics.add_mean("logits/chosen", by.mean_logit.narrow(0, 0, counts.chosen).sum(at::kDouble),
                   chosen_rows);
  metrics.add_mean("mean_token_accuracy", by.is_top1.narrow(0, 0, counts.chosen).sum(),
                   chosen_rows);
  if (with_rejected) {
    metrics.add_mean("logits/rejected",
                     by.mean_logit.narrow(0, counts.chosen, counts.rejected).sum(at::kDouble),
                     static_cast<double>(counts.rejected));
  }
}

void add_label_token_metrics(const SequenceLogps& current, const at::Tensor& labels,
                             const StepCounts& counts, StepMetrics& metrics) {
  const auto& by = current.by_products;
  metrics.add_mean("entropy", by.entropy.sum(at::kDouble), static_cast<double>(by.entropy.size(0)));
  const auto first = [&](const at::Tensor& of_tokens) {
    return of_tokens.narrow(0, 0, counts.chosen);
  };
  const at::Tensor of_tokens = labels.gt(0.5).index_select(0, first(current.row_to_sequence));
  const LabelSums sums{of_tokens, static_cast<double>(counts.desirable),
                       static_cast<double>(counts.chosen - counts.desirable), metrics};
  sums.add_both("logits", first(by.mean_logit));
  sums.add_chosen("mean_token_accuracy", first(by.is_top1));
}

void add_loss_metrics(const PairLogps& logps, const LossOutput& out, const LossRequirements& needs,
                      const StepCounts& counts, double share, StepMetrics& metrics) {
  metrics.add_total("loss", share * out.loss);
  if (out.terms.size() > 1) {
    for (const auto& term : out.terms) metrics.add_total("loss/" + term.name, share * term.value);
  }
  // That of the policy's own samples is no estimate by other rows.
  if (out.kl.defined() && needs.sample_source != SampleSource::kPolicy) {
    metrics.add_total("kl", share * out.kl);
  }
  if (needs.labels()) {
    add_label_metrics(logps, out, counts, metrics);
  } else {
    add_pair_metrics(logps, out, !needs.of_rewards, static_cast<double>(counts.rows), metrics);
  }
}

void add_lengths(const LossRequirements& needs, const StepCounts& counts, StepMetrics& metrics) {
  const auto add = [&](std::string_view name, std::int64_t tokens, std::int64_t of_rows) {
    if (of_rows == 0) return;
    metrics.set(name, static_cast<double>(tokens) / static_cast<double>(of_rows));
  };
  if (needs.labels()) {
    add("lengths/chosen", counts.desirable, counts.desirable_rows);
    add("lengths/rejected", counts.chosen - counts.desirable, counts.rows - counts.desirable_rows);
    return;
  }
  add("lengths/chosen", counts.chosen, counts.rows);
  if (needs.rejected()) add("lengths/rejected", counts.rejected, counts.rows);
}

std::int64_t tokens_taken(const LossRequirements& needs, const StepCounts& counts) {
  std::int64_t tokens = counts.prompt + counts.all_chosen;
  if (needs.rejected()) tokens += counts.prompt + counts.all_rejected;
  if (needs.gold()) tokens += counts.prompt + counts.all_gold;
  return tokens;
}

}  // namespace prefopt::detail
