// SPDX-License-Identifier: Apache-2.0

// From hidden states to log-probs (targets K3 to K6): prefopt against the head that keeps its
// logits in memory, and against the bare products.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "prefopt/logps/token_logps.h"
#include "prefopt/losses/pair/dpo.h"
#include "support/eager.h"
#include "support/inputs.h"
#include "support/oracle.h"
#include "support/report.h"

namespace prefopt::bench {
namespace {

constexpr const char* kAutomatic = "prefopt automatic";
constexpr const char* kFrozen = "prefopt frozen_head";
constexpr const char* kForward = "prefopt forward only";
constexpr const char* kEager = "eager: mm, log_softmax, gather";
constexpr const char* kEagerLogsumexp = "eager: mm, gather - logsumexp";
constexpr const char* kThreeMm = "limit: three at::mm";
constexpr const char* kFreshMm = "one at::mm into fresh memory";
constexpr const char* kTiledMm = "tiled at::mm, products alone";
constexpr const char* kDpo = "prefopt";
constexpr const char* kDpoEager = "eager on the completion rows";
constexpr const char* kFourMm = "limit: four at::mm on the completion rows";

constexpr double kLogpsTolerance = 1e-6;
constexpr double kGradientTolerance = 1e-5;
constexpr double kNarrowTolerance = 4e-3;  // of gradients rounded to bfloat16

struct Arguments {
  Options options;
  std::int64_t hidden = 576;
  std::string part = "all";
  std::int64_t k4_rows = 8192;
  std::int64_t k4_budget_mib = 64;
  std::int64_t pairs = 4, prompt = 114, chosen = 56, rejected = 56;
  std::string lengths;

  bool does(const char* name) const { return part == "all" || part == name; }
};

double flops(double gemms, std::int64_t rows, std::int64_t hidden, std::int64_t vocab) {
  return gemms * 2 * static_cast<double>(rows) * static_cast<double>(hidden) *
         static_cast<double>(vocab);
}

// --- a head and what is done with it ----------------------------------------------------------

struct Head {
  Head(std::int64_t rows, std::int64_t hidden_size, std::int64_t vocab, at::ScalarType dtype)
      : hidden(random_normal({rows, hidden_size}, 1, dtype, 1).requires_grad_()),
        weight(random_normal({vocab, hidden_size}, 0.02, dtype, 2).requires_grad_()),
        targets(random_targets(rows, vocab, 3)),
        c(random_normal({rows}, 1, at::kFloat, 4)) {}

  std::int64_t rows() const { return hidden.size(0); }
  std::int64_t vocab() const { return weight.size(0); }

  HeadWork work(bool hidden_grad, bool weight_grad) const {
    return {.rows = rows(),
            .hidden_size = hidden.size(1),
            .vocab_size = vocab(),
            .narrow_weight = weight.scalar_type() != at::kFloat,
            .hidden_grad = hidden_grad,
            .weight_grad = weight_grad};
  }

