// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// The factor s of the rejected score in SePPO.
enum class SeppoFlip {
  kSign,       ///< 1 where w >= 0, else -1
  kIndicator,  ///< 1 where w > 0, else 0
  kNone,       ///< 1
};

/// -log sigmoid(beta (w - s l)), s a function of w without gradient. With z the argument of the
/// sigmoid, slopes: -beta sigmoid(-z), s beta sigmoid(-z).
struct SeppoLink {
  double beta = 0.1;
  SeppoFlip flip = SeppoFlip::kSign;

  template <class T>
  T value(const T& w, const T& l) const {
    return -math::log_sigmoid(T(beta * (w - factor(w) * l)));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T s = factor(w);
    const T outer = beta * math::sigmoid(T(beta * (s * l - w)));
    return {-outer, s * outer};
  }

 private:
  template <class T>
  T factor(const T& w) const {
    switch (flip) {
      case SeppoFlip::kSign:
        return 1 - 2 * math::is_positive(T(-w));
      case SeppoFlip::kIndicator:
        return math::is_positive(w);
      default:
        return math::constant(w, 1);
    }
  }
};

struct SeppoOptions {
  double beta = 0.1;
  SeppoFlip flip = SeppoFlip::kSign;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.choice({"flip",
              "the reference's sample where the data's has become less likely: sign: pulled up as "
              "well; indicator: left alone; none: pushed down (SPIN)"},
             flip, {"sign", "indicator", "none"});
    score.fields(v);
    pair.fields(v);
  }
};

/// Semi-policy preference optimization (2410.05255 eq. 7, the diffusion form, in log-ratios; read
/// through reviews, not in the paper's own text):
///   -log sigmoid(beta (w - s l)), s = sign(w) without gradient
/// w and l are the log-ratios of the data's completion and of one that the reference wrote, an
/// earlier checkpoint drawn at random. w < 0: the reference explains the data better, so its own
/// completion is pulled up, too. `flip` indicator is version 2 of the paper (SSPO), s = 1 where
/// w > 0, else 0; none is SPIN, `dpo`. At w = 0 the sign counts as 1, so that the row is SPIN's
/// (ours: a sign of 0 would drop the second completion). [batch] log-probs in nats. Derivatives:
/// see SeppoLink. At w = l = 0: log 2. A row says who wrote a completion, not which is better, so
/// that label probabilities are refused.
class SeppoLoss : public PairwiseLoss<SeppoLoss, SeppoOptions> {
 public:
  /// Throws ConfigError for label probabilities, and for scores without a reference.
  explicit SeppoLoss(SeppoOptions options = {}) : PairwiseLoss(std::move(options)) {
    if (options_.pair.use_label_probs) {
      throw ConfigError(
          "seppo: expected use_label_probs false, got true; a row says which completion is the "
          "data's, not which is better");
    }
    if (options_.score.reference_free) {
      throw ConfigError(
          "seppo: expected reference_free false, got true; the sign is that of the log-ratio to "
          "the reference");
    }
  }

  SeppoLink link() const { return {.beta = options_.beta, .flip = options_.flip}; }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "seppo",
            .aliases = {"sspo"},
            .formula = "-logsigmoid(beta*(w - s*l)), s = sign of w",
            .source = "arXiv:2410.05255 eq. 7",
            .anchors = {{0, 0, 0.69314718055994531},
                        {10, 0, 0.31326168751822284},
                        {-10, 0, 1.3132616875182228},
                        {-10, 10, 0.69314718055994531}},
            .when_to_use =
                "Demonstrations without preferences, against completions of earlier checkpoints."};
  }
};

}  // namespace prefopt
