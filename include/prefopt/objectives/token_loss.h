// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <Eigen/Core>
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/objectives/piece.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/options.h"

namespace prefopt {

/// The inputs of a loss on tokens, in addition to log-probs of the policy.
struct TokenLossNeeds {
  bool ref_logps = false;
  bool values = false;           ///< of a value model, which the loss trains
  bool log_normalizers = false;  ///< with gradient
  bool exact_kls = false;        ///< with gradient, over the vocabulary
  bool rewards = false;          ///< of whole completions
  bool steps = false;            ///< which tokens are one step
  std::string step_end = {};     ///< text that ends a step
  /// Completions of the policy, as a share of those of the step; 0: none.
  double own_samples = 0;
};

/// Numbers of the tokens of given completions that count, none of them cut, [tokens]; those that a
/// loss does not need may be undefined.
template <class T>
struct BasicTokenRows {
  T logps;  ///< log π, nats
  T ref_logps = {};
  T values = {};           ///< of the state that the token was chosen in
  T log_normalizers = {};  ///< log Σ_v exp(z_v) of the logits that the token was chosen by
  T exact_kls = {};        ///< KL(π ‖ π_ref) there
  T rewards = {};          ///< of the token's completion
  T completions;           ///< place of the token's completion, from 0
  T steps = {};            ///< place of its step among those of all completions
  T lens;                  ///< tokens of its completion that count
  std::int64_t completion_count = 0, step_count = 0;
  bool are_own = false;         ///< the policy drew them
  ObjectiveTotals totals = {};  ///< of the whole step; of own samples those of these
};

using TokenRows = BasicTokenRows<at::Tensor>;

template <class T>
struct BasicTokenLossOutput {
  ScalarOf<T> loss = {};  ///< this part's share of the step's loss
  T grad_logps = {};      ///< [tokens] d loss / d log π
  T grad_values = {}, grad_log_normalizers = {}, grad_exact_kls = {};
  std::vector<BasicLossTerm<T>> terms = {};  ///< they sum to the loss
  /// Sums over tokens; the mean over the tokens of the step is logged.
  std::vector<BasicTokenStatistic<T>> statistics = {};
};

/// `loss` carries the gradient into the tensors that it was computed from.
using TokenLossOutput = BasicTokenLossOutput<at::Tensor>;

namespace detail {
class PREFOPT_API TokenLossConcept {
 public:
  virtual ~TokenLossConcept() = default;
  virtual BasicTokenLossOutput<at::Tensor> apply(const BasicTokenRows<at::Tensor>& in) const = 0;
  virtual BasicTokenLossOutput<Eigen::ArrayXd> apply(
      const BasicTokenRows<Eigen::ArrayXd>& in) const = 0;
  virtual TokenLossNeeds needs() const = 0;
  virtual PieceInfo info() const = 0;
  virtual std::string options_json() const = 0;
};
}  // namespace detail

/// A loss on the tokens of given completions, held by value: one that looks at tokens one by one,
/// and at those after them, where a Loss sees sums. `L` has `formula(const BasicTokenRows<T>&)
/// const` for any array type, `needs() const`, `static PieceInfo info()` and `options()` that
/// returns an OptionStruct. Its gradients need not be the derivatives of its value: each header
/// says which part is held.
class PREFOPT_API TokenLoss {
 public:
  template <class L>
  requires requires {
    { L::info() } -> std::same_as<PieceInfo>;
  }
  TokenLoss(L loss)  // NOLINT: a loss is a TokenLoss
      : self_(std::make_shared<Model<L>>(std::move(loss))) {}

  /// Returns the loss of some completions and its derivatives. Throws ShapeError for arrays that
  /// are missing or of other lengths, and for totals below the completions and tokens given.
  template <class T>
  BasicTokenLossOutput<T> formula(const BasicTokenRows<T>& in) const;
  /// The same, with `loss` tied to the tensors that require a gradient.
  TokenLossOutput forward(const TokenRows& in) const;

  TokenLossNeeds needs() const { return self_->needs(); }
  PieceInfo info() const { return self_->info(); }
  std::string name() const { return info().kind; }
  /// Returns `{"type": …, every option}`, from which make_token_loss builds an equal loss.
  std::string config() const;

 private:
  template <class L>
  class Model final : public detail::TokenLossConcept {
   public:
    explicit Model(L loss) : loss_(std::move(loss)) {}
    BasicTokenLossOutput<at::Tensor> apply(const BasicTokenRows<at::Tensor>& in) const override {
      return loss_.formula(in);
    }
    BasicTokenLossOutput<Eigen::ArrayXd> apply(
        const BasicTokenRows<Eigen::ArrayXd>& in) const override {
      return loss_.formula(in);
    }
    TokenLossNeeds needs() const override { return loss_.needs(); }
    PieceInfo info() const override { return L::info(); }
    std::string options_json() const override { return options_to_json(loss_.options()); }

   private:
    L loss_;
  };

  std::shared_ptr<const detail::TokenLossConcept> self_;
};

/// Base of the named losses on tokens: their options.
template <class Derived, class OptionsType>
class TokenLossBase {
 public:
  using Options = OptionsType;

  /// Throws ConfigError if an option is out of its range.
  explicit TokenLossBase(Options options = {})
      : options_(checked(std::move(options), Derived::info().kind)) {}
  const Options& options() const { return options_; }

 protected:
  Options options_;
};

struct TokenLossEntry : PieceEntry {
  std::function<TokenLoss(std::string_view json)> make = {};
};

/// Builds a loss from `{"type": NAME, options…}`. Throws ConfigError for an unknown name or key,
/// naming the nearest known one.
PREFOPT_API TokenLoss make_token_loss(std::string_view config_json);
/// Returns whether a config names a loss on tokens.
PREFOPT_API bool is_token_loss(std::string_view config_json);
/// Returns them in the order of the documentation.
PREFOPT_API const std::vector<TokenLossEntry>& token_losses();

}  // namespace prefopt
