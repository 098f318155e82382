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
#include "prefopt/losses/pair_logps.h"
#include "prefopt/options.h"

namespace prefopt {

/// Who draws the fresh samples of a loss.
enum class SampleSource { kNone, kPolicy, kReference };

/// Limits of log(pi/pi_ref) of one token, nats (humanline, 2509.24207).
struct LogRatioLimits {
  double low = 0;
  double high = 0;

  bool operator==(const LogRatioLimits&) const = default;
};

/// The inputs of a loss, apart from the chosen log-probs (`BasicPairLogps` says what each is).
struct LossRequirements {
  bool reference = true;
  bool rejected = true;
  bool lens = false;
  bool head_logps = false;
  bool log_sum_p_squared = false;
  bool seq_kl = false;
  std::optional<LogRatioLimits> limits = {};  ///< of the limited_logratios; unset: none needed
  bool confident = false;                     ///< chosen_confident_logps
  bool prompt = false;                        ///< prompt_logps and prompt_lens
  bool gold = false;
  bool labels = false;  ///< rows are unpaired: one completion and a label
  bool kl_logps = false;
  bool margins = false;
  bool weights = false;
  bool label_probs = false;
  bool win_rates = false;
  /// The loss mixes the rows of an optimizer step with each other, so it must see all of them in
  /// one call.
  bool whole_step = false;
  bool running_mean = false;  ///< `running` of the output goes into the next step's input
  SampleSource sample_source = SampleSource::kNone;
  std::int64_t samples_per_prompt = 0;
};

/// Known value of a loss with its default options on one pair of five-token completions whose
/// reference log-probs are -10; fresh samples, a completion of another row, a third one and the
/// prompt have that log-prob as well, the label is 1, sequence KLs and margins are 0.
struct LossAnchor {
  double chosen_logratio;
  double rejected_logratio;
  double loss;
};

/// A name for a loss with some of its options set.
struct LossPreset {
  std::string name;
  std::string
      options;  ///< a JSON object; its numbers are defaults, the rest is what the name means
};

/// The same loss in another library.
struct LossElsewhere {
  std::string library;
  std::string name;
  std::string difference = {};  ///< empty: none known
};

/// Facts of a loss for the registry, the documentation and the contract tests.
struct LossInfo {
  std::string name = {};
  std::vector<std::string> aliases = {};  ///< names in TRL and elsewhere
  std::string formula = {};
  std::string source = {};  ///< arXiv id and equation
  std::vector<LossAnchor> anchors = {};
  std::string when_to_use = {};               ///< one or two sentences
  std::vector<LossElsewhere> elsewhere = {};  ///< other libraries that have it
  std::vector<LossPreset> presets = {};
};

namespace detail {
class PREFOPT_API LossConcept {
 public:
  virtual ~LossConcept() = default;
  virtual LossOutput forward(const PairLogps& logps) const = 0;
  virtual LossRequirements requirements() const = 0;
  virtual LossInfo info() const = 0;
  virtual std::string config() const = 0;
};
}  // namespace detail

/// Any loss, held by value. `L` has `forward(const PairLogps&) const`, `requirements() const`,
/// `static LossInfo info()`, and `options() const` that returns an OptionStruct.
class PREFOPT_API Loss {
 public:
  template <class L>
  requires(!std::same_as<std::remove_cvref_t<L>, Loss>) Loss(L loss)  // NOLINT: a loss is a Loss
      : self_(std::make_shared<Model<L>>(std::move(loss))) {}

  /// Throws ShapeError, DtypeError or DeviceError for tensors that do not fit.
  LossOutput forward(const PairLogps& logps) const { return self_->forward(logps); }
  LossOutput operator()(const PairLogps& logps) const { return self_->forward(logps); }
  LossRequirements requirements() const { return self_->requirements(); }
  LossInfo info() const { return self_->info(); }
  /// `{"type": …, every option}`; make_loss gives an equal loss back.
  std::string config() const { return self_->config(); }

 private:
  template <class L>
  class Model final : public detail::LossConcept {
   public:
    explicit Model(L loss) : loss_(std::move(loss)) {}
    LossOutput forward(const PairLogps& logps) const override { return loss_.forward(logps); }
    LossRequirements requirements() const override { return loss_.requirements(); }
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
