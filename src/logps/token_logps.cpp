// SPDX-License-Identifier: Apache-2.0
#include "prefopt/logps/token_logps.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <vector>

#include "core/memory_pool.h"
#include "logps/head_plan.h"
#include "logps/operators.h"
#include "math/sliced_weight.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::string_view kRows = "token_logps";
constexpr std::string_view kLinear = "linear_token_logps";

// --- checks -----------------------------------------------------------------------------------

bool is_supported(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

void check_floating(const at::Tensor& tensor, std::string_view where, std::string_view name) {
  if (!is_supported(tensor.scalar_type())) {
    throw DtypeError(fmt::format("{}: expected {} of float32, float64, bfloat16 or float16, got {}",
                                 where, name, c10::toString(tensor.scalar_type())));
  }
}

void check_same_device(const at::Tensor& tensor, const at::Tensor& rows, std::string_view where,
                       std::string_view name) {
  if (tensor.device() != rows.device()) {
    throw DeviceError(fmt::format("{}: expected {} on {}, got {}", where, name, rows.device().str(),
                                  tensor.device().str()));
  }
}

/// `ignores`: kIgnoredTarget may mark a row that is left out.
void check_targets(const at::Tensor& targets, const at::Tensor& rows, std::int64_t vocab_size,
                   bool ignores, std::string_view where) {
  if (targets.scalar_type() != at::kLong) {
    throw DtypeError(fmt::format("{}: expected int64 targets, got {}", where,
                                 c10::toString(targets.scalar_type())));
  }
  if (targets.dim() != 1 || targets.size(0) != rows.size(0)) {
    throw ShapeError(fmt::format("{}: expected targets [{}], got {}", where, rows.size(0),
                                 c10::str(targets.sizes())));
  }
  check_same_device(targets, rows, where, "targets");
  // Elsewhere the look would stop the device.
  if (!targets.is_cpu()) return;
  const at::Tensor dense = targets.contiguous();
  const auto* values = dense.const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < dense.size(0); ++row) {
    if (values[row] >= 0 && values[row] < vocab_size) continue;
    if (ignores && values[row] == kIgnoredTarget) continue;
    throw DataError(fmt::format("{}: expected targets in [0, {}), got {} at row {}", where,
                                vocab_size, values[row], row));
  }
}

void check_transform(double scale, double softcap, double temperature, std::string_view where) {
  const auto check = [&](bool holds, std::string_view name, std::string_view range, double value) {
    if (!holds || !std::isfinite(value)) {
      throw ConfigError(fmt::format("{}: expected {} {}, got {}", where, name, range, value));
    }
  };
  check(true, "scale", "finite", scale);
  check(softcap >= 0, "softcap", ">= 0", softcap);
  check(temperature > 0, "temperature", "> 0", temperature);
}

