// SPDX-License-Identifier: Apache-2.0
#include "online/rated_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

#include "online/draw_seed.h"
#include "online/packed.h"
#include "online/rollout_writer.h"
#include "online/shared_work.h"
#include "prefopt/error.h"
#include "prefopt/online/feedback.h"

namespace prefopt::detail {
namespace {

/// A column of a row, and the loss's input that reads it. Columns that a selection has for the sake
/// of its choice alone may remain unread.
struct ColumnUse {
  Column column;
  Input input;
  std::optional<double> SelectedRow::*value;
  bool may_remain_unread = false;
};

constexpr std::array kColumnUses = {
    ColumnUse{Column::kLabelProb, Input::label_probs, &SelectedRow::label_prob},
    ColumnUse{Column::kChosenWinRate, Input::chosen_win_rates, &SelectedRow::chosen_win_rate, true},
    ColumnUse{Column::kRejectedWinRate, Input::rejected_win_rates, &SelectedRow::rejected_win_rate,
              true},
    ColumnUse{Column::kAdvantage, Input::advantages, &SelectedRow::advantage},
    ColumnUse{Column::kWeight, Input::weights, &SelectedRow::weight}};

void set_columns(const SelectedRow& selected, InputSet inputs, TokenRow& row) {
  for (const ColumnUse& use : kColumnUses) {
    const auto& value = selected.*use.value;
    if (!value) continue;
    if (!inputs.has(use.input)) {
      if (use.may_remain_unread) continue;
      throw ConfigError(fmt::format(
          "online.select: expected columns that the loss reads, got '{}', which this loss does not "
          "read; see its options in `prefopt losses`",
          kColumnKeys[static_cast<std::size_t>(use.column)]));
    }
    row.columns[use.column] = *value;
  }
}

bool is_of_reference(const Rollout& rollout, const std::vector<SourceOptions>& sources) {
  return sources[static_cast<std::size_t>(rollout.source)].from == SourceKind::kReference;
}

/// Returns whether a token of each completion trains: a roll-in of no length leaves none of a
/// completion that another source wrote.
bool trains(const SelectedRow& row, const std::vector<Rollout>& rollouts) {
  const auto has_token = [&](std::int64_t place) {
    const auto& acted = rollouts[static_cast<std::size_t>(place)].acted;
    return acted.empty() || std::find(acted.begin(), acted.end(), 1) != acted.end();
  };
  return has_token(row.chosen) && (row.rejected < 0 || has_token(row.rejected));
}

/// Throws ConfigError for a completion that the policy has no part in.
void check_own(const Rollout& rollout, const std::vector<SourceOptions>& sources) {
  const SourceOptions& source = sources[static_cast<std::size_t>(rollout.source)];
  const bool is_policy =
      source.from == SourceKind::kPolicy || source.from == SourceKind::kEnvironment;
  if (is_policy || !source.roll_in.from.empty()) return;
  throw ConfigError(fmt::format(
      "online.select: expected rows that the policy wrote, as the loss is an expectation under it, "
      "got one of the source '{}'",
      source.name));
}

TokenRow row_of(const SelectedRow& selected, const std::vector<Rollout>& rollouts,
                const OnlineParts& parts) {
  const Rollout& chosen = rollouts[static_cast<std::size_t>(selected.chosen)];
  const bool must_be_own = parts.needs.of_own_samples;
  if (must_be_own) check_own(chosen, parts.sources);
  TokenRow row{.prompt = chosen.prompt, .chosen = chosen.completion, .rejected = {}};
  row.chosen_mask = chosen.acted;
  if (parts.needs.rejected() && selected.rejected < 0) {
    throw ConfigError(
        "online.select: expected pairs, as the loss compares two completions, got single "
        "completions");
  }
  double side = is_of_reference(chosen, parts.sources) ? 1 : 0;
  if (selected.rejected >= 0) {
    const Rollout& rejected = rollouts[static_cast<std::size_t>(selected.rejected)];
    if (must_be_own) check_own(rejected, parts.sources);
    if (rejected.prompt != chosen.prompt) {
      throw ConfigError(
          "online.select: expected pairs of one prompt, got completions of which an environment's "
          "first observation follows the prompt in one alone; pair those of one source");
    }
    row.rejected = rejected.completion;
    row.rejected_mask = rejected.acted;
    const bool is_other = is_of_reference(rejected, parts.sources);
    side = is_other ? (side == 1 ? 0 : 2) : side;
  }
  if (parts.needs.has(Input::from_reference)) row.columns[Column::kFromReference] = side;
  set_columns(selected, parts.needs.inputs, row);
  return row;
}

double share(std::int64_t part, std::int64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : 0;
}

/// Sums over rollouts.
struct Lengths {
  std::int64_t count = 0, ended = 0, tokens = 0, rated = 0;
  double reward = 0;

