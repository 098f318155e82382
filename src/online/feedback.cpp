// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/feedback.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "core/json.h"
#include "evaluation/json_program.h"
#include "online/feedback_options.h"
#include "online/program_pool.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::AnswerForm;
using detail::Json;
using detail::PoolOptions;
using detail::ProgramPool;

constexpr double kNoAnswer = std::numeric_limits<double>::quiet_NaN();

const Json* find_value(const Json& answer, const char* key) {
  return answer.is_object() && answer.contains(key) ? &answer[key] : nullptr;
}

std::optional<double> read_reward(const Json& answer) {
  const Json* const reward = find_value(answer, "reward");
  if (reward == nullptr) return std::nullopt;
  if (reward->is_null()) return kNoAnswer;
  if (!reward->is_number() || !std::isfinite(reward->get<double>())) return std::nullopt;
  return reward->get<double>();
}

std::optional<double> read_winner(const Json& winner) {
  if (winner.is_null()) return kNoAnswer;
  if (winner == "a") return 1;
  if (winner == "b") return 0;
  if (winner == "tie") return 0.5;
  return std::nullopt;
}

std::optional<double> read_probability(const Json& value) {
  if (value.is_null()) return kNoAnswer;
  if (!value.is_number()) return std::nullopt;
  const double p = value.get<double>();
  if (!(p >= 0 && p <= 1)) return std::nullopt;
  return p;
}

std::optional<double> read_comparison(const Json& answer) {
  const Json* const winner = find_value(answer, "winner");
  const Json* const p = find_value(answer, "p");
  if ((winner == nullptr) == (p == nullptr)) return std::nullopt;
  return winner != nullptr ? read_winner(*winner) : read_probability(*p);
}

constexpr AnswerForm kRewardForm = {detail::kRewardProgram, R"({"reward": number})", read_reward};
constexpr AnswerForm kComparisonForm = {
    detail::kJudge, R"({"winner": "a", "b" or "tie"} or {"p": number in [0, 1]})", read_comparison};

PoolOptions pool_options(const Command& command, const FeedbackOptions& options) {
  return {.program = {.command = command,
                      .name = fmt::format("{}", fmt::join(command, " ")),
                      .timeout = options.timeout},
          .workers = options.workers,
          .retries = options.retries,
          .max_failures = options.max_failures};
}

class ProgramReward final : public RewardPreference {
 public:
  explicit ProgramReward(const PoolOptions& options) : pool_(options, kRewardForm) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<std::string> questions;
    for (const Rollout* of : rollouts) {
      questions.push_back(
          detail::dump_json({{"prompt", of->prompt_text}, {"completion", of->text}}));
    }
    return pool_.ask(questions);
  }
  std::vector<std::int64_t> failures() const override { return {pool_.failures()}; }
  void set_failures(std::span<const std::int64_t> failures) override {
    pool_.set_failures(failures.front());
  }

 private:
  ProgramPool pool_;
};

class GivenReward final : public RewardPreference {
 public:
  using RewardPreference::RewardPreference;

  bool is_of_tokens() const override { return false; }
  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> values;
    for (const Rollout* of : rollouts) {
      if (of->rewards.empty()) {
        throw DataError(
            fmt::format("feedback: expected rollouts with the reward of an environment, got one of "
                        "'{}' without",
                        detail::shown_text(of->prompt_text)));
      }
      values.push_back(of->rewards.front());
    }
    return values;
  }
};

class FunctionReward final : public RewardPreference {
 public:
  FunctionReward(Reward reward, double temperature)
      : RewardPreference(temperature), reward_(std::move(reward)) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> values;
    for (const Rollout* of : rollouts) values.push_back(reward_(of->prompt_text, of->text));
    return values;
  }

 private:
  Reward reward_;
};

/// Comparisons in one order, or in both with their mean.
class OrderedPreference : public Preference {
 public:
  explicit OrderedPreference(bool both_orders) : both_orders_(both_orders) {}

  std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
    if (!both_orders_) return ask(comparisons);
    std::vector<Comparison> asked;
    for (const Comparison& pair : comparisons) {
      asked.push_back(pair);
      asked.push_back({pair.second, pair.first});
    }
    const std::vector<double> answers = ask(asked);
    std::vector<double> means;
    for (std::size_t i = 0; i < answers.size(); i += 2) {
      means.push_back(mean_of_orders(answers[i], 1 - answers[i + 1]));
    }
    return means;
  }
  std::int64_t inconsistent() const override { return inconsistent_; }

 private:
  /// Returns P(first beats second) of each, as it is asked: first, second.
  virtual std::vector<double> ask(const std::vector<Comparison>& comparisons) = 0;

  /// Both are P(first beats second).
  double mean_of_orders(double straight, double turned) {
    if ((straight - 0.5) * (turned - 0.5) < 0) ++inconsistent_;
    return (straight + turned) / 2;
  }

  bool both_orders_;
  std::int64_t inconsistent_ = 0;
};

class ProgramPreference final : public OrderedPreference {
 public:
  ProgramPreference(const PoolOptions& options, bool both_orders)
      : OrderedPreference(both_orders), pool_(options, kComparisonForm) {}

