// SPDX-License-Identifier: Apache-2.0
#include "run/plan/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "core/machine.h"
#include "decoder/packed_layer.h"
#include "math/wide_gradient.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "run/model_base.h"
#include "run/resolve.h"
#include "run/run_loss.h"
#include "run/run_prompt_cache.h"
#include "train/epoch_order.h"
#include "train/shares.h"
#include "train/step_plan.h"

namespace prefopt::detail {
namespace {

constexpr std::array kPlannedLevels = {Checkpointing::kNone, Checkpointing::kSelective,
                                       Checkpointing::kFull};

void refuse(bool is_given, std::string_view option, std::string_view expected) {
  if (!is_given) return;
  throw ConfigError(fmt::format("{}: expected {} for a plan, got another value", option, expected));
}

void check_options(const RunOptions& options) {
  refuse(options.online.is_online(), "online.prompts", "none, as a plan needs rows that exist,");
  refuse(options.data.stream.buffer > 0, "data.stream.buffer", "0, which reads all rows,");
  refuse(!options.model.adapter.empty(), "model.adapter", "a fresh adapter of model.lora");
  const ReferenceOptions& reference = options.reference;
  refuse(reference.rule != ReferenceRule::kFixed, "reference.rule", "'fixed'");
  refuse(reference.moving, "reference.moving", "false");
  refuse(!reference.adapter.empty(), "reference.adapter", "none");
}

ModelShape shape_of(const ModelOptions& model) {
  ModelShape shape =
      model.path.empty()
          ? ModelShape(model.decoder, parse_dtype(model.dtype == "keep" ? "float32" : model.dtype))
          : ModelShape::read(model.path, kept_weights(model));
  if (model.use_lora) shape.add_adapter(model.lora);
  return shape;
}

/// Returns the shape of the reference where it has own weights.
std::optional<ModelShape> own_reference(const RunOptions& options) {
  const ReferenceOptions& reference = options.reference;
  const ModelOptions& model = options.model;
  const bool is_policy = reference.path.empty() && reference.dtype.empty();
  // A fresh adapter changes nothing, so the reference is the model under it.
  if (model.use_lora && model.lora.init_lora_weights != "false" && is_policy) return std::nullopt;
  // Copies share blocks.
  if (is_policy && shape_of(model).has_blocks()) return std::nullopt;
  if (!reference.path.empty()) {
    return ModelShape::read(reference.path, kept_reference(reference, reference.path, model));
  }
  ModelOptions of = model;
  of.use_lora = false;
  of.base = "auto";
  of.quantize.clear();
  if (!reference.dtype.empty()) of.dtype = reference.dtype;
  return shape_of(of);
}

TrainerOptions cuts_of(const BatchOptions& batch) {
  TrainerOptions options;
  options.micro_batch_size = batch.micro_rows;
  options.micro_batch_tokens = batch.micro_tokens;
  return options;
}

/// The micro-batches of a step and who takes them, as the trainer's step plan has them.
class StepPlanner {
 public:
  StepPlanner(const RunModels& models, const BatchOptions& batch, const PlanAssumptions& machine)
      : models_(models.step), cuts_(cuts_of(batch)), machine_(machine) {}

  void add(const std::vector<TokenRow>& rows, RunPlan& plan) {
    const auto parts = cut_micro_batches(rows, cuts_);
    const bool measures_first = models_.needs.whole_step && parts.size() > 1;
    std::vector<StepWork> works;
    std::vector<std::int64_t> costs;  // in tokens, as the trainer deals them
    for (const auto& part : parts) {
      works.push_back(work_of(models_, part, measures_first));
      plan.most_scored = std::max(plan.most_scored, works.back().scored_tokens);
      plan.work += works.back();
      std::int64_t tokens = 0;
      for (const TokenRow& row : part) tokens += tokens_of(row);
      costs.push_back(tokens);
    }
    const auto ranks = static_cast<int>(machine_.ranks);
    for (DealingPlan& dealing : plan.dealing) {
      const std::vector<int> dealt = deal(dealing.rule, costs, ranks);
      const double share = mean_share(loads_of(works, dealt));
      dealing.imbalance += imbalance_of(costs, dealt, ranks);
      dealing.mean_share += share;
      dealing.least_share = std::min(dealing.least_share, share);
    }
    add_times(loads_of(works, deal(DealingRule::kLongestFirst, costs, ranks)), plan);
    ++plan.planned;
  }