at::ScalarType result_dtype(std::optional<at::ScalarType> wanted, const at::Tensor& input,
                            std::string_view where) {
  const auto dtype = wanted.value_or(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  if (dtype != at::kFloat && dtype != at::kDouble) {
    throw ConfigError(
        fmt::format("{}: expected dtype float32 or float64, got {}", where, c10::toString(dtype)));
  }
  return dtype;
}

HeadPath path_named(std::string_view name) {
  for (const HeadPath path : {HeadPath::kAutomatic, HeadPath::kForwardOnly, HeadPath::kFrozenHead,
                              HeadPath::kKeepLogits, HeadPath::kRecompute}) {
    if (to_string(path) == name) return path;
  }
  throw ConfigError(fmt::format(
      "linear_token_logps: expected path automatic, forward_only, frozen_head, keep_logits or "
      "recompute, got {}",
      name));
}

void refuse_second_derivative(std::string_view where) {
  // Grad mode is on in a backward pass only under create_graph.
  if (at::GradMode::is_enabled()) {
    throw ConfigError(fmt::format(
        "{}: expected a first derivative, got create_graph; there is no second one", where));
  }
}

/// Returns a separate copy, so that a caller may change one result in place.
at::Tensor copy_of(const at::Tensor& statistic, at::ScalarType dtype) {
  return statistic.to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

bool needs_grad(const at::Tensor& tensor) {
  return at::GradMode::is_enabled() && tensor.defined() && tensor.requires_grad();
}

// --- the operators of a device ----------------------------------------------------------------

template <class Function>
struct Signature;
template <class Result, class... Arguments>
struct Signature<Result (*)(Arguments...)> {
  using Type = Result(Arguments...);
};

/// Returns the operator of the tensors' device, below autograd.
template <class Function, class... Arguments>
auto call(const char* name, Function, const Arguments&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<typename Signature<Function>::Type>()
      .call(arguments...);
}

// --- gradients of outputs ---------------------------------------------------------------------

/// The outputs of both functions: log-probs, statistics, and the by-products that are
/// differentiable, in this order.
variable_list outputs_of(AutogradContext* context, const at::Tensor& statistics,
                         at::ScalarType dtype, const DifferentiableByProducts& differentiable) {
  context->mark_non_differentiable({statistics});
  context->set_materialize_grads(false);
  context->saved_data["logsumexp"] = differentiable.logsumexp;
  context->saved_data["entropy"] = differentiable.entropy;
  variable_list outputs{copy_of(statistics[kernels::kLogp], dtype), statistics};
  if (differentiable.logsumexp) {
    outputs.push_back(copy_of(statistics[kernels::kLogsumexp], dtype));
  }
  if (differentiable.entropy) outputs.push_back(copy_of(statistics[kernels::kEntropy], dtype));
  return outputs;
}

/// The statistics that the backward pass needs: logsumexp, and the entropy where it is
/// differentiable.
at::Tensor saved_statistics(const at::Tensor& statistics,
                            const DifferentiableByProducts& differentiable) {
  const at::Tensor logsumexp = statistics[kernels::kLogsumexp];
  return differentiable.entropy ? at::stack({logsumexp, statistics[kernels::kEntropy]})
                                : logsumexp.unsqueeze(0).clone();
}

/// Returns the gradient in float64, or an undefined tensor where it is known to be 0.
at::Tensor wide_gradient_of(const at::Tensor& gradient) {
  if (!gradient.defined()) return {};
  // Elsewhere the look would stop the device.
  if (gradient.is_cpu() && !gradient.any().item<bool>()) return {};
  return gradient.to(at::kDouble);
}

/// Returns the factors of each row, see statistics.h, from the gradients of outputs_of; undefined
/// if there are none.
at::Tensor factors_of(AutogradContext* context, const variable_list& grads,
                      const at::Tensor& statistics) {
  std::size_t place = 2;
  at::Tensor of_logsumexp, of_entropy;
  if (context->saved_data["logsumexp"].toBool()) of_logsumexp = wide_gradient_of(grads[place++]);
  if (context->saved_data["entropy"].toBool()) of_entropy = wide_gradient_of(grads[place++]);
  if (!of_logsumexp.defined() && !of_entropy.defined()) {
    if (!grads[0].defined()) return {};
    return grads[0].to(at::kDouble).contiguous().unsqueeze(0);
  }
  const at::Tensor zeros = at::zeros_like(statistics[0]);
  const at::Tensor of_logp = grads[0].defined() ? grads[0].to(at::kDouble) : zeros;
  at::Tensor of_p = of_logp;
  if (of_logsumexp.defined()) of_p = of_p - of_logsumexp;
  if (of_entropy.defined()) of_p = of_p + of_entropy * statistics[1];
  return at::stack({of_logp, of_p, of_entropy.defined() ? of_entropy : zeros});
}

// --- token_logps ------------------------------------------------------------------------------

struct TokenLogpsFunction : torch::autograd::Function<TokenLogpsFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& logits,
                               const at::Tensor& targets, double scale, double softcap,
                               double temperature, at::ScalarType dtype, bool overwrite,
                               bool all_statistics,
                               const DifferentiableByProducts& differentiable) {
    // Rows may lie anywhere, a row's logits side by side.
    const at::Tensor rows =
        logits.stride(1) == 1 || logits.size(1) == 1 ? logits : logits.contiguous();
    const at::Tensor dense_targets = targets.contiguous();
    const at::Tensor statistics =
        call("prefopt::_token_logps", LogpsOperators{}.token_logps, rows, dense_targets, scale,
             softcap, temperature, all_statistics, std::optional<at::Tensor>());
    context->save_for_backward({rows, dense_targets, saved_statistics(statistics, differentiable)});
    context->saved_data["scale"] = scale;
    context->saved_data["softcap"] = softcap;
    context->saved_data["temperature"] = temperature;
    const bool is_dense = logits.size(0) <= 1 || rows.stride(0) >= rows.size(1);
    context->saved_data["overwrite"] = overwrite && is_dense;
    return outputs_of(context, statistics, dtype, differentiable);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    refuse_second_derivative(kRows);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor factors = factors_of(context, grads, saved[2]);
    if (!factors.defined()) return variable_list(9);
    at::Tensor logits = saved[0].detach();
    const bool overwrite = context->saved_data["overwrite"].toBool();
    at::Tensor gradient = overwrite ? logits : at::empty_like(logits, at::MemoryFormat::Contiguous);
    call("prefopt::_token_logps_backward", LogpsOperators{}.token_logps_backward, factors, logits,
         saved[1], saved[2][0], context->saved_data["scale"].toDouble(),
         context->saved_data["softcap"].toDouble(), context->saved_data["temperature"].toDouble(),
         gradient);
    // Tells autograd that whoever saved the logits has lost them.
    if (overwrite) saved[0].unsafeGetTensorImpl()->bump_version();
    variable_list result(9);
    result[0] = gradient;
    return result;
  }
};

