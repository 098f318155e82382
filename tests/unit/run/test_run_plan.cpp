// SPDX-License-Identifier: Apache-2.0
// The plan of a run against trainers, batches and step plans of the library, and against figures
// of another program.
#include <fmt/format.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/epoch_rows.h"
#include "prefopt/train/trainer.h"
#include "run/plan/calibrate.h"
#include "run/plan/known_models.h"
#include "run/plan/repeated.h"
#include "run/plan/run_plan.h"
#include "support/catch.h"
#include "support/errors.h"
#include "train/shares.h"
#include "train/step_plan.h"

namespace prefopt {
namespace {

using detail::ModelBytes;
using detail::ModelShape;
using detail::PlanAssumptions;
using detail::RunPlan;

DecoderOptions plan_sizes() {
  return {.vocab_size = 37,
          .hidden_size = 12,
          .intermediate_size = 20,
          .num_hidden_layers = 2,
          .num_attention_heads = 2,
          .num_key_value_heads = 1};
}

std::vector<TokenRow> plan_rows() {
  std::vector<TokenRow> rows;
  for (std::int64_t i = 0; i < 11; ++i) {
    TokenRow row{.prompt = {1, 2, 3 + i}, .chosen = {5, 6}, .rejected = {5, 7, 8}};
    row.prompt.resize(static_cast<std::size_t>(3 + i % 4), 4);
    row.rejected.resize(static_cast<std::size_t>(1 + (5 * i) % 9), 9);
    rows.push_back(row);
  }
  return rows;
}

RunOptions plan_options() {
  RunOptions options;
  options.model.decoder = plan_sizes();
  options.batch.rows = 4;
  return options;
}

RunPlan plan_of(const RunOptions& options, const PlanAssumptions& machine = {},
                std::int64_t steps = 100) {
  return plan_run(options, {.train = plan_rows(), .eval = {}, .train_cut = {}, .eval_cut = {}},
                  machine, steps);
}

std::int64_t part(const detail::MemoryPlan& plan, const std::string& name) {
  for (const detail::MemoryPart& one : plan.parts) {
    if (one.name == name) return one.bytes;
  }
  return 0;
}

std::int64_t size_of(const at::Tensor& tensor) {
  return static_cast<std::int64_t>(tensor.nbytes());
}

/// The memory of a trainer after a step.
ModelBytes measured(const ModelOptions& model, const OptimizerOptions& optimizer) {
  auto policy = std::make_shared<Decoder>(model.decoder);
  policy->to(parse_dtype(model.dtype));
  if (model.use_lora) policy->add_adapter(model.lora);
  TrainerOptions options;
  options.optimizer = optimizer;
  options.optimizer.schedule = Schedule::kConstant;
  Trainer trainer(policy, nullptr, make_loss(R"({"type": "simpo"})"), options);
  trainer.step(plan_rows());
  ModelBytes bytes;
  for (const auto& [name, value] : policy->named_parameters()) {
    const bool is_adapter = name.starts_with("base_model.");
    (is_adapter ? bytes.adapter : bytes.weights) += size_of(value);
    if (!value.requires_grad()) continue;
    bytes.trained_numbers += value.numel();
    // Narrow ones lie in one buffer, each from a cache line on.
    const bool is_narrow = value.itemsize() < 4;
    bytes.gradients += is_narrow ? (value.numel() + 15) / 16 * 64 : size_of(value.grad());
    if (is_narrow) CHECK(value.grad().scalar_type() == at::kFloat);
  }
  for (const auto& [name, value] : trainer.state()) {
    const bool is_master = name.starts_with("optimizer.master.");
    if (is_master) {
      bytes.masters += (value.numel() + 15) / 16 * 64;
    } else if (name.starts_with("optimizer.") && name != "optimizer.step") {
      bytes.optimizer += size_of(value);
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("plan: bytes of model and optimizer are those of a trainer", "[run]") {
  const std::vector<OptimizerOptions> optimizers = {
      {},
      {.state_dtype = StateDtype::kBFloat16},
      {.masters = Masters::kStochastic},
      {.type = OptimizerType::kAdafactor},
      {.type = OptimizerType::kRmsprop},
      {.type = OptimizerType::kRmsprop, .rmsprop_momentum = 0.9}};
  for (const std::string dtype : {"float32", "float64", "bfloat16"}) {
    for (const bool use_lora : {false, true}) {
      for (std::size_t i = 0; i < optimizers.size(); ++i) {
        CAPTURE(dtype, use_lora, i);
        ModelOptions model{.dtype = dtype, .decoder = plan_sizes(), .use_lora = use_lora};
        model.lora = {.r = 3, .target_modules = {"q_proj", "down_proj"}};
        ModelShape shape(model.decoder, parse_dtype(dtype));
        if (use_lora) shape.add_adapter(model.lora);
        const ModelBytes planned = detail::model_bytes(shape, optimizers[i]);
        const ModelBytes expected = measured(model, optimizers[i]);
        CHECK(planned.weights == expected.weights);
        CHECK(planned.adapter == expected.adapter);
        CHECK(planned.gradients == expected.gradients);
        CHECK(planned.masters == expected.masters);
        CHECK(planned.optimizer == expected.optimizer);
        CHECK(planned.trained_numbers == expected.trained_numbers);
      }
    }
  }
}

TEST_CASE("plan: what ranks hold in shares", "[run]") {
  // cost_model.py of the project's material, memory(): bytes of weights with what is gathered,
  // gradients, AdamW with masters, and reference, of bfloat16 models with float32 masters. Of
  // slices of weights by hand: a share, the head and 25 MiB; a share and a layer's in float32.
  struct Known {
    const char* model;
    std::int64_t ranks;
    Sharding sharding;
    double parameters, weights, gradients, state, reference;
  };
  const std::vector<Known> all = {{"qwen2.5-1.5b", 1, Sharding::kNone, 1543714304, 3087428608,
                                   6174857216, 18524571648, 3087428608},
                                  {"qwen2.5-1.5b", 8, Sharding::kNone, 1543714304, 3087428608,
                                   6174857216, 18524571648, 3087428608},
                                  {"qwen2.5-1.5b", 8, Sharding::kOptimizer, 1543714304, 3087428608,
                                   6174857216, 2315571456, 3087428608},
                                  {"qwen2.5-7b", 8, Sharding::kGradients, 7615616512, 15231233024,
                                   4740039424, 11423424768, 15231233024},
                                  {"qwen2.5-7b", 64, Sharding::kWeights, 7615616512, 1354197168,
                                   1408207200, 1427928096, 237988016},
                                  {"llama-3.1-70b", 64, Sharding::kOptimizer, 70553706496,
                                   141107412992, 282214825984, 13228819968, 141107412992},
                                  {"llama-3.1-70b", 64, Sharding::kWeights, 70553706496, 4332364032,
                                   7832224256, 13228819968, 2204803328}};
  for (const Known& known : all) {
    CAPTURE(known.model, known.ranks, static_cast<int>(known.sharding));
    const ModelShape shape(*detail::known_model(known.model), at::kBFloat16);
    PlanAssumptions machine = PlanAssumptions::of_gpus(known.ranks);
    machine.sharding = known.sharding;
    const ModelBytes bytes = detail::model_bytes(shape, {});
    CHECK(static_cast<double>(bytes.trained_numbers) == known.parameters);
    detail::MemoryPlan plan;
    add_model_parts(bytes, machine, plan);
    const auto close = [](std::int64_t value, double expected) {
      return std::abs(static_cast<double>(value) / expected - 1) < 1e-6;  // counts of steps
    };
    // There, a layer's own gradient is among the weights.
    CHECK(close(part(plan, "weights") + part(plan, "gradients"), known.weights + known.gradients));
    CHECK(close(part(plan, "optimizer") + part(plan, "masters"), known.state));
    CHECK(close(detail::frozen_bytes(shape, machine), known.reference));
  }
}

TEST_CASE("plan: tokens and products of completions that share a prompt", "[run]") {
  // policy_gradient.json of the project's material, cost_model_smollm2_135m: rows of the layers
  // with and without sharing, rows of the head, and the products of a step in TFLOP.
  struct Known {
    std::int64_t prompt, completion, count;
    std::int64_t unshared, shared, scored;
    double tflop;
  };
  const std::vector<Known> all = {{64, 64, 8, 1016, 568, 512, 0.448914465792},
                                  {256, 128, 8, 3064, 1272, 1024, 0.98449095168},
                                  {512, 128, 8, 5112, 1528, 1024, 1.147619460096},
                                  {256, 512, 8, 6136, 4344, 4096, 3.463871579136},
                                  {1024, 64, 16, 17392, 2032, 1024, 1.46877871104}};
  const ModelShape shape(*detail::known_model("smollm2-135m"), at::kFloat);
  std::int64_t parameters = 0;
  for (const auto& [name, value] : shape.parameters()) parameters += value.numel();
  CHECK(parameters == 134515008);
  const std::int64_t of_head = shape.network().head().numel();
  CHECK(of_head == 28311552);
  for (const Known& known : all) {
    CAPTURE(known.prompt, known.completion, known.count);
    const std::vector<std::int64_t> prompt(static_cast<std::size_t>(known.prompt), 1);
    std::vector<std::vector<std::int64_t>> completions;
    for (std::int64_t i = 0; i < known.count; ++i) {
      completions.emplace_back(static_cast<std::size_t>(known.completion), 2 + i);
    }
    std::vector<TokenSequence> sequences;
    for (const auto& completion : completions) sequences.push_back({prompt, completion});
    const detail::StepModels models{.policy = shape.seen()};
    const detail::StepWork work = detail::work_of(models, make_batch(sequences));
    CHECK(work.total_tokens == known.unshared);
    CHECK(work.unique_tokens == known.shared);
    CHECK(work.scored_tokens == known.scored);
    const double products =
        6 * (static_cast<double>(parameters - of_head) * static_cast<double>(work.unique_tokens) +
             static_cast<double>(of_head) * static_cast<double>(work.scored_tokens));
    CHECK(products == Approx(known.tflop * 1e12).epsilon(1e-12));
    CHECK(work.head == 6.0 * static_cast<double>(of_head * work.scored_tokens));
  }
}

TEST_CASE("plan: steps and micro-batches are those of a run", "[run]") {
  RunOptions options = plan_options();
  options.batch.epochs = 2;
  options.batch.micro_tokens = 24;
  const RunPlan plan = plan_of(options);
  CHECK(plan.steps == 6);  // 22 rows
  CHECK(plan.planned == 6);
  CHECK(plan.mean(static_cast<double>(plan.work.pairs)) == 4);

  // The rows of a run, cut as a trainer cuts them.
  EpochRows source({.rows = plan_rows()}, {.batch_size = 4});
  Decoder policy(plan_sizes());
  const Loss loss = make_loss(R"({"type": "dpo"})");
  const LossRequirements needs = loss.requirements();
  TrainerOptions cuts;
  cuts.micro_batch_size = 4;
  cuts.micro_batch_tokens = 24;
  const auto ranks = one_process();
  const detail::Planner planner{needs, cuts, false, *ranks};
  std::int64_t parts = 0, unique = 0, scored = 0, total = 0;
  for (int step = 0; step < 6; ++step) {
    const detail::StepPlan expected = planner.plan_step(source.next(policy).rows, step);
    source.finish_step();
    for (const detail::Part& one : expected.parts) {
      const TokenBatch batch = make_pair_batch(one.rows);
      ++parts;
      unique += batch.packed->input_ids.size(0);
      scored += batch.packed->rows.size(0);
    }
    total += 2 * expected.counts.prompt + expected.counts.all_chosen +
             expected.counts.all_rejected - 2 * expected.counts.rows;
  }
  CHECK(parts > 6);
  CHECK(plan.micro_batches == Approx(static_cast<double>(parts) / 6));
  CHECK(plan.work.unique_tokens == unique);
  CHECK(plan.work.scored_tokens == scored);
  CHECK(plan.work.total_tokens == total);
}

TEST_CASE("plan: passes of head, reference and losses that see the whole step", "[run]") {
  RunOptions options = plan_options();
  const auto work = [&](const std::string& loss) {
    options.loss = fmt::format(R"({{"type": "{}"}})", loss);
    return plan_of(options).work;
  };
  const double gemm = 2.0 * 37 * 12;
  const auto dpo = work("dpo");
  const auto scored = static_cast<double>(dpo.scored_tokens);
  CHECK(dpo.head == 3 * gemm * scored);
  CHECK(dpo.reference_head == gemm * scored);
  CHECK(dpo.reference_layers == dpo.layers.forward);
  CHECK(dpo.measured_first == 0);
  CHECK(work("simpo").reference_layers == 0);
  options.reference.kind = ReferenceKind::kCached;
  CHECK(work("dpo").reference_layers == 0);
  options.reference.kind = ReferenceKind::kFrozen;
  CHECK(work("aot").measured_first == 0);
  options.batch.micro_rows = 2;
  const auto aot = work("aot");
  CHECK(aot.measured_first == aot.layers.forward);
  CHECK(aot.head_measured_first == gemm * static_cast<double>(aot.scored_tokens));
  options.model.use_lora = true;
  const auto adapted = work("dpo");
  CHECK(adapted.head == 2 * gemm * static_cast<double>(adapted.scored_tokens));
  CHECK(adapted.reference_layers < adapted.layers.forward);
}

TEST_CASE("plan: memory of activations, head and reference", "[run]") {
  RunOptions options = plan_options();
  options.machine.head_budget_mib = 1;
  RunPlan plan = plan_of(options);
  const Decoder model(plan_sizes());
  // Four largest rows.
  std::int64_t most = 0;
  {
    std::multiset<std::int64_t> sizes;
    for (const TokenRow& row : plan_rows()) {
      sizes.insert(std::ssize(row.prompt) + std::ssize(row.chosen) + std::ssize(row.rejected));
    }
    auto size = sizes.rbegin();
    for (int i = 0; i < 4; ++i) most += *size++;
  }
  CHECK(plan.most_tokens == most);
  CHECK(part(plan.memory, "activations") == model.activation_bytes(most, Checkpointing::kNone));
  CHECK(part(plan.memory, "head") == plan.head.bytes);
  CHECK(plan.head.bytes <= 1 << 20);
  CHECK(part(plan.memory, "reference") == part(plan.memory, "weights"));
  std::int64_t sum = 0;
  for (const detail::MemoryPart& one : plan.memory.parts) sum += one.bytes;
  CHECK(plan.memory.total() == sum);

  options.machine.checkpointing = CheckpointingChoice::kFull;
  options.model.use_lora = true;
  plan = plan_of(options);
  CHECK(part(plan.memory, "activations") == model.activation_bytes(most, Checkpointing::kFull));
  CHECK(part(plan.memory, "reference") == 0);
  CHECK(plan.work.layers.recomputed > 0);
  options.reference.kind = ReferenceKind::kCached;
  CHECK(part(plan_of(options).memory, "cache") == 8 * 22);
}

TEST_CASE("plan: dealing and its imbalance", "[run]") {
  // cost_model.py of the project's material, deal(): the largest load, in thousandths.
  const std::vector<std::int64_t> costs = {752,  1250, 1081, 292, 326,  550,  514, 1192,
                                           1999, 575,  239,  351, 1355, 1072, 467, 1541,
                                           540,  912,  3827, 438, 1319, 1556, 630, 393};
  const std::map<int, std::vector<std::int64_t>> known = {
      {2, {14050, 11623, 11697}}, {3, {9615, 8163, 7849}}, {8, {5584, 4739, 3827}}};
  for (const auto& [ranks, most] : known) {
    for (std::size_t rule = 0; rule < 3; ++rule) {
      CAPTURE(ranks, rule);
      const std::vector<int> dealt = detail::deal(detail::kDealingRules[rule], costs, ranks);
      REQUIRE(dealt.size() == costs.size());
      std::vector<std::int64_t> loads(static_cast<std::size_t>(ranks));
      for (std::size_t i = 0; i < costs.size(); ++i) {
        loads.at(static_cast<std::size_t>(dealt[i])) += costs[i];
      }
      CHECK(*std::max_element(loads.begin(), loads.end()) == most[rule]);
      // 23171 in all.
      CHECK(detail::imbalance_of(costs, dealt, ranks) ==
            Approx(static_cast<double>(most[rule] * ranks) / 23171));
    }
  }
}

TEST_CASE("plan: the work of ranks is that of their micro-batches", "[run]") {
  RunOptions options = plan_options();
  options.batch.rows = 8;
  options.batch.steps = 1;
  options.batch.shuffle = false;
  options.batch.micro_rows = 1;
  PlanAssumptions machine;
  machine.ranks = 3;
  machine.layers_tflops = machine.head_tflops = 1e-12;  // seconds are operations
  const RunPlan plan = plan_of(options, machine);
  const auto models = detail::RunModels::of(options, machine);
  // Micro-batches of a row each, the longest to the rank with the fewest tokens.
  const std::vector<TokenRow> rows = plan_rows();
  std::vector<std::int64_t> order(8), tokens;
  std::vector<double> flops;
  for (std::size_t i = 0; i < 8; ++i) {
    order[i] = static_cast<std::int64_t>(i);
    tokens.push_back(std::ssize(rows[i].prompt) + std::ssize(rows[i].chosen) +
                     std::ssize(rows[i].rejected));
    flops.push_back(detail::work_of(models.step, {rows[i]}).flops());
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return tokens[static_cast<std::size_t>(a)] > tokens[static_cast<std::size_t>(b)];
  });
  std::vector<std::int64_t> loads(3);
  std::vector<double> seconds(3), parts(3);
  for (const std::int64_t row : order) {
    const auto least =
        static_cast<std::size_t>(std::min_element(loads.begin(), loads.end()) - loads.begin());
    loads[least] += tokens[static_cast<std::size_t>(row)];
    seconds[least] += flops[static_cast<std::size_t>(row)];
    ++parts[least];
  }
  const double most = *std::max_element(seconds.begin(), seconds.end());
  const double mean = (seconds[0] + seconds[1] + seconds[2]) / 3;
  CHECK(plan.time.compute() == Approx(most));
  CHECK(plan.time.imbalance == Approx(most - mean));
  CHECK(plan.dealing[2].mean_share == Approx(mean / most));
  CHECK(plan.dealing[2].least_share == plan.dealing[2].mean_share);
  CHECK(plan.micro_batches == *std::max_element(parts.begin(), parts.end()));
  CHECK(plan.work.flops() == Approx(3 * mean));
}

TEST_CASE("plan: collectives by alpha and beta", "[run]") {
  // cost_model.py of the project's material, Net: a sum of 1 GB, shares of it, a sum of nothing.
  const std::map<std::int64_t, std::vector<double>> known = {
      {2, {0.0027297027027027025, 0.0013723513513513514, 2.7e-05}},
      {8, {0.00482872972972973, 0.0024218648648648648, 9.9e-05}},
      {16, {0.006066375000000001, 0.0030406875, 0.000207}},
      {64, {0.00640734375, 0.0032111718749999996, 0.000255}}};
  for (const auto& [ranks, seconds] : known) {
    CAPTURE(ranks);
    const detail::Interconnect net(PlanAssumptions::of_gpus(ranks));
    CHECK(net.sum(1e9) == Approx(seconds[0]).epsilon(1e-12));
    CHECK(net.half(1e9) == Approx(seconds[1]).epsilon(1e-12));
    CHECK(net.sum(0) == Approx(seconds[2]).epsilon(1e-12));
  }
  CHECK(detail::Interconnect(PlanAssumptions()).sum(1e9) == 0);

  const ModelShape shape(*detail::known_model("qwen2.5-7b"), at::kBFloat16);
  const ModelBytes bytes = detail::model_bytes(shape, {});
  const auto total = [&](Sharding sharding, double micro_batches, const char* name) {
    PlanAssumptions machine = PlanAssumptions::of_gpus(8);
    machine.sharding = sharding;
    double sum = 0;
    for (const detail::Collective& one : collectives_of(bytes, machine, micro_batches, true)) {
      if (one.name == name) sum += one.bytes;
    }
    return sum;
  };
  const double numbers = 7615616512, head = 152064.0 * 3584;
  CHECK(total(Sharding::kNone, 3, "sum of gradients") == 4 * numbers);
  CHECK(total(Sharding::kOptimizer, 3, "shares of gradients") == 4 * numbers);
  CHECK(total(Sharding::kOptimizer, 3, "gathered weights") == 2 * numbers);
  CHECK(total(Sharding::kGradients, 3, "shares of gradients") == 3 * 4 * numbers);
  CHECK(total(Sharding::kWeights, 2, "gathered layers") +
            total(Sharding::kWeights, 2, "gathered embedding and head") ==
        2 * (3 * 2 * (numbers - 2 * head - 3584) + 5 * 2 * head));
  CHECK(total(Sharding::kWeights, 2, "shares of gradients") == 2 * 4 * numbers);
}

TEST_CASE("plan: time is work by speed, and what nothing hides", "[run]") {
  RunOptions options = plan_options();
  PlanAssumptions machine;
  machine.layers_tflops = 2e-6;
  machine.head_tflops = 1e-6;
  machine.memory_gb_s = 1e-3;
  machine.peak_tflops = 4e-6;
  machine.fixed_ms = 3;
  options.batch.micro_rows = 2;
  const RunPlan plan = plan_of(options, machine);
  const auto& work = plan.work;
  const double steps = static_cast<double>(plan.planned);
  CHECK(plan.time.layers + plan.time.head + plan.time.reference ==
        Approx(work.layer_flops() / steps / 2e6 + work.head_flops() / steps / 1e6));
  CHECK(plan.time.fixed == Approx(2 * 3e-3));
  const ModelBytes bytes = detail::model_bytes(ModelShape(plan_sizes(), at::kFloat), {});
  CHECK(plan.time.optimizer == Approx((2.0 * static_cast<double>(bytes.optimizer + bytes.weights) +
                                       static_cast<double>(bytes.gradients)) /
                                      1e6));
  CHECK(plan.time.collectives == 0);
  CHECK(plan.time.step() == Approx(plan.time.compute() + plan.time.optimizer));
  CHECK(plan.pairs_per_second == Approx(4 / plan.time.step()));
  CHECK(plan.mfu == Approx(work.useful_flops() / steps / plan.time.step() / 4e6));

  const std::vector<detail::Collective> one = {{"sum", 1, 1e9, 10}};
  machine.overlap = 0.8;
  CHECK(detail::exposed_seconds(one, 100, 2, machine) == Approx(2));
  CHECK(detail::exposed_seconds(one, 12, 2, machine) == Approx(4));
  machine.sharding = Sharding::kGradients;
  CHECK(detail::exposed_seconds(one, 12, 2, machine) == Approx(2));
}

TEST_CASE("plan: a machine is measured by its fastest runs, or not at all", "[run]") {
  // Seconds of runs, the first of which warms up.
  const auto repeated = [](std::vector<double> seconds) {
    auto next = seconds.begin();
    return detail::repeat([&] { return *next++; });
  };
  const detail::Repeated steady = repeated({9, 1.02, 1, 3, 1.04, 5});
  CHECK(steady.runs == 5);
  CHECK(steady.best == 1);
  CHECK(steady.spread == Approx(0.04));
  const detail::Repeated late = repeated({9, 2, 3, 4, 1, 5, 1, 1.04, 8, 8});
  CHECK(late.runs == 7);
  CHECK(late.best == 1);
  CHECK_NOTHROW(check_spread(late, "steps"));
  const detail::Repeated wild = repeated({1, 2, 1.3, 2, 1, 2, 2, 2, 2, 2, 2, 1.2, 2, 2, 2, 2});
  CHECK(wild.runs == 15);
  CHECK(wild.best == 1);
  CHECK_THROWS_TEXT(check_spread(wild, "steps of 5 layers"), ConfigError,
                    "--calibrate: expected steps of 5 layers that take the same time, got a spread "
                    "of 30 % of the three fastest of 15; close other programs, or give "
                    "--layers-tflops, --head-tflops, --memory-gb-s and --fixed-ms");
}

TEST_CASE("plan: speeds measured here are positive numbers, or refused as too uneven", "[run]") {
  RunOptions options = plan_options();
  for (const bool use_lora : {false, true}) {
    options.model.use_lora = use_lora;
    try {
      const detail::MeasuredSpeed speed = detail::measure_speed(options, plan_rows());
      CHECK(std::isfinite(speed.layers_tflops));
      CHECK(speed.layers_tflops > 0);
      CHECK(speed.head_tflops > 0);
      CHECK(speed.memory_gb_s > 0);
      CHECK(speed.fixed_ms >= 0);
      CHECK(speed.spread <= detail::Repeated::kWide);
    } catch (const ConfigError& error) {  // next to other programs
      const std::string text = error.what();
      CHECK(text.find("that take the same time, got a spread of ") != std::string::npos);
    }
  }
}

TEST_CASE("plan: what it does not count is refused by name", "[run]") {
  const auto refused = [](const std::string& loss, const std::string& text) {
    RunOptions options = plan_options();
    options.loss = loss;
    CHECK_THROWS_TEXT(plan_of(options), ConfigError, text);
  };
  const std::string expected =
      "loss: expected one that scores the completions of its rows, which a plan counts, got ";
  refused(R"({"type": "kto"})", expected + "'kto', which scores completions of other rows too");
  refused(R"({"type": "reward_bt"})", expected + "'reward_bt', which trains a reward model");
  refused(R"({"type": "tdpo"})", expected + "'tdpo', which compares whole distributions");
  refused(R"({"type": "grpo"})",
          "loss: expected one on rows that exist, which a plan counts, got 'grpo', which learns "
          "from completions that the policy writes");
  RunOptions options = plan_options();
  options.reference.moving = true;
  CHECK_THROWS_TEXT(plan_of(options), ConfigError,
                    "reference.moving: expected false for a plan, got another value");
  PlanAssumptions machine;
  machine.ranks = 5;
  CHECK_THROWS_TEXT(plan_of(plan_options(), machine), ConfigError,
                    "batch.rows: expected at least a row for each of 5 ranks, got 4");
}

}  // namespace prefopt
