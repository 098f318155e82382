// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/online_rows.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <limits>
#include <utility>

#include "core/json.h"
#include "dist/meeting.h"
#include "online/draw_seed.h"
#include "online/held_out_contest.h"
#include "online/rated_prompts.h"
#include "online/rollout_rows.h"
#include "online/rollout_writer.h"
#include "online/row_store.h"
#include "online/shared_work.h"
#include "online/source_models.h"
#include "prefopt/error.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/reward_shaping.h"
#include "train/epoch_order.h"
#include "train/metrics.h"
#include "train/row_fingerprint.h"

namespace prefopt {

using detail::draw_seed;

namespace {

/// Rounds without a row that end a run.
constexpr std::int64_t kMostEmptyRounds = 3;

/// Prompts of a round whose completions its record shows.
constexpr std::size_t kShownPrompts = 4;

/// Throws ConfigError where rounds could have no source. Between the ends of the sources' rounds
/// and numbers nothing changes.
void check_rounds(const std::vector<SourceOptions>& sources, std::int64_t rounds) {
  std::vector<std::int64_t> firsts = {1};
  std::vector<double> numbers = {0};
  for (const SourceOptions& source : sources) {
    firsts.push_back(source.rounds.first);
    if (source.rounds.last > 0) firsts.push_back(source.rounds.last + 1);
    numbers.push_back(source.rounds.above);
    if (source.rounds.below < 1) numbers.push_back(source.rounds.below);
  }
  for (const std::int64_t round : firsts) {
    if (round > rounds) continue;
    for (const double number : numbers) {
      const bool is_written =
          std::any_of(sources.begin(), sources.end(), [&](const SourceOptions& source) {
            return source.n > 0 && source.rounds.contain(round, number);
          });
      if (is_written) continue;
      throw ConfigError(
          fmt::format("online.sources: expected one that writes in each round, got none in round "
                      "{} where it draws {}",
                      round, number));
    }
  }
}

/// Throws ConfigError where trees and whole completions would meet, or ends have no reward.
void check_trees(const OnlineParts& parts) {
  const auto is_tree = [](const SourceOptions& source) { return source.from == SourceKind::kTree; };
  const auto trees = std::count_if(parts.sources.begin(), parts.sources.end(), is_tree);
  if (trees == 0) {
    if (!parts.selection->takes_steps()) return;
    throw ConfigError(
        "online.sources: expected a source 'tree' for a selection that pairs steps, got none");
  }
  if (parts.objective || !parts.selection->takes_steps()) {
    throw ConfigError(fmt::format(
        "online.select: expected one that pairs steps, 'siblings', of a source 'tree', got {}",
        parts.objective ? "an objective on tokens" : parts.selection->config()));
  }
  if (parts.sources.size() > 1) {
    throw ConfigError(fmt::format("online.sources: expected a source 'tree' alone, got {} sources",
                                  parts.sources.size()));
  }
  if (!parts.feedback || !parts.feedback->has_rewards()) {
    throw ConfigError(
        "online.feedback: expected rewards, of the ends of a source 'tree', got none");
  }
}

void check_parts(const OnlineParts& parts, const OnlineRowsOptions& options) {
  const auto count = std::ssize(parts.prompts);
  if (count == 0) throw ConfigError("online.prompts: expected at least one prompt, got none");
  if (options.rounds.prompts > count) {
    throw ConfigError(
        fmt::format("online.rounds.prompts: expected at most the {} prompts of the file, got {}",
                    count, options.rounds.prompts));
  }
  check_trees(parts);
  if (parts.objective) detail::check_rollouts(parts, options);
  if (parts.selection->questions() != Questions::kNone && !parts.feedback) {
    throw ConfigError(
        "online.feedback: expected a reward, a judge or a program for a selection that asks, got "
        "none");
  }
  if (parts.needs.of_own_samples && (options.rounds.steps != 1 || options.replay.share > 0)) {
    throw ConfigError(
        "online.rounds.steps: expected 1, and no replay, for a loss whose rows have to be samples "
        "of the policy that it changes, got another number or a replay.share");
  }
  if (options.rounds.extrapolate > 0 && options.rounds.rounds == 1) {
    throw ConfigError(
        "online.rounds.extrapolate: expected 0 with a single round, as it moves weights between "
        "rounds, got another number");
  }
  check_rounds(parts.sources, options.rounds.rounds);
  for (const SourceOptions& source : parts.sources) {
    const bool weighs = parts.selection->needs_own_distribution() || parts.needs.of_own_samples;
    const bool is_policy =
        source.from == SourceKind::kPolicy || source.from == SourceKind::kEnvironment;
    const bool is_own = !is_policy || follows_policy(source.sampling);
    if (weighs && !is_own) {
      throw ConfigError(fmt::format(
          "online.sources: expected '{}' to draw from the policy's own distribution, as the "
          "loss or the selection weighs completions by it, got temperature, top_k, top_p, "
          "repetition_penalty or min_new_tokens of another one",
          source.name));
    }
  }
}

/// Feedback that prefers later completions, for a rehearsal.
class LaterIsBetter final : public Preference {
 public:
  explicit LaterIsBetter(bool has_rewards) : has_rewards_(has_rewards) {}

