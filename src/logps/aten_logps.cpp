// SPDX-License-Identifier: Apache-2.0
// The operators in plain ATen: for devices without their own kernels, where token_logps may still
// have one, and the reference for tests of the kernels.
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/special_entr.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "logps/head_plan.h"
#include "logps/operators.h"
#include "math/wide_gradient.h"
#include "math/wide_product.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

at::ScalarType compute_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor mapped(const at::Tensor& raw, double scale, double softcap, double temperature) {
  if (softcap == 0) return raw * (scale / temperature);
  return (raw * (scale / softcap)).tanh() * (softcap / temperature);
}

// The gradient of raw logits with these factors; 0 for the rows that are left out.
at::Tensor row_gradient(const at::Tensor& z, const at::Tensor& targets, const at::Tensor& logsumexp,
                        const at::Tensor& factors, double scale, double softcap,
                        double temperature) {
  const bool has_all = factors.size(0) == kernels::kAllFactors;
  const auto column_of = [&](std::int64_t row) { return factors[row].unsqueeze(1); };
  const at::Tensor log_p = z.to(at::kDouble) - logsumexp.unsqueeze(1);
  const at::Tensor p = log_p.exp();
  at::Tensor gradient = p * column_of(has_all ? kernels::kOfP : kernels::kOfTarget).neg();
  // entr(p) is -p log p, and 0 where p is.
  if (has_all) gradient.add_(at::special_entr(p) * column_of(kernels::kOfPLogP));
  const at::Tensor column = targets.clamp_min(0).unsqueeze(1);
  gradient.scatter_(1, column, gradient.gather(1, column) + column_of(kernels::kOfTarget));
  gradient = gradient.to(z.scalar_type());
  gradient.mul_(scale / temperature);
  if (softcap != 0) gradient.mul_(1 - (z * (temperature / softcap)).square());
  return gradient.masked_fill_(targets.eq(kIgnoredTarget).unsqueeze(1), 0);
}

at::Tensor statistics_of(const at::Tensor& z, const at::Tensor& targets, bool all) {
  const at::Tensor of_target = z.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1);
  const at::Tensor max = z.amax(1);
  const at::Tensor shifted = z.to(at::kDouble) - max.to(at::kDouble).unsqueeze(1);
  const at::Tensor log_sum = shifted.exp().sum(1).log();
  const at::Tensor above = of_target.to(at::kDouble) - max.to(at::kDouble);
  std::vector<at::Tensor> rows{above - log_sum, max.to(at::kDouble) + log_sum,
                               of_target.eq(max).to(at::kDouble)};
  if (all) {
    const at::Tensor log_p = shifted - log_sum.unsqueeze(1);
    rows.push_back(at::special_entr(log_p.exp()).sum(1));
    rows.push_back(z.mean(1, false, at::kDouble));
    rows.push_back((2 * log_p).exp().sum(1).log());
  }
  return at::stack(rows).masked_fill_(targets.eq(kIgnoredTarget), 0);
}

at::Tensor aten_token_logps(const at::Tensor& logits, const at::Tensor& targets, double scale,
                            double softcap, double temperature, bool all_statistics,
                            const std::optional<at::Tensor>& gradient) {
  if (logits.size(0) == 0) {
    return at::zeros({all_statistics ? kernels::kAllStatistics : kernels::kFewStatistics, 0},
                     logits.options().dtype(at::kDouble));
  }
  const at::Tensor z = mapped(logits.to(compute_dtype(logits)), scale, softcap, temperature);
  const at::Tensor statistics = statistics_of(z, targets, all_statistics);
  if (gradient) {
    gradient->copy_(row_gradient(z, targets, statistics[kernels::kLogsumexp],
                                 at::ones({1, logits.size(0)}, statistics.options()), scale,
                                 softcap, temperature));
  }
  return statistics;
}

void token_logps_backward(const at::Tensor& factors, const at::Tensor& logits,
                          const at::Tensor& targets, const at::Tensor& logsumexp, double scale,
                          double softcap, double temperature, at::Tensor gradient) {
  if (logits.size(0) == 0) return;
  const at::Tensor z = mapped(logits.to(compute_dtype(logits)), scale, softcap, temperature);
  gradient.copy_(row_gradient(z, targets, logsumexp, factors, scale, softcap, temperature));
}

