// SPDX-License-Identifier: Apache-2.0
#include "online/rollout_rows.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "online/draw_seed.h"
#include "online/shared_work.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/advantages/group_baseline.h"
#include "prefopt/objectives/steps.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/policy/token_rewards.h"

namespace prefopt::detail {
namespace {

constexpr double kNoReward = std::numeric_limits<double>::quiet_NaN();

const SourceOptions& source_of(const Rollout& rollout, const OnlineParts& parts) {
  return parts.sources[static_cast<std::size_t>(rollout.source)];
}

double reward_of(const Rollout& rollout) {
  return rollout.rewards.empty() ? kNoReward : rollout.rewards.front();
}

bool writes_always(const SourceOptions& source) {
  const SourceRounds& of = source.rounds;
  const SourceRounds usual;
  return of.first == usual.first && of.last == usual.last && of.above == usual.above &&
         of.below == usual.below;
}

/// The source whose tokens train: the policy's prefix where another source continues it.
const SourceOptions& source_of_trained(const SourceOptions& source, const OnlineParts& parts) {
  if (source.from == SourceKind::kPolicy || source.roll_in.from.empty()) return source;
  for (const SourceOptions& other : parts.sources) {
    if (other.name == source.roll_in.from && other.from == SourceKind::kPolicy) return other;
  }
  return source;
}

bool uses_sampler_logps(const TokenObjective& objective) {
  return objective.needs().sampler_logps || objective.options().off_policy_drop > 0;
}

std::int64_t acted_tokens(const Rollout& rollout) {
  const auto& acted = rollout.acted;
  return acted.empty() ? std::ssize(rollout.completion)
                       : std::count_if(acted.begin(), acted.end(), [](auto a) { return a != 0; });
}

/// Completions of a prompt that train, by place.
std::vector<std::size_t> candidates(const std::vector<Rollout>& of_prompt,
                                    const OnlineParts& parts) {
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < of_prompt.size(); ++i) {
    const bool trains =
        !is_greedy(source_of(of_prompt[i], parts)) && acted_tokens(of_prompt[i]) > 0;
    if (trains) places.push_back(i);
  }
  return places;
}

/// Consecutive rows of at most as many tokens, at least one; a prompt that follows itself is
/// counted once, as it is computed once.
std::vector<std::vector<TokenRow>> cut_by_tokens(const std::vector<TokenRow>& rows,
                                                 std::int64_t limit) {
  std::vector<std::vector<TokenRow>> parts;
  std::int64_t tokens = 0;
  for (const TokenRow& row : rows) {
    const bool is_shared = !parts.empty() && parts.back().back().prompt == row.prompt;
    tokens += tokens_of(row) - (is_shared ? std::ssize(row.prompt) : 0);
    if (parts.empty() || tokens > limit) {
      parts.emplace_back();
      tokens = tokens_of(row);
    }
    parts.back().push_back(row);
  }
  return parts;
}

Eigen::ArrayXd array_of(const std::vector<double>& values) {
  return Eigen::Map<const Eigen::ArrayXd>(values.data(), static_cast<Eigen::Index>(values.size()));
}

/// Adds rewards of steps at the last token of each that the policy chose; a step without one has
/// none.
void add_at_last_acted(const Eigen::ArrayXd& rewards, const StepEnds& ends,
                       const Eigen::ArrayXd& acted, Eigen::Ref<Eigen::ArrayXd> token_rewards) {
  Eigen::Index begin = 0;
  for (Eigen::Index i = 0; i < rewards.size(); ++i) {
    const Eigen::Index end = ends[static_cast<std::size_t>(i)];
    Eigen::Index last = end - 1;
    while (last >= begin && acted[last] == 0) --last;
    if (last >= begin) token_rewards[last] += rewards[i];
    begin = end;
  }
}

/// Mean, spread and extremes of completions, under TRL's names.
class RolloutMetrics {
 public:
  void add(std::string name, double value) { metrics_.emplace_back(std::move(name), value); }