  void add(const Rollout& rollout) {
    ++count;
    ended += rollout.ended ? 1 : 0;
    tokens += std::ssize(rollout.completion);
    for (const double value : rollout.rewards) {
      if (std::isnan(value)) continue;
      reward += value;
      ++rated;
    }
  }

  void write(Metrics& metrics, std::string_view prefix) const {
    metrics.emplace_back(fmt::format("{}length", prefix), share(tokens, count));
    metrics.emplace_back(fmt::format("{}ended", prefix), share(ended, count));
    if (rated > 0) {
      metrics.emplace_back(fmt::format("{}reward", prefix), reward / static_cast<double>(rated));
    }
  }
};

}  // namespace

void RatedPrompts::append(RatedPrompts more) {
  const auto move_all = [](auto& from, auto& to) {
    to.insert(to.end(), std::move_iterator(from.begin()), std::move_iterator(from.end()));
  };
  move_all(more.rows_, rows_);
  move_all(more.rollouts_, rollouts_);
  move_all(more.selected_, selected_);
  ties_ += more.ties_;
  identical_ += more.identical_;
  failed_ += more.failed_;
  unusable_ += more.unusable_;
  missing_ += more.missing_;
  questions_ += more.questions_;
  failures_ += more.failures_;
}

template <class Visit, class Prompts>
void RatedPrompts::visit_counts(Visit& visit, Prompts& of) {
  for (auto* count : {&of.ties_, &of.identical_, &of.failed_, &of.unusable_, &of.missing_,
                      &of.questions_, &of.failures_}) {
    visit(*count);
  }
}

std::string RatedPrompts::pack() const {
  Packer packer;
  visit_counts(packer, *this);
  for (std::size_t i = 0; i < rollouts_.size(); ++i) {
    packer(std::ssize(rollouts_[i]));
    for (const Rollout& rollout : rollouts_[i]) pack_rollout(packer, rollout);
    packer(std::ssize(selected_[i]));
    for (const SelectedRow& row : selected_[i]) pack_selected(packer, row);
  }
  return packer.take();
}

RatedPrompts RatedPrompts::unpack(std::string_view bytes, const OnlineParts& parts) {
  RatedPrompts prompts;
  Unpacker unpacker(bytes);
  RatedPrompts counts;
  visit_counts(unpacker, counts);
  while (!unpacker.is_empty()) {
    auto& of_prompt = prompts.rollouts_.emplace_back();
    of_prompt.resize(static_cast<std::size_t>(unpacker.take<std::int64_t>()));
    for (Rollout& rollout : of_prompt) pack_rollout(unpacker, rollout);
    auto& selected = prompts.selected_.emplace_back();
    selected.resize(static_cast<std::size_t>(unpacker.take<std::int64_t>()));
    for (SelectedRow& row : selected) pack_selected(unpacker, row);
    prompts.add_rows(prompts.rollouts_.size() - 1, parts);
  }
  prompts.unusable_ = 0;  // the counts have them
  prompts.append(std::move(counts));
  return prompts;
}

/// Makes the rows that were selected of a prompt.
void RatedPrompts::add_rows(std::size_t prompt, const OnlineParts& parts) {
  for (const SelectedRow& row : selected_[prompt]) {
    if (trains(row, rollouts_[prompt])) {
      rows_.push_back(row_of(row, rollouts_[prompt], parts));
    } else {
      ++unusable_;
    }
  }
}

void RatedPrompts::keep_if(const std::function<bool(const std::vector<Rollout>&)>& keeps) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < rollouts_.size(); ++i) {
    if (!keeps(rollouts_[i])) continue;
    if (kept != i) {
      rollouts_[kept] = std::move(rollouts_[i]);
      selected_[kept] = std::move(selected_[i]);
    }
    ++kept;
  }
  rollouts_.resize(kept);
  selected_.resize(kept);
}

