// SPDX-License-Identifier: Apache-2.0
#include "run/plan/step_work.h"

#include <fmt/format.h>

#include <string_view>

#include "math/wide_gradient.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

double one_gemm(const Network& network, std::int64_t rows) {
  return 2 * static_cast<double>(rows) * static_cast<double>(network.head().numel());
}

}  // namespace

StepWork& StepWork::operator+=(const StepWork& other) {
  pairs += other.pairs;
  sequences += other.sequences;
  total_tokens += other.total_tokens;
  unique_tokens += other.unique_tokens;
  scored_tokens += other.scored_tokens;
  layers += other.layers;
  measured_first += other.measured_first;
  head += other.head;
  head_recomputed += other.head_recomputed;
  head_measured_first += other.head_measured_first;
  reference_layers += other.reference_layers;
  reference_head += other.reference_head;
  return *this;
}

HeadWork head_work(const StepModels& models, std::int64_t rows) {
  const at::Tensor& weight = models.policy.head();
  return {.rows = rows,
          .hidden_size = weight.size(1),
          .vocab_size = weight.size(0),
          .float64 = weight.scalar_type() == at::kDouble,
          .narrow_weight = is_narrow(weight.scalar_type()) || models.has_head_in_blocks,
          .hidden_grad = true,
          .weight_grad = weight.requires_grad()};
}

StepWork work_of(const StepModels& models, const TokenBatch& batch, bool measures_first) {
  const PackedTokens& packed = *batch.packed;
  StepWork work;
  work.sequences = batch.sequences();
  work.total_tokens = batch.attention_mask.sum().item<std::int64_t>() - work.sequences;
  work.unique_tokens = packed.input_ids.size(0);
  work.scored_tokens = packed.rows.size(0);
  work.layers = stream_flops(models.policy, packed, models.checkpointing);
  const HeadWork head = head_work(models, work.scored_tokens);
  const double gemm = one_gemm(models.policy, work.scored_tokens);
  const double least = 2 + (head.weight_grad ? 1 : 0);
  work.head = least * gemm;
  work.head_recomputed = (plan_head(head, models.head_budget_bytes).gemms - least) * gemm;
  if (measures_first) {
    work.measured_first = work.layers.forward;
    work.head_measured_first = gemm;
  }
  if (models.reference) {
    work.reference_layers = stream_flops(*models.reference, packed, Checkpointing::kNone).forward;
    work.reference_head = one_gemm(*models.reference, work.scored_tokens);
  }
  return work;
}

StepWork work_of(const StepModels& models, const std::vector<TokenRow>& rows, bool measures_first) {
  StepWork work = work_of(
      models, make_pair_batch(rows, models.needs.rejected(), models.needs.gold()), measures_first);
  work.pairs = std::ssize(rows);
  return work;
}

void check_plannable(const LossRequirements& needs, std::string_view loss) {
  const auto refuse = [&](bool has_more, std::string_view what) {
    if (!has_more) return;
    throw ConfigError(fmt::format(
        "loss: expected one that scores the completions of its rows, which a plan counts, got "
        "'{}', which {}",
        loss, what));
  };
  refuse(needs.of_rewards, "trains a reward model");
  refuse(needs.sample_source != SampleSource::kNone, "draws fresh samples");
  refuse(needs.has(Input::kl_logps), "scores completions of other rows too");
  refuse(needs.has(Input::chosen_seq_kl), "compares whole distributions");
  refuse(needs.has(Input::prompt_logps), "scores prompts too");
}

}  // namespace prefopt::detail
