// SPDX-License-Identifier: Apache-2.0
#include "run/plan/memory_budget.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "decoder/packed_layer.h"
#include "math/wide_gradient.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "run/plan/run_plan.h"
#include "run/resolve.h"

namespace prefopt::detail {
namespace {

constexpr std::int64_t kMebibyte = std::int64_t{1} << 20;
/// Passing over all weights once more costs as much as some tokens do.
constexpr double kTokensOfMicroBatch = 64;

/// A way to take the steps of a run.
struct MemoryChoice {
  Checkpointing checkpointing = Checkpointing::kFull;
  std::int64_t tokens = 0;  ///< of a micro-batch at most
  std::int64_t head_budget = kMebibyte;
  HeadPlan head = {};
  std::int64_t bytes = 0;  ///< of the process
  double operations = 0;   ///< of a step of the largest rows, forward and backward
};

std::int64_t mebibytes(std::int64_t bytes) { return (bytes + kMebibyte - 1) / kMebibyte; }

class BudgetSearch {
 public:
  BudgetSearch(const RunOptions& options, const RunRows& rows, const PlanAssumptions& machine)
      : options_(options),
        rows_(rows),
        machine_(machine),
        models_(RunModels::of(options, machine)),
        all_(largest_micro_batch(rows, batch_of_rank(options.batch, machine.ranks))),
        fixed_(memory_of(options, models_, rows, machine, 0, Checkpointing::kFull, {}).total()) {
    for (const TokenRow& row : rows.train) {
      const std::int64_t tokens = tokens_of(row);
      const auto scored = static_cast<double>(std::ssize(row.chosen) + std::ssize(row.rejected) +
                                              std::ssize(row.gold));
      longest_ = std::max(longest_, tokens);
      most_scored_ =
          std::max(most_scored_, scored / static_cast<double>(std::max<std::int64_t>(tokens, 1)));
    }
  }

  /// Returns the quickest choice within `budget` bytes.
  std::optional<MemoryChoice> best(std::int64_t budget) const {
    std::optional<MemoryChoice> best;
    for (const MemoryChoice& choice : choices()) {
      if (choice.bytes > budget) continue;
      if (!best || choice.operations < best->operations) best = choice;
    }
    return best;
  }

