// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/objectives/steps.h"
#include "prefopt/online/preference.h"
#include "prefopt/options.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// A model that was trained with a reference on whole completions, by `ce` or `dpo`, as the reward
/// of their parts; see implicit_token_rewards.
struct ImplicitModelOptions {
  std::string model = {};      ///< Hugging Face folder or GGUF file; empty: none
  std::string reference = {};  ///< that the model was trained with
  double beta = 0.05;
  std::string step_end = "\n\n";  ///< text that ends a step; empty: each token is one

  PREFOPT_API void fields(FieldVisitor& v);
  bool is_given() const { return !model.empty(); }
};

/// The reward of a completion from those of its steps.
struct ImplicitRewardOptions : ImplicitModelOptions {
  StepAggregate aggregate = StepAggregate::kMin;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Rewards of steps, in addition to that of the completion.
struct ProcessRewardOptions : ImplicitModelOptions {
  double clip = 0;  ///< largest size of a step's reward; 0: no limit

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Throws ConfigError, led by `where`, for options without a model or a model without a reference.
PREFOPT_API void check_implicit_model(const ImplicitModelOptions& options, std::string_view where);

/// Returns the ends of a completion's steps.
PREFOPT_API StepEnds step_ends_of(const std::vector<std::int64_t>& completion,
                                  const Tokenizer& tokenizer, const std::string& step_end);

/// Returns the opinion of such a model: a completion's reward is the aggregate of its steps', of
/// the tokens that the policy chose. P(first beats second) as of RewardPreference. Throws
/// ConfigError for null models, and what implicit_token_rewards throws.
PREFOPT_API std::unique_ptr<Preference> make_implicit_reward_preference(
    std::shared_ptr<Policy> model, std::shared_ptr<Policy> reference,
    std::shared_ptr<const Tokenizer> tokenizer, const ImplicitRewardOptions& options,
    double temperature = 1, std::int64_t at_once = 16);

}  // namespace prefopt
