// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/online_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/json.h"
#include "core/text.h"
#include "online/source_kinds.h"
#include "prefopt/error.h"
#include "prefopt/online/environment.h"

namespace prefopt {
namespace {

constexpr std::array<std::string_view, 11> kSourceNames = {
    "policy", "reference", "last",        "past", "ema", "mixture",
    "data",   "program",   "environment", "file", "tree"};

/// Returns whether a model writes whole completions.
bool writes_completions(const SourceOptions& source) {
  return detail::draws_tokens(source) && source.from != SourceKind::kEnvironment &&
         source.from != SourceKind::kTree;
}

bool has_environment(const SourceOptions& source) { return source.environment != "null"; }

/// Throws ConfigError for an environment of no kind or two, for one that is not known, and for an
/// option of programs alone.
void check_environment(const SourceOptions& source, const Json& given, std::string_view where) {
  const bool has_command = !source.command.empty();
  if (has_command == has_environment(source)) {
    throw ConfigError(fmt::format("{}: expected one of command and environment, got {}", where,
                                  has_command ? "both" : "none"));
  }
  if (has_command) return;
  make_environment_factory(source.environment, fmt::format("{}.environment", where));
  for (const std::string_view option : {"timeout", "workers", "retries"}) {
    if (!given.contains(std::string(option))) continue;
    throw ConfigError(
        fmt::format("{}: expected no {} with an environment that is no program, got "
                    "one; it would do nothing",
                    where, option));
  }
}

/// The options that only some kinds of source use.
void check_used(const SourceOptions& source, const Json& given, std::string_view where) {
  struct Use {
    std::string_view option;
    bool is_used;
  };
  const SourceKind kind = source.from;
  const bool writes = writes_completions(source);
  const bool acts = kind == SourceKind::kEnvironment;
  const bool asks = kind == SourceKind::kProgram || acts;
  const bool searches = kind == SourceKind::kTree;
  const bool draws = detail::draws_tokens(source);
  const std::array uses = {Use{"weight", kind == SourceKind::kMixture},
                           Use{"decay", kind == SourceKind::kEma},
                           Use{"keep", kind == SourceKind::kPast},
                           Use{"column", kind == SourceKind::kData},
                           Use{"command", asks},
                           Use{"timeout", asks},
                           Use{"environment", acts},
                           Use{"max_turns", acts},
                           Use{"max_tokens", acts},
                           Use{"workers", acts},
                           Use{"retries", acts},
                           Use{"path", kind == SourceKind::kFile},
                           Use{"roll_in", writes},
                           Use{"tree", searches},
                           Use{"n", !searches},
                           Use{"temperature", draws},
                           Use{"top_k", draws},
                           Use{"top_p", draws},
                           Use{"min_new_tokens", draws && !searches},
                           Use{"repetition_penalty", draws},
                           Use{"stop", draws},
                           Use{"seed", draws},
                           Use{"max_new_tokens", draws || kind == SourceKind::kProgram}};
  for (const Use& use : uses) {
    if (use.is_used || !given.contains(std::string(use.option))) continue;
    throw ConfigError(fmt::format("{}: expected no {} where from is '{}', which does not use it",
                                  where, use.option, kSourceNames[static_cast<std::size_t>(kind)]));
  }
  if (source.n == 0 && given.contains("rounds")) {
    throw ConfigError(fmt::format(
        "{}: expected no rounds where n is 0, as roll-ins decide when it writes", where));
  }
  if (kind == SourceKind::kProgram && source.command.empty()) {
    throw ConfigError(
        fmt::format("{}: expected a command where from is 'program', got none", where));
  }
  if (kind == SourceKind::kFile && source.path.empty()) {
    throw ConfigError(fmt::format("{}: expected a path where from is 'file', got none", where));
  }
  if (acts) check_environment(source, given, where);
}

void check_names(const std::vector<SourceOptions>& sources, std::string_view where) {
  const auto count = [&](const std::string& name) {
    return std::count_if(sources.begin(), sources.end(),
                         [&](const SourceOptions& source) { return source.name == name; });
  };
  for (const SourceOptions& source : sources) {
    if (count(source.name) > 1) {
      throw ConfigError(
          fmt::format("{}: expected a name of each source, got '{}' twice", where, source.name));
    }
    const std::string& guide = source.roll_in.from;
    if (guide.empty()) continue;
    const auto found =
        std::find_if(sources.begin(), sources.end(), [&](const SourceOptions& other) {
          const bool has_tokens = writes_completions(other) || other.from == SourceKind::kData;
          return other.name == guide && has_tokens && other.roll_in.from.empty();
        });
    if (found == sources.end() || guide == source.name) {
      throw ConfigError(
          fmt::format("{}: expected roll_in.from of '{}' to name another source that a model or "
                      "the data write, got '{}'",
                      where, source.name, guide));
    }
  }
}

}  // namespace

bool SourceRounds::contain(std::int64_t round, double number) const {
  return round >= first && (last == 0 || round <= last) && number >= above && number < below;
}

void SourceOptions::fields(FieldVisitor& v) {
  v.choice({"from", "Writer of the completions"}, from, {kSourceNames.begin(), kSourceNames.end()});
  v.text({"name", "Name for selections and roll-ins; empty: that of `from`"}, name);
  v.integer({"n", "Completions of each prompt; 0: for roll-ins alone"}, n, Range::between(0, 4096));
  sampling.fields(v);
  v.real({"weight", "Weight of the reference in a mixture", {"mixture_coef"}}, weight,
         Range::between(0, 1));
  v.real({"decay", "Decay of the moving average of the weights"}, decay, Range::half_open(0, 1));
  v.integer({"keep", "Past policies to draw from"}, keep, Range::between(1, 1000));
  v.text({"column", "Column of the prompt file that holds the completion"}, column);
  v.texts({"command", "Program and arguments that write the completion, or are an environment"},
          command);
  v.real({"timeout", "Seconds that the program's answer may take"}, timeout,
         Range{.min = 0, .max = 86400, .min_open = true});
  v.json({"environment", "Name of an environment, or an object of its type and options"},
         environment);
  v.integer({"max_turns", "Actions of an episode at most"}, max_turns, Range::between(1, 1e6));
  v.integer({"max_tokens", "Tokens of an episode after the prompt, observations included"},
            max_tokens, Range::between(1, 1e9));
  v.integer({"workers", "Processes that share the episodes of an environment"}, workers,
            Range::between(1, 32));
  v.integer({"retries", "New starts of an environment's process that ends or is late"}, retries,
            Range::between(0, 100));
  v.text({"path", "File of saved rollouts"}, path);
  v.begin_group({"roll_in", "A prefix that another source writes; its tokens do not train"});
  v.text({"from", "Name of that source; empty: no prefix"}, roll_in.from);
  v.real({"probability", "Probability that a completion has such a prefix"}, roll_in.probability,
         Range::between(0, 1));
  v.end_group();
  v.begin_group({"rounds", "Rounds in which it writes; the default: all"});
  v.integer({"first", "First one"}, rounds.first, Range::between(1, 1e9));
  v.integer({"last", "Last one; 0: no end"}, rounds.last, Range::between(0, 1e9));
  v.real({"above", "Least number that a round draws from [0, 1), once for all sources"},
         rounds.above, Range::half_open(0, 1));
  v.real({"below", "End of these numbers"}, rounds.below,
         Range{.min = 0, .max = 1, .min_open = true});
  v.end_group();
  v.group({"tree", "Search for steps"}, tree);
}

bool detail::draws_tokens(const SourceOptions& source) {
  return source.from != SourceKind::kData && source.from != SourceKind::kProgram &&
         source.from != SourceKind::kFile;
}

bool has_own_rewards(const SourceOptions& source) {
  return source.from == SourceKind::kEnvironment || source.from == SourceKind::kFile;
}

void RoundOptions::fields(FieldVisitor& v) {
  v.integer({"rounds", "Rounds of drawing, rating and training"}, rounds, Range::between(1, 1e9));
  v.integer({"prompts", "Prompts of a round; 0: all of the file"}, prompts, Range::between(0, 1e9));
  v.integer({"steps", "Steps of a round over equal parts of its rows; 0: `epochs` decides"}, steps,
            Range::between(0, 1e9));
  v.real({"epochs", "Passes over the rows of a round, in steps of batch.rows"}, epochs,
         Range{.min = 0, .max = 1e6, .min_open = true});
  v.choice({"start", "Weights that a round's training starts from"}, start, {"policy", "initial"});
  v.flag({"restart_optimizer", "The optimizer's means begin at zero in each round"},
         restart_optimizer);
  v.real({"extrapolate",
          "alpha of the outer step theta + alpha (theta - theta_previous) between rounds"},
         extrapolate, Range::half_open(0, 1));
}

void ReplayOptions::fields(FieldVisitor& v) {
  v.real({"share", "Share of the rows of the round before that is trained on again"}, share,
         Range::between(0, 1));
  v.real({"decay", "Factor of that share for each further round"}, decay, Range::between(0, 1));
  v.integer({"rounds", "Rounds back; 0: all"}, rounds, Range::between(0, 1e9));
}

void RewardOptions::fields(FieldVisitor& v) {
  v.real({"length", "Weight of a reward for short right completions of a prompt (Kimi k1.5)"},
         length, Range::at_least(0));
  v.integer({"overlong_buffer",
             "Tokens before max_new_tokens over which a penalty grows (DAPO); 0: none"},
            overlong_buffer, Range::between(0, 1e9));
  v.real({"overlong_factor", "Largest such penalty"}, overlong_factor, Range::at_least(0));
  v.flag({"normalize", "Mean 0 and spread 1 over all rewards of the run so far"}, normalize);
  v.flag({"scale", "Spread 1 over all rewards of the run so far"}, scale);
  v.real({"clip", "Rewards are limited to [-clip, clip]; 0: no limit"}, clip, Range::at_least(0));
}

void ImitationOptions::fields(FieldVisitor& v) {
  v.text_or_list({"data", "Rows whose completions are imitated, as data.eval; empty: none"}, data);
  v.real({"coefficient", "Weight of the mean negative log-prob of their tokens"}, coefficient,
         Range::above(0));
  v.integer({"rows", "Such rows of each step"}, rows, Range::between(1, 1e6));
}

void RolloutSelection::fields(FieldVisitor& v) {
  v.choice({"filter",
            "Completions of a prompt that stay: all, or one by the rank of its reward (PF-PPO)"},
           filter, {"none", "best", "best_random", "best_worst"});
  v.flag({"dynamic_sampling", "Further prompts in place of those whose rewards are all equal"},
         dynamic_sampling);
  v.integer({"most_draws", "Times that a round draws under dynamic sampling"}, most_draws,
            Range::between(1, 1e6));
  v.flag({"priorities", "Prompts are drawn by 1 - their rate of success"}, priorities);
}

void OnlineOptions::fields(FieldVisitor& v) {
  v.text_or_list({"prompts", "Prompts, as data.train names rows; empty: rows come from `data`"},
                 prompts);
  v.text_or_list({"eval_prompts", "Held-out prompts, as data.eval names rows"}, eval_prompts);
  v.real({"eval_fraction", "Share of the prompts, at the end of the file, that is held out"},
         eval_fraction, Range::half_open(0, 1));
  v.json({"sources", "Writers of completions: [{\"from\": \"policy\", \"n\": 2}]"}, sources);
  v.group({"feedback", "Rewards or comparisons of completions"}, feedback);
  v.json({"select", "How completions become rows: {\"type\": \"pair\"}"}, select);
  v.group({"rounds", "Rounds of drawing, rating and training"}, rounds);
  v.group({"replay", "Rows of earlier rounds that are trained on again"}, replay);
  v.integer({"at_once", "Completions that are decoded together, without effect on results"},
            at_once, Range::between(1, 65536));
  v.flag({"save_rollouts", "A file of its rollouts a round, in the folder rollouts of the run"},
         save_rollouts);
  // Texts from before these options lack them, and are the same without them.
  if (!v.writes() || options_to_json(rollouts) != options_to_json(RolloutSelection())) {
    v.group({"rollouts", "Completions that an objective on tokens learns from"}, rollouts);
  }
  if (!v.writes() || options_to_json(reward) != options_to_json(RewardOptions())) {
    v.group({"reward", "Changes of rewards before they become advantages"}, reward);
  }
  const bool has_process =
      options_to_json(process_reward) != options_to_json(ProcessRewardOptions());
  if (!v.writes() || has_process) {
    v.group({"process_reward", "Rewards of steps by a model that was trained on outcomes"},
            process_reward);
  }
  if (!v.writes() || !imitate.data.empty()) {
    v.group({"imitate", "Rows that are imitated next to rollouts, a pretraining mix"}, imitate);
  }
}

std::vector<SourceOptions> parse_sources(std::string_view json, const SamplingOptions& sampling,
                                         std::string_view where) {
  const auto list = detail::parse_json<ConfigError>(json, where);
  if (!list.is_array() || list.empty()) {
    throw ConfigError(
        fmt::format("{}: expected a list of sources, got {}", where, detail::shown_json(list)));
  }
  std::vector<SourceOptions> sources;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string place = fmt::format("{}[{}]", where, i);
    SourceOptions source;
    source.sampling = sampling;
    read_fields([&](FieldVisitor& v) { source.fields(v); }, detail::dump_json(list[i]), place);
    check_used(source, list[i], place);
    if (source.rounds.below <= source.rounds.above) {
      throw ConfigError(fmt::format("{}: expected rounds.below above rounds.above, got {} and {}",
                                    place, source.rounds.below, source.rounds.above));
    }
    if (source.name.empty()) {
      source.name = kSourceNames[static_cast<std::size_t>(source.from)];
    }
    sources.push_back(std::move(source));
  }
  check_names(sources, where);
  const bool draws = std::any_of(sources.begin(), sources.end(),
                                 [](const SourceOptions& source) { return source.n > 0; });
  if (!draws) {
    throw ConfigError(fmt::format("{}: expected a source with n above 0, got none", where));
  }
  return sources;
}

}  // namespace prefopt