  void add_rewards(const RolloutStep& step) {
    double sum = 0;
    std::int64_t rated = 0;
    for (const double reward : step.rewards) {
      if (std::isnan(reward)) continue;
      sum += reward;
      ++rated;
    }
    const auto groups = step.rated_groups();
    double spread = 0;
    double equal = 0;
    double compared = 0;
    for (const auto& group : groups) {
      std::vector<double> rewards;
      for (const auto i : group) rewards.push_back(step.rewards[i]);
      if (rewards.size() < 2) continue;
      ++compared;
      const Eigen::ArrayXd of = array_of(rewards);
      if (of.minCoeff() == of.maxCoeff()) {
        equal += 1;
      } else {
        spread += standard_deviation(of, 1);
      }
    }
    if (rated > 0) add("reward", sum / static_cast<double>(rated));
    if (compared == 0) return;
    add("reward_std", spread / compared);
    add("frac_reward_zero_std", equal / compared);
  }

  Metrics take() { return std::move(metrics_); }

 private:
  Metrics metrics_;
};

}  // namespace

/// A completion that trains.
struct RolloutRows::Chosen {
  const Rollout* rollout;
  std::int64_t group;
  double greedy_reward;
};

std::shared_ptr<Selection> rewards_alone() {
  class RewardsAlone final : public Selection {
   public:
    Questions questions() const override { return Questions::kRewards; }
    SelectedRows select(Rater&, exact::Random&) const override { return {}; }
    std::string config() const override { return R"({"type": "rewards"})"; }
  };
  return std::make_shared<RewardsAlone>();
}

bool is_greedy(const SourceOptions& source) {
  return source.from == SourceKind::kPolicy && source.sampling.temperature == 0;
}

namespace {

/// Throws ConfigError where a model of rewards of steps is missing, or the objective takes none.
void check_process_reward(const OnlineParts& parts) {
  const TokenObjective& objective = *parts.objective;
  const ProcessRewardOptions& options = parts.process_reward;
  if (objective.needs().extra_logps) {
    if (!parts.process_model) {
      throw ConfigError(fmt::format(
          "online.process_reward.model: expected the model that DPO trained for '{}', got none",
          objective.name()));
    }
    ProcessRewardOptions alone;
    alone.model = options.model;
    if (options_to_json(options) == options_to_json(alone)) return;
    throw ConfigError(fmt::format(
        "online.process_reward: expected a model alone for '{}', whose dpo_reward says the rest "
        "with the run's reference, got further options",
        objective.name()));
  }
  if (!parts.process_model) return;
  if (!objective.advantage().needs().per_token) {
    throw ConfigError(fmt::format(
        "online.process_reward: expected an objective whose advantages take rewards of tokens, gae "
        "or to_go, got '{}'",
        objective.name()));
  }
  if (!parts.process_reference) {
    throw ConfigError("online.process_reward.reference: expected a model, got null");
  }
}

}  // namespace