  at::Tensor hidden, weight, targets, c;
};

enum class Needs { kNothing, kHidden, kBoth };

struct Result {
  at::Tensor logps, hidden_grad, weight_grad;
};

using Logps = std::function<at::Tensor(const at::Tensor& hidden, const at::Tensor& weight,
                                       const at::Tensor& targets)>;

Logps prefopt_path(HeadPath path, std::int64_t budget_bytes) {
  return [=](const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets) {
    LinearTokenLogpsOptions options;
    options.path = path;
    options.budget_bytes = budget_bytes;
    return linear_token_logps(hidden, weight, targets, options).logps;
  };
}

at::Tensor eager_logps(const at::Tensor& hidden, const at::Tensor& weight,
                       const at::Tensor& targets) {
  return eager::log_softmax_gather(at::mm(hidden, weight.t()), targets);
}

at::Tensor eager_logsumexp(const at::Tensor& hidden, const at::Tensor& weight,
                           const at::Tensor& targets) {
  return eager::gather_logsumexp(at::mm(hidden, weight.t()), targets);
}

Result run_head(const Head& head, const Logps& logps, Needs needs) {
  const at::AutoGradMode mode(needs != Needs::kNothing);
  const at::Tensor weight = needs == Needs::kBoth ? head.weight : head.weight.detach();
  Result result;
  result.logps = logps(head.hidden, weight, head.targets);
  if (needs == Needs::kNothing) return result;
  std::vector<at::Tensor> inputs = {head.hidden};
  if (needs == Needs::kBoth) inputs.push_back(weight);
  const auto grads =
      torch::autograd::grad({result.logps}, inputs, {head.c.to(result.logps.scalar_type())});
  result.hidden_grad = grads[0];
  if (needs == Needs::kBoth) result.weight_grad = grads[1];
  return result;
}

struct Entry {
  std::string name;
  Logps logps;
  Needs needs;
  std::optional<HeadPlan> plan = std::nullopt;  ///< of prefopt's own
};

Entry prefopt_entry(const Head& head, std::string name, Needs needs, HeadPath path,
                    std::int64_t budget_bytes = std::int64_t{1} << 30) {
  const HeadWork work = head.work(needs != Needs::kNothing, needs == Needs::kBoth);
  return {std::move(name), prefopt_path(path, budget_bytes), needs,
          plan_head(work, budget_bytes, path)};
}

Contender contender(const Head& head, const Entry& entry) {
  std::int64_t results = head.rows() * 4;
  if (entry.needs != Needs::kNothing) results += bytes_of(head.hidden);
  if (entry.needs == Needs::kBoth) results += bytes_of(head.weight);
  const double gemms = entry.needs == Needs::kBoth ? 3 : entry.needs == Needs::kHidden ? 2 : 1;
  return {.name = entry.name,
          .run = [&head, entry] { run_head(head, entry.logps, entry.needs); },
          .work = flops(gemms, head.rows(), head.hidden.size(1), head.vocab()),
          .result_bytes = results,
          .plan_bytes = entry.plan ? entry.plan->bytes : 0};
}

/// Every entry that has a plan, which prefopt's have, against the oracle.
void check(Report& report, const Head& head, const std::vector<Entry>& entries) {
  const HeadOracle oracle = head_oracle(head.hidden, head.weight, head.targets, head.c);
  const double tolerance =
      head.weight.scalar_type() == at::kFloat ? kGradientTolerance : kNarrowTolerance;
  for (const Entry& entry : entries) {
    if (!entry.plan) continue;
    const Result got = run_head(head, entry.logps, entry.needs);
    report.check(entry.name + ", log-probs", logps_error(got.logps, oracle.logps), kLogpsTolerance);
    if (got.hidden_grad.defined()) {
      report.check(entry.name + ", gradient of hidden",
                   relative_error(got.hidden_grad, oracle.hidden_grad), tolerance);
    }
    if (got.weight_grad.defined()) {
      report.check(entry.name + ", gradient of weight",
                   relative_error(got.weight_grad, oracle.weight_grad), tolerance);
    }
  }
}

void note_plans(Report& report, const std::vector<Entry>& entries) {
  for (const Entry& entry : entries) {
    if (entry.plan) report.note(fmt::format("  {}: {}", entry.name, entry.plan->text()));
  }
}

Task task_of(const char* part, std::string title, const Head& head, std::string dtype,
             const char* base) {
  return {.part = part,
          .title = std::move(title),
          .dtype = std::move(dtype),
          .rows = head.rows(),
          .vocab = head.vocab(),
          .hidden = head.hidden.size(1),
          .unit = "GFLOP/s",
          .base = base};
}

// --- the bare products ------------------------------------------------------------------------

/// hidden · weightᵀ, Z · weight, Zᵀ · hidden, each into its own memory.
Contender three_mm(const Head& head, const at::Tensor& z, std::string name) {
  const at::Tensor x = head.hidden.detach().to(z.scalar_type());
  const at::Tensor w = head.weight.detach().to(z.scalar_type());
  return {.name = std::move(name),
          .run =
              [=] {
                const at::NoGradGuard no_grad;
                const at::Tensor logits = at::mm(x, w.t());
                const at::Tensor hidden_grad = at::mm(z, w);
                const at::Tensor weight_grad = at::mm(z.t(), x);
              },
          .work = flops(3, x.size(0), x.size(1), w.size(0))};
}

/// Returns the same into memory that is there already, where a caller keeps it between steps.
Contender three_mm_reused(const Head& head, const at::Tensor& z) {
  const at::Tensor x = head.hidden.detach(), w = head.weight.detach();
  at::Tensor logits = at::zeros_like(z), hidden_grad = at::zeros_like(x),
             weight_grad = at::zeros_like(w);
  return {.name = "three at::mm into reused memory",
          .run =
              [=]() mutable {
                const at::NoGradGuard no_grad;
                at::mm_out(logits, x, w.t());
                at::mm_out(hidden_grad, z, w);
                at::mm_out(weight_grad, z.t(), x);
              },
          .work = flops(3, x.size(0), x.size(1), w.size(0))};
}

/// Runs a forward pass of tiles of 2,048 vocabulary rows, transposed as prefopt's are, from
/// at::mm: the products alone, or with an online softmax of LibTorch's operators.
at::Tensor tiled_mm(const Head& head, const at::Tensor& buffer, bool with_softmax) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = head.hidden.detach(), w = head.weight.detach();
  const std::int64_t rows = x.size(0), step = buffer.size(0);
  at::Tensor max = at::full({rows}, -std::numeric_limits<float>::infinity(), x.options());
  at::Tensor sum = at::zeros({rows}, x.options());
  for (std::int64_t begin = 0; begin < w.size(0); begin += step) {
    const at::Tensor of_weight = w.slice(0, begin, begin + step);
    at::Tensor tile = buffer.slice(0, 0, of_weight.size(0));
    at::mm_out(tile, of_weight, x.t());
    if (!with_softmax) continue;
    const at::Tensor new_max = at::maximum(max, tile.amax(0));
    sum.mul_(max.sub_(new_max).exp_()).add_(tile.sub_(new_max).exp_().sum(0));
    max = new_max;
  }
  if (!with_softmax) return sum;
  const at::Tensor target = (x * w.index_select(0, head.targets)).sum(1);
  return target - max - sum.log();
}

// --- K3 ---------------------------------------------------------------------------------------

void equal_rows(Report& report, const Arguments& arguments, std::int64_t rows, std::int64_t vocab) {
  const Head head(rows, arguments.hidden, vocab, at::kFloat);
  // keep_logits is asked for by name, whatever it takes.
  const std::int64_t no_limit = std::int64_t{1} << 40;
  const std::vector<Entry> entries = {
      prefopt_entry(head, kAutomatic, Needs::kBoth, HeadPath::kAutomatic),
      prefopt_entry(head, "prefopt keep_logits", Needs::kBoth, HeadPath::kKeepLogits, no_limit),
      prefopt_entry(head, "prefopt recompute", Needs::kBoth, HeadPath::kRecompute),
      prefopt_entry(head, kFrozen, Needs::kHidden, HeadPath::kAutomatic),
      prefopt_entry(head, kForward, Needs::kNothing, HeadPath::kAutomatic),
      {kEager, eager_logps, Needs::kBoth},
      {kEagerLogsumexp, eager_logsumexp, Needs::kBoth},
      {"eager, frozen head", eager_logps, Needs::kHidden},
      {"eager, forward only", eager_logps, Needs::kNothing}};
  if (arguments.options.check) check(report, head, entries);
  note_plans(report, entries);

  const at::Tensor z = random_normal({rows, vocab}, 1, at::kFloat, 5);
  const at::Tensor buffer = at::zeros({std::min<std::int64_t>(2048, vocab), rows});
  const double one_gemm = flops(1, rows, arguments.hidden, vocab);
  std::vector<Contender> contenders;
  for (const Entry& entry : entries) contenders.push_back(contender(head, entry));
  contenders.push_back(three_mm(head, z, kThreeMm));
  contenders.push_back(three_mm_reused(head, z));
  contenders.push_back({.name = kFreshMm,
                        .run =
                            [&] {
                              const at::NoGradGuard no_grad;
                              at::mm(head.hidden, head.weight.t());
                            },
                        .work = one_gemm});
  contenders.push_back(
      {.name = kTiledMm, .run = [&] { tiled_mm(head, buffer, false); }, .work = one_gemm});
  contenders.push_back({.name = "tiled at::mm, online softmax by ATen",
                        .run = [&] { tiled_mm(head, buffer, true); },
                        .work = one_gemm});
  if (arguments.options.check) {
    const HeadOracle oracle = head_oracle(head.hidden, head.weight, head.targets, {});
    report.check("tiled at::mm, log-probs", logps_error(tiled_mm(head, buffer, true), oracle.logps),
                 1e-5);
  }

  const Task task = task_of("k3", "hidden states to log-probs; 3 GEMMs, frozen head 2, forward 1",
                            head, "float32", kAutomatic);
  const Table table = report.measure(task, contenders);
  const auto judge = [&](const char* target, const char* measure, std::optional<double> value,
                         double limit) {
    report.judge(task, target, measure, value, Bound::kAtLeast, limit);
  };
  const auto ours = table.ms(kAutomatic);
  judge("K3", "times the speed of materialized eager (the faster one)",
        quotient(table.fastest_ms({kEager, kEagerLogsumexp}), ours), 1.2);
  judge("K3", "of the speed of three at::mm", quotient(table.ms(kThreeMm), ours), 1);
  judge("K3", "of the speed of three at::mm, next", quotient(table.ms(kThreeMm), ours), 1.2);
  const auto forward = table.ms(kForward);
  judge("K3", "fused forward, of the speed of tiled at::mm alone",
        quotient(table.ms(kTiledMm), forward), 1);
  judge("K3", "fused forward, of the speed of one fresh at::mm",
        quotient(table.ms(kFreshMm), forward), 1);
}

// --- K4 ---------------------------------------------------------------------------------------

void bounded_memory(Report& report, const Arguments& arguments, std::int64_t vocab) {
  const Head head(arguments.k4_rows, arguments.hidden, vocab, at::kFloat);
  const std::string ours = fmt::format("prefopt, budget {} MiB", arguments.k4_budget_mib);
  const std::vector<Entry> entries = {
      prefopt_entry(head, ours, Needs::kBoth, HeadPath::kAutomatic, arguments.k4_budget_mib << 20),
      {kEager, eager_logps, Needs::kBoth}};
  if (arguments.options.check) check(report, head, entries);
  note_plans(report, entries);
  std::vector<Contender> contenders;
  for (const Entry& entry : entries) contenders.push_back(contender(head, entry));
  const Task task = task_of("k4", "forward + backward under a budget; peaks with the gradients",
                            head, "float32", ours.c_str());
  const Table table = report.measure(task, contenders);
  const auto peak = [&](std::string_view name) -> std::optional<double> {
    const Row* row = table.find(name);
    if (row == nullptr || !row->peak_bytes) return std::nullopt;
    return static_cast<double>(*row->peak_bytes);
  };
  auto share = quotient(peak(ours), peak(kEager));
  if (share) *share *= 100;
  report.judge(task, "K4", "% of the peak memory of materialized eager", share, Bound::kAtMost, 5);
  report.judge(task, "K4", "times the time of materialized eager",
               quotient(table.ms(ours), table.ms(kEager)), Bound::kAtMost, 1.4);
}

// --- K5 ---------------------------------------------------------------------------------------

constexpr double kBeta = 0.1;

/// The rows of a batch of pairs: the chosen completions, then the rejected ones.
struct PairBatch {
  PairBatch(const PairLens& lens, std::int64_t hidden_size, std::int64_t vocab, std::uint64_t seed)
      : pairs(static_cast<std::int64_t>(lens.chosen.size())),
        hidden(random_normal({lens.rows(), hidden_size}, 1, at::kFloat, seed).requires_grad_()),
        ref_hidden(random_normal({lens.rows(), hidden_size}, 1, at::kFloat, seed + 1)),
        targets(random_targets(lens.rows(), vocab, seed + 2)),
        row_to_sequence(at::empty({lens.rows()}, at::kLong)) {
    auto* sequence = row_to_sequence.data_ptr<std::int64_t>();
    std::int64_t index = 0;
    for (const auto* side : {&lens.chosen, &lens.rejected}) {
      for (const std::int64_t count : *side) sequence = std::fill_n(sequence, count, index++);
    }
  }

