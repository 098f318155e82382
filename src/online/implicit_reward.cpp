// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/implicit_reward.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <utility>
#include <vector>

#include "core/json.h"
#include "prefopt/data/step_ends.h"
#include "prefopt/error.h"
#include "prefopt/policy/token_rewards.h"

namespace prefopt {
namespace {

class ImplicitRewardPreference final : public RewardPreference {
 public:
  ImplicitRewardPreference(std::shared_ptr<Policy> model, std::shared_ptr<Policy> reference,
                           std::shared_ptr<const Tokenizer> tokenizer,
                           ImplicitRewardOptions options, double temperature, std::int64_t at_once)
      : RewardPreference(temperature),
        model_(std::move(model)),
        reference_(std::move(reference)),
        tokenizer_(std::move(tokenizer)),
        options_(std::move(options)),
        at_once_(at_once) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<TokenSequence> sequences;
    for (const Rollout* of : rollouts) {
      sequences.push_back({.prompt = of->prompt, .completion = of->completion});
    }
    const auto of_tokens =
        implicit_token_rewards(*model_, *reference_, sequences, options_.beta, at_once_);
    std::vector<double> all;
    for (std::size_t i = 0; i < rollouts.size(); ++i) {
      all.push_back(reward_of(*rollouts[i], of_tokens[i]));
    }
    return all;
  }

 private:
  double reward_of(const Rollout& rollout, const std::vector<double>& of_tokens) const {
    Eigen::ArrayXd each = Eigen::Map<const Eigen::ArrayXd>(
        of_tokens.data(), static_cast<Eigen::Index>(of_tokens.size()));
    for (std::size_t t = 0; t < rollout.acted.size(); ++t) {
      if (rollout.acted[t] == 0) each[static_cast<Eigen::Index>(t)] = 0;
    }
    const StepEnds ends = step_ends_of(rollout.completion, *tokenizer_, options_.step_end);
    return aggregate_steps(step_sums(each, ends, "implicit reward"), options_.aggregate);
  }

  std::shared_ptr<Policy> model_, reference_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  ImplicitRewardOptions options_;
  std::int64_t at_once_;
};

}  // namespace

void ImplicitModelOptions::fields(FieldVisitor& v) {
  v.text({"model", "Model that gives rewards, trained with a reference by ce or dpo"}, model);
  v.text({"reference", "The reference that it was trained with"}, reference);
  v.real({"beta", "Scale of its rewards beta log(pi/pi_ref)"}, beta, Range::above(0));
  v.text({"step_end", "Text that ends a step; empty: each token is one"}, step_end);
}

void ImplicitRewardOptions::fields(FieldVisitor& v) {
  ImplicitModelOptions::fields(v);
  v.choice({"aggregate", "The completion's reward from those of its steps"}, aggregate,
           {"min", "mean", "last", "sum"});
}

void ProcessRewardOptions::fields(FieldVisitor& v) {
  ImplicitModelOptions::fields(v);
  v.real({"clip", "Largest size of a step's reward; 0: no limit"}, clip, Range::at_least(0));
}

void check_implicit_model(const ImplicitModelOptions& options, std::string_view where) {
  const bool is_bare = options.model.empty() && options.reference.empty();
  if (options.model.empty()) {
    throw ConfigError(fmt::format("{}.model: expected a model that gives rewards, got {}", where,
                                  is_bare ? "none" : "a reference alone"));
  }
  if (!options.reference.empty()) return;
  throw ConfigError(
      fmt::format("{}.reference: expected the reference that '{}' was trained with, as rewards are "
                  "of both, got "
                  "none",
                  where, options.model));
}

StepEnds step_ends_of(const std::vector<std::int64_t>& completion, const Tokenizer& tokenizer,
                      const std::string& step_end) {
  return step_end.empty() ? every_token(std::ssize(completion))
                          : find_step_ends(completion, tokenizer, step_end);
}

std::unique_ptr<Preference> make_implicit_reward_preference(
    std::shared_ptr<Policy> model, std::shared_ptr<Policy> reference,
    std::shared_ptr<const Tokenizer> tokenizer, const ImplicitRewardOptions& options,
    double temperature, std::int64_t at_once) {
  if (!model || !reference || !tokenizer) {
    throw ConfigError("implicit reward: expected a model, its reference and a tokenizer, got null");
  }
  return std::make_unique<ImplicitRewardPreference>(
      std::move(model), std::move(reference), std::move(tokenizer),
      checked(options, "implicit_reward"), temperature, at_once);
}

}  // namespace prefopt