void check_rollouts(const OnlineParts& parts, const OnlineRowsOptions& options) {
  const TokenObjective& objective = *parts.objective;
  const ObjectiveNeeds needs = objective.needs();
  const std::string& name = objective.name();
  const RoundOptions& rounds = options.rounds;
  const bool has_ratios = needs.ratios || rounds.steps > 1 || rounds.epochs > 1 ||
                          objective.options().kl.weight == KlWeight::kRatio;
  std::int64_t each = 0;
  bool has_greedy = false;
  for (const SourceOptions& source : parts.sources) {
    if (is_greedy(source)) {
      has_greedy = true;
      if (source.n == 1 && writes_always(source)) continue;
      throw ConfigError(fmt::format(
          "online.sources: expected one completion of '{}' in every round, as its reward is the "
          "baseline, got n {}{}",
          source.name, source.n, writes_always(source) ? "" : " in some rounds"));
    }
    if (source.n == 0) continue;
    each += source.n;
    // The squared loss alone is right on completions of others.
    const bool is_own = source.from == SourceKind::kPolicy ||
                        source.from == SourceKind::kEnvironment || !source.roll_in.from.empty();
    if (!is_own && objective.rule().is_linear()) {
      throw ConfigError(fmt::format(
          "online.sources: expected completions of the policy for '{}', which is an expectation "
          "under it, got those of '{}'",
          name, source.name));
    }
    const SamplingOptions& sampling = source_of_trained(source, parts).sampling;
    const bool keeps_tokens_back = sampling.top_k != 0 || sampling.top_p != 1 ||
                                   sampling.min_new_tokens != 0 || sampling.repetition_penalty != 1;
    if (has_ratios && keeps_tokens_back) {
      throw ConfigError(fmt::format(
          "online.sources: expected '{}' to draw from the whole distribution (top_k 0, top_p 1, no "
          "min_new_tokens, no repetition_penalty), as the ratios of '{}' are of that, got another "
          "one",
          source.name, name));
    }
    if (sampling.temperature != parts.temperature) {
      throw ConfigError(fmt::format(
          "online.sources: expected one temperature of all sources of rollouts, got {} and {}",
          parts.temperature, sampling.temperature));
    }
    if (uses_sampler_logps(objective) && sampling.temperature != 1) {
      throw ConfigError(
          fmt::format("online.sources: expected temperature 1 for '{}', whose correction compares "
                      "the sampler's "
                      "log-probs, which are of that, got {}",
                      name, sampling.temperature));
    }
  }
  if (needs.greedy_rewards && !has_greedy) {
    throw ConfigError(fmt::format(
        "online.sources: expected a source {{\"from\": \"policy\", \"name\": \"greedy\", "
        "\"temperature\": 0}} for '{}', got none",
        name));
  }
  if (!needs.greedy_rewards && has_greedy) {
    throw ConfigError(fmt::format(
        "online.sources: expected a temperature above 0, as '{}' has no greedy baseline, got 0",
        name));
  }
  if (!parts.feedback || !parts.feedback->has_rewards()) {
    throw ConfigError(
        fmt::format("online.feedback: expected rewards of completions for '{}', got {}", name,
                    parts.feedback ? "comparisons alone" : "none"));
  }
  const double epochs = options.rounds.epochs;
  if (epochs != std::floor(epochs)) {
    throw ConfigError(fmt::format(
        "online.rounds.epochs: expected whole passes over the rollouts for '{}', got {}", name,
        epochs));
  }
  const bool filters = parts.rollouts.filter != RankFilter::kNone;
  if (needs.groups && (each < 2 || filters)) {
    throw ConfigError(fmt::format(
        "online.{}: expected at least 2 completions of each prompt, as '{}' compares them, got {}",
        filters ? "rollouts.filter" : "sources", name, filters ? 1 : each));
  }
  const bool is_shaped = options_to_json(parts.reward) != options_to_json(RewardOptions());
  if (needs.greedy_rewards && is_shaped) {
    throw ConfigError(
        fmt::format("online.reward: expected its defaults for '{}', whose greedy baseline is a "
                    "reward as it is, "
                    "got others",
                    name));
  }
  if (parts.reward.overlong_buffer > 0) {
    for (const SourceOptions& source : parts.sources) {
      const bool is_alone = source.from != SourceKind::kEnvironment && source.roll_in.from.empty();
      if (is_alone || source.n == 0) continue;
      throw ConfigError(
          fmt::format("online.reward.overlong_buffer: expected 0 where '{}' writes on what others "
                      "wrote, got {}",
                      source.name, parts.reward.overlong_buffer));
    }
  }
  check_process_reward(parts);
  if (needs.given) {
    throw ConfigError(fmt::format(
        "loss.advantage: expected one that rewards decide in a run, got 'given' of '{}'", name));
  }
  if (options.replay.share > 0) {
    throw ConfigError(fmt::format(
        "online.replay.share: expected 0 for '{}', whose advantages are of one round, got {}", name,
        options.replay.share));
  }
  if (parts.reward.normalize && parts.reward.scale) {
    throw ConfigError(
        "online.reward.scale: expected false where normalize is true, which scales as well, got "
        "true");
  }
  if (needs.values && !parts.value_model) {
    throw ConfigError(fmt::format("{}: expected a value model, got null", name));
  }
  if (needs.ref_logps && !parts.reference) {
    throw ConfigError(fmt::format("{}: expected a reference, got null", name));
  }
}

