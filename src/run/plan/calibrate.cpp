// SPDX-License-Identifier: Apache-2.0
#include "run/plan/calibrate.h"

#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string_view>
#include <utility>

#include "math/wide_gradient.h"
#include "prefopt/logps/token_logps.h"
#include "run/plan/memory_plan.h"
#include "run/plan/repeated.h"
#include "run/plan/run_plan.h"
#include "run/plan/step_work.h"
#include "run/plan/time_plan.h"
#include "run/run_loss.h"
#include "train/optimizer.h"

namespace prefopt::detail {
namespace {

/// Times work by the fastest of several runs, and keeps the widest spread among them.
class Timer {
 public:
  template <class Work>
  double seconds(std::string_view name, const Work& work) {
    const Repeated repeated = repeat([&] {
      const auto start = std::chrono::steady_clock::now();
      work();
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    });
    check_spread(repeated, name);
    spread_ = std::max(spread_, repeated.spread);
    return repeated.best;
  }
  double spread() const { return spread_; }

 private:
  double spread_ = 0;
};

/// Returns a run of a fresh model of few layers, with the reference that is timed.
RunOptions short_run(RunOptions options, std::int64_t layers) {
  options.model.path.clear();
  options.model.base = "auto";
  options.model.quantize.clear();
  options.model.decoder.num_hidden_layers = layers;
  options.reference = {};
  options.machine.checkpointing = CheckpointingChoice::kNone;
  options.optimizer.schedule = Schedule::kConstant;
  return options;
}

/// A run of few layers: what it counts and what it takes.
class ShortRun {
 public:
  ShortRun(const RunOptions& options, std::int64_t layers)
      : options_(short_run(options, layers)),
        models_(RunModels::of(options_, {})),
        decoder_(std::make_shared<Decoder>(options_.model.decoder)) {
    const ModelOptions& model = options_.model;
    decoder_->to(parse_dtype(model.dtype == "keep" ? "float32" : model.dtype));
    if (model.use_lora) decoder_->add_adapter(model.lora);
  }

  const StepModels& models() const { return models_.step; }
  StepWork work(const std::vector<TokenRow>& rows) const { return work_of(models_.step, rows); }
  double optimizer_bytes() const {
    return optimizer_traffic(model_bytes(models_.policy, options_.optimizer));
  }

  double step_seconds(const std::vector<TokenRow>& rows, Timer& timer) const {
    std::shared_ptr<Reference> reference;
    if (models_.has_reference) {
      reference = make_frozen_reference(decoder_->adapter() ? decoder_->without_adapter()
                                                            : decoder_->frozen_decoder());
    }
    TrainerOptions options;
    options.optimizer = options_.optimizer;
    options.head_budget_bytes = models_.step.head_budget_bytes;
    const auto trainer = RunLoss(options_.loss).make_trainer(decoder_, reference, options);
    return timer.seconds(
        fmt::format("steps of {} layers", options_.model.decoder.num_hidden_layers),
        [&] { trainer->step(rows); });
  }

  /// Returns the seconds of clipping and update.
  double update_seconds(Timer& timer) const {
    const std::vector<NamedParameter> parameters = decoder_->named_parameters();
    Optimizer optimizer(parameters, options_.optimizer);
    optimizer.zero_grad();
    for (const auto& [name, value] : parameters) {
      if (!value.requires_grad()) continue;
      if (!value.grad().defined()) value.mutable_grad() = at::ones_like(value);
      value.mutable_grad().add_(1);  // a gradient that nothing was added to takes no step
    }
    return timer.seconds("updates", [&] {
      optimizer.grad_norm();
      optimizer.reserve_state();
      optimizer.step(1e-9, 0.5);
    });
  }

 private:
  RunOptions options_;
  RunModels models_;
  std::shared_ptr<Decoder> decoder_;
};

/// Returns the operations a second of the output head.
double head_speed(const StepModels& models, const PackedTokens& tokens, std::int64_t budget,
                  Timer& timer) {
  const HeadWork work = head_work(models, tokens.rows.size(0));
  const auto dtype = models.policy.embedding.scalar_type();
  const at::Tensor hidden =
      at::randn({work.rows, work.hidden_size}, at_least_float32(dtype)).requires_grad_();
  const at::Tensor weight = (at::randn({work.vocab_size, work.hidden_size}) * 0.02)
                                .to(dtype)
                                .requires_grad_(work.weight_grad);
  LinearTokenLogpsOptions options;
  options.by_products = {.entropy = true, .mean_logit = true, .is_top1 = true};
  options.budget_bytes = budget;
  const double seconds = timer.seconds("passes of the output head", [&] {
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
  const ShortRun one(options, 1), five(options, 5);
  Timer timer;
  const double head =
      head_speed(one.models(), *batch.packed, options.machine.head_budget_mib << 20, timer);
  const double memory = five.optimizer_bytes() / five.update_seconds(timer);
  const auto layers_of = [&](const ShortRun& run) {
    return run.step_seconds(rows, timer) - run.optimizer_bytes() / memory -
           run.work(rows).head_flops() / head;
  };
  const double of_one = layers_of(one), of_five = layers_of(five);
  const double flops_of_one = one.work(rows).layer_flops();
  const double flops_of_five = five.work(rows).layer_flops();
  // Where the difference drowns in noise, all of the time is that of the layers.
  const bool is_clear = of_five > 1.2 * std::max(of_one, 0.0);
  const double layers = is_clear ? (flops_of_five - flops_of_one) / (of_five - of_one)
                                 : flops_of_five / std::max(of_five, 1e-6);
  return {.layers_tflops = layers * 1e-12,
          .head_tflops = head * 1e-12,
          .memory_gb_s = memory * 1e-9,
          .fixed_ms = std::max(0.0, of_one - flops_of_one / layers) * 1e3,
          .spread = timer.spread()};
}

}  // namespace prefopt::detail