  std::vector<std::int64_t> failures() const override { return {pool_.failures()}; }
  void set_failures(std::span<const std::int64_t> failures) override {
    pool_.set_failures(failures.front());
  }

 private:
  std::vector<double> ask(const std::vector<Comparison>& comparisons) override {
    std::vector<std::string> questions;
    for (const auto& [first, second] : comparisons) {
      questions.push_back(detail::dump_json(
          {{"prompt", first->prompt_text}, {"a", first->text}, {"b", second->text}}));
    }
    return pool_.ask(questions);
  }

  ProgramPool pool_;
};

class JudgePreference final : public OrderedPreference {
 public:
  JudgePreference(std::unique_ptr<Judge> judge, bool both_orders)
      : OrderedPreference(both_orders), judge_(std::move(judge)) {}

 private:
  std::vector<double> ask(const std::vector<Comparison>& comparisons) override {
    std::vector<double> answers;
    for (const auto& [first, second] : comparisons) {
      const Verdict verdict = judge_->compare(first->prompt_text, first->text, second->text);
      answers.push_back(verdict == Verdict::kTie ? 0.5 : verdict == Verdict::kFirst ? 1 : 0);
    }
    return answers;
  }

  std::unique_ptr<Judge> judge_;
};

/// A reward made of several rewards.
class CombinedReward : public RewardPreference {
 public:
  CombinedReward(std::vector<std::unique_ptr<Preference>> parts, double temperature)
      : RewardPreference(temperature), parts_(std::move(parts)) {
    if (parts_.empty()) throw ConfigError("feedback: expected a part of a reward, got none");
    for (const auto& part : parts_) {
      if (part->has_rewards()) continue;
      throw ConfigError("feedback: expected parts that have rewards, got one of comparisons alone");
    }
  }

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<std::vector<double>> by_part;
    for (const auto& part : parts_) by_part.push_back(part->rewards(rollouts));
    std::vector<double> values;
    std::vector<double> column(parts_.size());
    for (std::size_t i = 0; i < rollouts.size(); ++i) {
      for (std::size_t k = 0; k < parts_.size(); ++k) column[k] = by_part[k].at(i);
      values.push_back(combine(column));
    }
    return values;
  }
  std::vector<std::int64_t> failures() const override {
    std::vector<std::int64_t> all;
    for (const auto& part : parts_) {
      const auto of_part = part->failures();
      all.insert(all.end(), of_part.begin(), of_part.end());
    }
    return all;
  }
  void set_failures(std::span<const std::int64_t> failures) override {
    for (const auto& part : parts_) {
      const std::size_t count = part->failures().size();
      part->set_failures(failures.first(count));
      failures = failures.subspan(count);
    }
  }

 protected:
  /// Returns the reward made of one of each part, NaN where one is.
  virtual double combine(const std::vector<double>& parts) const = 0;

 private:
  std::vector<std::unique_ptr<Preference>> parts_;
};

class WeightedSum final : public CombinedReward {
 public:
  WeightedSum(std::vector<std::unique_ptr<Preference>> parts, std::vector<double> weights,
              double temperature)
      : CombinedReward(std::move(parts), temperature), weights_(std::move(weights)) {}

 private:
  double combine(const std::vector<double>& parts) const override {
    return std::inner_product(parts.begin(), parts.end(), weights_.begin(), 0.0);
  }

  std::vector<double> weights_;
};

class EnsembleReward final : public CombinedReward {
 public:
  EnsembleReward(std::vector<std::unique_ptr<Preference>> parts, Ensemble ensemble, double k,
                 double temperature)
      : CombinedReward(std::move(parts), temperature), ensemble_(ensemble), k_(k) {}

 private:
  double combine(const std::vector<double>& parts) const override {
    const auto n = static_cast<double>(parts.size());
    const double mean = std::accumulate(parts.begin(), parts.end(), 0.0) / n;
    if (std::isnan(mean) || ensemble_ == Ensemble::kMean) return mean;
    if (ensemble_ == Ensemble::kMin) return *std::min_element(parts.begin(), parts.end());
    double squares = 0;
    for (const double part : parts) squares += (part - mean) * (part - mean);
    return mean - k_ * std::sqrt(squares / n);
  }

  Ensemble ensemble_;
  double k_;
};

class BaselineReward final : public RewardPreference {
 public:
  BaselineReward(std::unique_ptr<Preference> comparisons, Baseline baseline, double temperature)
      : RewardPreference(temperature),
        comparisons_(std::move(comparisons)),
        baseline_(std::move(baseline)) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> values(rollouts.size(), 0);
    std::vector<Comparison> asked;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < rollouts.size(); ++i) {
      const Rollout& baseline = baseline_(*rollouts[i]);
      if (baseline.completion == rollouts[i]->completion) continue;
      asked.push_back({rollouts[i], &baseline});
      places.push_back(i);
    }
    const std::vector<double> answers = comparisons_->beats(asked);
    for (std::size_t k = 0; k < asked.size(); ++k) values[places[k]] = log_odds(answers.at(k));
    return values;
  }
  std::int64_t inconsistent() const override { return comparisons_->inconsistent(); }
  std::vector<std::int64_t> failures() const override { return comparisons_->failures(); }
  void set_failures(std::span<const std::int64_t> failures) override {
    comparisons_->set_failures(failures);
  }

 private:
  static double log_odds(double p) {
    constexpr double kLeast = 1e-6;
    if (std::isnan(p)) return p;
    const double clipped = std::clamp(p, kLeast, 1 - kLeast);
    return std::log(clipped) - std::log1p(-clipped);
  }

  std::unique_ptr<Preference> comparisons_;
  Baseline baseline_;
};

