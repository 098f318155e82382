// SPDX-License-Identifier: Apache-2.0
#include "online/feedback_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;

bool is_list_of(const Json& value, bool (*is_item)(const Json&)) {
  return value.is_array() && std::all_of(value.begin(), value.end(), is_item);
}

bool is_text(const Json& value) { return value.is_string(); }

bool is_command(const Json& value) { return is_list_of(value, is_text) && !value.empty(); }

bool is_finite_number(const Json& value) {
  return value.is_number() && std::isfinite(value.get<double>());
}

[[noreturn]] void refuse_value(std::string_view name, std::string_view expected,
                               const Json& value) {
  throw ConfigError(fmt::format("feedback: expected {} to be {}, got {}", name, expected,
                                detail::shown_json(value)));
}

/// An option that is a text or a list of the item: a list of one is written as the item.
template <class T>
void visit_list(FieldVisitor& v, const Field& field, std::vector<T>& values,
                bool (*is_item)(const Json&), std::string_view expected) {
  std::string text = detail::dump_json(values.size() == 1 ? Json(values.front()) : Json(values));
  v.json(field, text);
  const Json value = detail::parse_json<ConfigError>(text, field.name);
  if (is_item(value)) {
    values = {value.get<T>()};
  } else if (is_list_of(value, is_item)) {
    values = value.get<std::vector<T>>();
  } else {
    refuse_value(field.name, expected, value);
  }
}

/// Whether an option has another value than its default, and whether the source uses it.
struct OptionUse {
  std::string_view name;
  bool is_set, is_used;
};

std::vector<std::string_view> named_sources(const FeedbackOptions& options) {
  std::vector<std::string_view> named;
  if (!options.reward.empty()) named.emplace_back("reward");
  if (!options.judge.empty()) named.emplace_back("judge");
  if (!options.program.empty()) named.emplace_back("program");
  if (!options.reward_model.empty()) named.emplace_back("reward_model");
  if (options.implicit_reward.is_given()) named.emplace_back("implicit_reward");
  if (options.environment) named.emplace_back("environment");
  return named;
}

std::string_view only_source(const FeedbackOptions& options) {
  constexpr std::string_view kExpected =
      "feedback: expected one of reward, judge, program, reward_model, implicit_reward and "
      "environment";
  const std::vector<std::string_view> named = named_sources(options);
  if (named.empty()) throw ConfigError(fmt::format("{}, got none", kExpected));
  if (named.size() > 1) {
    throw ConfigError(fmt::format("{}, got {} and {}", kExpected, named[0], named[1]));
  }
  return named.front();
}

std::vector<OptionUse> option_uses(const FeedbackOptions& options) {
  const FeedbackOptions normal;
  const bool has_judge = !options.judge.empty();
  const bool compares = has_judge || !options.program.empty();
  const bool has_rewards = !compares || options.against_baseline;
  const bool is_program =
      options.reward_model.empty() && !options.environment && !options.implicit_reward.is_given();
  const bool is_ensemble = options.reward_model.size() > 1;
  const bool has_implicit =
      options_to_json(options.implicit_reward) != options_to_json(ImplicitRewardOptions());
  return {
      {"implicit_reward without a model", has_implicit, options.implicit_reward.is_given()},
      {"reward_weights", !options.reward_weights.empty(), !options.reward.empty()},
      {"both_orders", options.both_orders != normal.both_orders, has_judge},
      {"ensemble", options.ensemble != normal.ensemble, is_ensemble},
      {"ensemble_k", options.ensemble_k != normal.ensemble_k,
       is_ensemble && options.ensemble == Ensemble::kMeanMinusStd},
      {"against_baseline", options.against_baseline, compares},
      {"temperature", options.temperature != normal.temperature, has_rewards},
      {"workers", options.workers != normal.workers, is_program},
      {"timeout", options.timeout != normal.timeout, is_program},
      {"retries", options.retries != normal.retries, is_program},
      {"max_failures", options.max_failures != normal.max_failures, is_program},
      {"missing_eos_penalty", options.missing_eos_penalty != 0, has_rewards},
      {"length_penalty", options.length_penalty != 0, has_rewards},
      {"unfinished", options.unfinished != normal.unfinished, !has_rewards},
  };
}

}  // namespace