RolloutRows::RolloutRows(const OnlineParts& parts, std::int64_t seed, Meeting& meeting)
    : parts_(parts),
      seed_(seed),
      meeting_(meeting),
      normalizer_(parts.reward.normalize),
      kl_coefficient_(parts.objective->options().kl.coefficient) {}

double RolloutRows::success_rate(const std::vector<Rollout>& of_prompt) const {
  double sum = 0;
  std::int64_t rated = 0;
  for (const std::size_t place : candidates(of_prompt, parts_)) {
    const double reward = reward_of(of_prompt[place]);
    if (std::isnan(reward)) continue;
    if (reward < 0 || reward > 1) {
      throw DataError(fmt::format(
          "online.rollouts.priorities: expected rewards from 0 to 1, as rates of success, got {}",
          reward));
    }
    sum += reward;
    ++rated;
  }
  return rated > 0 ? std::clamp(sum / static_cast<double>(rated), 0.0, 1.0) : kNoReward;
}

bool RolloutRows::has_signal(const std::vector<Rollout>& of_prompt) const {
  double least = std::numeric_limits<double>::infinity();
  double most = -least;
  for (const std::size_t place : candidates(of_prompt, parts_)) {
    const double reward = reward_of(of_prompt[place]);
    if (std::isnan(reward)) continue;
    least = std::min(least, reward);
    most = std::max(most, reward);
  }
  return least < most;
}

std::vector<RolloutRows::Chosen> RolloutRows::choose(const PromptRollouts& rollouts,
                                                     std::int64_t round) const {
  std::vector<Chosen> chosen;
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const auto& of_prompt = rollouts[i];
    const auto group = static_cast<std::int64_t>(i);
    double greedy = kNoReward;
    for (const Rollout& rollout : of_prompt) {
      if (is_greedy(source_of(rollout, parts_))) greedy = reward_of(rollout);
    }
    std::vector<std::size_t> places = candidates(of_prompt, parts_);
    if (parts_.rollouts.filter != RankFilter::kNone) {
      std::erase_if(places,
                    [&](std::size_t place) { return std::isnan(reward_of(of_prompt[place])); });
      if (places.empty()) continue;
      std::vector<double> rewards;
      for (const std::size_t place : places) rewards.push_back(reward_of(of_prompt[place]));
      exact::Random random(
          static_cast<std::uint64_t>(draw_seed(seed_, {kFilterDraws, round, group})));
      const Eigen::Index kept =
          random.index(rank_weights(array_of(rewards), parts_.rollouts.filter));
      places = {places[static_cast<std::size_t>(kept)]};
    }
    // Alone of its prompt, as others have no token that trains, it has nothing to be compared with.
    if (parts_.objective->needs().groups && places.size() < 2) continue;
    for (const std::size_t place : places) chosen.push_back({&of_prompt[place], group, greedy});
  }
  return chosen;
}

Eigen::ArrayXd RolloutRows::shaped_rewards(const std::vector<Chosen>& chosen) {
  const RewardOptions& options = parts_.reward;
  const auto count = static_cast<Eigen::Index>(chosen.size());
  Eigen::ArrayXd rewards(count);
  Eigen::ArrayXd lens(count);
  for (Eigen::Index i = 0; i < count; ++i) {
    const Rollout& rollout = *chosen[static_cast<std::size_t>(i)].rollout;
    rewards[i] = reward_of(rollout);
    lens[i] = static_cast<double>(acted_tokens(rollout));
  }
  Eigen::ArrayXd shaped = rewards;
  if (options.length > 0) {
    for (Eigen::Index begin = 0; begin < count;) {
      Eigen::Index end = begin;
      std::vector<bool> is_right;
      const auto group = chosen[static_cast<std::size_t>(begin)].group;
      while (end < count && chosen[static_cast<std::size_t>(end)].group == group) {
        is_right.push_back(rewards[end++] > 0);
      }
      shaped.segment(begin, end - begin) +=
          options.length * length_rewards(lens.segment(begin, end - begin), is_right);
      begin = end;
    }
  }
  if (options.overlong_buffer > 0) {
    for (Eigen::Index i = 0; i < count; ++i) {
      const auto most = static_cast<double>(
          source_of(*chosen[static_cast<std::size_t>(i)].rollout, parts_).sampling.max_new_tokens);
      shaped[i] +=
          overlong_penalties(lens.segment(i, 1), most, static_cast<double>(options.overlong_buffer),
                             options.overlong_factor)[0];
    }
  }
  if (options.normalize || options.scale) shaped = normalizer_(shaped);
  if (options.clip > 0) {
    shaped = shaped.unaryExpr(
        [&](double x) { return std::isnan(x) ? x : std::clamp(x, -options.clip, options.clip); });
  }
  return shaped;
}

