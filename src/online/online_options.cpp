// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/online_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/online/environment.h"

namespace prefopt {
namespace {

constexpr std::array<std::string_view, 10> kSourceNames = {
    "policy",  "reference", "last",    "past",        "ema",
    "mixture", "data",      "program", "environment", "file"};

/// Whether a model writes whole completions.
bool writes_tokens(SourceKind kind) {
  return kind != SourceKind::kData && kind != SourceKind::kProgram &&
         kind != SourceKind::kEnvironment && kind != SourceKind::kFile;
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
  const bool writes = writes_tokens(kind);
  const bool acts = kind == SourceKind::kEnvironment;
  const bool asks = kind == SourceKind::kProgram || acts;
  const bool draws = writes || acts;
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
                           Use{"temperature", draws},
                           Use{"top_k", draws},
                           Use{"top_p", draws},
                           Use{"max_new_tokens", draws || kind == SourceKind::kProgram}};
  for (const Use& use : uses) {
    if (use.is_used || !given.contains(std::string(use.option))) continue;
    throw ConfigError(fmt::format("{}: expected no {} where from is '{}', which does not use it",
                                  where, use.option, kSourceNames[static_cast<std::size_t>(kind)]));
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
          return other.name == guide && writes_tokens(other.from) && other.roll_in.from.empty();
        });
    if (found == sources.end() || guide == source.name) {
      throw ConfigError(fmt::format(
          "{}: expected roll_in.from of '{}' to name another source that a model writes, got '{}'",
          where, source.name, guide));
    }
  }
}

}  // namespace

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

void OnlineOptions::fields(FieldVisitor& v) {
  v.text({"prompts", "JSONL file of prompts; empty: rows come from `data`"}, prompts);
  v.text({"eval_prompts", "JSONL file of held-out prompts"}, eval_prompts);
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