/// Returns outputs_of.
variable_list score_rows(const at::Tensor& logits, const at::Tensor& targets, bool ignores,
                         double scale, double softcap, double temperature,
                         std::optional<at::ScalarType> dtype, bool overwrite_logits,
                         bool all_statistics, const DifferentiableByProducts& differentiable) {
  check_floating(logits, kRows, "logits");
  if (logits.dim() != 2 || logits.size(1) == 0) {
    throw ShapeError(fmt::format("token_logps: expected logits [rows, vocab], got {}",
                                 c10::str(logits.sizes())));
  }
  check_targets(targets, logits, logits.size(1), ignores, kRows);
  check_transform(scale, softcap, temperature, kRows);
  if (overwrite_logits && needs_grad(logits) && logits.is_leaf()) {
    throw ConfigError(
        "token_logps: expected computed logits for overwrite_logits, got a leaf; its values are "
        "not "
        "the operator's to overwrite");
  }
  return TokenLogpsFunction::apply(logits, targets, scale, softcap, temperature,
                                   result_dtype(dtype, logits, kRows), overwrite_logits,
                                   all_statistics, differentiable);
}

std::tuple<at::Tensor, at::Tensor> token_logps_operator(const at::Tensor& logits,
                                                        const at::Tensor& targets, double scale,
                                                        double softcap, double temperature,
                                                        std::optional<at::ScalarType> dtype,
                                                        bool overwrite_logits,
                                                        bool all_statistics) {
  const variable_list out = score_rows(logits, targets, /*ignores=*/true, scale, softcap,
                                       temperature, dtype, overwrite_logits, all_statistics, {});
  return {out[0], out[1]};
}

// --- linear_token_logps -----------------------------------------------------------------------