/// The head, as many rows of tokens at a time as the budget allows; each chunk's softmax goes to
/// the device's own kernel. Narrow hidden states under a narrow weight are multiplied as they are
/// on CUDA, into float32 logits; their gradient is then rounded for the products.
class Head {
 public:
  /// `copies`: blocks of a chunk's logits that a pass holds at once.
  Head(const at::Tensor& hidden, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
       const at::Tensor& targets, double scale, double softcap, double temperature,
       std::int64_t copies, std::int64_t budget_bytes)
      : dtype_(compute_dtype(weight)),
        is_narrow_(hidden.is_cuda() && detail::is_narrow(weight.scalar_type()) &&
                   hidden.scalar_type() == weight.scalar_type()),
        hidden_(hidden),
        weight_(is_narrow_ ? weight : weight.to(dtype_)),
        bias_(bias ? bias->to(dtype_) : at::Tensor()),
        targets_(targets),
        scale_(scale),
        softcap_(softcap),
        temperature_(temperature),
        chunk_(budget_bytes / (copies * row_bytes())) {
    if (chunk_ > 0 || rows() == 0) return;
    throw ConfigError(
        fmt::format("linear_token_logps: expected budget_bytes >= {} for a row of {} logits on {}, "
                    "got {}",
                    copies * row_bytes(), weight.size(0), hidden.device().str(), budget_bytes));
  }

  std::int64_t row_bytes() const {
    const auto of_number = static_cast<std::int64_t>(c10::elementSize(dtype_));
    // The rounded gradient lies next to the wide one.
    return weight_.size(0) * (is_narrow_ ? of_number + 2 : of_number);
  }
  std::int64_t rows() const { return hidden_.size(0); }
  /// Whether all rows are one chunk.
  bool is_whole() const { return chunk_ >= rows(); }
  at::ScalarType dtype() const { return dtype_; }

  /// Returns logits-shaped rows times the weight: [rows, H].
  at::Tensor to_hidden(const at::Tensor& gradient) const {
    return detail::wide_product(as_factor(gradient), weight_);
  }

  /// Adds gradientᵀ (factor · hidden) of rows from `begin` on to `sum`, [vocab, H].
  void add_weight_gradient(const at::Tensor& gradient, const at::Tensor& factor, std::int64_t begin,
                           at::Tensor& sum) const {
    const at::Tensor rows = hidden_rows(begin, begin + gradient.size(0)) * factor;
    if (!is_narrow_) {
      sum.addmm_(gradient.t(), rows);
      return;
    }
    // Part by part: a product of narrow matrices cannot add to a wide one.
    constexpr std::int64_t kPart = 8192;
    for (std::int64_t from = 0; from < sum.size(0); from += kPart) {
      const std::int64_t to = std::min(sum.size(0), from + kPart);
      sum.slice(0, from, to)
          .add_(detail::wide_product(as_factor(gradient.slice(1, from, to)).t(), as_factor(rows)));
    }
  }

  template <class F>
  void for_chunks(const F& f) const {
    for (std::int64_t begin = 0; begin < rows(); begin += chunk_) {
      f(begin, std::min(rows(), begin + chunk_));
    }
  }

  at::Tensor raw_logits(std::int64_t begin, std::int64_t end) const {
    at::Tensor logits = detail::wide_product(as_factor(hidden_.slice(0, begin, end)), weight_.t());
    if (bias_.defined()) logits.add_(bias_);
    return logits;
  }

  /// Writes the gradient of rows [begin, end), which may be their logits.
  void differentiate(std::int64_t begin, std::int64_t end, const at::Tensor& factors,
                     const at::Tensor& logits, const at::Tensor& logsumexp,
                     const at::Tensor& gradient) const {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("prefopt::_token_logps_backward", "")
            .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        double, double, double, at::Tensor)>();
    op.call(factors.slice(1, begin, end).contiguous(), logits, targets_.slice(0, begin, end),
            logsumexp.slice(0, begin, end), scale_, softcap_, temperature_, gradient);
  }

  /// Statistics of rows [begin, end); `logits` receives their unit gradient if asked for.
  at::Tensor score(std::int64_t begin, std::int64_t end, bool all, bool gradient,
                   at::Tensor& logits) const {
    logits = raw_logits(begin, end);
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("prefopt::_token_logps", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, double, double, bool,
                              const std::optional<at::Tensor>&)>();
    return op.call(logits, targets_.slice(0, begin, end), scale_, softcap_, temperature_, all,
                   gradient ? std::optional(logits) : std::nullopt);
  }

 private:
  at::Tensor hidden_rows(std::int64_t begin, std::int64_t end) const {
    return hidden_.slice(0, begin, end).to(dtype_);
  }
  /// In the dtype that products are made of.
  at::Tensor as_factor(const at::Tensor& x) const { return x.to(weight_.scalar_type()); }

  at::ScalarType dtype_;
  bool is_narrow_;
  at::Tensor hidden_, weight_, bias_, targets_;
  double scale_, softcap_, temperature_;
  std::int64_t chunk_;
};

