// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/sequence_kl.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "math/wide_gradient.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Logits a chunk; its bytes are eight times that.
constexpr std::int64_t kChunkLogits = std::int64_t{1} << 22;

/// What gives one row of logits for each completion token.
struct CompletionRows {
  at::Tensor rows;    ///< hidden states, or logits where there is no `weight`
  at::Tensor weight;  ///< [vocab, hidden]

  std::int64_t vocab() const { return weight.defined() ? weight.size(0) : rows.size(1); }
};

/// Positions that predict a completion token, in a flat index over [S, T].
at::Tensor predicting_rows(const TokenBatch& batch) {
  const std::int64_t width = batch.input_ids.size(1) - 1;
  const at::Tensor predicted = batch.completion_mask.slice(1, 1).reshape(-1).nonzero().squeeze(1);
  return predicted + predicted.div(std::max<std::int64_t>(width, 1), "floor");
}

CompletionRows completion_rows(Policy& policy, const TokenBatch& batch) {
  if (batch.packed && policy.packs()) {
    return {policy.forward_packed(*batch.packed).index_select(0, batch.packed->token_rows),
            policy.head().weight};
  }
  const PolicyOutput output = policy.forward(batch);
  const bool has_hidden = output.hidden.defined();
  const at::Tensor& all = has_hidden ? output.hidden : output.logits;
  return {all.reshape({-1, all.size(2)}).index_select(0, predicting_rows(batch)),
          has_hidden ? policy.head().weight : at::Tensor()};
}

at::ScalarType working_dtype(const at::Tensor& rows) {
  return rows.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Logits -> KL, a chunk of rows at a time. What comes after the logits is float64.
class RowKl : public torch::autograd::Function<RowKl> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows,
                            const std::optional<at::Tensor>& weight, const at::Tensor& ref_rows,
                            const std::optional<at::Tensor>& ref_weight) {
    const at::Tensor head = weight.value_or(at::Tensor());
    const at::Tensor ref_head = ref_weight.value_or(at::Tensor());
    context->save_for_backward({rows, head, ref_rows, ref_head});
    std::vector<at::Tensor> parts{at::zeros({0}, rows.options().dtype(at::kDouble))};
    for_each_chunk(rows, head, ref_rows, ref_head,
                   [&](std::int64_t, const at::Tensor& logps, const at::Tensor& ref_logps) {
                     const at::Tensor terms = ref_logps.exp() * (ref_logps - logps);
                     // 0 (-inf - x) of a token that the reference never says is 0, not NaN.
                     parts.push_back(terms.masked_fill(ref_logps.eq(-kInfinity), 0).sum(1));
                   });
    return at::cat(parts);
  }

  static variable_list backward(AutogradContext* context, variable_list outer) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& rows = saved[0];
    const at::Tensor& head = saved[1];
    at::Tensor d_rows = at::zeros_like(rows);
    at::Tensor d_head;
    const at::ScalarType dtype = working_dtype(rows);
    const bool head_grad = head.defined() && context->needs_input_grad(1);
    if (head_grad) d_head = at::zeros(head.sizes(), head.options().dtype(dtype));
    for_each_chunk(rows, head, saved[2], saved[3],
                   [&](std::int64_t first, const at::Tensor& logps, const at::Tensor& ref_logps) {
                     const std::int64_t size = logps.size(0);
                     const at::Tensor scale = outer[0].narrow(0, first, size).unsqueeze(1);
                     const at::Tensor d_logits =
                         ((logps.exp() - ref_logps.exp()) * scale).to(dtype);
                     at::Tensor target = d_rows.narrow(0, first, size);
                     target.copy_(head.defined() ? d_logits.mm(head.to(dtype)) : d_logits);
                     if (head_grad) {
                       d_head.addmm_(d_logits.t(), rows.narrow(0, first, size).to(dtype));
                     }
                   });
    return {d_rows, detail::settled_gradient(head, d_head), at::Tensor(), at::Tensor()};
  }

 private:
  template <class Use>
  static void for_each_chunk(const at::Tensor& rows, const at::Tensor& head,
                             const at::Tensor& ref_rows, const at::Tensor& ref_head, Use use) {
    const at::NoGradGuard no_grad;
    const at::ScalarType dtype = working_dtype(rows);
    const std::int64_t vocab = CompletionRows{rows, head}.vocab();
    const std::int64_t chunk = std::max<std::int64_t>(kChunkLogits / vocab, 1);
    const auto logps = [&](const at::Tensor& from, const at::Tensor& weight, std::int64_t first,
                           std::int64_t size) {
      at::Tensor part = from.narrow(0, first, size).to(dtype);
      if (weight.defined()) part = part.mm(weight.to(dtype).t());
      return at::log_softmax(part.to(at::kDouble), 1);
    };
    for (std::int64_t first = 0; first < rows.size(0); first += chunk) {
      const std::int64_t size = std::min(chunk, rows.size(0) - first);
      use(first, logps(rows, head, first, size), logps(ref_rows, ref_head, first, size));
    }
  }
};

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace

at::Tensor sequence_kl(Policy& policy, Policy& reference, const TokenBatch& batch) {
  const CompletionRows ours = completion_rows(policy, batch);
  const CompletionRows theirs = [&] {
    const at::NoGradGuard no_grad;
    return completion_rows(reference, batch);
  }();
  if (ours.vocab() != theirs.vocab()) {
    throw ShapeError(fmt::format("sequence_kl: expected a reference with {} tokens, got {}",
                                 ours.vocab(), theirs.vocab()));
  }
  at::Tensor kl =
      RowKl::apply(ours.rows, if_defined(ours.weight), theirs.rows, if_defined(theirs.weight));
  if (batch.token_weights.defined()) kl = kl * batch.token_weights.to(kl.device());
  const at::Tensor lens = batch.completion_lens.to(kl.device());
  return at::zeros({batch.sequences()}, kl.options())
      .index_add(0, at::arange(batch.sequences(), lens.options()).repeat_interleave(lens), kl);
}

}  // namespace prefopt