std::vector<double> RolloutRows::measure(
    const std::vector<TokenRow>& rows,
    const std::function<at::Tensor(const TokenBatch&)>& of_batch) const {
  const at::NoGradGuard no_grad;
  const auto parts = cut_by_tokens(rows, parts_.micro_tokens);
  const Portion own = portion_of(std::ssize(parts), *meeting_.ranks());
  std::vector<double> numbers;
  for (auto i = own.begin; i < own.end; ++i) {
    const TokenBatch batch =
        make_pair_batch(parts[static_cast<std::size_t>(i)], /*with_rejected=*/false);
    const at::Tensor wide = of_batch(batch).to(at::kCPU, at::kDouble).contiguous();
    numbers.insert(numbers.end(), wide.const_data_ptr<double>(),
                   wide.const_data_ptr<double>() + wide.numel());
  }
  return gather_numbers(numbers, meeting_);
}

/// Puts rewards of turns at their tokens, where they are the completion's reward; what shaping has
/// changed of their sum stays at the end.
void RolloutRows::set_token_rewards(const std::vector<Chosen>& chosen, RolloutStep& step) const {
  constexpr double kRounding = 1e-9;
  // Scaled or limited as one number, a reward has no parts.
  const RewardOptions& shaping = parts_.reward;
  if (shaping.normalize || shaping.scale || shaping.clip > 0) return;
  step.token_rewards = Eigen::ArrayXd::Zero(step.tokens());
  const auto starts = step.starts();
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const Rollout& rollout = *chosen[i].rollout;
    if (rollout.token_rewards.empty()) continue;
    const Eigen::ArrayXd each = array_of(rollout.token_rewards);
    const double penalties = std::abs(each.sum() - reward_of(rollout));
    if (!(penalties <= kRounding)) continue;  // other feedback, or penalties: one reward
    step.token_rewards.segment(starts[i], step.lens[i]) = each;
    step.rewards[static_cast<Eigen::Index>(i)] -= each.sum();
  }
}

/// Adds the rewards of steps at their ends, of the tokens that the policy chose.
void RolloutRows::add_process_rewards(const std::vector<Chosen>& chosen, RolloutStep& step) const {
  constexpr std::string_view kWhere = "online.process_reward";
  const ProcessRewardOptions& options = parts_.process_reward;
  std::vector<TokenSequence> sequences;
  for (const Chosen& one : chosen) {
    sequences.push_back({.prompt = one.rollout->prompt, .completion = one.rollout->completion});
  }
  const auto of_tokens = implicit_token_rewards(*parts_.process_model, *parts_.process_reference,
                                                sequences, options.beta);
  if (step.token_rewards.size() == 0) step.token_rewards = Eigen::ArrayXd::Zero(step.tokens());
  const auto starts = step.starts();
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const Eigen::ArrayXd acted = step.acted.segment(starts[i], step.lens[i]);
    const Eigen::ArrayXd each = array_of(of_tokens[i]) * acted;
    const StepEnds ends =
        step_ends_of(chosen[i].rollout->completion, *parts_.tokenizer, options.step_end);
    Eigen::ArrayXd rewards = step_sums(each, ends, kWhere);
    if (options.clip > 0) rewards = rewards.max(-options.clip).min(options.clip);
    add_at_last_acted(rewards, ends, acted, step.token_rewards.segment(starts[i], step.lens[i]));
  }
}

