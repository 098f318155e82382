// SPDX-License-Identifier: Apache-2.0
#include "run/plan/calibrate.h"

#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>

#include "decoder/model_shape.h"
#include "decoder/stream_flops.h"
#include "math/wide_gradient.h"
#include "prefopt/logps/token_logps.h"
#include "run/plan/memory_plan.h"
#include "run/plan/step_work.h"
#include "run/plan/time_plan.h"
#include "run/run_loss.h"
#include "train/optimizer.h"

namespace prefopt::detail {
namespace {

/// Returns the median seconds of five runs, after one that warms up.
template <class Work>
double median_seconds(const Work& work) {
  std::array<double, 5> seconds{};
  work();
  for (double& one : seconds) {
    const auto start = std::chrono::steady_clock::now();
    work();
    one = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[2];
}

/// A decoder of few layers, and its sizes.
class ShortModel {
 public:
  ShortModel(const ModelOptions& model, std::int64_t layers)
      : decoder_(std::make_shared<Decoder>(sizes_of(model, layers))),
        shape_(decoder_->options(), dtype_of(model)) {
    decoder_->to(dtype_of(model));
    if (!model.use_lora) return;
    decoder_->add_adapter(model.lora);
    shape_.add_adapter(model.lora);
  }

  const ModelShape& shape() const { return shape_; }

  /// Returns the seconds of a forward and a backward pass.
  double pass_seconds(const PackedTokens& tokens) const {
    return median_seconds([&] {
      drop_gradients();
      const at::Tensor hidden = decoder_->forward_packed(tokens);
      hidden.backward(at::ones_like(hidden));
    });
  }

  /// Returns the seconds of clipping and update.
  double update_seconds(const OptimizerOptions& options) const {
    Optimizer optimizer(decoder_->named_parameters(), options);
    optimizer.zero_grad();
    for (const auto& [name, value] : decoder_->named_parameters()) {
      if (!value.requires_grad()) continue;
      if (!value.grad().defined()) value.mutable_grad() = at::ones_like(value);
      value.mutable_grad().add_(1);  // a gradient that nothing was added to takes no step
    }
    return median_seconds([&] {
      optimizer.grad_norm();
      optimizer.reserve_state();
      optimizer.step(1e-9, 0.5);
    });
  }

 private:
  static DecoderOptions sizes_of(const ModelOptions& model, std::int64_t layers) {
    DecoderOptions options = model.decoder;
    options.num_hidden_layers = layers;
    return options;
  }
  static at::ScalarType dtype_of(const ModelOptions& model) {
    return parse_dtype(model.dtype == "keep" ? "float32" : model.dtype);
  }
  void drop_gradients() const {
    for (const auto& [name, value] : decoder_->named_parameters()) value.mutable_grad().reset();
  }

  std::shared_ptr<Decoder> decoder_;
  ModelShape shape_;
};

/// Returns the operations a second of the output head.
double head_speed(const Network& network, const PackedTokens& tokens, std::int64_t budget) {
  const HeadWork work = head_work(network, tokens.rows.size(0));
  const auto dtype = network.embedding.scalar_type();
  const at::Tensor hidden =
      at::randn({work.rows, work.hidden_size}, at_least_float32(dtype)).requires_grad_();
  const at::Tensor weight = (at::randn({work.vocab_size, work.hidden_size}) * 0.02)
                                .to(dtype)
                                .requires_grad_(work.weight_grad);
  LinearTokenLogpsOptions options;
  options.by_products = {.entropy = true, .mean_logit = true, .is_top1 = true};
  options.budget_bytes = budget;
  const double seconds = median_seconds([&] {
    hidden.mutable_grad().reset();
    weight.mutable_grad().reset();
    linear_token_logps(hidden, weight, tokens.targets, options).logps.sum().backward();
  });
  const double gemm = 2 * static_cast<double>(work.rows) * static_cast<double>(weight.numel());
  return plan_head(work, budget).gemms * gemm / seconds;
}

}  // namespace

void MeasuredSpeed::put_into(PlanAssumptions& machine) const {
  machine.layers_tflops = layers_tflops;
  machine.head_tflops = head_tflops;
  machine.memory_gb_s = memory_gb_s;
  machine.fixed_ms = fixed_ms;
}

MeasuredSpeed measure_speed(const RunOptions& options, const std::vector<TokenRow>& rows) {
  const LossRequirements needs = RunLoss(options.loss).requirements();
  const TokenBatch batch = make_pair_batch(rows, needs.rejected(), needs.gold());
  const PackedTokens& tokens = *batch.packed;
  const auto flops_of = [&](const ShortModel& model) {
    const StreamFlops flops = stream_flops(model.shape().seen(), tokens, Checkpointing::kNone);
    return flops.forward + flops.backward;
  };
  const ShortModel one(options.model, 1), three(options.model, 3);
  const double of_one = one.pass_seconds(tokens), of_three = three.pass_seconds(tokens);
  // Where the difference drowns in noise, all of the time is that of the layers.
  const bool is_clear = of_three > 1.2 * of_one;
  const double rate = is_clear ? (flops_of(three) - flops_of(one)) / (of_three - of_one)
                               : flops_of(three) / of_three;
  const ModelBytes bytes = model_bytes(three.shape(), options.optimizer);
  return {
      .layers_tflops = rate * 1e-12,
      .head_tflops =
          head_speed(three.shape().seen(), tokens, options.machine.head_budget_mib << 20) * 1e-12,
      .memory_gb_s = optimizer_traffic(bytes) / three.update_seconds(options.optimizer) * 1e-9,
      .fixed_ms = std::max(0.0, of_one - flops_of(one) / rate) * 1e3};
}

}  // namespace prefopt::detail