struct LinearTokenLogpsFunction : torch::autograd::Function<LinearTokenLogpsFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden,
                               const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                               const at::Tensor& targets, double scale, double softcap,
                               double temperature, at::ScalarType dtype, bool all_statistics,
                               const DifferentiableByProducts& differentiable, bool hidden_grad,
                               bool weight_grad, std::int64_t path, std::int64_t budget_bytes) {
    const detail::HeldWeights held(weight);
    auto [statistics, kept] =
        call("prefopt::_linear_token_logps", LogpsOperators{}.linear_token_logps, hidden, weight,
             bias, targets, scale, softcap, temperature, all_statistics, hidden_grad, weight_grad,
             differentiable.any(), path, budget_bytes);
    context->save_for_backward({hidden, weight, bias.value_or(at::Tensor()), targets,
                                saved_statistics(statistics, differentiable), kept});
    context->saved_data["scale"] = scale;
    context->saved_data["softcap"] = softcap;
    context->saved_data["temperature"] = temperature;
    context->saved_data["path"] = path;
    context->saved_data["budget_bytes"] = budget_bytes;
    context->saved_data["hidden_grad"] = hidden_grad;
    context->saved_data["weight_grad"] = weight_grad;
    context->saved_data["by_product_grad"] = differentiable.any();
    context->saved_data["hidden_grad_is_kept"] =
        checked_path({.hidden_grad = hidden_grad,
                      .weight_grad = weight_grad,
                      .by_product_grad = differentiable.any()},
                     static_cast<HeadPath>(path)) == HeadPath::kFrozenHead;
    return outputs_of(context, statistics, dtype, differentiable);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    refuse_second_derivative(kLinear);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &hidden = saved[0], &weight = saved[1], &bias = saved[2], &kept = saved[5];
    variable_list result(14);
    const at::Tensor factors = factors_of(context, grads, saved[4]);
    if (!factors.defined()) return result;
    if (context->saved_data["hidden_grad_is_kept"].toBool()) {
      result[0] = kept.mul(grads[0].to(kept.scalar_type()).unsqueeze(1)).to(hidden.scalar_type());
      return result;
    }
    const detail::HeldWeights held(weight);
    std::tie(result[0], result[1], result[2]) = call(
        "prefopt::_linear_token_logps_backward", LogpsOperators{}.linear_token_logps_backward,
        factors, hidden, weight, bias.defined() ? std::optional(bias) : std::nullopt, saved[3],
        saved[4][0], kept, context->saved_data["scale"].toDouble(),
        context->saved_data["softcap"].toDouble(), context->saved_data["temperature"].toDouble(),
        context->saved_data["hidden_grad"].toBool(), context->saved_data["weight_grad"].toBool(),
        context->saved_data["by_product_grad"].toBool(), context->needs_input_grad(0),
        context->needs_input_grad(1), bias.defined() && context->needs_input_grad(2),
        context->saved_data["path"].toInt(), context->saved_data["budget_bytes"].toInt());
    result[1] = detail::settled_gradient(weight, result[1]);
    if (bias.defined()) result[2] = detail::settled_gradient(bias, result[2]);
    return result;
  }
};

void check_head(const at::Tensor& hidden, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias) {
  check_floating(hidden, kLinear, "hidden");
  check_floating(weight, kLinear, "weight");
  const auto check_same_width = [&](const at::Tensor& tensor, std::string_view name) {
    if ((tensor.scalar_type() == at::kDouble) != (hidden.scalar_type() == at::kDouble)) {
      throw DtypeError(fmt::format("{}: expected {} of dtype {} as hidden, got {}", kLinear, name,
                                   c10::toString(hidden.scalar_type()),
                                   c10::toString(tensor.scalar_type())));
    }
  };
  check_same_width(weight, "weight");
  if (hidden.dim() != 2) {
    throw ShapeError(
        fmt::format("{}: expected hidden [rows, H], got {}", kLinear, c10::str(hidden.sizes())));
  }
  if (weight.dim() != 2 || weight.size(0) == 0 || weight.size(1) != hidden.size(1)) {
    throw ShapeError(fmt::format("{}: expected weight [vocab, {}], got {}", kLinear, hidden.size(1),
                                 c10::str(weight.sizes())));
  }
  check_same_device(weight, hidden, kLinear, "weight");
  if (!bias) return;
  check_floating(*bias, kLinear, "bias");
  check_same_width(*bias, "bias");
  if (bias->dim() != 1 || bias->size(0) != weight.size(0)) {
    throw ShapeError(fmt::format("{}: expected bias [{}], got {}", kLinear, weight.size(0),
                                 c10::str(bias->sizes())));
  }
  check_same_device(*bias, hidden, kLinear, "bias");
}

/// Returns outputs_of.
variable_list score_hidden(const at::Tensor& hidden, const at::Tensor& weight,
                           const at::Tensor& targets, const std::optional<at::Tensor>& bias,
                           double scale, double softcap, double temperature,
                           std::optional<at::ScalarType> dtype, bool all_statistics,
                           std::int64_t budget_bytes, HeadPath path,
                           const DifferentiableByProducts& differentiable) {
  check_head(hidden, weight, bias);
  check_targets(targets, hidden, weight.size(0), /*ignores=*/false, kLinear);
  check_transform(scale, softcap, temperature, kLinear);
  const bool weight_grad = needs_grad(weight) || (bias && needs_grad(*bias));
  checked_path({.rows = hidden.size(0),
                .hidden_size = hidden.size(1),
                .vocab_size = weight.size(0),
                .hidden_grad = needs_grad(hidden),
                .weight_grad = weight_grad,
                .by_product_grad = differentiable.any()},
               path);
  return LinearTokenLogpsFunction::apply(hidden, weight, bias, targets, scale, softcap, temperature,
                                         result_dtype(dtype, weight, kLinear), all_statistics,
                                         differentiable, needs_grad(hidden), weight_grad,
                                         static_cast<std::int64_t>(path), budget_bytes);
}