  std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
    std::vector<double> answers;
    for (const auto& [first, second] : comparisons) {
      answers.push_back(first->completion < second->completion ? 0.1 : 0.9);
    }
    return answers;
  }
  bool has_rewards() const override { return has_rewards_; }
  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> values;
    for (const Rollout* rollout : rollouts) {
      values.push_back(1e9 * static_cast<double>(1 + rollout->completion.front()));
    }
    return values;
  }

 private:
  bool has_rewards_;
};

/// Returns two steps of each decision point of the largest tree, as many of them as can be on the
/// best path.
std::vector<Rollout> rehearsed_steps(const TreeSearchOptions& options) {
  std::vector<Rollout> steps;
  for (std::int64_t parent = 0; parent < options.most_decision_points(); ++parent) {
    for (const double value : {1.0, 0.0}) {
      steps.push_back({.prompt = {0}, .completion = {std::ssize(steps)}, .ended = true});
      steps.back().step = {.node = std::ssize(steps),
                           .parent = parent,
                           .visits = std::numeric_limits<std::int32_t>::max(),
                           .value = value,
                           .is_best = value == 1 && parent < options.max_depth};
    }
  }
  return steps;
}

/// Makes rows of completions that nobody wrote, so that a selection that does not fit the loss is
/// refused before anything is drawn. Returns the rows of a prompt whose completions all differ: the
/// most that it has.
std::int64_t rehearse(const OnlineParts& parts, std::int64_t seed) {
  OnlineParts rehearsal{.tokenizer = parts.tokenizer,
                        .prompts = {},
                        .sources = parts.sources,
                        .rater = parts.rater,
                        .selection = parts.selection,
                        .needs = parts.needs};
  if (parts.feedback) {
    rehearsal.feedback = std::make_shared<LaterIsBetter>(parts.feedback->has_rewards());
  }
  std::vector<Rollout> rollouts;
  for (std::int64_t place = 0; place < std::ssize(parts.sources); ++place) {
    const SourceOptions& source = parts.sources[static_cast<std::size_t>(place)];
    if (source.from == SourceKind::kTree) {
      rollouts = rehearsed_steps(source.tree);
      continue;
    }
    for (std::int64_t k = 0; k < source.n; ++k) {
      rollouts.push_back(
          {.prompt = {0}, .completion = {std::ssize(rollouts)}, .ended = true, .source = place});
    }
  }
  return std::ssize(
      detail::rate(rehearsal, {std::move(rollouts)}, seed, /*round=*/1, /*first=*/0).rows());
}

/// Throws ConfigError where extrapolate_weights would, before anything is drawn.
void check_extrapolation(const Policy& policy, double alpha) {
  const auto weight = detail::find_not_extrapolable(policy);
  if (!weight) return;
  throw ConfigError(
      fmt::format("online.rounds.extrapolate: expected 0 where the policy trains {}, got {}",
                  weight->lora_a.defined() ? "an adapter" : "weights of less than float32", alpha));
}