Metrics RatedPrompts::metrics() const {
  Metrics metrics = {{"pairs/kept", static_cast<double>(rows_.size())},
                     {"pairs/ties", static_cast<double>(ties_)},
                     {"pairs/identical", static_cast<double>(identical_)},
                     {"pairs/failed", static_cast<double>(failed_)},
                     {"pairs/unusable", static_cast<double>(unusable_)},
                     {"pairs/missing", static_cast<double>(missing_)},
                     {"questions", static_cast<double>(questions_)},
                     {"questions/failed", static_cast<double>(failures_)}};
  Lengths lengths;
  for (const auto& of_prompt : rollouts_) {
    for (const Rollout& rollout : of_prompt) lengths.add(rollout);
  }
  lengths.write(metrics, "samples/");
  return metrics;
}

Json RatedPrompts::samples(std::size_t prompts, const std::vector<SourceOptions>& sources) const {
  Json shown = Json::array();
  for (std::size_t i = 0; i < std::min(prompts, rollouts_.size()); ++i) {
    const auto& of_prompt = rollouts_[i];
    if (of_prompt.empty()) continue;
    Json completions = Json::array();
    if (of_prompt.front().step.node >= 0) continue;  // report.html draws trees from their file
    for (const Rollout& rollout : of_prompt) {
      Json completion = {{"source", sources[static_cast<std::size_t>(rollout.source)].name},
                         {"text", rollout.text},
                         {"tokens", rollout.completion.size()},
                         {"ended", rollout.ended}};
      if (!rollout.rewards.empty() && !std::isnan(rollout.rewards.front())) {
        completion["reward"] = rollout.rewards.front();
      }
      completions.push_back(std::move(completion));
    }
    Json rows = Json::array();
    for (const SelectedRow& row : selected_[i]) rows.push_back({row.chosen, row.rejected});
    shown.push_back({{"prompt", of_prompt.front().prompt_text},
                     {"completions", std::move(completions)},
                     {"rows", std::move(rows)}});
  }
  return shown;
}

RatedPrompts rate(const OnlineParts& parts, std::vector<std::vector<Rollout>> rollouts,
                  std::int64_t seed, std::int64_t round, std::int64_t first) {
  /// Of a selection that asks nothing.
  class Silent final : public Preference {
   public:
    std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
      return std::vector<double>(comparisons.size(), std::nan(""));
    }
  } silent;
  Preference& feedback = parts.feedback ? *parts.feedback : silent;
  RatedPrompts rated;
  rated.rollouts_ = std::move(rollouts);
  std::vector<Rater> raters;
  for (const auto& of_prompt : rated.rollouts_) {
    raters.emplace_back(feedback, of_prompt, parts.rater);
  }
  ask(raters, parts.selection->questions());
  for (std::size_t i = 0; i < raters.size(); ++i) {
    exact::Random random(static_cast<std::uint64_t>(
        draw_seed(seed, {kSelectionDraws, round, first + static_cast<std::int64_t>(i)})));
    SelectedRows selected = parts.selection->select(raters[i], random);
    auto& of_prompt = rated.rollouts_[i];
    rated.selected_.push_back(std::move(selected.rows));
    rated.add_rows(i, parts);
    for (std::int64_t k = 0; k < raters[i].size(); ++k) {
      if (!raters[i].has_reward(k)) continue;
      of_prompt[static_cast<std::size_t>(k)].rewards = {raters[i].reward(k)};
    }
    rated.ties_ += selected.ties;
    rated.identical_ += selected.identical;
    rated.failed_ += selected.failed;
    rated.unusable_ += selected.unusable;
    rated.missing_ += selected.missing;
    rated.questions_ += raters[i].counts().questions;
    rated.failures_ += raters[i].counts().failures;
  }
  return rated;
}

