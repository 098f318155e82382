// SPDX-License-Identifier: Apache-2.0
#include "support/loss_oracle.h"

#include <cmath>

namespace prefopt::testing_support {
namespace {

using Eigen::ArrayXd;
using nlohmann::json;

ArrayXd minus_log_sigmoid(const ArrayXd& x) { return (1 + (-x).exp()).log(); }

// f'(u) of each divergence at u = e^Delta, shifted to the form of 2309.16240 table 1.
ArrayXd score(const json& config, const ArrayXd& logratio) {
  const std::string name = config.value("divergence", "reverse_kl");
  const ArrayXd u = logratio.exp();
  if (name == "reverse_kl") return u.log();
  if (name == "forward_kl") return 1 - 1 / u;
  if (name == "js_divergence") return (2 * u / (1 + u)).log();
  if (name == "alpha_divergence") {
    const double paper_alpha = 1 - config.value("divergence_alpha", 0.5);
    if (paper_alpha == 0) return u.log();
    return (1 - u.pow(-paper_alpha)) / paper_alpha;
  }
  if (name == "jeffrey") return u.log() + (u - 1) / u;
  if (name == "chi_squared_mix") return u.log() + config.value("divergence_gamma", 1.0) * u;
  throw std::invalid_argument(name);
}

double nll(const std::string& reduction, const ArrayXd& logps, const ArrayXd& lens) {
  if (reduction == "token_mean") return -logps.sum() / lens.sum();
  if (reduction == "sequence_mean") return -(logps / lens).mean();
  return -logps.mean();
}

}  // namespace

std::optional<OracleResult> loss_oracle(const json& config, const ExactPairLogps& in) {
  const std::string type = config.at("type");
  if (type == "sft")
    return OracleResult{nll(config.at("reduction"), in.chosen_logps, in.chosen_lens), {}};

  const double beta = config.at("beta");
  const double eps = config.value("label_smoothing", 0.0);
  const ArrayXd logratio_w = in.chosen_logps - in.ref_chosen_logps;
  const ArrayXd logratio_l = in.rejected_logps - in.ref_rejected_logps;
  const ArrayXd score_w = score(config, logratio_w);
  const ArrayXd score_l = score(config, logratio_l);
  const ArrayXd z = beta * (score_w - score_l);
  const double dpo = ((1 - eps) * minus_log_sigmoid(z) + eps * minus_log_sigmoid(-z)).mean();

  if (type == "dpo" || type == "f_dpo") return OracleResult{dpo, {}};
  if (type == "robust_dpo") {
    const ArrayXd clean = minus_log_sigmoid(z), flipped = minus_log_sigmoid(-z);
    return OracleResult{(((1 - eps) * clean - eps * flipped) / (1 - 2 * eps)).mean(), {}};
  }
  if (type == "ipo") {
    const bool normalized = config.at("length_normalized");
    const ArrayXd h = normalized ? ArrayXd(score_w / in.chosen_lens - score_l / in.rejected_lens)
                                 : ArrayXd(score_w - score_l);
    return OracleResult{(h - 0.5 / beta).pow(2).mean(), {}};
  }
  if (type == "rpo") {
    const bool chosen = config.at("baseline") == "chosen";
    const double baseline =
        nll(config.at("reduction"), chosen ? in.chosen_logps : in.rejected_logps,
            chosen ? in.chosen_lens : in.rejected_lens);
    return OracleResult{dpo + config.at("eta").get<double>() * baseline, {}};
  }
  const ArrayXd sample_logratio = in.sample_logps - in.ref_sample_logps;
  if (type == "vpo") {
    const double sign = config.at("mode") == "online" ? 1 : -1;
    const std::string calibration = config.at("calibration");
    const double mean = calibration == "chosen"     ? logratio_w.mean()
                        : calibration == "rejected" ? logratio_l.mean()
                                                    : sample_logratio.mean();
    return OracleResult{dpo + sign * config.at("alpha").get<double>() * beta * mean, {}};
  }
  if (type == "hypo") {
    const double lambda = config.at("lambda");
    const double clip = config.at("clip");
    const auto k = static_cast<int>(in.samples_per_prompt);
    const ArrayXd kl =
        config.at("token_mean") ? ArrayXd(sample_logratio / in.sample_lens) : sample_logratio;
    ArrayXd gradient(kl.size());
    const auto limited = [&](double x) {
      return clip > 0 ? std::fmax(-clip, std::fmin(clip, x)) : x;
    };
    for (int i = 0; i < kl.size(); ++i) {
      double others = 0;
      const int prompt = i / k;
      for (int j = prompt * k; j < (prompt + 1) * k; ++j) {
        if (j != i) others += limited(kl[j]);
      }
      const double baseline = k > 1 ? others / (k - 1) : 0;
      gradient[i] = lambda * (limited(kl[i]) - baseline) / static_cast<double>(kl.size());
    }
    return OracleResult{dpo + lambda * kl.mean(), gradient};
  }
  return std::nullopt;
}

}  // namespace prefopt::testing_support