std::tuple<at::Tensor, at::Tensor> linear_token_logps_operator(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
    const std::optional<at::Tensor>& bias, double scale, double softcap, double temperature,
    std::optional<at::ScalarType> dtype, bool all_statistics, std::int64_t budget_bytes,
    std::string_view path) {
  const variable_list out = score_hidden(hidden, weight, targets, bias, scale, softcap, temperature,
                                         dtype, all_statistics, budget_bytes, path_named(path), {});
  return {out[0], out[1]};
}

// --- from statistics to what was asked for ----------------------------------------------------

void check_mask(const at::Tensor& mask, const at::Tensor& rows, std::string_view where) {
  if (mask.scalar_type() != at::kBool) {
    throw DtypeError(
        fmt::format("{}: expected mask of bool, got {}", where, c10::toString(mask.scalar_type())));
  }
  if (rows.dim() == 0 || mask.dim() != 1 || mask.size(0) != rows.size(0)) {
    throw ShapeError(fmt::format("{}: expected mask [{}], got {}", where,
                                 rows.dim() == 0 ? 0 : rows.size(0), c10::str(mask.sizes())));
  }
  check_same_device(mask, rows, where, "mask");
}

bool needs_all_statistics(const ByProducts& wanted,
                          const DifferentiableByProducts& differentiable) {
  return wanted.entropy || wanted.mean_logit || wanted.log_sum_p_squared || differentiable.entropy;
}

TokenLogps results_of(const variable_list& outputs, const ByProducts& wanted,
                      const DifferentiableByProducts& differentiable) {
  const at::Tensor &logps = outputs[0], &statistics = outputs[1];
  TokenLogps result{.logps = logps, .by_products = {}};
  const auto take = [&](bool asked, kernels::Statistic statistic) {
    return asked ? copy_of(statistics[statistic], logps.scalar_type()) : at::Tensor();
  };
  result.by_products.logsumexp =
      take(wanted.logsumexp && !differentiable.logsumexp, kernels::kLogsumexp);
  result.by_products.entropy = take(wanted.entropy && !differentiable.entropy, kernels::kEntropy);
  result.by_products.mean_logit = take(wanted.mean_logit, kernels::kMeanLogit);
  result.by_products.log_sum_p_squared = take(wanted.log_sum_p_squared, kernels::kLogSumPSquared);
  if (wanted.is_top1) result.by_products.is_top1 = statistics[kernels::kIsTop1].to(at::kBool);
  std::size_t place = 2;
  if (differentiable.logsumexp) result.by_products.logsumexp = outputs[place++];
  if (differentiable.entropy) result.by_products.entropy = outputs[place++];
  return result;
}

}  // namespace

TORCH_LIBRARY(prefopt, library) {
  library.def(
      "token_logps(Tensor logits, Tensor targets, *, float scale=1, float softcap=0, "
      "float temperature=1, ScalarType? dtype=None, bool overwrite_logits=False, "
      "bool all_statistics=False) -> (Tensor logps, Tensor statistics)",
      TORCH_FN(token_logps_operator));
  library.def(
      "linear_token_logps(Tensor hidden, Tensor weight, Tensor targets, *, Tensor? bias=None, "
      "float scale=1, float softcap=0, float temperature=1, ScalarType? dtype=None, "
      "bool all_statistics=False, int budget_bytes=1073741824, str path='automatic') "
      "-> (Tensor logps, Tensor statistics)",
      TORCH_FN(linear_token_logps_operator));
  library.def(
      "_token_logps(Tensor logits, Tensor targets, float scale, float softcap, float temperature, "
      "bool all_statistics, Tensor(a!)? gradient) -> Tensor");
  library.def(
      "_token_logps_backward(Tensor factors, Tensor logits, Tensor targets, Tensor logsumexp, "
      "float scale, float softcap, float temperature, Tensor(a!) gradient) -> ()");
  library.def(
      "_linear_token_logps(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, float "
      "scale, "
      "float softcap, float temperature, bool all_statistics, bool hidden_grad, bool weight_grad, "
      "bool by_product_grad, int path, int budget_bytes) -> (Tensor, Tensor)");
  library.def(
      "_linear_token_logps_backward(Tensor factors, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor targets, Tensor logsumexp, Tensor kept, float scale, float softcap, "
      "float temperature, bool hidden_grad, bool weight_grad, bool by_product_grad, "
      "bool needs_hidden, "
      "bool needs_weight, bool needs_bias, int path, "
      "int budget_bytes) -> (Tensor, Tensor, Tensor)");
}

