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
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/block_tensor.h"
#include "math/sliced_weight.h"
#include "math/wide_gradient.h"
#include "policy/output_head.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The bytes of a logit of both models, at most: its log-probs and seven more numbers of float64 or
/// the like.
constexpr std::int64_t kLogitBytes = 64;

/// One row of logits for each completion token, or what they are made of.
struct CompletionRows {
  at::Tensor rows;  ///< hidden states, or logits where the head has no weight
  OutputHead head;

  std::int64_t vocab() const { return head.weight.defined() ? head.weight.size(0) : rows.size(1); }
};

/// Positions that predict a completion token, in a flat index over [S, T].
at::Tensor predicting_rows(const TokenBatch& batch) {
  const std::int64_t width = batch.input_ids.size(1) - 1;
  const at::Tensor predicted = batch.completion_mask.slice(1, 1).reshape(-1).nonzero().squeeze(1);
  return predicted + predicted.div(std::max<std::int64_t>(width, 1), "floor");
}

CompletionRows completion_rows(Policy& policy, const TokenBatch& batch, double temperature) {
  const auto tempered = [&](OutputHead head) {
    head.transform.temperature *= temperature;
    return head;
  };
  if (batch.packed && policy.packs()) {
    return {policy.forward_packed(*batch.packed).index_select(0, batch.packed->token_rows),
            tempered(policy.head())};
  }
  const PolicyOutput output = policy.forward(batch);
  const bool has_hidden = output.hidden.defined();
  const at::Tensor& all = has_hidden ? output.hidden : output.logits;
  return {all.reshape({-1, all.size(2)}).index_select(0, predicting_rows(batch)),
          tempered(has_hidden ? policy.head() : OutputHead())};
}