  MemoryChoice least() const {
    const std::vector<MemoryChoice> all = choices();
    return *std::min_element(all.begin(), all.end(),
                             [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  }

  /// Returns the parts of a choice, largest first, as "weights 513 MiB, …".
  std::string parts_of(const MemoryChoice& choice) const {
    MemoryPlan plan = memory_of(options_, models_, rows_, machine_, choice.tokens,
                                choice.checkpointing, choice.head);
    std::stable_sort(plan.parts.begin(), plan.parts.end(),
                     [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    std::vector<std::string> texts;
    for (const MemoryPart& part : plan.parts) {
      if (part.bytes < kMebibyte) continue;
      texts.push_back(fmt::format("{} {} MiB", part.name, mebibytes(part.bytes)));
    }
    return fmt::format("{}", fmt::join(texts, ", "));
  }

  bool cuts_steps(const MemoryChoice& choice) const { return choice.tokens < all_.tokens; }

 private:
  std::vector<Checkpointing> levels() const {
    const auto of_options = [&](Checkpointing) { return std::numeric_limits<std::int64_t>::max(); };
    if (options_.machine.checkpointing != CheckpointingChoice::kAutomatic) {
      return {chosen_checkpointing(options_.machine, of_options)};
    }
    return {Checkpointing::kNone, Checkpointing::kSelective, Checkpointing::kFull};
  }

  /// Limits of a micro-batch's tokens: all, and halves down to the longest row.
  std::vector<std::int64_t> token_limits() const {
    std::vector<std::int64_t> limits{all_.tokens};
    while (limits.back() > longest_) limits.push_back(std::max(longest_, limits.back() / 2));
    return limits;
  }

  std::vector<std::int64_t> head_budgets() const {
    std::vector<std::int64_t> budgets{options_.machine.head_budget_mib * kMebibyte};
    while (budgets.back() > kMebibyte) budgets.push_back(std::max(kMebibyte, budgets.back() / 4));
    return budgets;
  }

  /// Returns nothing where the budget is less than a tile.
  std::optional<HeadPlan> head_within(std::int64_t budget, std::int64_t tokens) const {
    try {
      // No micro-batch has a larger share of completions than each of its rows.
      const auto scored =
          static_cast<std::int64_t>(std::ceil(most_scored_ * static_cast<double>(tokens)));
      return plan_head(head_work(models_.step, std::min({tokens, all_.scored, scored})), budget);
    } catch (const ConfigError&) {
      return std::nullopt;
    }
  }

  std::vector<MemoryChoice> choices() const {
    const Network& network = models_.step.policy;
    const at::ScalarType dtype = at_least_float32(network.embedding.scalar_type());
    std::vector<MemoryChoice> choices;
    for (const Checkpointing level : levels()) {
      const std::int64_t kept =
          keeps_in_file(options_.machine, level) ? 0 : kept_bytes_per_row(network, level, dtype);
      // The least that fits is chosen where nobody chose.
      const bool is_over = options_.machine.checkpointing == CheckpointingChoice::kAutomatic &&
                           level != Checkpointing::kFull;
      for (const std::int64_t tokens : token_limits()) {
        if (is_over && tokens * kept > options_.machine.activation_budget_mib * kMebibyte) continue;
        for (const std::int64_t budget : head_budgets()) {
          const std::optional<HeadPlan> head = head_within(budget, tokens);
          if (!head) continue;
          MemoryChoice choice{
              .checkpointing = level, .tokens = tokens, .head_budget = budget, .head = *head};
          choice.bytes = fixed_ + choice.head.bytes +
                         tokens * (kept + work_bytes_per_row(network, level, dtype));
          choice.operations = operations_of(choice);
          choices.push_back(choice);
        }
      }
    }
    return choices;
  }

  double operations_of(const MemoryChoice& choice) const {
    const DecoderOptions& sizes = models_.step.policy.options;
    const double wide = 6.0 * static_cast<double>(sizes.hidden_size * sizes.intermediate_size);
    const double heads = static_cast<double>(sizes.head_dim * sizes.hidden_size);
    const double layer =
        wide +
        4 * heads * static_cast<double>(sizes.num_attention_heads + sizes.num_key_value_heads);
    const double again = choice.checkpointing == Checkpointing::kNone        ? 0
                         : choice.checkpointing == Checkpointing::kSelective ? wide * 2 / 3
                                                                             : layer;
    const double of_token = static_cast<double>(sizes.num_hidden_layers) * (3 * layer + again);
    const auto parts = static_cast<double>((all_.tokens + choice.tokens - 1) / choice.tokens);
    const double head = 2 * choice.head.gemms * static_cast<double>(all_.scored) *
                        static_cast<double>(sizes.hidden_size * sizes.vocab_size);
    return of_token * (static_cast<double>(all_.tokens) + parts * kTokensOfMicroBatch) + head;
  }

  const RunOptions& options_;
  const RunRows& rows_;
  const PlanAssumptions& machine_;
  RunModels models_;
  LargestMicroBatch all_;
  std::int64_t fixed_ = 0, longest_ = 1;
  double most_scored_ = 0;  ///< share of a row's tokens that meet the output head
};

CheckpointingChoice choice_of(Checkpointing level) {
  constexpr std::array kChoices{CheckpointingChoice::kNone, CheckpointingChoice::kSelective,
                                CheckpointingChoice::kFull};
  return kChoices[static_cast<std::size_t>(level)];
}

}  // namespace

void fit_memory(RunOptions& options, const RunRows& rows, const PlanAssumptions& machine,
                const Note& note) try {
  const std::int64_t budget = options.machine.memory_budget_mib;
  if (budget == 0) return;
  const BudgetSearch search(options, rows, machine);
  const std::optional<MemoryChoice> best = search.best(budget * kMebibyte);
  if (!best) {
    const MemoryChoice least = search.least();
    throw ConfigError(fmt::format(
        "expected at least {}, the least plan of this run ({}), got {}; shorter rows, an adapter "
        "and a model in blocks take less",
        mebibytes(least.bytes), search.parts_of(least), budget));
  }
  options.machine.checkpointing = choice_of(best->checkpointing);
  options.machine.head_budget_mib = best->head_budget / kMebibyte;
  if (search.cuts_steps(*best)) options.batch.micro_tokens = best->tokens;
  note(fmt::format(
      "memory: {} of {} MiB planned, with checkpointing {}, {} tokens at a time, {} MiB for the "
      "output head",
      mebibytes(best->bytes), budget, to_string(best->checkpointing), best->tokens,
      options.machine.head_budget_mib));
} catch (const ConfigError& error) {
  throw ConfigError(fmt::format("machine.memory_budget_mib: {}", error.what()));
}

}  // namespace prefopt::detail