/// The numbers of a record.
Metrics metrics_of(const detail::Json& record) {
  Metrics metrics;
  for (const auto& [name, value] : record.items()) {
    if (value.is_number()) metrics.emplace_back(name, value.get<double>());
  }
  return metrics;
}

std::int64_t count_groups(const std::vector<TokenRow>& rows) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i == 0 || rows[i].rollout.group != rows[i - 1].rollout.group) ++count;
  }
  return count;
}

/// Why a round has no rows.
std::string summary_of(const Metrics& metrics) {
  const bool has_pairs = std::any_of(metrics.begin(), metrics.end(), [](const auto& metric) {
    return metric.first == "pairs/ties";
  });
  if (!has_pairs) {
    if (!detail::find_metric(metrics, "reward")) return "no completion has a reward";
    const auto unfinished = detail::find_metric(metrics, "completions/clipped_ratio");
    return unfinished
               ? fmt::format("no completion counts, a share {} has no end token", *unfinished)
               : "no prompt has different rewards";
  }
  const auto count = [&](std::string_view name) { return metric(metrics, name); };
  return fmt::format("{} ties, {} identical, {} failed, {} unusable", count("pairs/ties"),
                     count("pairs/identical"), count("pairs/failed"), count("pairs/unusable"));
}

}  // namespace

struct OnlineRows::Impl {
  Impl(OnlineParts given, const OnlineRowsOptions& of, const Policy& policy)
      : parts(std::move(given)),
        options(of),
        meeting(parts.ranks ? parts.ranks : one_process()),
        models(parts.sources, policy, parts.initial),
        writer(parts, models, options.at_once, options.seed),
        contest(parts, options.at_once, options.seed, meeting) {
    const RoundOptions& rounds = options.rounds;
    if (rounds.extrapolate > 0) {
      check_extrapolation(policy, rounds.extrapolate);
      previous.emplace(policy);
    }
    if (rounds.start == RoundStart::kInitial) initial.emplace(policy);
    prompts_a_round = rounds.prompts > 0 ? rounds.prompts : std::ssize(parts.prompts);
    if (parts.objective) rollout_rows.emplace(parts, options.seed, meeting);
    if (parts.rollouts.priorities)
      success_rates = at::zeros({std::ssize(parts.prompts)}, at::kDouble);
  }

  // A round.
  void start_round(Policy& policy);
  bool is_stuck() const;
  void prepare(Policy& policy);
  std::vector<const OnlinePrompt*> prompts_of(std::int64_t number) const;
  std::vector<const OnlinePrompt*> prompts_by_priority(std::int64_t number) const;
  std::vector<const OnlinePrompt*> further_prompts(std::int64_t number, std::int64_t attempt,
                                                   std::int64_t count) const;
  detail::RatedPrompts draw(Policy& policy);
  detail::RatedPrompts draw(Policy& policy, const std::vector<const OnlinePrompt*>& prompts,
                            std::int64_t first);
  detail::RatedPrompts draw_share(Policy& policy, const std::vector<const OnlinePrompt*>& prompts,
                                  std::int64_t first, const detail::Portion& own);
  void note_success(const std::vector<const OnlinePrompt*>& prompts,
                    const detail::RatedPrompts& rated);
  void plan_steps();
  void describe(const detail::RatedPrompts& rated, const Metrics& of_rollouts,
                std::int64_t empty_rounds);

  // Its steps.
  std::int64_t rollout_parts() const;
  std::int64_t rollout_passes() const;
  std::int64_t rows_of_step(std::int64_t of) const;
  std::vector<std::size_t> numbers_of_step() const;
  std::vector<std::size_t> rollouts_of_step() const;
  StepRows step_rows() const;

  void count_failures();
  void visit_evaluation(StateVisitor& visitor);

  void restore_round();
  void visit(StateVisitor& visitor);

