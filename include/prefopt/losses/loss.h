// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/inputs.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/options.h"

namespace prefopt {

/// The model that draws the fresh samples of a loss.
enum class SampleSource { kNone, kPolicy, kReference };

/// Limits of log(pi/pi_ref) of one token, nats (humanline, 2509.24207).
struct LogRatioLimits {
  double low = 0;
  double high = 0;

  bool operator==(const LogRatioLimits&) const = default;
};

/// The inputs of a loss; by default those of a pairwise loss with a reference.
struct LossRequirements {
  InputSet inputs = kPairLogps | kPairReferenceLogps;
  std::optional<LogRatioLimits> limits = {};  ///< of the limited log-ratios among `inputs`
  /// The loss mixes the rows of an optimizer step, so it must see all of them in one call.
  bool whole_step = false;
  bool running_mean = false;  ///< `running` of the output goes into the next step's input
  SampleSource sample_source = SampleSource::kNone;
  std::int64_t samples_per_prompt = 0;
  /// The completions of the rows have to be samples of the policy that is trained, at temperature 1
  /// and without top-k or top-p: the gradient is an expectation under the policy. Whoever makes the
  /// rows has to see to it.
  bool of_own_samples = false;
  /// The scores in place of log-probs are a reward model's (policy/reward_policy.h).
  bool of_rewards = false;

  constexpr bool has(Input input) const { return inputs.has(input); }
  /// Returns whether a reference model is needed.
  constexpr bool reference() const {
    return inputs.has(InputKind::kReferenceLogps) || inputs.has(InputKind::kComparison);
  }
  /// Returns whether rows are pairs, with a rejected completion.
  constexpr bool rejected() const { return inputs.has(InputOf::kRejected); }
  /// Returns whether rows have a third completion.
  constexpr bool gold() const { return inputs.has(InputOf::kGold); }
  /// Returns whether rows are unpaired: one completion and a label.
  constexpr bool labels() const { return inputs.has(Input::labels); }
  /// Returns whether rows are one completion and its advantage.
  constexpr bool advantages() const { return inputs.has(Input::advantages); }
};

/// Facts about a loss with its default options, beyond those of every loss; testing/loss_checks.h
/// checks them.
struct LossProperties {
  /// A completion counts through log pi - log pi_ref alone: a constant on both changes nothing.
  bool log_ratios_only = false;
  /// A constant on the policy's log-probs of both completions changes nothing.
  bool difference_only = false;
  bool non_negative = false;  ///< the loss of each row
  /// Never rises with the chosen log-prob and never falls with the rejected one.
  bool monotone = false;
};

/// Intended differences between the gradient of a loss and the derivative of its value.
struct GradientExceptions {
  bool stops_part = false;  ///< a part of the value (a weight, a running mean) takes no gradient
  InputSet estimated = {};  ///< inputs whose gradient is an estimate by the score function

  GradientExceptions operator|(const GradientExceptions& other) const {
    return {stops_part || other.stops_part, estimated | other.estimated};
  }
};

/// A known value of a loss with its default options, on one pair of five-token completions whose
/// reference log-probs are -10. Fresh samples, a completion of another row, a third one and the
/// prompt have that log-prob as well, the label is 1, sequence KLs, margins and advantages are 0,
/// and the reference drew the rejected completion.
struct LossAnchor {
  double chosen_logratio;
  double rejected_logratio;
  double loss;
};

/// A name for a loss with some of its options set.
struct LossPreset {
  std::string name;
  std::string options;  ///< a JSON object; its numbers are defaults, the rest is fixed by the name
};

/// The same loss in another library.
struct OtherImplementation {
  std::string library;
  std::string name;
  std::string difference = {};  ///< empty: none known
};

/// Facts about a loss for the registry, the documentation and the contract tests.
struct LossInfo {
  std::string name = {};
  std::vector<std::string> aliases = {};  ///< names in TRL and elsewhere
  std::string formula = {};
  std::string source = {};  ///< arXiv id and equation
  std::vector<LossAnchor> anchors = {};
  std::string when_to_use = {};                     ///< one or two sentences
  std::vector<OtherImplementation> elsewhere = {};  ///< other libraries that have it
  std::vector<LossPreset> presets = {};
};

namespace detail {
class PREFOPT_API LossConcept {
 public:
  virtual ~LossConcept() = default;
  virtual LossOutput forward(const PairLogps& logps) const = 0;
  virtual LossRequirements requirements() const = 0;
  virtual LossProperties properties() const = 0;
  virtual GradientExceptions gradient_exceptions() const = 0;
  virtual LossInfo info() const = 0;
  virtual std::string config() const = 0;
};
}  // namespace detail

/// Any loss, held by value. `L` has `forward(const PairLogps&) const`, `requirements() const`,
/// `static LossInfo info()`, and `options() const` that returns an OptionStruct. It may have
/// `static LossProperties properties()` and `gradient_exceptions() const`.
class PREFOPT_API Loss {
 public:
  template <class L>
  requires(!std::same_as<std::remove_cvref_t<L>, Loss>) Loss(L loss)  // NOLINT: a loss is a Loss
      : self_(std::make_shared<Model<L>>(std::move(loss))) {}

  /// Throws ShapeError, DtypeError or DeviceError for tensors that do not fit.
  LossOutput forward(const PairLogps& logps) const { return self_->forward(logps); }
  LossOutput operator()(const PairLogps& logps) const { return self_->forward(logps); }
  LossRequirements requirements() const { return self_->requirements(); }
  LossProperties properties() const { return self_->properties(); }
  GradientExceptions gradient_exceptions() const { return self_->gradient_exceptions(); }
  LossInfo info() const { return self_->info(); }
  /// Returns `{"type": …, every option}`, from which make_loss builds an equal loss.
  std::string config() const { return self_->config(); }

 private:
  template <class L>
  class Model final : public detail::LossConcept {
   public:
    explicit Model(L loss) : loss_(std::move(loss)) {}
    LossOutput forward(const PairLogps& logps) const override { return loss_.forward(logps); }
    LossRequirements requirements() const override { return loss_.requirements(); }
    LossProperties properties() const override {
      if constexpr (requires { L::properties(); }) return L::properties();
      return {};
    }
    GradientExceptions gradient_exceptions() const override {
      if constexpr (requires { loss_.gradient_exceptions(); }) return loss_.gradient_exceptions();
      return {};
    }
    LossInfo info() const override { return L::info(); }
    std::string config() const override;

   private:
    L loss_;
  };

  std::shared_ptr<const detail::LossConcept> self_;
};

namespace detail {
/// Puts `"type": name` in front of an options object.
PREFOPT_API std::string typed_config(std::string_view name, std::string_view options_json);
}  // namespace detail

template <class L>
std::string Loss::Model<L>::config() const {
  return detail::typed_config(L::info().name, options_to_json(loss_.options()));
}

}  // namespace prefopt
