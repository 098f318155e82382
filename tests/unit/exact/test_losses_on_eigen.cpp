// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "prefopt/error.h"
#include "prefopt/exact/pair_logps.h"
#include "prefopt/losses/pair/alphapo.h"
#include "prefopt/losses/pair/aot.h"
#include "prefopt/losses/pair/apo.h"
#include "prefopt/losses/pair/bco.h"
#include "prefopt/losses/pair/bco_pair.h"
#include "prefopt/losses/pair/beta_dpo.h"
#include "prefopt/losses/pair/cal_dpo.h"
#include "prefopt/losses/pair/chi_po.h"
#include "prefopt/losses/pair/cpo.h"
#include "prefopt/losses/pair/dft.h"
#include "prefopt/losses/pair/discopop.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/pair/dpo_positive.h"
#include "prefopt/losses/pair/exo_pair.h"
#include "prefopt/losses/pair/f_dpo.h"
#include "prefopt/losses/pair/hinge.h"
#include "prefopt/losses/pair/hypo.h"
#include "prefopt/losses/pair/ipo.h"
#include "prefopt/losses/pair/kto.h"
#include "prefopt/losses/pair/kto_pair.h"
#include "prefopt/losses/pair/nca_pair.h"
#include "prefopt/losses/pair/orpo.h"
#include "prefopt/losses/pair/policy_gradient.h"
#include "prefopt/losses/pair/r_dpo.h"
#include "prefopt/losses/pair/reward_aware.h"
#include "prefopt/losses/pair/robust_dpo.h"
#include "prefopt/losses/pair/rpo.h"
#include "prefopt/losses/pair/seppo.h"
#include "prefopt/losses/pair/sft.h"
#include "prefopt/losses/pair/sigmoid_norm.h"
#include "prefopt/losses/pair/simpo.h"
#include "prefopt/losses/pair/sppo.h"
#include "prefopt/losses/pair/tdpo.h"
#include "prefopt/losses/pair/tpo.h"
#include "prefopt/losses/pair/vpo.h"
#include "prefopt/losses/pair/xpo.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using namespace testing_support;

template <class L>
void check_eigen_path(const L& loss) {
  const auto k = static_cast<int>(loss.requirements().samples_per_prompt);
  const ExactPairLogps in = random_pairs(6, k, 3, 2);
  const ExactLossOutput exact = loss.evaluate(in);
  const LossOutput tensors = loss.forward(to_tensors(in));
  CHECK(exact.loss == Approx(tensors.loss.template item<double>()).epsilon(1e-13));
  CHECK(exact.running.count == tensors.running.count);
  if (exact.running.count > 0) {
    CHECK(exact.running.mean == Approx(tensors.running.mean.template item<double>()));
  }
  const auto same = [](const Eigen::ArrayXd& a, const at::Tensor& b) {
    if (!b.defined()) return a.size() == 0;
    const Eigen::ArrayXd other = to_array(b);
    return a.size() == other.size() && ((a - other).abs() <= 1e-13 * (1 + other.abs())).all();
  };
  CHECK(same(exact.losses, tensors.losses));
  for (std::size_t i = 0; i < kPairFields<at::Tensor>.size(); ++i) {
    if (const auto gradient = kPairFields<at::Tensor>[i].gradient; gradient != nullptr) {
      CAPTURE(kPairFields<at::Tensor>[i].name);
      CHECK(same(exact.*kPairFields<Eigen::ArrayXd>[i].gradient, tensors.*gradient));
    }
  }
  CHECK(same(exact.chosen_rewards, tensors.chosen_rewards));
  CHECK(same(exact.margins, tensors.margins));
}

TEST_CASE("the same template runs on Eigen arrays", "[exact]") {
  check_eigen_path(DpoLoss({.label_smoothing = 0.1}));
  check_eigen_path(RobustDpoLoss({.label_smoothing = 0.3}));
  for (Divergence divergence :
       {Divergence::kReverseKl, Divergence::kForwardKl, Divergence::kJensenShannon,
        Divergence::kAlpha, Divergence::kJeffrey, Divergence::kChiSquaredMix}) {
    check_eigen_path(FDpoLoss({.score = {.divergence = divergence}}));
  }
  check_eigen_path(IpoLoss());
  check_eigen_path(IpoLoss({.score = {.length_normalized = false}}));
  for (Reduction reduction : {Reduction::kTokenMean, Reduction::kSequenceMean, Reduction::kSum}) {
    check_eigen_path(RpoLoss({.reduction = reduction}));
    check_eigen_path(SftLoss({.reduction = reduction}));
  }
  for (Calibration calibration : {Calibration::kChosen, Calibration::kRejected,
                                  Calibration::kSamples, Calibration::kReferenceSide}) {
    check_eigen_path(VpoLoss(
        {.calibration = calibration, .num_samples = calibration == Calibration::kSamples ? 2 : 1}));
  }
  check_eigen_path(HypoLoss({.num_samples = 1}));
  check_eigen_path(HypoLoss({.num_samples = 3, .clip = 1, .token_mean = true}));
  check_eigen_path(DpoLoss({.score = {.length_normalized = true, .ld_alpha = 0.3},
                            .pair = {.margin_scale = 0.5,
                                     .use_label_probs = true,
                                     .use_weights = true,
                                     .weighting = Weighting::kSampledAlignment,
                                     .clamp_weighting = true}}));
}