// Here and not next to the kernels, so that a static library includes them.
TORCH_LIBRARY_IMPL(prefopt, CPU, library) {
  library.impl("_token_logps", kCpuLogps.token_logps);
  library.impl("_token_logps_backward", kCpuLogps.token_logps_backward);
  library.impl("_linear_token_logps", kCpuLogps.linear_token_logps);
  library.impl("_linear_token_logps_backward", kCpuLogps.linear_token_logps_backward);
}

TORCH_LIBRARY_IMPL(prefopt, CompositeExplicitAutograd, library) {
  library.impl("_token_logps", kAtenLogps.token_logps);
  library.impl("_token_logps_backward", kAtenLogps.token_logps_backward);
  library.impl("_linear_token_logps", kAtenLogps.linear_token_logps);
  library.impl("_linear_token_logps_backward", kAtenLogps.linear_token_logps_backward);
}

TokenLogps token_logps(const at::Tensor& logits, const at::Tensor& targets,
                       const TokenLogpsOptions& options) {
  at::Tensor used = targets;
  if (options.mask.defined()) {
    check_mask(options.mask, logits, kRows);
    const at::Tensor left_out = options.mask.logical_not();
    if (targets.scalar_type() == at::kLong && targets.sizes() == options.mask.sizes() &&
        logits.dim() == 2) {
      check_targets(targets.masked_fill(left_out, 0), logits, logits.size(1), /*ignores=*/false,
                    kRows);
      used = targets.masked_fill(left_out, kIgnoredTarget);
    }
  }
  return results_of(
      score_rows(logits, used, /*ignores=*/options.mask.defined(), options.transform.scale,
                 options.transform.softcap, options.transform.temperature, options.dtype,
                 options.overwrite_logits,
                 needs_all_statistics(options.by_products, options.differentiable),
                 options.differentiable),
      options.by_products, options.differentiable);
}

TokenLogps linear_token_logps(const at::Tensor& hidden, const at::Tensor& weight,
                              const at::Tensor& targets, const LinearTokenLogpsOptions& options) {
  const std::optional<at::Tensor> bias =
      options.bias.defined() ? std::optional(options.bias) : std::nullopt;
  const auto score = [&](const at::Tensor& rows, const at::Tensor& of_rows) {
    return score_hidden(rows, weight, of_rows, bias, options.transform.scale,
                        options.transform.softcap, options.transform.temperature, options.dtype,
                        needs_all_statistics(options.by_products, options.differentiable),
                        options.budget_bytes, options.path, options.differentiable);
  };
  if (!options.mask.defined()) {
    return results_of(score(hidden, targets), options.by_products, options.differentiable);
  }
  check_mask(options.mask, hidden, kLinear);
  if (targets.sizes() != options.mask.sizes()) {
    throw ShapeError(fmt::format("{}: expected targets [{}], got {}", kLinear, options.mask.size(0),
                                 c10::str(targets.sizes())));
  }
  const at::Tensor rows = options.mask.nonzero().squeeze(1);
  variable_list outputs = score(hidden.index_select(0, rows), targets.index_select(0, rows));
  const std::int64_t all = hidden.size(0);
  for (at::Tensor& output : outputs) {  // [rows], or [statistics, rows]
    std::vector<std::int64_t> shape = output.sizes().vec();
    shape.back() = all;
    output = at::zeros(shape, output.options()).index_copy(output.dim() - 1, rows, output);
  }
  return results_of(outputs, options.by_products, options.differentiable);
}

}  // namespace prefopt