 private:
  /// The share of a rank.
  struct Load {
    StepWork work;
    double parts = 0;
  };

  std::vector<Load> loads_of(const std::vector<StepWork>& works,
                             const std::vector<int>& dealt) const {
    std::vector<Load> loads(static_cast<std::size_t>(machine_.ranks));
    for (std::size_t i = 0; i < works.size(); ++i) {
      Load& load = loads[static_cast<std::size_t>(dealt[i])];
      load.work += works[i];
      ++load.parts;
    }
    return loads;
  }

  StepTime time_of(const Load& load) const {
    return time_of_share(load.work, load.parts, machine_);
  }

  /// Of the largest load.
  double mean_share(const std::vector<Load>& loads) const {
    double total = 0, most = 0;
    for (const Load& load : loads) {
      const double seconds = time_of(load).compute();
      total += seconds;
      most = std::max(most, seconds);
    }
    // Of equal loads, rounding may make more than the whole.
    return std::min(1.0, total / static_cast<double>(loads.size()) / most);
  }

  void add_times(const std::vector<Load>& loads, RunPlan& plan) const {
    const auto ranks = static_cast<double>(loads.size());
    StepTime mean;
    double slowest = 0, most_parts = 0;
    for (const Load& load : loads) {
      const StepTime time = time_of(load);
      mean.layers += time.layers / ranks;
      mean.head += time.head / ranks;
      mean.reference += time.reference / ranks;
      mean.fixed += time.fixed / ranks;
      slowest = std::max(slowest, time.compute());
      most_parts = std::max(most_parts, load.parts);
    }
    plan.time.layers += mean.layers;
    plan.time.head += mean.head;
    plan.time.reference += mean.reference;
    plan.time.fixed += mean.fixed;
    plan.time.imbalance += slowest - mean.compute();
    plan.micro_batches += most_parts;
  }