at::ScalarType working_dtype(const at::Tensor& rows) {
  return rows.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Log-probs of a chunk of rows, and the derivative of their logits by the raw outputs.
struct RowLogps {
  at::Tensor logps;  ///< float64
  at::Tensor slope;  ///< undefined: 1
};

RowLogps logps_of(const CompletionRows& from, at::ScalarType dtype, std::int64_t first,
                  std::int64_t size) {
  const auto& [weight, bias, transform] = from.head;
  const bool is_neutral = detail::is_neutral(transform);
  at::Tensor logits = from.rows.narrow(0, first, size).to(dtype);
  if (weight.defined()) {
    logits = kernels::product(logits, weight.to(dtype));
    if (bias.defined()) logits.add_(bias.to(dtype));
  } else if (!is_neutral) {
    logits = logits.clone();  // from the policy's own
  }
  detail::transform_logits_(logits, transform);
  return {at::log_softmax(logits.to(at::kDouble), 1),
          is_neutral ? at::Tensor() : detail::transform_slope(logits, transform)};
}

/// Returns log(p / r) of each token, and 0 where p is 0, whatever r is.
at::Tensor log_ratio(const at::Tensor& p_logps, const at::Tensor& r_logps) {
  return (p_logps - r_logps).masked_fill_(p_logps.eq(-kInfinity), 0);
}

/// Returns the KL of each row.
at::Tensor kl_of(const at::Tensor& logps, const at::Tensor& ref_logps, KlDirection direction) {
  const bool under_policy = direction == KlDirection::kUnderPolicy;
  const at::Tensor& p = under_policy ? logps : ref_logps;
  const at::Tensor& r = under_policy ? ref_logps : logps;
  return (p.exp() * log_ratio(p, r)).sum(1);
}

/// Returns the derivative of each row's KL with respect to the policy's logits.
at::Tensor kl_gradient(const at::Tensor& logps, const at::Tensor& ref_logps,
                       KlDirection direction) {
  const at::Tensor p = logps.exp();
  if (direction == KlDirection::kUnderReference) return p - ref_logps.exp();
  const at::Tensor ratio = log_ratio(logps, ref_logps);
  const at::Tensor kl = (p * ratio).sum(1, /*keepdim=*/true);
  return p * (ratio - kl);
}

/// How KLs are computed, and for whom.
struct KlTask {
  KlDirection direction;
  std::int64_t budget_bytes;
  std::string where;
};

/// Logits -> KL, a chunk of rows at a time. All that comes after the logits is float64.
class RowKl : public torch::autograd::Function<RowKl> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows,
                            const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, const LogitTransform& transform,
                            const CompletionRows& reference, const KlTask& task) {
    const CompletionRows ours{
        rows, {weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), transform}};
    context->save_for_backward({rows, ours.head.weight, ours.head.bias, reference.rows,
                                reference.head.weight, reference.head.bias});
    context->saved_data["transform"] = numbers_of(transform);
    context->saved_data["reference transform"] = numbers_of(reference.head.transform);
    context->saved_data["direction"] = static_cast<std::int64_t>(task.direction);
    context->saved_data["budget_bytes"] = task.budget_bytes;
    context->saved_data["where"] = task.where;
    std::vector<at::Tensor> parts{at::zeros({0}, rows.options().dtype(at::kDouble))};
    for_each_chunk(ours, reference, task.budget_bytes,
                   [&](std::int64_t, const RowLogps& of, const at::Tensor& ref_logps) {
                     parts.push_back(kl_of(of.logps, ref_logps, task.direction));
                   });
    return at::cat(parts);
  }

  static variable_list backward(AutogradContext* context, variable_list outer) {
    // Grad mode is on in a backward pass only under create_graph.
    if (at::GradMode::is_enabled()) {
      throw ConfigError(
          fmt::format("{}: expected a first derivative, got create_graph; there is no second one",
                      context->saved_data["where"].toStringRef()));
    }
    const variable_list saved = context->get_saved_variables();
    const auto direction = static_cast<KlDirection>(context->saved_data["direction"].toInt());
    const auto transform = [&](const char* name) {
      const std::vector<double> numbers = context->saved_data[name].toDoubleVector();
      return LogitTransform{numbers[0], numbers[1], numbers[2]};
    };
    const CompletionRows ours{saved[0], {saved[1], saved[2], transform("transform")}};
    const CompletionRows theirs{saved[3], {saved[4], saved[5], transform("reference transform")}};
    const at::Tensor& head = ours.head.weight;
    const at::Tensor& bias = ours.head.bias;
    at::Tensor d_rows = at::zeros_like(ours.rows);
    at::Tensor d_head, d_bias;
    const at::ScalarType dtype = working_dtype(ours.rows);
    const auto sum_like = [&](const at::Tensor& tensor) {
      return at::zeros(tensor.sizes(), tensor.options().dtype(dtype));
    };
    if (head.defined() && context->needs_input_grad(1)) d_head = sum_like(head);
    if (bias.defined() && context->needs_input_grad(2)) d_bias = sum_like(bias);
    for_each_chunk(ours, theirs, context->saved_data["budget_bytes"].toInt(),
                   [&](std::int64_t first, const RowLogps& of, const at::Tensor& ref_logps) {
                     const std::int64_t size = of.logps.size(0);
                     const at::Tensor scale = outer[0].narrow(0, first, size).unsqueeze(1);
                     at::Tensor d_logits =
                         (kl_gradient(of.logps, ref_logps, direction) * scale).to(dtype);
                     if (of.slope.defined()) d_logits = d_logits * of.slope;
                     d_rows.narrow(0, first, size).copy_(through_head(d_logits, head));
                     if (d_head.defined()) {
                       d_head.addmm_(d_logits.t(), ours.rows.narrow(0, first, size).to(dtype));
                     }
                     if (d_bias.defined()) d_bias.add_(d_logits.sum(0));
                   });
    return {d_rows,
            detail::settled_gradient(head, d_head),
            detail::settled_gradient(bias, d_bias),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }

 private:
  /// Returns the gradient of the rows in front of the head, which may be undefined.
  static at::Tensor through_head(const at::Tensor& d_logits, const at::Tensor& head) {
    if (!head.defined()) return d_logits;
    return kernels::product_gradient(d_logits, head.to(d_logits.scalar_type()));
  }

  static std::vector<double> numbers_of(const LogitTransform& transform) {
    return {transform.scale, transform.softcap, transform.temperature};
  }

  template <class Use>
  static void for_each_chunk(const CompletionRows& ours, const CompletionRows& theirs,
                             std::int64_t budget_bytes, Use use) {
    const at::NoGradGuard no_grad;
    const detail::HeldWeights our_head(ours.head.weight), their_head(theirs.head.weight);
    const at::ScalarType dtype = working_dtype(ours.rows);
    const std::int64_t chunk = std::max<std::int64_t>(budget_bytes / kLogitBytes / ours.vocab(), 1);
    for (std::int64_t first = 0; first < ours.rows.size(0); first += chunk) {
      const std::int64_t size = std::min(chunk, ours.rows.size(0) - first);
      use(first, logps_of(ours, dtype, first, size), logps_of(theirs, dtype, first, size).logps);
    }
  }
};

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// Returns [rows] float64, one KL for each completion token.
at::Tensor row_kls(const CompletionRows& ours, Policy& reference, const TokenBatch& batch,
                   double temperature, const KlTask& task) {
  const CompletionRows theirs = [&] {
    const at::NoGradGuard no_grad;
    return completion_rows(reference, batch, temperature);
  }();
  if (ours.vocab() != theirs.vocab()) {
    throw ShapeError(fmt::format("{}: expected a reference with {} tokens, got {}", task.where,
                                 ours.vocab(), theirs.vocab()));
  }
  return RowKl::apply(ours.rows, if_defined(ours.head.weight), if_defined(ours.head.bias),
                      ours.head.transform, theirs, task);
}

}  // namespace

at::Tensor token_kl(Policy& policy, Policy& reference, const TokenBatch& batch,
                    const TokenKlOptions& options) {
  const double temperature = options.temperature;
  if (!(temperature > 0) || !std::isfinite(temperature)) {
    throw ConfigError(fmt::format("token_kl: expected temperature > 0, got {}", temperature));
  }
  const CompletionRows ours = completion_rows(policy, batch, temperature);
  if (options.budget_bytes < kLogitBytes * ours.vocab()) {
    throw ConfigError(
        fmt::format("token_kl: expected budget_bytes >= {} for a row of {} tokens, got {}",
                    kLogitBytes * ours.vocab(), ours.vocab(), options.budget_bytes));
  }
  const at::Tensor& from = ours.head.weight.defined() ? ours.head.weight : ours.rows;
  return row_kls(ours, reference, batch, temperature,
                 {options.direction, options.budget_bytes, "token_kl"})
      .to(working_dtype(from));
}

at::Tensor sequence_kl(Policy& policy, Policy& reference, const TokenBatch& batch) {
  at::Tensor kl =
      row_kls(completion_rows(policy, batch, 1), reference, batch, 1,
              {KlDirection::kUnderReference, TokenKlOptions().budget_bytes, "sequence_kl"});
  if (batch.token_weights.defined()) kl = kl * batch.token_weights.to(kl.device());
  const at::Tensor lens = batch.completion_lens.to(kl.device());
  return at::zeros({batch.sequences()}, kl.options())
      .index_add(0, at::arange(batch.sequences(), lens.options()).repeat_interleave(lens), kl);
}

}  // namespace prefopt