  OnlineParts parts;
  OnlineRowsOptions options;
  detail::Meeting meeting;
  detail::SourceModels models;
  detail::RolloutWriter writer;
  detail::HeldOutContest contest;
  std::optional<detail::RolloutRows> rollout_rows;  ///< of an objective on tokens
  at::Tensor success_rates;                         ///< of prompts that are drawn by them
  std::int64_t drawn_prompts = 0;                   ///< in the round
  detail::RowStore store;
  std::optional<WeightSnapshot> previous;  ///< after the training of the round before
  std::optional<WeightSnapshot> initial;
  std::int64_t prompts_a_round = 0;
  std::int64_t rows_a_prompt = 1;  ///< at most
  std::int64_t round = 0;          ///< that was drawn last, counted from 1
  std::int64_t prepared = 0;       ///< round that weights and references are ready for
  std::int64_t step = 0;           ///< of the round, done
  std::int64_t steps = 0;          ///< of the round
  std::int64_t empty = 0;          ///< rounds without a row, just before
  std::int64_t inconsistent = 0;   ///< answers in the round
  std::vector<TokenRow> rows;      ///< of the round, with replayed ones
  std::string record;              ///< JSON about the round: its metrics and some completions
  Metrics metrics;                 ///< of `record`
  std::int64_t steps_done = 0;     ///< of all rounds
  Policy* trained = nullptr;       ///< that the present step trains
  /// Of feedback, in whole rounds and evaluations.
  std::vector<std::int64_t> failures;
};

// A round.

void OnlineRows::Impl::start_round(Policy& policy) {
  if (is_stuck()) {
    const std::string where =
        empty == 1 ? "the only round ("
                   : fmt::format("{} rounds one after the other (in the last one ", empty);
    throw DataError(fmt::format("online: expected rows of a round, got none in {}{})", where,
                                summary_of(metrics)));
  }
  prepare(policy);
  const detail::RatedPrompts rated = draw(policy);
  if (parts.save) parts.save(prepared, rated.rollouts());
  round = prepared;
  step = 0;
  detail::RolloutRows::Made made{.rows = rated.rows(), .metrics = {}};
  if (rollout_rows) {
    made = rollout_rows->make(policy, rated.rollouts(), rollout_parts() * rollout_passes(), round);
  }
  empty = made.rows.empty() ? empty + 1 : 0;
  store.add(std::move(made.rows), round, options.replay);
  describe(rated, made.metrics, empty);
  count_failures();
  if (empty > 0) {
    // Without steps the next call starts another round, also in a resumed run.
    steps = 0;
    rows.clear();
    if (parts.note) {
      parts.note(fmt::format("round {}: no rows ({}), it is skipped", round, summary_of(metrics)));
    }
    return;
  }
  if (options.rounds.start == RoundStart::kInitial) initial->restore(policy);
  plan_steps();
}

/// Whether the rounds end with an error in place of a further one: too many had no row, or all.
bool OnlineRows::Impl::is_stuck() const {
  if (empty == 0) return false;
  return round == options.rounds.rounds ? empty == round : empty == kMostEmptyRounds;
}

/// Makes weights and reference ready for the next round, once, though drawing may fail after it.
void OnlineRows::Impl::prepare(Policy& policy) {
  if (prepared > round) return;
  const bool has_trained = round > 0 && empty == 0;
  if (previous && has_trained) {
    WeightSnapshot trained(policy);
    extrapolate_weights(policy, *previous, options.rounds.extrapolate);
    std::swap(*previous, trained);
  }
  if (parts.start_round) parts.start_round(policy, round + 1);
  models.start_round(policy);
  prepared = round + 1;
}

std::vector<const OnlinePrompt*> OnlineRows::Impl::prompts_of(std::int64_t number) const {
  detail::EndlessOrder order(parts.prompts.size(), draw_seed(options.seed, {detail::kPromptDraws}));
  std::vector<const OnlinePrompt*> chosen;
  for (auto at = (number - 1) * prompts_a_round; at < number * prompts_a_round; ++at) {
    chosen.push_back(&parts.prompts[order.at(at)]);
  }
  return chosen;
}