  /// [2 * pairs] sums of log-probs, chosen first.
  at::Tensor sums(const at::Tensor& logps) const {
    return at::zeros({2 * pairs}, logps.options()).index_add(0, row_to_sequence, logps);
  }

  std::int64_t pairs;
  at::Tensor hidden, ref_hidden, targets, row_to_sequence;
};

struct DpoHead {
  at::Tensor weight, ref_weight;
  std::vector<PairBatch> batches;
};

struct DpoResult {
  at::Tensor loss, hidden_grad, weight_grad;
};

DpoResult prefopt_dpo(const DpoHead& head, const PairBatch& batch) {
  // Summed in float64, as sequence_logps does.
  const auto sequence = [&](const at::Tensor& hidden, const at::Tensor& weight) {
    return linear_token_logps(hidden, weight, batch.targets).logps.to(at::kDouble);
  };
  const at::Tensor logps = batch.sums(sequence(batch.hidden, head.weight));
  const at::Tensor ref_logps = batch.sums(sequence(batch.ref_hidden, head.ref_weight));
  PairLogps in;
  in.chosen_logps = logps.slice(0, 0, batch.pairs);
  in.rejected_logps = logps.slice(0, batch.pairs);
  in.ref_chosen_logps = ref_logps.slice(0, 0, batch.pairs);
  in.ref_rejected_logps = ref_logps.slice(0, batch.pairs);
  const at::Tensor loss = DpoLoss({.beta = kBeta}).forward(in).loss;
  const auto grads = torch::autograd::grad({loss}, {batch.hidden, head.weight});
  return {loss, grads[0], grads[1]};
}

// beta (Δ chosen − Δ rejected), [pairs]
at::Tensor margins(const PairBatch& batch, const at::Tensor& logps, const at::Tensor& ref_logps) {
  const at::Tensor ratios = logps - ref_logps;
  return (ratios.slice(0, 0, batch.pairs) - ratios.slice(0, batch.pairs)) * kBeta;
}

DpoResult eager_dpo(const DpoHead& head, const PairBatch& batch) {
  const at::Tensor logps = batch.sums(eager_logps(batch.hidden, head.weight, batch.targets));
  const at::Tensor ref_logps = [&] {
    const at::NoGradGuard no_grad;
    return batch.sums(eager_logps(batch.ref_hidden, head.ref_weight, batch.targets));
  }();
  const at::Tensor loss = at::log_sigmoid(margins(batch, logps, ref_logps)).mean().neg();
  const auto grads = torch::autograd::grad({loss}, {batch.hidden, head.weight});
  return {loss, grads[0], grads[1]};
}

void check_dpo(Report& report, const DpoHead& head) {
  const PairBatch& batch = head.batches.front();
  const DpoResult got = prefopt_dpo(head, batch);
  const auto sums = [&](const at::Tensor& hidden, const at::Tensor& weight) {
    return batch.sums(head_oracle(hidden, weight, batch.targets, {}).logps);
  };
  const at::Tensor margin =
      margins(batch, sums(batch.hidden, head.weight), sums(batch.ref_hidden, head.ref_weight));
  const at::Tensor loss = at::log_sigmoid(margin).mean().neg();
  // d loss / d chosen = −beta sigmoid(−margin) / pairs, and the opposite for rejected.
  const at::Tensor slope = margin.neg().sigmoid() * (kBeta / static_cast<double>(batch.pairs));
  at::Tensor of_sequence = at::empty({2 * batch.pairs}, at::kDouble);
  of_sequence.slice(0, 0, batch.pairs).copy_(slope.neg());
  of_sequence.slice(0, batch.pairs).copy_(slope);
  const HeadOracle oracle = head_oracle(batch.hidden, head.weight, batch.targets,
                                        of_sequence.index_select(0, batch.row_to_sequence));
  report.check("DPO head, loss", relative_error(got.loss, loss), 1e-6);
  report.check("DPO head, gradient of hidden", relative_error(got.hidden_grad, oracle.hidden_grad),
               kGradientTolerance);
  report.check("DPO head, gradient of weight", relative_error(got.weight_grad, oracle.weight_grad),
               kGradientTolerance);
}

void dpo_head(Report& report, const Arguments& arguments, std::int64_t vocab) {
  const std::vector<PairLens> lens =
      arguments.lengths.empty() ? std::vector{equal_lengths(arguments.pairs, arguments.prompt,
                                                            arguments.chosen, arguments.rejected)}
                                : read_lengths(arguments.lengths, arguments.pairs);
  DpoHead head;
  head.weight = random_normal({vocab, arguments.hidden}, 0.02, at::kFloat, 1).requires_grad_();
  head.ref_weight = random_normal({vocab, arguments.hidden}, 0.02, at::kFloat, 2);
  std::int64_t rows = 0, padded_rows = 0, widest = 0;
  for (const PairLens& batch : lens) {
    head.batches.emplace_back(batch, arguments.hidden, vocab, 10 + 3 * head.batches.size());
    rows += batch.rows();
    padded_rows += batch.padded_rows;
    widest = std::max(widest, batch.rows());
  }
  if (arguments.options.check) check_dpo(report, head);

  const at::Tensor z = random_normal({widest, vocab}, 1, at::kFloat, 5);
  const auto products = [&](const PairBatch& batch) {
    const at::NoGradGuard no_grad;
    const at::Tensor gradient = z.slice(0, 0, batch.hidden.size(0));
    const at::Tensor logits = at::mm(batch.hidden, head.weight.t());
    const at::Tensor ref_logits = at::mm(batch.ref_hidden, head.ref_weight.t());
    const at::Tensor hidden_grad = at::mm(gradient, head.weight);
    const at::Tensor weight_grad = at::mm(gradient.t(), batch.hidden);
  };
  const auto all = [&](const char* name, const std::function<void(const PairBatch&)>& step) {
    return Contender{.name = name,
                     .run =
                         [&head, step] {
                           for (const PairBatch& batch : head.batches) step(batch);
                         },
                     .work = flops(4, rows, arguments.hidden, vocab)};
  };
  const Task task{.part = "k5",
                  .title = fmt::format(
                      "DPO head with reference, {} step(s) of {} pairs; completion rows of all "
                      "steps, padded with their prompts {}",
                      lens.size(), lens.front().chosen.size(), padded_rows),
                  .dtype = "float32",
                  .rows = rows,
                  .vocab = vocab,
                  .hidden = arguments.hidden,
                  .unit = "GFLOP/s",
                  .base = kDpo};
  const Table table =
      report.measure(task, {all(kDpo, [&](const PairBatch& batch) { prefopt_dpo(head, batch); }),
                            all(kDpoEager, [&](const PairBatch& batch) { eager_dpo(head, batch); }),
                            all(kFourMm, products)});
}

// --- K6 ---------------------------------------------------------------------------------------

void narrow_weights(Report& report, const Arguments& arguments, std::int64_t rows,
                    std::int64_t vocab) {
  const Head head(rows, arguments.hidden, vocab, at::kBFloat16);
  const auto upcast = [](const at::Tensor& hidden, const at::Tensor& weight,
                         const at::Tensor& targets) {
    return eager_logps(hidden.to(at::kFloat), weight.to(at::kFloat), targets);
  };
  const std::vector<Entry> entries = {
      prefopt_entry(head, kAutomatic, Needs::kBoth, HeadPath::kAutomatic),
      prefopt_entry(head, kForward, Needs::kNothing, HeadPath::kAutomatic),
      {kEager, eager_logps, Needs::kBoth},
      {"eager, forward only", eager_logps, Needs::kNothing},
      {"eager, weights widened to float32 each time", upcast, Needs::kBoth}};
  if (arguments.options.check) check(report, head, entries);
  note_plans(report, entries);
  std::vector<Contender> contenders;
  for (const Entry& entry : entries) contenders.push_back(contender(head, entry));
  const at::Tensor z = random_normal({rows, vocab}, 1, at::kFloat, 5);
  contenders.push_back(three_mm(head, z.to(at::kBFloat16), "limit: three at::mm, bfloat16"));
  contenders.push_back(three_mm(head, z, "limit: three at::mm, float32"));
  const Task task =
      task_of("k6", "bfloat16 hidden and weight; 3 GEMMs, forward 1", head, "bfloat16", kAutomatic);
  const Table table = report.measure(task, contenders);
  report.judge(task, "K6", "times the speed of eager bfloat16",
               quotient(table.ms(kEager), table.ms(kAutomatic)), Bound::kAtLeast, 4);
}

void run(Report& report, const Arguments& arguments) {
  for (const std::int64_t vocab : arguments.options.vocab) {
    for (const std::int64_t rows : arguments.options.rows) {
      if (arguments.does("k3")) equal_rows(report, arguments, rows, vocab);
    }
    if (arguments.does("k4")) bounded_memory(report, arguments, vocab);
    if (arguments.does("k5")) dpo_head(report, arguments, vocab);
    for (const std::int64_t rows : arguments.options.rows) {
      if (arguments.does("k6")) narrow_weights(report, arguments, rows, vocab);
    }
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  using namespace prefopt::bench;
  CLI::App app("Times hidden states to log-probs: prefopt, the head in memory, and bare products");
  Arguments arguments;
  arguments.options.rows = {384, 2048};
  arguments.options.vocab = {49152};
  arguments.options.add_to(app);
  app.add_option("--hidden", arguments.hidden, "Hidden size H")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--part", arguments.part, "k3, k4, k5, k6 or all")
      ->check(CLI::IsMember({"k3", "k4", "k5", "k6", "all"}))
      ->capture_default_str();
  app.add_option("--k4-rows", arguments.k4_rows, "Token rows of k4")->capture_default_str();
  app.add_option("--k4-budget-mib", arguments.k4_budget_mib, "Budget of k4")->capture_default_str();
  app.add_option("--pairs", arguments.pairs, "Pairs a step of k5")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prompt", arguments.prompt, "Prompt tokens of k5, which only a peer computes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--chosen", arguments.chosen, "Chosen tokens of k5")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rejected", arguments.rejected, "Rejected tokens of k5")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--lengths", arguments.lengths,
                 "JSON file of [prompt, chosen, rejected] counts of k5, a step after the other");
  return bench_main("bench_linear_token_logps", app, arguments.options, argc, argv,
                    [&](Report& report) { run(report, arguments); });
}
