// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <Eigen/Core>
#include <concepts>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/math/eigen.h"
#include "prefopt/math/tensor.h"
#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/piece.h"
#include "prefopt/options.h"

namespace prefopt {

/// Numbers of acted tokens that a rule reads, [tokens].
template <class T>
struct RuleInputs {
  T log_ratios;  ///< ℓ: log π − log π_old of the token, its turn or its completion (the level)
  T ratios;      ///< ρ = e^ℓ, ℓ limited to [-20, 20]
  T ratio_slopes;  ///< dρ/dℓ: ρ within the limits, else 0
  T logps;         ///< log π of the token
  T advantages;
};

/// Losses of tokens and their derivatives; an undefined derivative is 0.
template <class T>
struct RuleOutputs {
  T losses;
  T by_log_ratio = {};                       ///< d / dℓ
  T by_logp = {};                            ///< d / d log π of the token itself, ℓ held fixed
  T limited_below = {}, limited_above = {};  ///< 1 where a limit holds, for metrics
};

/// Properties that a rule declares and testing/objective_checks.h checks.
struct RuleProperties {
  bool policy_gradient = false;  ///< at ratio 1 the gradient in log π is −A, that of REINFORCE
  bool stops_ratio = false;      ///< the ratio is a weight that takes no gradient
};

/// The segment of a completion whose log-ratios make one ratio.
enum class RatioLevel {
  kToken,
  kSequenceMean,  ///< e^(mean ℓ) of the completion (GSPO, 2507.18071)
  kSequenceSum,   ///< e^(Σ ℓ) of the completion, which is one action
  kTurn,          ///< e^(Σ ℓ) of the turn, which is one action (LOOP, 2502.01600)
};

namespace detail {
/// Throws ConfigError for a limit of negative advantages that is set and not above 1.
PREFOPT_API void check_ratio_limit(std::string_view where, std::string_view option, double value);
/// Throws ConfigError for a `delta` that is set and below 1 + high.
PREFOPT_API void check_upper_limit(std::string_view where, double delta, double high);
/// Throws ConfigError for min above max.
PREFOPT_API void check_ratio_range(std::string_view where, double min, double max);

class PREFOPT_API RuleConcept {
 public:
  virtual ~RuleConcept() = default;
  virtual RuleOutputs<at::Tensor> apply(const RuleInputs<at::Tensor>& in) const = 0;
  virtual RuleOutputs<Eigen::ArrayXd> apply(const RuleInputs<Eigen::ArrayXd>& in) const = 0;
  virtual bool of_completions() const = 0;
  virtual bool is_linear() const = 0;
  virtual RuleProperties properties() const = 0;
  virtual PieceInfo info() const = 0;
  virtual std::string options_json() const = 0;
};
}  // namespace detail

/// Any rule that makes a loss of ratio, log-prob and advantage of a token, held by value. `R` has
/// `formula(const RuleInputs<T>&) const` for any array type, `static PieceInfo info()`, and
/// `options()` that returns an OptionStruct. It may have `RuleProperties properties() const`.
/// `static constexpr bool kOfCompletions = true` says that its ratio is always that of the whole
/// completion, whatever the level; `kIsLinear = false` that a token without an advantage has a loss
/// all the same.
class PREFOPT_API TokenRule {
 public:
  template <class R>
  requires(!std::same_as<std::remove_cvref_t<R>, TokenRule> && requires { R::info(); })
      TokenRule(R rule)  // NOLINT: a rule is a TokenRule
      : self_(std::make_shared<Model<R>>(std::move(rule))) {}

  RuleOutputs<at::Tensor> operator()(const RuleInputs<at::Tensor>& in) const {
    return self_->apply(in);
  }
  RuleOutputs<Eigen::ArrayXd> operator()(const RuleInputs<Eigen::ArrayXd>& in) const {
    return self_->apply(in);
  }
  bool of_completions() const { return self_->of_completions(); }
  bool is_linear() const { return self_->is_linear(); }
  RuleProperties properties() const { return self_->properties(); }
  PieceInfo info() const { return self_->info(); }
  /// Returns `{"kind": …, every option}`.
  std::string config() const;

 private:
  template <class R>
  class Model final : public detail::RuleConcept {
   public:
    explicit Model(R rule) : rule_(std::move(rule)) {}
    RuleOutputs<at::Tensor> apply(const RuleInputs<at::Tensor>& in) const override {
      return rule_.formula(in);
    }
    RuleOutputs<Eigen::ArrayXd> apply(const RuleInputs<Eigen::ArrayXd>& in) const override {
      return rule_.formula(in);
    }
    bool of_completions() const override {
      if constexpr (requires { R::kOfCompletions; }) return R::kOfCompletions;
      return false;
    }
    bool is_linear() const override {
      if constexpr (requires { R::kIsLinear; }) return R::kIsLinear;
      return true;
    }
    RuleProperties properties() const override {
      if constexpr (requires { rule_.properties(); }) return rule_.properties();
      return {};
    }
    PieceInfo info() const override { return R::info(); }
    std::string options_json() const override { return options_to_json(rule_.options()); }

   private:
    R rule_;
  };

  std::shared_ptr<const detail::RuleConcept> self_;
};

/// Base of the named rules: their options.
template <class Derived, class OptionsType = NoOptions>
class RuleBase {
 public:
  using Options = OptionsType;

  /// Throws ConfigError if an option is out of its range.
  explicit RuleBase(Options options = {})
      : options_(checked(std::move(options), Derived::info().kind)) {}
  const Options& options() const { return options_; }

 protected:
  Options options_;
};

struct RuleEntry : PieceEntry {
  std::function<TokenRule(std::string_view json)> make = {};
};

/// Builds a rule from `{"kind": NAME, options…}`. Throws ConfigError for an unknown kind or key,
/// naming the nearest known one.
PREFOPT_API TokenRule make_rule(std::string_view json);
/// Returns the rules in the order of registration.
PREFOPT_API std::vector<RuleEntry> registered_rules();
/// Registers a rule. Throws ConfigError if the kind is taken.
PREFOPT_API void register_rule(RuleEntry entry);

template <class R>
RuleEntry rule_entry() {
  using Options = std::remove_cvref_t<decltype(std::declval<const R&>().options())>;
  RuleEntry entry;
  entry.info = R::info();
  entry.options = describe_options<Options>();
  entry.make = [](std::string_view json) -> TokenRule {
    Options own;
    detail::read_piece(json, R::info().kind, [&](FieldVisitor& v) { own.fields(v); }, {});
    return R(own);
  };
  return entry;
}

/// Makes `R` known to make_rule and the command line under `R::info().kind`.
template <class R>
void register_rule() {
  register_rule(rule_entry<R>());
}

}  // namespace prefopt