  const StepModels& models_;
  TrainerOptions cuts_;
  const PlanAssumptions& machine_;
};

std::int64_t memory_limit(const PlanAssumptions& machine) {
  if (machine.memory_gib > 0) {
    return static_cast<std::int64_t>(machine.memory_gib * static_cast<double>(1 << 30));
  }
  const auto usable = read_machine().usable_memory();
  return usable ? *usable / std::min(machine.ranks, machine.ranks_per_node) : 0;
}

/// Returns the dtype that layers keep activations in.
at::ScalarType kept_dtype(const Network& network, const PlanAssumptions& machine) {
  const auto dtype = network.embedding.scalar_type();
  return machine.gpu ? dtype : at_least_float32(dtype);
}

std::int64_t bytes_of_rows(const std::vector<TokenRow>& rows) {
  std::int64_t bytes = 0;
  for (const TokenRow& row : rows) {
    const std::int64_t ids = std::ssize(row.prompt) + std::ssize(row.chosen) +
                             std::ssize(row.rejected) + std::ssize(row.gold);
    bytes += static_cast<std::int64_t>(sizeof row) + 8 * ids;
  }
  return bytes;
}

/// Returns the bytes of keys and values while held-out prompts are completed.
std::int64_t bytes_of_samples(const RunOptions& options, const Network& network,
                              const std::vector<TokenRow>& held_out, at::ScalarType dtype) {
  std::vector<std::int64_t> lengths;
  for (const TokenRow& row : held_out) lengths.push_back(std::ssize(row.prompt));
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  lengths.resize(
      std::min(lengths.size(), static_cast<std::size_t>(options.evaluate.sample_prompts)));
  std::int64_t tokens = 0;
  for (const std::int64_t prompt : lengths) tokens += prompt + options.evaluate.sample_tokens;
  const DecoderOptions& sizes = network.options;
  return tokens * 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim *
         static_cast<std::int64_t>(at::elementSize(dtype));
}

void choose_checkpointing(const RunOptions& options, const PlanAssumptions& machine,
                          const RunModels& models, RunPlan& plan) {
  const Network& network = models.policy.network();
  const auto bytes = [&](Checkpointing level) {
    return plan.most_tokens * kept_bytes_per_row(network, level, kept_dtype(network, machine));
  };
  const Checkpointing chosen = chosen_checkpointing(options.machine, bytes);
  for (const Checkpointing level : kPlannedLevels) {
    plan.activations.push_back({level, bytes(level), level == chosen});
  }
}

}  // namespace

BatchOptions batch_of_rank(BatchOptions batch, std::int64_t ranks) {
  batch.micro_rows = std::min(batch.micro_rows > 0 ? batch.micro_rows : batch.rows,
                              (batch.rows + ranks - 1) / ranks);
  return batch;
}

LargestMicroBatch largest_micro_batch(const RunRows& rows, const BatchOptions& batch) {
  std::vector<std::int64_t> completions;
  for (const TokenRow& row : rows.train) {
    completions.push_back(std::ssize(row.chosen) + std::ssize(row.rejected) + std::ssize(row.gold));
  }
  std::sort(completions.begin(), completions.end(), std::greater<>());
  LargestMicroBatch largest{.tokens = most_tokens(rows.train, batch)};
  const std::int64_t count = std::min(std::ssize(completions), batch.micro_rows);
  for (std::int64_t i = 0; i < count; ++i) {
    largest.scored += completions[static_cast<std::size_t>(i)];
  }
  largest.scored = std::min(largest.scored, largest.tokens);
  return largest;
}

bool keeps_in_file(const MachineOptions& options, Checkpointing checkpointing) {
  return !options.activation_folder.empty() && checkpointing == Checkpointing::kFull;
}

MemoryPlan memory_of(const RunOptions& options, const RunModels& models, const RunRows& rows,
                     const PlanAssumptions& machine, std::int64_t tokens,
                     Checkpointing checkpointing, const HeadPlan& head) {
  MemoryPlan plan;
  add_model_parts(model_bytes(models.policy, options.optimizer), machine, plan);
  const auto add = [&](const char* name, std::int64_t size, const std::string& note) {
    plan.parts.push_back({name, size, note});
  };
  if (models.has_reference) {
    add("reference", models.frozen_reference,
        models.frozen_reference == 0 ? "the model under the adapter" : "");
  }
  if (options.reference.kind == ReferenceKind::kCached && models.has_reference) {
    const auto sides =
        1 + (models.step.needs.rejected() ? 1 : 0) + (models.step.needs.gold() ? 1 : 0);
    add("cache", 8 * std::ssize(rows.train) * sides, "a sum of each sequence, float64");
  }
  const Network& network = models.policy.network();
  const at::ScalarType dtype = kept_dtype(network, machine);
  const bool are_in_file = keeps_in_file(options.machine, checkpointing);
  add("activations", are_in_file ? 0 : tokens * kept_bytes_per_row(network, checkpointing, dtype),
      fmt::format("of {} tokens, checkpointing {}{}", tokens, to_string(checkpointing),
                  are_in_file ? ", in a file" : ""));
  add("work space", tokens * work_bytes_per_row(network, checkpointing, dtype),
      "of one layer's backward pass");
  add("head", head.bytes, head.text());
  if (const auto samples = bytes_of_samples(options, network, rows.eval, dtype); samples > 0) {
    add("caches", samples, "keys and values of completed held-out prompts");
  }
  add("rows", bytes_of_rows(rows.train) + bytes_of_rows(rows.eval), "");
  add("program", static_cast<std::int64_t>(machine.program_mib * (1 << 20)),
      "libraries, tokenizer and what they hold");
  plan.limit = memory_limit(machine);
  return plan;
}

RunModels RunModels::of(const RunOptions& given, const PlanAssumptions& machine) {
  RunOptions options = given;
  check_dtypes(options.model, options.reference);
  options.model = with_numbers_for(options.reference, options.model);
  check_options(options);
  const RunLoss loss(options.loss);
  check_prompt_cache(options, loss);
  if (machine.ranks > 1 && machine.sharding == Sharding::kWeights) {
    const std::optional<ModelShape> reference = own_reference(options);
    if (shape_of(options.model).has_blocks() || (reference && reference->has_blocks())) {
      throw ConfigError(
          "distributed.sharding: expected numbers of a floating dtype for slices of weights, got "
          "blocks; load the model in a dtype (model.base, reference.dtype)");
    }
  }
  if (loss.objective() != nullptr) {
    throw ConfigError(fmt::format(
        "loss: expected one on rows that exist, which a plan counts, got '{}', which learns from "
        "completions that the policy writes",
        loss.name()));
  }
  const LossRequirements needs = loss.requirements();
  check_plannable(needs, loss.name());
  RunModels models{
      .policy = shape_of(options.model), .has_reference = needs.reference(), .step = {}};
  models.step = {.policy = models.policy.seen(),
                 .needs = needs,
                 .head_budget_bytes = options.machine.head_budget_mib << 20,
                 .has_head_in_blocks = models.policy.has_head_in_blocks()};
  if (!models.has_reference) return models;
  const std::optional<ModelShape> own = own_reference(options);
  if (own) models.frozen_reference = frozen_bytes(*own, machine);
  models.has_live_reference = options.reference.kind == ReferenceKind::kFrozen;
  if (models.has_live_reference) {
    models.step.reference = own ? own->network() : models.policy.network();
  }
  return models;
}

std::vector<TokenRow> equal_rows(std::int64_t count, std::int64_t prompt, std::int64_t chosen,
                                 std::int64_t rejected) {
  const auto ids = [](std::int64_t size, std::int64_t first) {
    return std::vector<std::int64_t>(static_cast<std::size_t>(size), first);
  };
  std::vector<TokenRow> rows;
  for (std::int64_t i = 0; i < count; ++i) {
    // Prompts differ by row and completions by side, so that nothing but a prompt is shared.
    TokenRow row{.prompt = ids(prompt, 3), .chosen = ids(chosen, 1), .rejected = ids(rejected, 2)};
    row.prompt.front() = 4 + i;
    rows.push_back(std::move(row));
  }
  return rows;
}

RunPlan plan_run(const RunOptions& options, const RunRows& rows, const PlanAssumptions& machine,
                 std::int64_t most_steps) {
  if (options.batch.rows < machine.ranks) {
    throw ConfigError(
        fmt::format("batch.rows: expected at least a row for each of {} ranks, got {}",
                    machine.ranks, options.batch.rows));
  }
  RunModels models = RunModels::of(options, machine);
  const ModelBytes bytes = model_bytes(models.policy, options.optimizer);
  RunPlan plan;
  for (const auto& [name, value] : models.policy.parameters()) plan.parameters += value.numel();
  plan.trained = bytes.trained_numbers;
  const BatchOptions batch = batch_of_rank(options.batch, machine.ranks);
  plan.most_tokens = most_tokens(rows.train, batch);
  choose_checkpointing(options, machine, models, plan);
  for (const ActivationLevel& level : plan.activations) {
    if (level.is_chosen) models.step.checkpointing = level.checkpointing;
  }
  for (const DealingRule rule : kDealingRules) {
    plan.dealing.push_back({.rule = rule, .mean_share = 0, .least_share = 1, .imbalance = 0});
  }

  const auto parts =
      rows.parts.empty() ? std::vector<EpochPart>{{.rows = std::ssize(rows.train)}} : rows.parts;
  WeightedOrder order(parts, options.seed, options.batch.shuffle);
  plan.steps = count_steps(options.batch, order.count());
  StepPlanner planner(models, batch, machine);
  for (std::int64_t step = 0; step < std::min(plan.steps, most_steps); ++step) {
    std::vector<TokenRow> of_step;
    for (std::int64_t i = 0; i < options.batch.rows; ++i) {
      of_step.push_back(rows.train[order.at(step * options.batch.rows + i)]);
    }
    planner.add(of_step, plan);
  }
  for (DealingPlan& dealing : plan.dealing) {
    dealing.mean_share = plan.mean(dealing.mean_share);
    dealing.imbalance = plan.mean(dealing.imbalance);
  }
  plan.micro_batches = plan.mean(plan.micro_batches);
  plan.head = plan_head(head_work(models.step, plan.most_scored), models.step.head_budget_bytes);
  plan.memory = memory_of(options, models, rows, machine, plan.most_tokens,
                          models.step.checkpointing, plan.head);

  StepTime& time = plan.time;
  for (double* part : {&time.layers, &time.head, &time.reference, &time.fixed, &time.imbalance}) {
    *part = plan.mean(*part);
  }
  plan.collectives = collectives_of(bytes, machine, plan.micro_batches, models.has_live_reference);
  for (const Collective& one : plan.collectives) time.collectives += one.seconds;
  time.exposed = exposed_seconds(plan.collectives, time.compute(), plan.micro_batches, machine);
  time.optimizer = optimizer_seconds(bytes, machine);
  const double per_rank = time.step() * static_cast<double>(machine.ranks);
  plan.pairs_per_second = static_cast<double>(options.batch.rows) / per_rank;
  if (machine.peak_tflops > 0) {
    plan.mfu = plan.mean(plan.work.useful_flops()) / per_rank / (machine.peak_tflops * 1e12);
  }
  return plan;
}

}  // namespace prefopt::detail