RolloutRows::Made RolloutRows::make(Policy& policy, const PromptRollouts& rollouts,
                                    std::int64_t updates, std::int64_t round) {
  const TokenObjective& objective = *parts_.objective;
  const TokenObjectiveOptions& options = objective.options();
  const ObjectiveNeeds needs = objective.needs();
  const std::vector<Chosen> chosen = choose(rollouts, round);
  Made made;
  RolloutMetrics metrics;
  if (chosen.empty()) return made;

  RolloutStep step;
  std::vector<TokenRow> rows;
  std::vector<double> acted;
  std::vector<double> greedy;
  for (const Chosen& one : chosen) {
    const Rollout& rollout = *one.rollout;
    TokenRow row{.prompt = rollout.prompt, .chosen = rollout.completion, .rejected = {}};
    row.chosen_mask = rollout.acted;
    row.rollout.group = one.group;
    rows.push_back(std::move(row));
    step.lens.push_back(std::ssize(rollout.completion));
    step.groups.push_back(one.group);
    greedy.push_back(one.greedy_reward);
    for (std::size_t t = 0; t < rollout.completion.size(); ++t) {
      acted.push_back(rollout.acted.empty() || rollout.acted[t] != 0 ? 1 : 0);
    }
  }
  step.acted = array_of(acted);
  step.rewards.resize(static_cast<Eigen::Index>(chosen.size()));
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    step.rewards[static_cast<Eigen::Index>(i)] = reward_of(*chosen[i].rollout);
  }
  metrics.add_rewards(step);
  if (step.rated_groups().empty()) {
    made.metrics = metrics.take();
    return made;
  }
  step.rewards = shaped_rewards(chosen);
  if (options_to_json(parts_.reward) != options_to_json(RewardOptions())) {
    const Eigen::ArrayXd rated = step.rewards.isNaN().select(0, step.rewards);
    const auto count = static_cast<double>(step.rewards.size() - step.rewards.isNaN().count());
    metrics.add("reward/shaped", rated.sum() / count);
  }
  if (objective.advantage().needs().per_token) set_token_rewards(chosen, step);
  if (parts_.process_model && !needs.extra_logps) {
    const double before = step.token_rewards.size() > 0 ? step.token_rewards.sum() : 0;
    add_process_rewards(chosen, step);
    metrics.add("reward/process",
                (step.token_rewards.sum() - before) / static_cast<double>(chosen.size()));
  }
  if (needs.greedy_rewards) step.greedy_rewards = array_of(greedy);
  const bool has_kl_reward = options.kl.is_in_advantages();
  const bool keeps_old = updates > 1;
  // Numbers of acted tokens, at their places among all.
  const auto spread = [&](const std::vector<double>& counted) {
    Eigen::ArrayXd all = Eigen::ArrayXd::Zero(step.tokens());
    auto next = counted.begin();
    for (Eigen::Index t = 0; t < all.size(); ++t) {
      if (step.acted[t] != 0) all[t] = *next++;
    }
    return all;
  };
  std::vector<double> old_logps;
  std::vector<double> ref_logps;
  std::vector<double> values;
  if (has_kl_reward || keeps_old) {
    old_logps = measure(rows, [&](const TokenBatch& batch) {
      return sequence_logps(policy, batch.to(policy.device()),
                            {.by_products = {}, .reduction = {}, .temperature = parts_.temperature})
          .token_logps;
    });
    step.old_logps = spread(old_logps);
  }
  // The exact KL in the loss looks at whole distributions.
  const bool has_ref_logps = needs.ref_logps && (!needs.exact_kls || needs.extra_logps);
  if (has_ref_logps) {
    ref_logps = measure(rows, [&](const TokenBatch& batch) {
      return parts_.reference->tempered_token_logps(batch.to(policy.device()), parts_.temperature);
    });
    step.ref_logps = spread(ref_logps);
  }
  if (needs.extra_logps) {
    step.extra_logps = spread(measure(rows, [&](const TokenBatch& batch) {
      Policy& model = *parts_.process_model;
      return sequence_logps(model, batch.to(model.device()),
                            {.by_products = {}, .reduction = {}, .temperature = parts_.temperature})
          .token_logps;
    }));
  }
  if (needs.values) {
    values = measure(rows, [&](const TokenBatch& batch) {
      return parts_.value_model->token_values(batch.to(parts_.value_model->device()));
    });
    step.values = spread(values);
  }
  const StepAdvantages advantages = objective.advantages(step, kl_coefficient_);

  // Columns of the tokens that count.
  const auto starts = step.starts();
  std::size_t next = 0;
  std::int64_t dropped = 0;
  std::int64_t unfinished = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Rollout& rollout = *chosen[i].rollout;
    RolloutColumns& columns = rows[i].rollout;
    std::int64_t turn = 0;
    bool acted_before = false;
    for (std::int64_t t = starts[i]; t < starts[i + 1]; ++t) {
      const auto& ends = rollout.turn_ends;
      if (ends.empty()) {
        const bool begins = t > starts[i] && step.acted[t] != 0 && step.acted[t - 1] == 0;
        if (begins && acted_before) ++turn;
      } else {
        while (t - starts[i] >= ends[static_cast<std::size_t>(turn)]) ++turn;
      }
      if (step.acted[t] == 0) continue;
      acted_before = true;
      columns.advantages.push_back(advantages.advantages[t]);
      if (keeps_old) columns.old_logps.push_back(old_logps[next]);
      if (has_ref_logps) columns.ref_logps.push_back(ref_logps[next]);
      if (options.value_loss.coefficient > 0) {
        columns.old_values.push_back(values[next]);
        columns.returns.push_back(advantages.returns[t]);
      }
      if (uses_sampler_logps(objective)) {
        columns.sampler_logps.push_back(
            rollout.token_logps[static_cast<std::size_t>(t - starts[i])]);
      }
      if (options.level == RatioLevel::kTurn) columns.turns.push_back(turn);
      ++next;
    }
    if (!rollout.ended) ++unfinished;
    const bool is_masked = options.unfinished == UnfinishedCompletions::kMask && !rollout.ended;
    if (is_masked || advantages.kept[static_cast<Eigen::Index>(i)] == 0) {
      ++dropped;
      continue;
    }
    made.rows.push_back(std::move(rows[i]));
  }

  const auto count = static_cast<double>(chosen.size());
  const Eigen::ArrayXd lens = step.acted_tokens();
  metrics.add("completions/mean_length", lens.mean());
  metrics.add("completions/min_length", lens.minCoeff());
  metrics.add("completions/max_length", lens.maxCoeff());
  metrics.add("completions/clipped_ratio", static_cast<double>(unfinished) / count);
  metrics.add("completions/dropped_ratio", static_cast<double>(dropped) / count);
  if (step.old_logps.size() > 0 && step.ref_logps.size() > 0) {
    const double kl = (step.acted * (step.old_logps - step.ref_logps)).sum() / count;
    metrics.add("kl/sequence", kl);
    metrics.add("kl/coefficient", kl_coefficient_);
    if (options.kl.target > 0) {
      kl_coefficient_ =
          adapted_kl_coefficient(kl_coefficient_, kl, options.kl.target, count, options.kl.horizon);
    }
  }
  if (needs.values) {
    const double acted_tokens = step.acted.sum();
    const Eigen::ArrayXd gaps = step.acted * (advantages.returns - step.values);
    metrics.add("value/mean", (step.acted * step.values).sum() / acted_tokens);
    metrics.add("value/error", std::sqrt(gaps.square().sum() / acted_tokens));
  }
  made.metrics = metrics.take();
  return made;
}

void RolloutRows::visit_state(StateVisitor& visitor) {
  RewardNormalizer::State state = normalizer_.state();
  visitor.real("rewards.count", state.count);
  visitor.real("rewards.mean", state.mean);
  visitor.real("rewards.squares", state.squares);
  normalizer_.set_state(state);
  visitor.real("kl_coefficient", kl_coefficient_);
}

}  // namespace prefopt::detail
