// SPDX-License-Identifier: Apache-2.0
#include "support/loss_oracle.h"

#include <cmath>
#include <string>

#include "support/loss_oracle_preference.h"
#include "support/loss_oracle_scores.h"

namespace prefopt::testing_support {
namespace {

using Eigen::ArrayXd;
using nlohmann::json;

Real sum(const ArrayXd& x) {
  Real total = 0;
  for (const double v : x) total += v;
  return total;
}

Real mean(const ArrayXd& x) { return sum(x) / x.size(); }

Real mean_ratio(const ArrayXd& x, const ArrayXd& n) {
  Real total = 0;
  for (int i = 0; i < x.size(); ++i) total += static_cast<Real>(x[i]) / n[i];
  return total / x.size();
}

Real nll(const std::string& reduction, const ArrayXd& logps, const ArrayXd& lens) {
  if (reduction == "token_mean") return -sum(logps) / sum(lens);
  if (reduction == "sequence_mean") return -mean_ratio(logps, lens);
  return -mean(logps);
}

Real mean_logratio(const std::string& completions, const ExactPairLogps& in) {
  if (completions == "chosen") return mean(in.chosen_logps) - mean(in.ref_chosen_logps);
  if (completions == "rejected") return mean(in.rejected_logps) - mean(in.ref_rejected_logps);
  return mean(in.sample_logps) - mean(in.ref_sample_logps);
}

// XPO: log pi of the completion that the reference drew.
Real mean_logp_of_reference_side(const ExactPairLogps& in) {
  Real total = 0;
  for (int i = 0; i < in.from_reference.size(); ++i) {
    if (in.from_reference[i] == 1) total += in.chosen_logps[i];
    if (in.from_reference[i] == 2) total += in.rejected_logps[i];
  }
  return total / in.from_reference.size();
}

// The same of log pi - log pi_ref.
Real mean_logratio_of_reference_side(const ExactPairLogps& in) {
  Real total = mean_logp_of_reference_side(in);
  for (int i = 0; i < in.from_reference.size(); ++i) {
    if (in.from_reference[i] == 1) total -= in.ref_chosen_logps[i] / in.from_reference.size();
    if (in.from_reference[i] == 2) total -= in.ref_rejected_logps[i] / in.from_reference.size();
  }
  return total;
}

// HyPO's KL on fresh samples: the value is the mean log-ratio, the gradient its score function with
// the mean of the prompt's other samples as the baseline.
OracleResult sampled_kl(const json& config, const ExactPairLogps& in) {
  const double lambda = config.at("lambda");
  if (lambda == 0) return {0, {}};
  const double clip = config.at("clip");
  const auto k = static_cast<int>(in.samples_per_prompt);
  const ArrayXd logratio = in.sample_logps - in.ref_sample_logps;
  const ArrayXd kl = config.at("token_mean") ? ArrayXd(logratio / in.sample_lens) : logratio;
  const auto limited = [&](double x) {
    return clip > 0 ? std::fmax(-clip, std::fmin(clip, x)) : x;
  };
  ArrayXd gradient(kl.size());
  for (int i = 0; i < kl.size(); ++i) {
    double others = 0;
    const int prompt = i / k;
    for (int j = prompt * k; j < (prompt + 1) * k; ++j) {
      if (j != i) others += limited(kl[j]);
    }
    const double baseline = k > 1 ? others / (k - 1) : 0;
    gradient[i] = lambda * (limited(kl[i]) - baseline) / static_cast<double>(kl.size());
  }
  return {lambda * mean(kl), gradient};
}

// The terms that a loss adds to its preference.
OracleResult regularizer(const json& config, const ExactPairLogps& in) {
  const std::string type = config.at("type");
  if (type == "rpo") {
    const bool chosen = config.at("baseline") == "chosen";
    return {number(config, "eta") * nll(config.at("reduction"),
                                        chosen ? in.chosen_logps : in.rejected_logps,
                                        chosen ? in.chosen_lens : in.rejected_lens),
            {}};
  }
  if (type == "vpo") {
    const Real sign = config.at("mode") == "online" ? 1 : -1;
    const std::string calibration = config.at("calibration");
    const Real logratio = calibration == "reference_side" ? mean_logratio_of_reference_side(in)
                                                          : mean_logratio(calibration, in);
    return {sign * number(config, "alpha") * number(config, "beta") * logratio, {}};
  }
  if (type == "xpo") return {number(config, "alpha") * mean_logp_of_reference_side(in), {}};
  if (type == "hypo") return sampled_kl(config, in);
  if (type == "cpo") {
    return {number(config, "alpha") *
                nll(config.value("reduction", "token_mean"), in.chosen_logps, in.chosen_lens),
            {}};
  }
  if (type == "orpo" && config.at("nll_over_prompt")) {
    // Prompt and completion are one text.
    return {nll(config.at("reduction"), in.chosen_logps + in.prompt_logps,
                in.chosen_lens + in.prompt_lens),
            {}};
  }
  if (type == "orpo") {
    return {nll(config.value("reduction", "token_mean"), in.chosen_logps, in.chosen_lens), {}};
  }
  if (type == "tpo") {
    return {number(config, "alpha") *
                nll(config.value("reduction", "token_mean"), in.gold_logps, in.gold_lens),
            {}};
  }
  if (type == "reward_bt") {
    const ArrayXd squares = (in.chosen_logps + in.rejected_logps).square();
    return {number(config, "center_rewards_coefficient") * mean(squares), {}};
  }
  return {0, {}};
}

std::optional<OracleResult> mix(const json& config, const ExactPairLogps& in,
                                const ExactPairLogps* frozen) {
  OracleResult total{0, {}};
  for (const json& term : config.at("terms")) {
    const double weight = term.at("weight");
    const auto part = loss_oracle(term.at("loss"), in, frozen);
    if (!part) return std::nullopt;
    total.loss += weight * part->loss;
    if (part->sample_gradient) {
      const ArrayXd gradient = weight * *part->sample_gradient;
      total.sample_gradient =
          total.sample_gradient ? ArrayXd(*total.sample_gradient + gradient) : gradient;
    }
  }
  return total;
}

}  // namespace

std::optional<OracleResult> loss_oracle(const json& config, const ExactPairLogps& in,
                                        const ExactPairLogps* frozen) {
  const std::string type = config.at("type");
  if (type == "mix") return mix(config, in, frozen);
  if (type == "sft" || type == "dft") {
    ArrayXd logps = type == "sft" ? in.chosen_logps : in.chosen_confident_logps;
    if (config.value("use_weights", false)) logps *= in.weights;
    if (config.value("use_labels", false)) logps *= in.labels;
    return OracleResult{nll(config.at("reduction"), logps, in.chosen_lens), {}};
  }
  const auto preference = mean_preference(config, in, frozen != nullptr ? *frozen : in);
  if (!preference) return std::nullopt;
  OracleResult result = regularizer(config, in);
  result.loss += *preference;
  return result;
}

}  // namespace prefopt::testing_support