std::vector<Rollout> with_texts(std::vector<Rollout> rollouts, const OnlineParts& parts,
                                const SamplingOptions& sampling) {
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    rollouts[i].text =
        completion_text(rollouts[i].completion, *parts.tokenizer, sampling, rollouts[i].prompt);
    rollouts[i].prompt_text = parts.eval_prompts[i].text;
  }
  return rollouts;
}

namespace {

/// Returns, of each prompt in the share, the reward of our completion and P(it beats that of each
/// opponent); NaN: no answer.
std::vector<double> verdicts_of(const OnlineParts& parts, const std::vector<Rollout>& ours,
                                const std::vector<Opponent>& opponents, const Portion& share) {
  const bool has_rewards = parts.feedback->has_rewards();
  // With rewards a rater of all completions of a prompt, which asks for each once; without, one of
  // each pair, which leaves out the questions about two opponents.
  const std::size_t raters_each = has_rewards ? 1 : opponents.size();
  const auto begin = static_cast<std::size_t>(share.begin);
  const auto end = static_cast<std::size_t>(share.end);
  std::vector<std::vector<Rollout>> groups;
  for (std::size_t i = begin; i < end; ++i) {
    for (std::size_t of = 0; of < raters_each; ++of) {
      std::vector<Rollout>& group = groups.emplace_back();
      group.push_back(ours[i]);
      for (std::size_t k = 0; k < opponents.size(); ++k) {
        if (has_rewards || k == of) group.push_back((*opponents[k].rollouts)[i]);
      }
    }
  }
  std::vector<Rater> raters;
  for (const auto& group : groups) raters.emplace_back(*parts.feedback, group, parts.rater);
  ask(raters, has_rewards ? Questions::kRewards : Questions::kComparisons);
  std::vector<double> verdicts;
  for (std::size_t i = 0; i < end - begin; ++i) {
    verdicts.push_back(has_rewards ? raters[i].reward(0) : std::nan(""));
    for (std::size_t k = 0; k < opponents.size(); ++k) {
      Rater& rater = raters[i * raters_each + (has_rewards ? 0 : k)];
      verdicts.push_back(rater.beats(0, has_rewards ? static_cast<std::int64_t>(k) + 1 : 1));
    }
  }
  return verdicts;
}

}  // namespace

Metrics contest_metrics(const OnlineParts& parts, const std::vector<Rollout>& ours,
                        const std::vector<Opponent>& opponents, Meeting& meeting) {
  const Portion share = portion_of(std::ssize(ours), *meeting.ranks());
  const std::vector<double> verdicts =
      gather_numbers(verdicts_of(parts, ours, opponents, share), meeting);
  const std::size_t width = 1 + opponents.size();
  Metrics metrics;
  Lengths lengths;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    Rollout rollout = ours[i];
    if (parts.feedback->has_rewards()) rollout.rewards = {verdicts[i * width]};
    lengths.add(rollout);
  }
  lengths.write(metrics, "");
  for (std::size_t k = 0; k < opponents.size(); ++k) {
    double wins = 0;
    std::int64_t answered = 0;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const double p = verdicts[i * width + 1 + k];
      if (std::isnan(p)) continue;
      wins += p > 0.5 ? 1 : p == 0.5 ? 0.5 : 0;
      ++answered;
    }
    if (answered == 0) continue;
    metrics.emplace_back(opponents[k].metric, wins / static_cast<double>(answered));
  }
  return metrics;
}

}  // namespace prefopt::detail