TEST_CASE("so do all other losses", "[exact]") {
  check_eigen_path(AlphapoLoss());
  check_eigen_path(AotLoss({.label_smoothing = 0.2}));
  check_eigen_path(AotUnpairedLoss());
  check_eigen_path(ApoZeroLoss());
  check_eigen_path(ApoDownLoss());
  check_eigen_path(BcoLoss({.use_weights = true}));
  check_eigen_path(BcoPairLoss());
  check_eigen_path(BcoPairLoss({.running_delta = true}));
  check_eigen_path(BetaDpoLoss());
  check_eigen_path(CalDpoLoss());
  check_eigen_path(ChiPoLoss());
  for (DeltaLinkKind link : {DeltaLinkKind::kSigmoid, DeltaLinkKind::kHinge, DeltaLinkKind::kIpo}) {
    check_eigen_path(CpoLoss({.link = link}));
  }
  check_eigen_path(DiscopopLoss());
  check_eigen_path(DpoPositiveLoss());
  check_eigen_path(ExoPairLoss());
  check_eigen_path(HingeLoss());
  check_eigen_path(KtoLoss({.undesirable_weight = 2, .use_weights = true}));
  check_eigen_path(DftLoss({.reduction = Reduction::kSequenceMean}));
  check_eigen_path(OrpoLoss({.nll_over_prompt = true}));
  check_eigen_path(KtoPairLoss());
  check_eigen_path(NcaPairLoss());
  check_eigen_path(OrpoLoss());
  check_eigen_path(RDpoLoss({.pair = {.use_label_probs = true}}));
  check_eigen_path(RpoSquaredLoss());
  check_eigen_path(RpoForwardKlLoss());
  check_eigen_path(RpoBackwardKlLoss());
  check_eigen_path(SigmoidNormLoss());
  check_eigen_path(SimpoLoss());
  check_eigen_path(SppoLoss());
  check_eigen_path(SppoLoss({.soft = true}));
  check_eigen_path(TdpoLoss({.variant = TdpoVariant::kTdpo1}));
  check_eigen_path(TdpoLoss({.use_weights = true}));
  check_eigen_path(TpoLoss());
  check_eigen_path(TdpoLoss({.use_label_probs = true}));
  check_eigen_path(XpoLoss({.alpha = 0.3}));
  for (SeppoFlip flip : {SeppoFlip::kSign, SeppoFlip::kIndicator, SeppoFlip::kNone}) {
    check_eigen_path(SeppoLoss({.flip = flip}));
  }
  for (KlBaseline baseline : {KlBaseline::kNone, KlBaseline::kGroup}) {
    check_eigen_path(PolicyGradientLoss({.tau = 0.3, .kl_baseline = baseline}));
  }
  check_eigen_path(DpoLoss({.pair = {.data_gradient = 0.5}}));
}

TEST_CASE("arrays of unequal length are refused", "[exact]") {
  ExactPairLogps in = random_pairs(4, 2, 3);
  in.rejected_logps.conservativeResize(3);
  CHECK_THROWS_TEXT(DpoLoss().evaluate(in), ShapeError,
                    "dpo: expected rejected_logps of length 4, got 3");
  in = random_pairs(4, 2, 3);
  in.chosen_lens.resize(0);
  CHECK_THROWS_TEXT(IpoLoss().evaluate(in), ShapeError,
                    "ipo: expected chosen_lens of length 4, got 0");
  in.sample_logps.resize(3);
  CHECK_THROWS_TEXT(HypoLoss().evaluate(in), ShapeError,
                    "hypo: expected sample_logps of length 8, got 3");
  CHECK_THROWS_TEXT(SftLoss().evaluate(ExactPairLogps{}), ShapeError,
                    "sft: expected chosen_logps of length 1, got 0");
}

// Softmax over four responses: every response weighted by its probability gives the exact
// expectation of the score-function gradient, which must be the gradient of the KL.
TEST_CASE("HyPO's sample gradient is the KL's gradient in expectation", "[exact]") {
  Eigen::Array4d logits(0.3, -1.2, 0.8, 0.1), ref_logits(-0.5, 0.2, 0.4, -0.9);
  const auto log_softmax = [](const Eigen::Array4d& z) -> Eigen::Array4d {
    return z - std::log(z.exp().sum());
  };
  const Eigen::Array4d ref = log_softmax(ref_logits);
  const auto kl = [&](const Eigen::Array4d& z) {
    const Eigen::Array4d p = log_softmax(z);
    return (p.exp() * (p - ref)).sum();
  };
  const Eigen::Array4d logp = log_softmax(logits);
  const HypoLoss loss({.lambda = 1, .num_samples = 2});

  // Expectation over both samples, drawn independently.
  Eigen::Array4d gradient = Eigen::Array4d::Zero();
  for (int a = 0; a < 4; ++a) {
    for (int b = 0; b < 4; ++b) {
      ExactPairLogps in;
      in.chosen_logps = in.rejected_logps = in.ref_chosen_logps = in.ref_rejected_logps =
          Eigen::ArrayXd::Zero(1);
      in.samples_per_prompt = 2;
      in.sample_logps = Eigen::Array2d(logp[a], logp[b]);
      in.ref_sample_logps = Eigen::Array2d(ref[a], ref[b]);
      const ExactLossOutput out = loss.evaluate(in);
      const double weight = std::exp(logp[a] + logp[b]);
      for (int j = 0; j < 4; ++j) {  // d log softmax_a / d z_j = [a = j] - p_j
        gradient[j] += weight * (out.grad_samples[0] * ((a == j) - std::exp(logp[j])) +
                                 out.grad_samples[1] * ((b == j) - std::exp(logp[j])));
      }
    }
  }
  for (int j = 0; j < 4; ++j) {
    Eigen::Array4d up = logits, down = logits;
    up[j] += 1e-6;
    down[j] -= 1e-6;
    CHECK(gradient[j] == Approx((kl(up) - kl(down)) / 2e-6).epsilon(1e-7).margin(1e-9));
  }
}

}  // namespace
}  // namespace prefopt