void FeedbackOptions::fields(FieldVisitor& v) {
  constexpr std::string_view kPrograms =
      R"(a program and its arguments, ["python3", "reward.py"], or a list of such)";
  visit_list(
      v,
      {"reward", "Program and arguments, or a list of such, that give rewards", {"reward_funcs"}},
      reward, is_command, kPrograms);
  std::string weights = detail::dump_json(Json(reward_weights));
  v.json({"reward_weights", "Weights of the sum of several rewards; empty: 1 each"}, weights);
  const Json numbers = detail::parse_json<ConfigError>(weights, "reward_weights");
  if (!is_list_of(numbers, is_finite_number)) {
    refuse_value("reward_weights", "a list of numbers", numbers);
  }
  reward_weights = numbers.get<std::vector<double>>();
  v.texts({"judge", "Program and arguments that say which of two completions is better"}, judge);
  v.flag({"both_orders", "Ask a judge in both orders, and take the mean"}, both_orders);
  v.texts({"program", "Program and arguments that compare two completions, asked in one order"},
          program);
  visit_list(
      v, {"reward_model", "Folder of a reward model, or a list of folders", {"reward_model_path"}},
      reward_model, is_text, "a folder or a list of folders");
  // Added later: configs without it, and their hashes, are as they were.
  if (!v.writes() || implicit_reward.is_given() || !implicit_reward.reference.empty()) {
    v.group({"implicit_reward", "A model with a reference, whose log-ratios are rewards of steps"},
            implicit_reward);
  }
  v.flag({"environment", "Rewards are those of the sources' environments"}, environment);
  v.choice({"ensemble", "The reward of several models"}, ensemble,
           {"mean", "min", "mean_minus_std"});
  v.real({"ensemble_k", "Standard deviations that mean_minus_std subtracts"}, ensemble_k,
         Range::at_least(0));
  v.flag({"against_baseline",
          "Rewards are log-odds of a judge's or program's comparisons with one completion of the "
          "prompt"},
         against_baseline);
  v.real({"temperature",
          "T of P(first beats second) = sigmoid((r1 - r2)/T), where there are rewards; 0: the "
          "higher one"},
         temperature, Range::at_least(0));
  v.integer({"workers", "Processes of each program that answer at once"}, workers,
            Range::between(1, 32));
  v.real({"timeout", "Seconds that a program may take to the next answer"}, timeout,
         Range{.min = 0, .max = 86400, .min_open = true});
  v.integer({"retries", "Further tries of a question that a program ends at or is late with"},
            retries, Range::between(0, 100));
  v.integer({"max_failures", "Questions of a program without an answer before the run ends"},
            max_failures, Range::at_least(0));
  v.real({"missing_eos_penalty", "Subtracted from the reward of a completion without end token"},
         missing_eos_penalty, Range::at_least(0));
  v.real({"length_penalty", "Subtracted from the reward for each token"}, length_penalty,
         Range::at_least(0));
  v.choice({"unfinished",
            "A completion without end token, compared with one that has one: as_judged, or loses "
            "without a question"},
           unfinished, {"as_judged", "loses"});
}

RaterOptions rater_options(const FeedbackOptions& options) {
  return {.missing_eos_penalty = options.missing_eos_penalty,
          .length_penalty = options.length_penalty,
          .unfinished = options.unfinished};
}

void detail::check_feedback(const FeedbackOptions& options) {
  checked(options, "feedback");
  const std::string_view source = only_source(options);
  for (const OptionUse& use : option_uses(options)) {
    if (!use.is_set || use.is_used) continue;
    throw ConfigError(
        fmt::format("feedback: expected no {} with this {}, got one; it would do "
                    "nothing",
                    use.name, source));
  }
}

}  // namespace prefopt
