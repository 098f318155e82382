// SPDX-License-Identifier: Apache-2.0
#pragma once

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
#include "prefopt/objectives/piece.h"
#include "prefopt/objectives/rollout_step.h"
#include "prefopt/options.h"

namespace prefopt {

/// The parts of a RolloutStep that an advantage reads in addition to rewards and groups.
struct AdvantageNeeds {
  bool greedy_rewards = false;
  bool values = false;
  bool given = false;
  bool groups = false;  ///< compares completions of a prompt, of which there must be at least two
  bool per_token =
      false;  ///< takes a reward a token, so that a KL in the reward is one a token too
};

/// Properties that an advantage declares and testing/objective_checks.h checks.
struct AdvantageProperties {
  bool shift_free = false;  ///< a constant on all rewards of a group changes nothing
  bool scales = false;      ///< twice the rewards, twice the advantages
};

/// The treatment of completions whose reward, or the greedy one where that is needed, is NaN.
enum class Unscorable {
  kZero,   ///< advantage 0, not counted in means and spreads, returns equal to the values
  kError,  ///< DataError
};

/// Options that all advantages have.
struct AdvantageOptions {
  double clip = 0;        ///< largest size of an advantage; 0: no limit
  double keep_above = 0;  ///< see Advantage::kept; 0: no completion is dropped
  Unscorable unscorable = Unscorable::kZero;

  PREFOPT_API void fields(FieldVisitor& v);
};

namespace detail {
class PREFOPT_API AdvantageConcept {
 public:
  virtual ~AdvantageConcept() = default;
  virtual Eigen::ArrayXd of(const RolloutStep& step) const = 0;
  virtual Eigen::ArrayXd returns(const RolloutStep& step) const = 0;
  virtual AdvantageNeeds needs() const = 0;
  virtual AdvantageProperties properties() const = 0;
  virtual PieceInfo info() const = 0;
  virtual std::string options_json() const = 0;
};
}  // namespace detail

/// Any advantage, held by value: by how much each token of each completion is better than expected.
/// `A` has `Eigen::ArrayXd of(const RolloutStep&) const` that returns one number a token, `static
/// PieceInfo info()`, and `options()` that returns an OptionStruct. It may have `static
/// AdvantageNeeds needs()`, `static AdvantageProperties properties()`, and `returns(const
/// RolloutStep&) const`: the numbers that a value model learns. Values at tokens that the policy
/// did not choose are not used.
class PREFOPT_API Advantage {
 public:
  /// Throws ConfigError for options out of their range.
  template <class A>
  requires(!std::same_as<std::remove_cvref_t<A>, Advantage> && requires { A::info(); })
      Advantage(A advantage, AdvantageOptions options = {})  // NOLINT: an advantage is an Advantage
      : self_(std::make_shared<Model<A>>(std::move(advantage))),
        options_(checked(options, "advantage")) {}

  /// Returns the advantages [tokens], limited to [-clip, clip] where that is set, and 0 where the
  /// policy did not choose or nobody could say the reward. Throws ConfigError for a group of one
  /// completion where completions are compared, ShapeError for parts of the step that are needed
  /// and not there, DataError for a NaN reward where that is asked for, NonFiniteError for an
  /// advantage that is not finite, and what check_rollout_step throws.
  Eigen::ArrayXd of(const RolloutStep& step) const;
  /// Returns the numbers [tokens] that values are trained towards, the values themselves where
  /// nobody could say the reward; empty for an advantage without.
  Eigen::ArrayXd returns(const RolloutStep& step) const;
  /// Returns 1 for each completion that counts and 0 for one that `keep_above` drops: none of its
  /// advantages is larger than that in size.
  Eigen::ArrayXd kept(const RolloutStep& step, const Eigen::ArrayXd& advantages) const;
  AdvantageNeeds needs() const { return self_->needs(); }
  AdvantageProperties properties() const { return self_->properties(); }
  PieceInfo info() const { return self_->info(); }
  const AdvantageOptions& options() const { return options_; }
  /// Returns `{"kind": …, every option}`.
  std::string config() const;

 private:
  template <class A>
  class Model final : public detail::AdvantageConcept {
   public:
    explicit Model(A advantage) : advantage_(std::move(advantage)) {}
    Eigen::ArrayXd of(const RolloutStep& step) const override { return advantage_.of(step); }
    Eigen::ArrayXd returns(const RolloutStep& step) const override {
      if constexpr (requires { advantage_.returns(step); }) return advantage_.returns(step);
      return {};
    }
    AdvantageNeeds needs() const override {
      if constexpr (requires { A::needs(); }) return A::needs();
      return {};
    }
    AdvantageProperties properties() const override {
      if constexpr (requires { A::properties(); }) return A::properties();
      return {};
    }
    PieceInfo info() const override { return A::info(); }
    std::string options_json() const override { return options_to_json(advantage_.options()); }

   private:
    A advantage_;
  };

  std::shared_ptr<const detail::AdvantageConcept> self_;
  AdvantageOptions options_;
};

/// Base of the named advantages: their options.
template <class Derived, class OptionsType = NoOptions>
class AdvantageBase {
 public:
  using Options = OptionsType;

  /// Throws ConfigError if an option is out of its range.
  explicit AdvantageBase(Options options = {})
      : options_(checked(std::move(options), Derived::info().kind)) {}
  const Options& options() const { return options_; }

 protected:
  Options options_;
};

struct AdvantageEntry : PieceEntry {
  std::function<Advantage(std::string_view json)> make = {};
};

/// Builds an advantage from `{"kind": NAME, options…}`. Throws ConfigError for an unknown kind or
/// key, naming the nearest known one.
PREFOPT_API Advantage make_advantage(std::string_view json);
/// Returns the advantages in the order of registration.
PREFOPT_API std::vector<AdvantageEntry> registered_advantages();
/// Registers an advantage. Throws ConfigError if the kind is taken.
PREFOPT_API void register_advantage(AdvantageEntry entry);

namespace detail {
/// Reads the options of a piece that are in `own` and `common` from an object with a `kind`.
PREFOPT_API void read_piece(std::string_view json, const std::string& kind, const FieldList& own,
                            const FieldList& common);
}  // namespace detail

template <class A>
AdvantageEntry advantage_entry() {
  using Options = std::remove_cvref_t<decltype(std::declval<const A&>().options())>;
  AdvantageEntry entry;
  entry.info = A::info();
  entry.options = describe_options<Options>();
  entry.make = [](std::string_view json) {
    Options own;
    AdvantageOptions common;
    detail::read_piece(
        json, A::info().kind, [&](FieldVisitor& v) { own.fields(v); },
        [&](FieldVisitor& v) { common.fields(v); });
    return Advantage(A(own), common);
  };
  return entry;
}

/// Makes `A` known to make_advantage and the command line under `A::info().kind`.
template <class A>
void register_advantage() {
  register_advantage(advantage_entry<A>());
}

}  // namespace prefopt