/// Different prompts, each with a probability that falls with its rate of success.
std::vector<const OnlinePrompt*> OnlineRows::Impl::prompts_by_priority(std::int64_t number) const {
  exact::Random random(
      static_cast<std::uint64_t>(draw_seed(options.seed, {detail::kPriorityDraws, number})));
  const double* const rates = success_rates.const_data_ptr<double>();
  Eigen::ArrayXd weights = prompt_priorities(
      Eigen::Map<const Eigen::ArrayXd>(rates, static_cast<Eigen::Index>(parts.prompts.size())));
  std::vector<const OnlinePrompt*> chosen;
  while (std::ssize(chosen) < prompts_a_round) {
    // Those that never fail come last.
    if (weights.sum() == 0) {
      weights.setOnes();
      for (const OnlinePrompt* prompt : chosen) weights[prompt - parts.prompts.data()] = 0;
    }
    const Eigen::Index place = random.index(weights);
    weights[place] = 0;
    chosen.push_back(&parts.prompts[static_cast<std::size_t>(place)]);
  }
  return chosen;
}

/// Prompts that replace others of a round, in an order of the attempt.
std::vector<const OnlinePrompt*> OnlineRows::Impl::further_prompts(std::int64_t number,
                                                                   std::int64_t attempt,
                                                                   std::int64_t count) const {
  detail::EndlessOrder order(parts.prompts.size(),
                             draw_seed(options.seed, {detail::kExtraPromptDraws, number, attempt}));
  std::vector<const OnlinePrompt*> chosen;
  for (std::int64_t at = 0; at < std::min(count, std::ssize(parts.prompts)); ++at) {
    chosen.push_back(&parts.prompts[order.at(at)]);
  }
  return chosen;
}

void OnlineRows::Impl::note_success(const std::vector<const OnlinePrompt*>& prompts,
                                    const detail::RatedPrompts& rated) {
  if (!parts.rollouts.priorities) return;
  double* const rates = success_rates.mutable_data_ptr<double>();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const double rate = rollout_rows->success_rate(rated.rollouts()[i]);
    if (!std::isnan(rate)) rates[prompts[i] - parts.prompts.data()] = rate;
  }
}

/// The prompts of a round with their completions: under dynamic sampling drawn again until there
/// are enough whose rewards differ.
detail::RatedPrompts OnlineRows::Impl::draw(Policy& policy) {
  const std::int64_t number = prepared;
  inconsistent = 0;
  auto prompts = parts.rollouts.priorities ? prompts_by_priority(number) : prompts_of(number);
  detail::RatedPrompts all = draw(policy, prompts, 0);
  note_success(prompts, all);
  drawn_prompts = std::ssize(prompts);
  if (!parts.rollouts.dynamic_sampling) return all;
  const auto has_signal = [&](const std::vector<Rollout>& of_prompt) {
    return rollout_rows->has_signal(of_prompt);
  };
  all.keep_if(has_signal);
  for (std::int64_t attempt = 1; attempt < parts.rollouts.most_draws; ++attempt) {
    const auto missing = prompts_a_round - std::ssize(all.rollouts());
    if (missing == 0) break;
    prompts = further_prompts(number, attempt, missing);
    detail::RatedPrompts more = draw(policy, prompts, drawn_prompts);
    note_success(prompts, more);
    drawn_prompts += std::ssize(prompts);
    more.keep_if(has_signal);
    all.append(std::move(more));
  }
  return all;
}

/// Draws a share of the prompts, and returns those of all ranks.
detail::RatedPrompts OnlineRows::Impl::draw(Policy& policy,
                                            const std::vector<const OnlinePrompt*>& prompts,
                                            std::int64_t before) {
  Preference* const feedback = parts.feedback.get();
  const auto failed = feedback != nullptr ? feedback->failures() : std::vector<std::int64_t>();
  const std::int64_t contradicted = feedback != nullptr ? feedback->inconsistent() : 0;
  detail::RatedPrompts own = draw_share(policy, prompts, before,
                                        detail::portion_of(std::ssize(prompts), *meeting.ranks()));
  if (feedback != nullptr) {
    detail::share_failures(*feedback, failed, meeting);
    inconsistent += detail::sum_of(feedback->inconsistent() - contradicted, meeting);
  }
  if (meeting.size() == 1) return own;
  detail::RatedPrompts all;
  for (const std::string& of_rank : meeting.texts(own.pack())) {
    all.append(detail::RatedPrompts::unpack(of_rank, parts));
  }
  return all;
}

