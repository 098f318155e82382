// SPDX-License-Identifier: Apache-2.0
#include "train/step_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "policy/token_range.h"
#include "train/shares.h"

namespace prefopt::detail {
namespace {

bool is_desirable(const TokenRow& row) { return row.columns[Column::kLabel] > 0.5; }

/// Tokens of a row once it is padded.
std::int64_t width_of(const TokenRow& row) {
  return std::ssize(row.prompt) + std::max(std::ssize(row.chosen), std::ssize(row.rejected));
}

/// For each row the next one in the step's own order, from its end to its beginning; rows of the
/// same prompt are passed over where there is another, as their completions answer this one too.
std::vector<std::size_t> partners_of(const std::vector<TokenRow>& rows) {
  const std::size_t count = rows.size();
  std::vector<std::size_t> partners(count);
  for (std::size_t i = 0; i < count; ++i) partners[i] = (i + 1) % count;
  const bool all_alike = std::all_of(rows.begin(), rows.end(), [&](const TokenRow& row) {
    return row.prompt == rows.front().prompt;
  });
  if (all_alike) return partners;
  // The last rows look beyond the end, so they are gone through twice.
  for (std::size_t i = 2 * count; i-- > 0;) {
    const std::size_t row = i % count;
    const std::size_t next = (row + 1) % count;
    partners[row] = rows[row].prompt == rows[next].prompt ? partners[next] : next;
  }
  return partners;
}

/// Of each row the first one of its prompt.
std::vector<std::size_t> groups_of(const std::vector<TokenRow>& rows) {
  std::map<std::vector<std::int64_t>, std::size_t> first;
  std::vector<std::size_t> groups;
  for (const TokenRow& row : rows) {
    groups.push_back(first.emplace(row.prompt, groups.size()).first->second);
  }
  return groups;
}

/// Consecutive rows, `size` at a time. A single row left over joins those before it: a loss of
/// several rows may have none for one.
std::vector<std::vector<TokenRow>> cut_by_place(const std::vector<TokenRow>& rows,
                                                std::int64_t size) {
  std::vector<std::vector<TokenRow>> parts;
  for (auto begin = rows.begin(); begin != rows.end();) {
    const auto left = rows.end() - begin;
    const auto end = begin + (left <= size + 1 ? left : size);
    parts.emplace_back(begin, end);
    begin = end;
  }
  return parts;
}

StepTotals totals_of(const StepCounts& counts) {
  return {.pairs = static_cast<double>(counts.rows),
          .chosen_tokens = static_cast<double>(counts.chosen),
          .rejected_tokens = static_cast<double>(counts.rejected),
          .gold_tokens = static_cast<double>(counts.gold),
          .prompt_tokens = static_cast<double>(counts.predicted_prompt)};
}

}  // namespace

StepCounts count(const std::vector<TokenRow>& rows) {
  StepCounts counts;
  counts.rows = std::ssize(rows);
  for (const TokenRow& row : rows) {
    counts.prompt += std::ssize(row.prompt);
    counts.predicted_prompt += std::max<std::int64_t>(std::ssize(row.prompt) - 1, 0);
    const std::int64_t chosen = counted_tokens(row.chosen, row.chosen_mask);
    counts.chosen += chosen;
    if (is_desirable(row)) {
      counts.desirable_rows += 1;
      counts.desirable += chosen;
    }
    counts.rejected += counted_tokens(row.rejected, row.rejected_mask);
    counts.gold += counted_tokens(row.gold, row.gold_mask);
    counts.all_chosen += std::ssize(row.chosen);
    counts.all_rejected += std::ssize(row.rejected);
    counts.all_gold += std::ssize(row.gold);
  }
  return counts;
}

std::vector<std::vector<TokenRow>> cut_micro_batches(const std::vector<TokenRow>& rows,
                                                     const TrainerOptions& options) {
  std::vector<std::vector<TokenRow>> parts;
  std::int64_t tokens = 0;
  for (const TokenRow& row : rows) {
    tokens += tokens_of(row);
    const bool is_full =
        parts.empty() ||
        (options.micro_batch_size > 0 && std::ssize(parts.back()) == options.micro_batch_size) ||
        (options.micro_batch_tokens > 0 && tokens > options.micro_batch_tokens);
    if (is_full) {
      parts.emplace_back();
      tokens = tokens_of(row);
    }
    parts.back().push_back(row);
  }
  return parts;
}

std::int64_t most_parts(const StepPlan& plan, const Ranks& ranks) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks.size()));
  for (const Share& share : plan.shares) ++counts[static_cast<std::size_t>(share.rank)];
  return *std::max_element(counts.begin(), counts.end());
}

