// SPDX-License-Identifier: Apache-2.0
#include "support/loss_oracle_scores.h"

#include <cmath>
#include <set>
#include <stdexcept>
#include <string>

namespace prefopt::testing_support {
namespace {

using Eigen::ArrayXd;
using nlohmann::json;

// f'(u) of each divergence at u = e^Delta, shifted to the form of 2309.16240 table 1.
Real divergence_score(const json& config, Real logratio) {
  const bool chi_po = config.at("type") == "chi_po";
  const std::string name = config.value("divergence", chi_po ? "chi_squared_mix" : "reverse_kl");
  const Real u = std::exp(logratio);
  if (name == "reverse_kl") return logratio;
  if (name == "forward_kl") return 1 - 1 / u;
  if (name == "js_divergence") return std::log(2 * u / (1 + u));
  if (name == "alpha_divergence") {
    const Real paper_alpha = 1 - static_cast<Real>(config.value("divergence_alpha", 0.5));
    if (paper_alpha == 0) return logratio;
    return (1 - std::pow(u, -paper_alpha)) / paper_alpha;
  }
  if (name == "jeffrey") return logratio + (u - 1) / u;
  if (name == "chi_squared_mix") {
    return logratio + config.value("divergence_gamma", config.value("gamma", 1.0)) * u;
  }
  throw std::invalid_argument(name);
}

bool reference_free(const json& config) {
  static const std::set<std::string> kByName{"simpo", "cpo", "orpo", "alphapo", "tpo", "reward_bt"};
  return config.value("reference_free", kByName.contains(config.at("type")));
}

// AlphaPO's reward (2501.03884 eq. 5).
Real shaped(const json& config, Real score) {
  const std::string type = config.at("type");
  const Real alpha = type == "alphapo" ? number(config, "alpha")
                     : type == "cpo"   ? number(config, "reward_alpha")
                                       : 0;
  return alpha == 0 ? score : (1 - std::exp(-alpha * score)) / alpha;
}

// LD-DPO (2409.06411): tokens beyond the shorter completion count alpha.
Real tail_weighted(const json& config, const ArrayXd& full, const ArrayXd& head, int row) {
  const Real alpha = config.value("ld_alpha", 1.0);
  return alpha == 1 ? full[row] : head[row] + alpha * (full[row] - head[row]);
}

}  // namespace

Side chosen_side(const ExactPairLogps& in) {
  return {in.chosen_logps,         in.ref_chosen_logps,
          in.chosen_overlap_logps, in.ref_chosen_overlap_logps,
          in.chosen_lens,          in.chosen_limited_logratios};
}

Side rejected_side(const ExactPairLogps& in) {
  return {in.rejected_logps,         in.ref_rejected_logps,
          in.rejected_overlap_logps, in.ref_rejected_overlap_logps,
          in.rejected_lens,          in.rejected_limited_logratios};
}

Real per_token(const json& config, const Side& side, int row, Real x) {
  static const std::set<std::string> kByName{"ipo", "sigmoid_norm", "simpo", "orpo", "alphapo"};
  const bool normalized = config.value("length_normalized", kByName.contains(config.at("type")));
  return normalized ? x / side.lens[row] : x;
}

Real policy(const json& config, const Side& side, int row) {
  return tail_weighted(config, side.logps, side.overlap_logps, row);
}

Real reference(const json& config, const Side& side, int row) {
  if (reference_free(config)) return 0;
  if (config.value("ld_policy_only", false)) return side.ref_logps[row];
  return tail_weighted(config, side.ref_logps, side.ref_head_logps, row);
}

Real logratio(const json& config, const Side& side, int row) {
  if (config.value("humanline", false)) return side.limited_logratios[row];
  return policy(config, side, row) - reference(config, side, row);
}

std::vector<Real> scores(const json& config, const Side& side) {
  std::vector<Real> all;
  for (int i = 0; i < side.logps.size(); ++i) {
    const Real score = divergence_score(config, logratio(config, side, i));
    all.push_back(shaped(config, per_token(config, side, i, score)));
  }
  return all;
}

}  // namespace prefopt::testing_support