/// Rates the completions of some prompts while those of the next ones are drawn.
detail::RatedPrompts OnlineRows::Impl::draw_share(Policy& policy,
                                                  const std::vector<const OnlinePrompt*>& prompts,
                                                  std::int64_t before, const detail::Portion& own) {
  const std::int64_t number = prepared;
  std::int64_t each = 0;
  for (const SourceOptions& source : parts.sources) each += source.n;
  const auto part = std::max<std::int64_t>(1, options.at_once / each);
  const auto report = [&](std::string_view phase, std::int64_t done) {
    if (parts.progress) parts.progress(phase, done, own.end - own.begin);
  };
  detail::RatedPrompts all;
  std::future<detail::RatedPrompts> rating;
  const auto collect = [&] {
    if (rating.valid()) all.append(rating.get());
  };
  report("sampling", 0);
  for (std::int64_t first = own.begin; first < own.end; first += part) {
    const auto last = std::min(first + part, own.end);
    const std::int64_t place = before + first;
    auto rollouts =
        writer.write(policy, {prompts.begin() + first, prompts.begin() + last}, number, place);
    report("sampling", last - own.begin);
    collect();
    rating = std::async(std::launch::async,
                        [this, number, place, moved = std::move(rollouts)]() mutable {
                          return detail::rate(parts, std::move(moved), options.seed, number, place);
                        });
  }
  report("rating", 0);
  collect();
  report("training", 0);
  return all;
}

void OnlineRows::Impl::plan_steps() {
  rows = store.pick(round, options.replay, options.seed);
  const RoundOptions& of = options.rounds;
  const auto count = std::ssize(rows);
  if (rollout_rows) {
    steps = std::min(rollout_parts(), count_groups(rows)) * rollout_passes();
    return;
  }
  steps = of.steps > 0 ? std::max<std::int64_t>(1, std::min(of.steps, count))
                       : detail::count_epoch_steps(of.epochs, static_cast<double>(count),
                                                   options.batch_rows);
}

void OnlineRows::Impl::describe(const detail::RatedPrompts& rated, const Metrics& of_rollouts,
                                std::int64_t empty_rounds) {
  detail::Json line = {{"round", round}, {"rounds/empty", empty_rounds}};
  for (const auto& [name, value] : rated.metrics()) {
    if (!rollout_rows || !name.starts_with("pairs/")) line[name] = value;
  }
  for (const auto& [name, value] : of_rollouts) line[name] = value;
  if (parts.rollouts.dynamic_sampling) line["rollouts/drawn_prompts"] = drawn_prompts;
  if (parts.feedback) line["judge/inconsistent"] = inconsistent;
  line["samples"] = rated.samples(kShownPrompts, parts.sources);
  record = detail::dump_json(line);
  metrics = metrics_of(line);
}

/// The failures of a round or an evaluation count when it is through: one that is broken off is
/// made again.
void OnlineRows::Impl::count_failures() {
  if (parts.feedback) failures = parts.feedback->failures();
}

void OnlineRows::Impl::visit_evaluation(StateVisitor& visitor) {
  contest.visit_state(visitor);
  visitor.integers("feedback_failures", failures);
  if (!visitor.is_loading()) return;
  const std::size_t expected = parts.feedback ? parts.feedback->failures().size() : 0;
  if (!failures.empty() && failures.size() != expected) {
    throw CheckpointError(fmt::format("expected feedback_failures of {} programs, got {}", expected,
                                      failures.size()));
  }
  if (!failures.empty()) parts.feedback->set_failures(failures);
}

/// Makes what follows from the saved state: the rows of the round and their metrics.
void OnlineRows::Impl::restore_round() {
  if (round == 0) return;
  metrics = metrics_of(detail::parse_json<CheckpointError>(record, "round_record"));
  if (steps == 0) return;
  const std::int64_t planned = steps;
  plan_steps();
  if (steps != planned || step < 0 || step > steps) {
    throw CheckpointError(fmt::format(
        "expected round_step of the {} steps of a round, got step {} of {}", steps, step, planned));
  }
}

// Its steps.