TrainerOptions limits_for(const TrainerOptions& options, std::size_t rows, const Ranks& ranks) {
  TrainerOptions limits = options;
  if (ranks.size() == 1 || ranks.options().order == SumOrder::kTree) return limits;
  const auto count = static_cast<std::int64_t>(rows);
  const std::int64_t each = (count + ranks.size() - 1) / ranks.size();
  std::int64_t& size = limits.micro_batch_size;
  size = size > 0 ? std::min(size, each) : each;
  return limits;
}

void deal_parts(StepPlan& plan, const Ranks& ranks) {
  std::vector<std::int64_t> costs;
  for (const Part& part : plan.parts) {
    std::int64_t tokens = 0;
    for (const TokenRow& row : part.rows) tokens += tokens_of(row);
    costs.push_back(tokens);
  }
  const std::vector<int> dealt = ranks.options().order == SumOrder::kTree
                                     ? deal_tree(costs.size(), ranks.size())
                                     : deal_longest_first(costs, ranks.size());
  plan.imbalance = imbalance_of(costs, dealt, ranks.size());
  std::vector<Part> own;
  for (std::size_t i = 0; i < dealt.size(); ++i) {
    Part& part = plan.parts[i];
    plan.shares.push_back({.rank = dealt[i], .place = part.place, .rows = part.counts.rows});
    if (dealt[i] == ranks.rank()) own.push_back(std::move(part));
  }
  plan.parts = std::move(own);
}

StepPlan Planner::plan_step(const std::vector<TokenRow>& rows, std::int64_t step) const {
  StepPlan plan = this->plan(rows, /*first_number=*/0);
  plan.step = step;
  return plan;
}

std::vector<StepPlan> Planner::plan_evaluation(const std::vector<TokenRow>& rows) const {
  const std::int64_t size = options.evaluation_batch_size;
  std::vector<StepPlan> plans;
  if (!needs.whole_step || size == 0) {
    plans.push_back(plan(rows, /*first_number=*/0));
  } else {
    std::int64_t number = 0;
    for (const auto& some : cut_by_place(rows, size)) {
      plans.push_back(plan(some, number));
      plans.back().share = static_cast<double>(some.size()) / static_cast<double>(rows.size());
      number += std::ssize(some);
    }
  }
  for (StepPlan& plan : plans) {
    plan.trains = false;
    plan.step = kEvaluation;
  }
  return plans;
}

StepPlan Planner::plan(std::vector<TokenRow> rows, std::int64_t first_number) const {
  std::vector<std::size_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0);
  // Rows of like length side by side where they are padded. Fresh samples go by a row's place, so
  // rows that get some stay where they are.
  if (pads && needs.sample_source == SampleSource::kNone) {
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return width_of(rows[a]) < width_of(rows[b]);
    });
  }
  std::vector<TokenRow> ordered;
  for (const std::size_t row : order) ordered.push_back(rows[row]);
  // By place in the step, whatever the order in which this policy takes the rows.
  const bool has_partners = needs.has(Input::kl_logps);
  const auto partners = has_partners ? partners_of(rows) : std::vector<std::size_t>();
  const bool has_groups = needs.has(Input::groups);
  const auto groups = has_groups ? groups_of(rows) : std::vector<std::size_t>();

  StepPlan plan;
  plan.counts = count(rows);
  plan.totals = totals_of(plan.counts);
  std::int64_t place = 0;
  for (auto& some : cut_micro_batches(ordered, limits_for(options, rows.size(), ranks))) {
    Part part{.rows = std::move(some),
              .partners = {},
              .groups = {},
              .place = place,
              .number = first_number + place,
              .counts = {}};
    part.counts = count(part.rows);
    for (std::int64_t i = 0; i < part.counts.rows; ++i) {
      const std::size_t row = order[static_cast<std::size_t>(place + i)];
      if (has_partners) part.partners.push_back(partners[row]);
      if (has_groups) part.groups.push_back(groups[row]);
    }
    place += part.counts.rows;
    plan.parts.push_back(std::move(part));
  }
  plan.rows = std::move(rows);
  deal_parts(plan, ranks);
  return plan;
}

}  // namespace prefopt::detail