std::tuple<at::Tensor, at::Tensor> linear_token_logps(
    const at::Tensor& hidden, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& targets, double scale, double softcap, double temperature,
    bool all_statistics, bool hidden_grad, bool weight_grad, bool by_product_grad,
    std::int64_t path, std::int64_t budget_bytes) {
  // For log-probs alone the gradient of each is kept in place of its logits; else the backward pass
  // needs room for it next to them.
  const std::int64_t copies = by_product_grad ? 2 : 1;
  const Head head(hidden, weight, bias, targets, scale, softcap, temperature, copies, budget_bytes);
  const HeadPath checked = checked_path(
      {.hidden_grad = hidden_grad, .weight_grad = weight_grad, .by_product_grad = by_product_grad},
      static_cast<HeadPath>(path));
  const bool frozen = checked == HeadPath::kFrozenHead;
  const bool keeps = checked == HeadPath::kKeepLogits && head.is_whole();
  const auto options = hidden.options();
  at::Tensor statistics =
      at::empty({all_statistics ? kernels::kAllStatistics : kernels::kFewStatistics, head.rows()},
                options.dtype(at::kDouble));
  at::Tensor kept = at::empty({0}, options.dtype(head.dtype()));
  if (frozen) kept = at::empty(hidden.sizes(), options.dtype(head.dtype()));
  head.for_chunks([&](std::int64_t begin, std::int64_t end) {
    at::Tensor logits;
    statistics.slice(1, begin, end)
        .copy_(
            head.score(begin, end, all_statistics, frozen || (keeps && !by_product_grad), logits));
    if (frozen) kept.slice(0, begin, end).copy_(head.to_hidden(logits));
    if (keeps) kept = logits;
  });
  return {statistics, kept};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_token_logps_backward(
    const at::Tensor& factors, const at::Tensor& hidden, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& targets, const at::Tensor& logsumexp,
    const at::Tensor& kept, double scale, double softcap, double temperature, bool, bool,
    bool by_product_grad, bool needs_hidden, bool needs_weight, bool needs_bias, std::int64_t,
    std::int64_t budget_bytes) {
  const std::int64_t copies = by_product_grad ? 2 : 1;
  const Head head(hidden, weight, bias, targets, scale, softcap, temperature, copies, budget_bytes);
  const auto zeros = [&](at::IntArrayRef shape) {
    return at::zeros(shape, hidden.options().dtype(head.dtype()));
  };
  at::Tensor of_hidden, of_weight, of_bias;
  if (needs_hidden) of_hidden = zeros(hidden.sizes());
  const at::Tensor sum = needs_weight ? detail::wide_gradient(weight) : at::Tensor();
  if (needs_weight) of_weight = sum.defined() ? sum : zeros(weight.sizes());
  if (needs_bias) of_bias = zeros({weight.size(0)});
  head.for_chunks([&](std::int64_t begin, std::int64_t end) {
    at::Tensor gradient;
    // Of log-probs alone, a row's factor goes through both products, so it multiplies the small
    // sides of them.
    at::Tensor factor = at::ones({end - begin, 1}, hidden.options().dtype(head.dtype()));
    const bool keeps = kept.dim() == 2;
    if (by_product_grad) {
      const at::Tensor logits = keeps ? kept.slice(0, begin, end) : head.raw_logits(begin, end);
      gradient = keeps ? at::empty_like(logits) : logits;
      head.differentiate(begin, end, factors, logits, logsumexp, gradient);
    } else {
      factor = factors[kernels::kOfTarget].slice(0, begin, end).to(head.dtype()).unsqueeze(1);
      if (keeps) {
        gradient = kept.slice(0, begin, end);
      } else {
        head.score(begin, end, false, true, gradient);
      }
    }
    if (needs_hidden) {
      of_hidden.slice(0, begin, end).copy_(head.to_hidden(gradient) * factor);
    }
    if (needs_weight) head.add_weight_gradient(gradient, factor, begin, of_weight);
    if (needs_bias) of_bias.add_(at::mm(gradient.t(), factor).squeeze(1));
  });
  if (sum.defined()) of_weight.reset();
  return {of_hidden, of_weight, of_bias};
}

}  // namespace

const LogpsOperators kAtenLogps{aten_token_logps, token_logps_backward, linear_token_logps,
                                linear_token_logps_backward};

}  // namespace prefopt