/// Updates over the rollouts of a round, in equal parts.
std::int64_t OnlineRows::Impl::rollout_parts() const {
  return std::max<std::int64_t>(options.rounds.steps, 1);
}

std::int64_t OnlineRows::Impl::rollout_passes() const {
  return std::max<std::int64_t>(1, std::llround(options.rounds.epochs));
}

/// Whole groups: their order differs from pass to pass.
std::vector<std::size_t> OnlineRows::Impl::rollouts_of_step() const {
  std::vector<std::vector<std::size_t>> groups;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i == 0 || rows[i].rollout.group != rows[i - 1].rollout.group) groups.emplace_back();
    groups.back().push_back(i);
  }
  const auto count = std::ssize(groups);
  const std::int64_t of_pass = steps / rollout_passes();
  const std::int64_t pass = step / of_pass;
  const std::int64_t part = step % of_pass;
  detail::EndlessOrder order(groups.size(), draw_seed(options.seed, {detail::kOrderDraws, round}));
  std::vector<std::size_t> numbers;
  for (auto at = count * part / of_pass; at < count * (part + 1) / of_pass; ++at) {
    const auto& group = groups[order.at(pass * count + at)];
    numbers.insert(numbers.end(), group.begin(), group.end());
  }
  return numbers;
}

std::int64_t OnlineRows::Impl::rows_of_step(std::int64_t of) const {
  return std::ssize(rows) * of / steps;
}

std::vector<std::size_t> OnlineRows::Impl::numbers_of_step() const {
  if (rollout_rows) return rollouts_of_step();
  const auto count = std::ssize(rows);
  const bool in_parts = options.rounds.steps > 0;
  const std::int64_t begin = in_parts ? rows_of_step(step) : step * options.batch_rows;
  const std::int64_t end = in_parts ? rows_of_step(step + 1) : begin + options.batch_rows;
  const double all = options.rounds.epochs * static_cast<double>(count);
  const std::int64_t limit = in_parts ? count : std::max<std::int64_t>(1, std::llround(all));
  detail::EndlessOrder order(rows.size(), draw_seed(options.seed, {detail::kOrderDraws, round}));
  std::vector<std::size_t> numbers;
  for (std::int64_t at = begin; at < std::min(end, limit); ++at) numbers.push_back(order.at(at));
  return numbers;
}

StepRows OnlineRows::Impl::step_rows() const {
  StepRows result;
  for (const std::size_t number : numbers_of_step()) {
    result.rows.push_back(rows[number]);
    result.numbers.push_back(static_cast<std::int64_t>(number));
  }
  if (!parts.imitated.empty()) {
    detail::EndlessOrder order(parts.imitated.size(),
                               draw_seed(options.seed, {detail::kImitationDraws}));
    for (std::int64_t i = 0; i < parts.imitated_rows; ++i) {
      const std::size_t number = order.at(steps_done * parts.imitated_rows + i);
      result.numbers.push_back(static_cast<std::int64_t>(number));
      result.rows.push_back(parts.imitated[number]);
    }
  }
  result.metrics = metrics;
  if (step == 0) result.round = record;
  result.ends_round = step + 1 == steps;
  result.restarts_optimizer = step == 0 && round > 1 && options.rounds.restart_optimizer;
  return result;
}

void OnlineRows::Impl::visit(StateVisitor& visitor) {
  visitor.integer("round", round);
  visitor.integer("prepared_round", prepared);
  visitor.integer("round_step", step);
  visitor.integer("round_steps", steps);
  visitor.integer("empty_rounds", empty);
  store.visit_state(visitor, rollout_rows.has_value());
  if (rollout_rows) {
    rollout_rows->visit_state(visitor);
    visitor.integer("rollout_steps", steps_done);
  }
  if (success_rates.defined()) visitor.tensor("success_rates", success_rates);
  models.visit_state(visitor);
  if (previous) {
    for (const auto& [name, value] : previous->state()) visitor.tensor("previous." + name, value);
  }
  std::vector<std::int64_t> bytes(record.begin(), record.end());
  visitor.integers("round_record", bytes);
  if (!visitor.is_loading()) return;
  record.assign(bytes.begin(), bytes.end());
  restore_round();
}