std::unique_ptr<Preference> make_program_rewards(const FeedbackOptions& options) {
  std::vector<std::unique_ptr<Preference>> parts;
  for (const Command& command : options.reward) {
    parts.push_back(std::make_unique<ProgramReward>(pool_options(command, options)));
  }
  std::vector<double> weights = options.reward_weights;
  if (weights.empty()) weights.assign(parts.size(), 1);
  return make_weighted_sum(std::move(parts), std::move(weights), options.temperature);
}

std::unique_ptr<Preference> make_model_rewards(const FeedbackOptions& options,
                                               const FeedbackParts& given) {
  if (!given.load_reward_model) {
    throw ConfigError(
        "feedback: expected a source that is a program, got reward_model; no reward "
        "models can be loaded here");
  }
  std::vector<std::unique_ptr<Preference>> parts;
  for (const std::string& folder : options.reward_model) {
    parts.push_back(given.load_reward_model(folder));
  }
  return make_ensemble(std::move(parts), options.ensemble, options.ensemble_k, options.temperature);
}

std::unique_ptr<Preference> make_implicit_reward(const FeedbackOptions& options,
                                                 const FeedbackParts& given) {
  check_implicit_model(options.implicit_reward, "feedback.implicit_reward");
  if (!given.load_implicit_reward) {
    throw ConfigError(
        "feedback: expected a source that is a program, got implicit_reward; no models can be "
        "loaded here");
  }
  return given.load_implicit_reward(options.implicit_reward);
}

std::unique_ptr<Preference> make_comparisons(const FeedbackOptions& options) {
  const bool is_judge = !options.judge.empty();
  return std::make_unique<ProgramPreference>(
      pool_options(is_judge ? options.judge : options.program, options),
      is_judge && options.both_orders);
}

}  // namespace

std::unique_ptr<Preference> make_feedback(const FeedbackOptions& options,
                                          const FeedbackParts& parts) {
  detail::check_feedback(options);
  if (!options.reward.empty()) return make_program_rewards(options);
  if (!options.reward_model.empty()) return make_model_rewards(options, parts);
  if (options.implicit_reward.is_given()) return make_implicit_reward(options, parts);
  if (options.environment) return make_given_reward(options.temperature);
  if (!options.against_baseline) return make_comparisons(options);
  if (!parts.baseline) {
    throw ConfigError(
        "feedback: expected no against_baseline, got one; there are no baselines "
        "here");
  }
  return make_baseline_reward(make_comparisons(options), parts.baseline, options.temperature);
}

std::unique_ptr<Preference> make_reward_preference(Reward reward, double temperature) {
  return std::make_unique<FunctionReward>(std::move(reward), temperature);
}

std::unique_ptr<Preference> make_given_reward(double temperature) {
  return std::make_unique<GivenReward>(temperature);
}

std::unique_ptr<Preference> make_judge_preference(std::unique_ptr<Judge> judge, bool both_orders) {
  return std::make_unique<JudgePreference>(std::move(judge), both_orders);
}

std::unique_ptr<Preference> make_weighted_sum(std::vector<std::unique_ptr<Preference>> parts,
                                              std::vector<double> weights, double temperature) {
  if (weights.size() != parts.size()) {
    throw ConfigError(fmt::format("feedback: expected {} reward_weights, one a reward, got {}",
                                  parts.size(), weights.size()));
  }
  return std::make_unique<WeightedSum>(std::move(parts), std::move(weights), temperature);
}

std::unique_ptr<Preference> make_ensemble(std::vector<std::unique_ptr<Preference>> parts,
                                          Ensemble ensemble, double k, double temperature) {
  if (!(k >= 0 && std::isfinite(k))) {
    throw ConfigError(fmt::format("feedback: expected an ensemble_k of at least 0, got {}", k));
  }
  return std::make_unique<EnsembleReward>(std::move(parts), ensemble, k, temperature);
}

std::unique_ptr<Preference> make_baseline_reward(std::unique_ptr<Preference> comparisons,
                                                 Baseline baseline, double temperature) {
  return std::make_unique<BaselineReward>(std::move(comparisons), std::move(baseline), temperature);
}

void ask(std::span<Rater> raters, Questions questions) {
  if (questions == Questions::kRewards) Rater::ask_rewards(raters);
  if (questions == Questions::kComparisons) Rater::ask_comparisons(raters);
  if (questions == Questions::kFirstComparison) Rater::ask_first_comparison(raters);
}

}  // namespace prefopt
