// SPDX-License-Identifier: Apache-2.0
#include "run/online_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "data/tokenizer_difference.h"
#include "decoder/score_head.h"
#include "evaluation/json_program.h"
#include "online/rollout_rows.h"
#include "policy/token_range.h"
#include "prefopt/data/prompts.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/online/environment.h"
#include "prefopt/online/feedback.h"
#include "prefopt/online/reward_model_preference.h"
#include "prefopt/online/rollout_file.h"
#include "prefopt/policy/combined_reference.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/past_weights.h"
#include "run/model_base.h"
#include "run/run_rows.h"

namespace prefopt::detail {
namespace {

std::int64_t count_sources(const std::vector<SourceOptions>& sources, SourceKind kind) {
  return std::count_if(sources.begin(), sources.end(),
                       [&](const SourceOptions& source) { return source.from == kind; });
}

/// Returns the source of kind `data`, null if there is no such source.
const SourceOptions* data_source(const std::vector<SourceOptions>& sources) {
  const auto found = std::find_if(sources.begin(), sources.end(), [](const SourceOptions& source) {
    return source.from == SourceKind::kData;
  });
  return found == sources.end() ? nullptr : &*found;
}

std::vector<OnlinePrompt> prompts_alone(const std::string& path, const Tokenizer& tokenizer,
                                        const DataOptions& data, DataSplit split) {
  std::vector<OnlinePrompt> prompts;
  for (Prompt& prompt : load_prompts(path, tokenizer, data, split)) {
    prompts.push_back({.ids = std::move(prompt.ids),
                       .text = std::move(prompt.text),
                       .is_conversation = prompt.from_messages});
  }
  return prompts;
}

std::vector<OnlinePrompt> prompts_with_completions(const std::string& path,
                                                   const std::string& column,
                                                   const Tokenizer& tokenizer,
                                                   const DataOptions& data, bool has_environment,
                                                   const Note& note) {
  constexpr std::array<std::string_view, 3> kColumns = {"chosen", "rejected", "gold"};
  if (std::find(kColumns.begin(), kColumns.end(), column) == kColumns.end()) {
    throw ConfigError(fmt::format(
        "online.sources: expected column 'chosen' (also of a single completion), 'rejected' or "
        "'gold', got '{}'",
        column));
  }
  const bool is_gold = column == "gold";
  const bool is_rejected = column == "rejected";
  const Dataset rows =
      load_noted("online.prompts", path, tokenizer, data,
                 {.rejected = is_rejected, .gold = is_gold}, note, DataSplit::kTrain);
  for (const DatasetFile& file : rows.files) {
    if (file.weight == 1) continue;
    throw ConfigError(fmt::format("online.prompts: expected files without weights, got {} for {}",
                                  file.weight, file.path));
  }
  const std::int64_t of_messages = rows.report.message_rows;
  if (has_environment && of_messages > 0 && of_messages < std::ssize(rows.pairs)) {
    throw DataError(fmt::format(
        "{}: expected prompts that are all messages or all texts, for the turns of an environment, "
        "got {} of {} that are messages",
        path, of_messages, rows.pairs.size()));
  }
  std::vector<OnlinePrompt> prompts;
  for (const TokenRow& row : rows.pairs) {
    const auto& completion = is_gold ? row.gold : is_rejected ? row.rejected : row.chosen;
    const TokenMask& mask = is_gold       ? row.gold_mask
                            : is_rejected ? row.rejected_mask
                                          : row.chosen_mask;
    prompts.push_back({.ids = row.prompt,
                       .text = tokenizer.decode(row.prompt),
                       .completion = completion,
                       .completion_mask = mask,
                       .is_conversation = of_messages > 0});
  }
  return prompts;
}

/// A program that answers each prompt with a completion.
CompletionProgram completion_program(const SourceOptions& source) {
  const auto program = std::make_shared<JsonProgram>(
      JudgeProgram{.command = source.command, .name = source.name, .timeout = source.timeout},
      "program");
  return [program](const std::vector<std::string>& prompts) {
    std::vector<std::string> completions;
    for (const std::string& prompt : prompts) {
      const Json answer = program->ask({{"prompt", prompt}});
      const bool is_answer = answer.is_object() && answer.size() == 1 &&
                             answer.contains("completion") && answer["completion"].is_string();
      if (!is_answer) program->refuse("{\"completion\": text}", answer);
      completions.push_back(answer["completion"].get<std::string>());
    }
    return completions;
  };
}

std::shared_ptr<Environments> environments_of(const SourceOptions& source) {
  if (source.from != SourceKind::kEnvironment) return nullptr;
  if (source.command.empty())
    return make_environments(make_environment_factory(source.environment));
  return make_program_environments({.command = source.command,
                                    .workers = source.workers,
                                    .timeout = source.timeout,
                                    .retries = source.retries});
}

/// Throws ConfigError where an episode may be longer than what the model reads.
void check_episode_lengths(const std::vector<SourceOptions>& sources, const OnlinePrompts& prompts,
                           std::int64_t context) {
  std::int64_t longest = 0;
  for (const auto* list : {&prompts.train, &prompts.held_out}) {
    for (const OnlinePrompt& prompt : *list) longest = std::max(longest, std::ssize(prompt.ids));
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const bool fits = longest + sources[i].max_tokens <= context;
    if (sources[i].from != SourceKind::kEnvironment || fits) continue;
    throw ConfigError(fmt::format(
        "online.sources[{}]: expected max_tokens of at most {}, which the model's {} positions "
        "leave after the longest prompt, got {}",
        i, context - longest, context, sources[i].max_tokens));
  }
}

/// Returns the rollouts of a source that is a file, whose tokens the model has to have.
std::vector<Rollout> saved_rollouts(const SourceOptions& source, std::int64_t vocab_size) {
  if (source.from != SourceKind::kFile) return {};
  std::vector<Rollout> rollouts = load_rollouts(source.path);
  for (const Rollout& rollout : rollouts) {
    check_token_range({{.prompt = rollout.prompt, .chosen = rollout.completion, .rejected = {}}},
                      vocab_size, source.path);
  }
  return rollouts;
}

/// Returns the options of feedback; where none is given and all rollouts have rewards, those.
FeedbackOptions feedback_of(const OnlineOptions& online,
                            const std::vector<SourceOptions>& sources) {
  FeedbackOptions feedback = online.feedback;
  const auto lacks = std::find_if(sources.begin(), sources.end(), [](const SourceOptions& source) {
    return source.n > 0 && !has_own_rewards(source);
  });
  if (lacks == sources.end() && options_to_json(feedback) == options_to_json(FeedbackOptions())) {
    feedback.environment = true;
  }
  if (!feedback.environment) return feedback;
  if (lacks != sources.end()) {
    throw ConfigError(fmt::format(
        "online.feedback: expected sources 'environment' or 'file' alone where environment is "
        "true, got '{}', whose completions have no reward",
        lacks->name));
  }
  const bool is_charged = feedback.missing_eos_penalty > 0 || feedback.length_penalty > 0;
  if (is_charged && count_sources(sources, SourceKind::kFile) > 0) {
    throw ConfigError(
        "online.feedback: expected no penalty with a source 'file', whose rewards are saved after "
        "penalties, got one");
  }
  return feedback;
}

/// Returns what saves the rollouts of a round in a folder of the run.
auto rollout_saver(const std::string& folder) {
  return [folder](std::int64_t round, const std::vector<std::vector<Rollout>>& rollouts) {
    std::vector<Rollout> all;
    for (const auto& of_prompt : rollouts) {
      all.insert(all.end(), of_prompt.begin(), of_prompt.end());
    }
    make_directory<CheckpointError>(folder);
    save_rollouts(all, fmt::format("{}/round-{:06}.jsonl", folder, round));
  };
}

/// Loads a model that scores the policy's completions, with the same tokens.
std::shared_ptr<Decoder> load_frozen(const std::string& path, const Decoder& policy,
                                     const Tokenizer& tokenizer, const std::string& where) {
  const std::string difference = tokenizer_difference(tokenizer, path);
  if (!difference.empty()) {
    throw ConfigError(
        fmt::format("{}: expected a model that tokenizes as {} does, got {}, by which {}", where,
                    tokenizer.name(), path, difference));
  }
  auto model = Decoder::load(path, kept_frozen(path, "keep", policy.device()));
  if (model->vocab_size() != policy.vocab_size()) {
    throw ConfigError(fmt::format(
        "{}: expected a model with the policy's vocabulary of {} tokens, got {} with {}", where,
        policy.vocab_size(), path, model->vocab_size()));
  }
  return model;
}

/// Loads the model of an objective's rewards of steps, and its reference.
void load_process_reward(const ProcessRewardOptions& options, const Decoder& policy,
                         const Tokenizer& tokenizer, OnlineParts& parts) {
  constexpr std::string_view kWhere = "online.process_reward";
  parts.process_reward = options;
  const bool is_given = options_to_json(options) != options_to_json(ProcessRewardOptions());
  if (!is_given) return;
  const bool has_dpo_reward = parts.objective->needs().extra_logps;
  if (!has_dpo_reward) check_implicit_model(options, kWhere);
  if (options.is_given()) {
    parts.process_model =
        load_frozen(options.model, policy, tokenizer, fmt::format("{}.model", kWhere));
  }
  if (has_dpo_reward) return;
  parts.process_reference =
      load_frozen(options.reference, policy, tokenizer, fmt::format("{}.reference", kWhere));
}

/// Returns what writes the trees of a round to a file in a folder of the run, prompt after prompt.
auto tree_saver(const std::string& folder) {
  const auto all = std::make_shared<std::vector<StepTree>>();
  return [=](std::int64_t round, std::int64_t first, const std::vector<StepTree>& trees) {
    all->resize(static_cast<std::size_t>(first), StepTree({0}, {}));
    all->insert(all->end(), trees.begin(), trees.end());
    make_directory<CheckpointError>(folder);
    save_trees(*all, fmt::format("{}/round-{:06}.jsonl", folder, round));
  };
}

/// Returns what loads reward models, which have to read the policy's tokens, while the policy
/// lives.
FeedbackParts feedback_parts(const FeedbackOptions& options, const Decoder& policy,
                             const std::shared_ptr<const Tokenizer>& tokenizer) {
  constexpr std::int64_t kAtOnce = 16;
  FeedbackParts parts;
  parts.load_reward_model = [tokenizer, &policy,
                             temperature = options.temperature](const std::string& folder) {
    const std::string kept = kept_frozen(path_of_weights(folder), "keep", policy.device());
    auto model = load_reward_model(folder, *tokenizer, kept, &policy);
    model->to(policy.device());
    return make_reward_model_preference(std::move(model), temperature, kAtOnce, folder);
  };
  parts.load_implicit_reward = [tokenizer, &policy, temperature = options.temperature](
                                   const ImplicitRewardOptions& implicit) {
    constexpr std::string_view kWhere = "feedback.implicit_reward";
    return make_implicit_reward_preference(
        load_frozen(implicit.model, policy, *tokenizer, fmt::format("{}.model", kWhere)),
        load_frozen(implicit.reference, policy, *tokenizer, fmt::format("{}.reference", kWhere)),
        tokenizer, implicit, temperature, kAtOnce);
  };
  return parts;
}

/// Throws ConfigError for options of rollouts without an objective on tokens, and for a selection
/// with one.
void check_rollout_options(const OnlineOptions& online, const RunLoss& loss) {
  const bool has_imitation = options_to_json(online.imitate) != options_to_json(ImitationOptions());
  if (has_imitation && online.imitate.data.empty()) {
    throw ConfigError("online.imitate.data: expected a file where the group has options, got none");
  }
  if (loss.objective() != nullptr) {
    if (online.select == OnlineOptions().select) return;
    throw ConfigError(fmt::format(
        "online.select: expected its default for '{}', which takes every completion, got {}",
        loss.name(), online.select));
  }
  const auto refuse = [&](std::string_view group, bool is_set) {
    if (!is_set) return;
    throw ConfigError(fmt::format(
        "online.{}: expected its defaults for '{}', which is no objective on tokens of rollouts, "
        "got others",
        group, loss.name()));
  };
  refuse("rollouts", options_to_json(online.rollouts) != options_to_json(RolloutSelection()));
  refuse("imitate", options_to_json(online.imitate) != options_to_json(ImitationOptions()));
  refuse("reward", options_to_json(online.reward) != options_to_json(RewardOptions()));
  refuse("process_reward",
         options_to_json(online.process_reward) != options_to_json(ProcessRewardOptions()));
}

/// Returns the rows of a pretraining mix; none without a file.
std::vector<TokenRow> load_imitated(const RunOptions& options, const Tokenizer& tokenizer,
                                    const Decoder& policy, const Note& note) {
  const std::string& path = options.online.imitate.data;
  if (path.empty()) return {};
  Dataset rows = load_dataset(path, tokenizer, options.data, {.rejected = false});
  if (const std::string summary = rows.report.summary(); !summary.empty()) note(summary);
  if (rows.pairs.empty()) {
    throw DataError(fmt::format("{}: expected rows to imitate, got none", path));
  }
  check_token_range(rows.pairs, policy.vocab_size(), "online.imitate.data");
  check_row_lengths(rows.pairs, policy, "online.imitate.data");
  note(fmt::format("online.imitate: {} rows", rows.pairs.size()));
  return std::move(rows.pairs);
}

}  // namespace

double rollout_temperature(const std::vector<SourceOptions>& sources) {
  for (const SourceOptions& source : sources) {
    if (!is_greedy(source) && source.n > 0) return source.sampling.temperature;
  }
  return 1;
}

void check_reference(const ReferenceOptions& options, bool is_online) {
  if (options.moving && options.kind == ReferenceKind::kCached) {
    throw ConfigError(
        "reference: expected kind 'frozen' where moving is true, got 'cached'; a cache holds "
        "log-probs of one model");
  }
  const ReferenceOptions usual;
  const auto refuse_unused = [&](std::string_view option, bool is_set, ReferenceRule user,
                                 std::string_view name) {
    if (!is_set || options.rule == user) return;
    throw ConfigError(
        fmt::format("reference.{}: expected its default unless rule is '{}'", option, name));
  };
  refuse_unused("decay", options.decay != usual.decay, ReferenceRule::kEma, "ema");
  refuse_unused("initial_weight", options.initial_weight != usual.initial_weight,
                ReferenceRule::kCombined, "combined");
  refuse_unused("keep", options.keep != usual.keep, ReferenceRule::kRandomPast, "random_past");
  if (options.rule == ReferenceRule::kFixed) return;
  const bool forgets =
      options.rule == ReferenceRule::kLast || options.rule == ReferenceRule::kRandomPast;
  if (forgets && !(options.path.empty() && options.adapter.empty())) {
    throw ConfigError(fmt::format(
        "reference.{}: expected none where the rule makes the reference of the policy, got '{}'",
        options.path.empty() ? "adapter" : "path",
        options.path.empty() ? options.adapter : options.path));
  }
  if (options.moving || options.kind == ReferenceKind::kCached) {
    throw ConfigError(fmt::format("reference.rule: expected 'fixed' where {}, got another rule",
                                  options.moving
                                      ? "moving is true"
                                      : "kind is 'cached', as a cache holds log-probs of one "
                                        "model"));
  }
  if (options.rule != ReferenceRule::kEma && !is_online) {
    throw ConfigError(
        "reference.rule: expected 'fixed' or 'ema' in a run without rounds, got a rule of rounds; "
        "online.prompts makes them");
  }
}

RoundReference follow(const ReferenceOptions& options, std::shared_ptr<Policy> frozen,
                      const Policy& policy, std::int64_t seed) {
  const MovingReferenceOptions by_rounds{.rule = MovingRule::kHard, .update_steps = kNeverUpdate};
  switch (options.rule) {
    case ReferenceRule::kEma:
      return {std::make_shared<MovingReference>(
          std::move(frozen), policy,
          MovingReferenceOptions{.alpha = 1 - options.decay, .update_steps = 1})};
    case ReferenceRule::kLast: {
      const auto last = std::make_shared<MovingReference>(std::move(frozen), policy, by_rounds);
      return {last, [last](Policy& now, std::int64_t) { last->update_now(now); }};
    }
    case ReferenceRule::kCombined: {
      const auto last = std::make_shared<MovingReference>(policy.merged_copy(), policy, by_rounds);
      const double weight = options.initial_weight;
      const auto combined = std::make_shared<CombinedReference>(std::vector<WeightedReference>{
          {make_frozen_reference(std::move(frozen)), weight}, {last, 1 - weight}});
      return {combined, [last](Policy& now, std::int64_t) { last->update_now(now); }};
    }
    case ReferenceRule::kRandomPast: {
      const auto past = std::make_shared<RandomPastReference>(policy, options.keep, seed);
      return {past, [past](Policy& now, std::int64_t round) { past->start_round(now, round); }};
    }
    case ReferenceRule::kFixed:
      break;
  }
  return {make_frozen_reference(std::move(frozen))};
}

OnlinePrompts load_online_prompts(const RunOptions& options,
                                  const std::vector<SourceOptions>& sources,
                                  const Tokenizer& tokenizer, const Note& note) {
  const OnlineOptions& online = options.online;
  if (!options.data.train.empty() || !options.data.eval.empty()) {
    throw ConfigError(
        fmt::format("{}: expected no rows where online.prompts gives prompts, got '{}'",
                    options.data.train.empty() ? "data.eval" : "data.train",
                    options.data.train.empty() ? options.data.eval : options.data.train));
  }
  if (!online.eval_prompts.empty() && online.eval_fraction > 0) {
    throw ConfigError(
        "online.eval_fraction: expected 0 where eval_prompts names a file, got another share");
  }
  const std::int64_t of_data = count_sources(sources, SourceKind::kData);
  if (of_data > 1) {
    throw ConfigError(
        fmt::format("online.sources: expected at most one source 'data', got {}", of_data));
  }
  const SourceOptions* data = data_source(sources);
  OnlinePrompts prompts;
  prompts.train =
      data == nullptr
          ? prompts_alone(online.prompts, tokenizer, options.data, DataSplit::kTrain)
          : prompts_with_completions(online.prompts, data->column, tokenizer, options.data,
                                     count_sources(sources, SourceKind::kEnvironment) > 0, note);
  if (!online.eval_prompts.empty()) {
    prompts.held_out =
        prompts_alone(online.eval_prompts, tokenizer, options.data, DataSplit::kHeldOut);
  }
  const auto count = static_cast<double>(prompts.train.size());
  const auto held_out = static_cast<std::ptrdiff_t>(online.eval_fraction * count);
  prompts.held_out.insert(prompts.held_out.end(), prompts.train.end() - held_out,
                          prompts.train.end());
  prompts.train.resize(prompts.train.size() - static_cast<std::size_t>(held_out));
  note(fmt::format("online.prompts: {} prompts, {} held out", prompts.train.size(),
                   prompts.held_out.size()));
  return prompts;
}

bool needs_initial(const OnlineOptions& options, const std::vector<SourceOptions>& sources) {
  return count_sources(sources, SourceKind::kReference) > 0 ||
         count_sources(sources, SourceKind::kMixture) > 0 || !options.eval_prompts.empty() ||
         options.eval_fraction > 0;
}

std::shared_ptr<OnlineRows> make_online_rows(RunOptions& options, OnlinePrompts prompts,
                                             std::vector<SourceOptions> sources,
                                             const std::shared_ptr<const Tokenizer>& tokenizer,
                                             const Decoder& policy, std::shared_ptr<Policy> initial,
                                             const RunLoss& loss, const RoundReference& reference,
                                             std::shared_ptr<RewardPolicy> value_model,
                                             const Meeting& meeting, const RunEvents& events,
                                             const Note& note, std::int64_t& planned_steps) {
  const OnlineOptions& online = options.online;
  const bool has_objective = loss.objective() != nullptr;
  check_rollout_options(online, loss);
  const bool has_parts = has_objective || online.rounds.steps > 0;
  if (has_parts && options.batch.rows != BatchOptions().rows) {
    throw ConfigError(fmt::format(
        "batch.rows: expected its default where online.rounds.steps cuts the rows of a round, got "
        "{}",
        options.batch.rows));
  }
  const BatchOptions usual;
  const auto refuse_idle = [](std::string_view option, bool is_set) {
    if (!is_set) return;
    throw ConfigError(fmt::format(
        "batch.{}: expected its default where online.rounds says how long to train, got another "
        "value",
        option));
  };
  refuse_idle("steps", options.batch.steps != usual.steps);
  refuse_idle("epochs", options.batch.epochs != usual.epochs);
  refuse_idle("shuffle", options.batch.shuffle != usual.shuffle);
  SourceNames names;
  OnlineParts parts;
  for (const SourceOptions& source : sources) {
    names.push_back(source.name);
    parts.programs.push_back(source.from == SourceKind::kProgram ? completion_program(source)
                                                                 : CompletionProgram());
    parts.environments.push_back(environments_of(source));
    parts.saved.push_back(saved_rollouts(source, policy.vocab_size()));
  }
  check_episode_lengths(sources, prompts, policy.options().max_position_embeddings);
  for (const OnlinePrompt& prompt : prompts.train) {
    check_token_range({{.prompt = prompt.ids, .chosen = prompt.completion, .rejected = {}}},
                      policy.vocab_size(), "online.prompts");
  }
  parts.tokenizer = tokenizer;
  parts.selection = has_objective ? rewards_alone() : make_selection(online.select, names);
  // Of a selection that asks nothing, feedback is for evaluations alone.
  const FeedbackOptions feedback = feedback_of(online, sources);
  const bool is_given = options_to_json(feedback) != options_to_json(FeedbackOptions());
  if (is_given || parts.selection->questions() != Questions::kNone) {
    parts.feedback = make_feedback(feedback, feedback_parts(feedback, policy, tokenizer));
    parts.rater = rater_options(feedback);
  }
  if (!prompts.held_out.empty()) {
    if (!parts.feedback) {
      throw ConfigError(
          "online.feedback: expected one that rates completions of held-out prompts, got none");
    }
    if (options.evaluate.best_metric == EvaluateOptions().best_metric) {
      options.evaluate.best_metric =
          parts.feedback->has_rewards() ? "eval_reward" : "eval_win_rate";
    }
  }
  parts.prompts = std::move(prompts.train);
  parts.eval_prompts = std::move(prompts.held_out);
  parts.needs = loss.requirements();
  if (has_objective) {
    parts.objective = *loss.objective();
    parts.reference = reference.reference;
    parts.value_model = std::move(value_model);
    parts.rollouts = online.rollouts;
    parts.reward = online.reward;
    parts.temperature = rollout_temperature(sources);
    load_process_reward(online.process_reward, policy, *tokenizer, parts);
    const TokenObjectiveOptions& of = parts.objective->options();
    if (of.aggregation == Aggregation::kFixed &&
        of.max_completion_length != options.sampling.max_new_tokens) {
      note(fmt::format(
          "loss: divides by max_completion_length {}, where completions have at most {} "
          "tokens",
          of.max_completion_length, options.sampling.max_new_tokens));
    }
    if (options.batch.micro_tokens > 0) parts.micro_tokens = options.batch.micro_tokens;
    parts.imitated = load_imitated(options, *tokenizer, policy, note);
    parts.imitated_rows = online.imitate.rows;
  }
  parts.initial = std::move(initial);
  parts.sampling = options.sampling;
  parts.start_round = reference.start_round;
  parts.progress = events.phase;
  parts.note = note;
  parts.chat_format = options.data.chat_format;
  if (online.save_rollouts && meeting.is_first()) {
    parts.save = rollout_saver(options.output_dir + "/rollouts");
  }
  parts.ranks = meeting.ranks();
  if (count_sources(sources, SourceKind::kTree) > 0) {
    if (meeting.ranks()->size() > 1) {
      throw ConfigError(fmt::format(
          "online.sources: expected one process for the source 'tree', whose searches are not "
          "shared, got {} ranks",
          meeting.ranks()->size()));
    }
    parts.save_trees = tree_saver(options.output_dir + "/trees");
  }
  parts.sources = std::move(sources);
  const OnlineRowsOptions rows{.rounds = online.rounds,
                               .replay = online.replay,
                               .batch_rows = options.batch.rows,
                               .at_once = online.at_once,
                               .seed = options.seed};
  auto source = std::make_shared<OnlineRows>(std::move(parts), rows, policy);
  planned_steps = source->most_steps();
  return source;
}

}  // namespace prefopt::detail