OnlineRows::OnlineRows(OnlineParts parts, const OnlineRowsOptions& options, const Policy& policy) {
  check_parts(parts, options);
  const std::int64_t rows_a_prompt = parts.objective ? 1 : rehearse(parts, options.seed);
  impl_ = std::make_unique<Impl>(std::move(parts), options, policy);
  impl_->rows_a_prompt = rows_a_prompt;
}

OnlineRows::~OnlineRows() = default;

StepRows OnlineRows::next(Policy& policy) {
  Impl& of = *impl_;
  of.trained = &policy;
  if (of.round == 0 || of.step == of.steps) of.start_round(policy);
  return of.steps > 0 ? of.step_rows() : StepRows{.rows = {}, .round = of.record};
}

void OnlineRows::finish_step() {
  ++impl_->step;
  ++impl_->steps_done;
  impl_->models.finish_step(*impl_->trained);
}

bool OnlineRows::is_done() const {
  const Impl& of = *impl_;
  return of.round == of.options.rounds.rounds && of.step == of.steps && !of.is_stuck();
}

bool OnlineRows::evaluates() const { return !impl_->parts.eval_prompts.empty(); }

Metrics OnlineRows::evaluate(Policy& policy) { return impl_->contest.measure(policy); }

void OnlineRows::finish_evaluation() {
  impl_->contest.finish();
  impl_->count_failures();
}

std::vector<std::vector<std::int64_t>> OnlineRows::sample_prompts() const {
  std::vector<std::vector<std::int64_t>> prompts;
  for (const OnlinePrompt& prompt : impl_->parts.eval_prompts) prompts.push_back(prompt.ids);
  return prompts;
}

void OnlineRows::visit_state(StateVisitor& visitor) {
  impl_->visit(visitor);
  visit_evaluation(visitor);
}

void OnlineRows::visit_evaluation(StateVisitor& visitor) { impl_->visit_evaluation(visitor); }

std::string OnlineRows::fingerprint() const {
  std::vector<TokenRow> rows;
  for (const auto* prompts : {&impl_->parts.prompts, &impl_->parts.eval_prompts}) {
    for (const OnlinePrompt& prompt : *prompts) {
      TokenRow& row = rows.emplace_back();
      row.prompt = prompt.ids;
      row.chosen = prompt.completion;
      row.chosen_mask = prompt.completion_mask;
    }
  }
  for (const auto& saved : impl_->parts.saved) {
    for (const Rollout& rollout : saved) {
      TokenRow& row = rows.emplace_back();
      row.prompt = rollout.prompt;
      row.chosen = rollout.completion;
      row.chosen_mask = rollout.acted;
      if (!rollout.rewards.empty()) row.columns[Column::kAdvantage] = rollout.rewards.front();
    }
  }
  return detail::fingerprint_of(rows);
}

std::string OnlineRows::text_of(const std::vector<std::int64_t>& tokens) const {
  return impl_->parts.tokenizer->decode(tokens);
}

std::int64_t OnlineRows::most_steps() const {
  const Impl& of = *impl_;
  const RoundOptions& rounds = of.options.rounds;
  if (of.rollout_rows) return rounds.rounds * of.rollout_parts() * of.rollout_passes();
  if (rounds.steps > 0) return rounds.rounds * rounds.steps;
  const ReplayOptions& replay = of.options.replay;
  const double fresh = static_cast<double>(of.prompts_a_round * of.rows_a_prompt);
  const auto steps_of = [&](double rows) {
    return detail::count_epoch_steps(rounds.epochs, rows, of.options.batch_rows);
  };
  if (replay.share == 0) return rounds.rounds * steps_of(fresh);
  std::int64_t steps = 0;
  double rows = fresh;
  double share = replay.share;
  for (std::int64_t round = 1; round <= rounds.rounds; ++round) {
    steps += steps_of(rows);
    if (replay.rounds > 0 && round > replay.rounds) continue;
    rows += std::ceil(share * fresh);
    share *= replay.decay;
  }
  return steps;
}

}  // namespace prefopt
