// SPDX-License-Identifier: Apache-2.0
#include "run/quantize_cost.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/sum.h>
#include <fmt/format.h>

#include "policy/token_range.h"
#include "prefopt/policy/sequence_logps.h"
#include "run/model_base.h"

namespace prefopt::detail {
namespace {

/// Returns the mean of −log p over the tokens of chosen completions, nats.
double loss_of_chosen(Decoder& model, const std::vector<TokenRow>& rows, std::int64_t budget) {
  const at::NoGradGuard no_grad;
  double sum = 0;
  std::int64_t tokens = 0;
  for (const TokenRow& row : rows) {
    const SequenceLogps scored =
        sequence_logps(model, make_batch({{.prompt = row.prompt, .completion = row.chosen}}),
                       {.by_products = {}, .reduction = {}, .budget_bytes = budget});
    sum -= scored.logps.sum().item<double>();
    tokens += scored.lens.sum().item<std::int64_t>();
  }
  return sum / static_cast<double>(tokens);
}

}  // namespace

QuantizeCost::QuantizeCost(const ModelOptions& options, const std::vector<TokenRow>& rows,
                           std::int64_t head_budget_bytes)
    : encoding_(options.quantize), rows_(rows), head_budget_bytes_(head_budget_bytes) {
  if (encoding_.empty()) return;
  kept_weights(options);  // refuses what does not fit
  if (rows.empty()) return;
  const auto model = Decoder::load(options.path, "float32");
  check_token_range(rows, model->vocab_size(), "data.eval");
  before_ = loss_of_chosen(*model, rows, head_budget_bytes);
}

void QuantizeCost::tell(const Decoder& policy, const Note& note) const {
  if (encoding_.empty()) return;
  if (!before_) {
    return note(fmt::format(
        "model.quantize: {}; what it costs is not known without held-out rows (data.eval or "
        "data.eval_fraction)",
        encoding_));
  }
  const double after = loss_of_chosen(*policy.without_adapter(), rows_, head_budget_bytes_);
  note(fmt::format(
      "model.quantize: {} brings the loss of held-out chosen completions from {:.4f} to {:.4f} "
      "nats a token, {:+.4f}",
      encoding_, *before_, after, after - *before_));
}

}  // namespace prefopt::detail
