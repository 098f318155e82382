// SPDX-License-Identifier: Apache-2.0
#include "support/loss_oracle_preference.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "support/loss_oracle_scores.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

// log(1 + e^x) = -log sigmoid(-x)
Real softplus(Real x) { return x > 5000 ? x : std::log1p(std::exp(x)); }
Real log_sigmoid(Real x) { return -softplus(-x); }
Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

// Logistic loss whose label is wrong with probability eps.
Real smoothed(Real z, Real eps) { return -(1 - eps) * log_sigmoid(z) - eps * log_sigmoid(-z); }

Real square(Real x) { return x * x; }

// KL between the coins with log-odds a and b.
Real coin_kl(Real a, Real b) {
  return sigmoid(a) * (log_sigmoid(a) - log_sigmoid(b)) +
         sigmoid(-a) * (log_sigmoid(-a) - log_sigmoid(-b));
}

Real mean(const std::vector<Real>& x) {
  Real total = 0;
  for (const Real v : x) total += v;
  return total / static_cast<Real>(x.size());
}

// A step of pairs; what is named frozen has no gradient.
struct Pairs {
  const json& config;
  const ExactPairLogps& in;
  const ExactPairLogps& frozen;
  std::vector<Real> w = scores(config, chosen_side(in));
  std::vector<Real> l = scores(config, rejected_side(in));
  std::vector<Real> frozen_w = scores(config, chosen_side(frozen));
  std::vector<Real> frozen_l = scores(config, rejected_side(frozen));

  Real option(const char* name) const { return number(config, name); }
  // Rewards have none.
  Real beta() const { return config.contains("beta") ? option("beta") : 1; }
  Real label_smoothing() const { return config.value("label_smoothing", 0.0); }
};

Real mean_before(const ExactPairLogps& step) {
  return step.running.count > 0 ? step.running.mean : 0;
}

// Mean of the rewards before the step and in it.
Real running_mean(const ExactPairLogps& step, const std::vector<Real>& rewards) {
  const Real before = step.running.count;
  const Real now = static_cast<Real>(rewards.size());
  return (mean_before(step) * before + mean(rewards) * now) / (before + now);
}

// beta-DPO (2407.08639 and its code): beta grows with the step's mean margin above a moving mean,
// which starts at 0 and which the step enters before it is used.
Real step_beta(const Pairs& pairs) {
  const Real margin = mean(pairs.frozen_w) - mean(pairs.frozen_l);
  const Real momentum = pairs.option("momentum");
  const Real usual = momentum * mean_before(pairs.frozen) + (1 - momentum) * margin;
  return std::max<Real>(1e-3L, pairs.beta() * (1 + pairs.option("alpha") * (margin - usual)));
}

Real reward_shift(const Pairs& pairs) {
  if (!pairs.config.at("running_delta")) return 0;
  std::vector<Real> rewards;
  for (const auto* side : {&pairs.frozen_w, &pairs.frozen_l}) {
    for (const Real score : *side) rewards.push_back(pairs.beta() * score);
  }
  return running_mean(pairs.frozen, rewards);
}

// Losses of delta = w - l, moved by given margins, lengths or KL terms before.
using OfDelta = Real (*)(const Pairs&, Real delta, int row);

Real dpo(const Pairs& pairs, Real delta, int /*row*/) {
  return smoothed(pairs.beta() * delta, pairs.label_smoothing());
}

Real robust(const Pairs& pairs, Real delta, int /*row*/) {
  const Real z = pairs.beta() * delta;
  const Real eps = pairs.label_smoothing();
  return (-(1 - eps) * log_sigmoid(z) + eps * log_sigmoid(-z)) / (1 - 2 * eps);
}

Real ipo(const Pairs& pairs, Real delta, int /*row*/) {
  return square(delta - 1 / (2 * pairs.beta()));
}

Real hinge(const Pairs& pairs, Real delta, int /*row*/) {
  return std::max<Real>(0, 1 - pairs.beta() * delta);
}

// KL from the policy's coin to the label's (2402.00856 eq. 16).
Real exo(const Pairs& pairs, Real delta, int /*row*/) {
  const Real z = pairs.beta() * delta;
  const Real eps = pairs.label_smoothing();
  if (pairs.config.value("trl_constants", false)) {
    const auto single = static_cast<float>(eps);
    return sigmoid(z) * (log_sigmoid(z) - std::log1p(-single)) +
           sigmoid(-z) * (log_sigmoid(-z) - std::log(single));
  }
  return sigmoid(z) * (log_sigmoid(z) - std::log(1 - eps)) +
         sigmoid(-z) * (log_sigmoid(-z) - std::log(eps));
}

Real discopop(const Pairs& pairs, Real delta, int /*row*/) {
  const Real z = pairs.beta() * delta;
  const Real gate = sigmoid(z / pairs.option("tau"));
  return (1 - gate) * softplus(-z) + gate * std::exp(-z);
}

// Of rewards in place of log-probs (2307.09288 eq. 2).
Real reward_bt(const Pairs& /*pairs*/, Real delta, int /*row*/) { return -log_sigmoid(delta); }

Real with_target_margin(const Pairs& pairs, Real delta, int /*row*/) {
  return smoothed(pairs.beta() * delta - pairs.option("gamma"), pairs.label_smoothing());
}

Real of_link(const Pairs& pairs, Real delta, int row) {
  const std::string link = pairs.config.at("link");
  if (link == "hinge") return hinge(pairs, delta, row);
  if (link == "ipo") return ipo(pairs, delta, row);
  return dpo(pairs, delta, row);
}

Real cpo(const Pairs& pairs, Real delta, int row) {
  const std::string link = pairs.config.at("link");
  if (link == "hinge") return hinge(pairs, delta, row);
  if (link == "ipo") return ipo(pairs, delta, row);
  return with_target_margin(pairs, delta, row);
}

Real given_gap(const Pairs& pairs, int row) { return pairs.option("eta") * pairs.in.margins[row]; }

Real rpo_sq(const Pairs& pairs, Real delta, int row) {
  return square(pairs.beta() * delta - given_gap(pairs, row));
}

Real rpo_fwd_kl(const Pairs& pairs, Real delta, int row) {
  return coin_kl(pairs.beta() * delta, given_gap(pairs, row));
}

Real rpo_bwd_kl(const Pairs& pairs, Real delta, int row) {
  return coin_kl(given_gap(pairs, row), pairs.beta() * delta);
}

Real chi_po(const Pairs& pairs, Real delta, int /*row*/) {
  const Real limit = 2 * pairs.option("clip");
  const Real z = pairs.beta() * delta;
  return softplus(limit > 0 ? -std::clamp(z, -limit, limit) : -z);
}

Real beta_dpo(const Pairs& pairs, Real delta, int /*row*/) {
  return softplus(-step_beta(pairs) * delta);
}

// Losses of both scores.
using OfScores = Real (*)(const Pairs&, Real w, Real l, int row);

Real nca_pair(const Pairs& pairs, Real w, Real l, int /*row*/) {
  const Real beta = pairs.beta();
  return -log_sigmoid(beta * w) - log_sigmoid(-beta * w) / 2 - log_sigmoid(-beta * l) / 2;
}

Real bco_pair(const Pairs& pairs, Real w, Real l, int /*row*/) {
  const Real shift = reward_shift(pairs);
  return -log_sigmoid(pairs.beta() * w - shift) - log_sigmoid(shift - pairs.beta() * l);
}

// Each log-ratio to the win rate over the policy, centred (2405.00675 eq. 4.7).
Real sppo(const Pairs& pairs, Real w, Real l, int row) {
  const bool soft = pairs.config.at("soft");
  const Real win_w = soft ? pairs.in.chosen_win_rates[row] : 1;
  const Real win_l = soft ? pairs.in.rejected_win_rates[row] : 0;
  return square(w - (win_w - 0.5L) / pairs.beta()) + square(l - (win_l - 0.5L) / pairs.beta());
}

Real apo_zero(const Pairs& pairs, Real w, Real l, int /*row*/) {
  return 1 - sigmoid(pairs.beta() * w) + sigmoid(pairs.beta() * l);
}

Real apo_down(const Pairs& pairs, Real w, Real l, int /*row*/) {
  return sigmoid(pairs.beta() * w) + 1 - sigmoid(pairs.beta() * (w - l));
}

// The odds are those of the geometric mean of the token probabilities.
Real orpo(const Pairs& pairs, Real w, Real l, int /*row*/) {
  const auto log_odds = [](Real logp) { return logp - std::log1p(-std::exp(logp)); };
  return -pairs.option("lambda") * log_sigmoid(log_odds(w) - log_odds(l));
}

Real kto_pair(const Pairs& pairs, Real w, Real l, int /*row*/) {
  const Real z_w = std::max<Real>(0, mean(pairs.frozen_w));
  const Real z_l = std::max<Real>(0, mean(pairs.frozen_l));
  const Real beta = pairs.beta();
  return 1 - sigmoid(beta * (w - z_l)) + 1 - sigmoid(beta * (z_w - l));
}

Real dpo_positive(const Pairs& pairs, Real w, Real l, int /*row*/) {
  const Real penalty = pairs.option("lambda") * std::max<Real>(0, -w);
  return -log_sigmoid(pairs.beta() * (w - l - penalty));
}

Real cal_dpo(const Pairs& pairs, Real w, Real l, int /*row*/) {
  const Real target = 1 / (2 * pairs.beta());
  return -log_sigmoid(w - l) + square(w - target) + square(l + target);
}

// SePPO (2410.05255): where the data's completion has become less likely, the other is pulled up.
Real seppo(const Pairs& pairs, Real w, Real l, int row) {
  const std::string flip = pairs.config.at("flip");
  const Real anchor = pairs.frozen_w[row];
  Real side = 1;
  if (flip == "sign" && anchor < 0) side = -1;
  if (flip == "indicator" && anchor <= 0) side = 0;
  return -log_sigmoid(pairs.beta() * (w - side * l));
}

OfDelta find_of_delta(const std::string& type) {
  static const std::map<std::string, OfDelta> kAll{
      {"dpo", dpo},
      {"f_dpo", dpo},
      {"sigmoid_norm", dpo},
      {"rpo", dpo},
      {"vpo", dpo},
      {"hypo", dpo},
      {"xpo", of_link},
      {"r_dpo", dpo},
      {"tdpo", dpo},
      {"robust_dpo", robust},
      {"ipo", ipo},
      {"hinge", hinge},
      {"reward_bt", reward_bt},
      {"exo_pair", exo},
      {"discopop", discopop},
      {"simpo", with_target_margin},
      {"alphapo", with_target_margin},
      {"tpo", cpo},
      {"cpo", cpo},
      {"rpo_sq", rpo_sq},
      {"rpo_fwd_kl", rpo_fwd_kl},
      {"rpo_bwd_kl", rpo_bwd_kl},
      {"chi_po", chi_po},
      {"beta_dpo", beta_dpo},
  };
  const auto found = kAll.find(type);
  return found == kAll.end() ? nullptr : found->second;
}

OfScores find_of_scores(const std::string& type) {
  static const std::map<std::string, OfScores> kAll{
      {"nca_pair", nca_pair}, {"bco_pair", bco_pair}, {"sppo", sppo},
      {"apo_zero", apo_zero}, {"apo_down", apo_down}, {"orpo", orpo},
      {"kto_pair", kto_pair}, {"cal_dpo", cal_dpo},   {"dpo_positive", dpo_positive},
      {"seppo", seppo},
  };
  const auto found = kAll.find(type);
  return found == kAll.end() ? nullptr : found->second;
}

// The addend of delta, in units of the score.
Real offset(const Pairs& pairs, int row) {
  const json& config = pairs.config;
  const ExactPairLogps& in = pairs.in;
  const std::string type = config.at("type");
  Real total = 0;
  if (const Real scale = config.value("margin_scale", 0.0); scale != 0) {
    const Real gap = in.margins[row];
    const bool of_log = config.value("margin_of", "gap") == "log_gap";
    total -= scale * (of_log ? std::log(std::max<Real>(gap, 1e-12L)) : gap) / pairs.beta();
  }
  // A longer completion earned its reward by its length (2403.19159).
  if (type == "r_dpo") {
    total += pairs.option("alpha") * (in.chosen_lens[row] - in.rejected_lens[row]) / pairs.beta();
  }
  // Sequential KL of both sides (2404.11999); TDPO2 trains the rejected one's only.
  if (type == "tdpo") {
    const bool first = config.at("variant") == "tdpo1";
    const Real kl_w = first ? in.chosen_seq_kl[row] : pairs.frozen.chosen_seq_kl[row];
    total -= (first ? 1 : pairs.option("alpha")) * (in.rejected_seq_kl[row] - kl_w);
  }
  return total;
}

// WPO (2406.11827 eq. 2): geometric means of the token probabilities of both sides, each token over
// the chance of sampling any token twice where `sampled_alignment`.
Real policy_weight(const json& config, const ExactPairLogps& frozen, int row) {
  const std::string kind = config.value("weighting", "none");
  if (kind == "none") return 1;
  Real w = frozen.chosen_logps[row];
  Real l = frozen.rejected_logps[row];
  if (kind == "sampled_alignment") {
    w -= frozen.chosen_log_sum_p_squared[row];
    l -= frozen.rejected_log_sum_p_squared[row];
  }
  const Real weight =
      std::exp(w / frozen.chosen_lens[row]) * std::exp(l / frozen.rejected_lens[row]);
  return config.value("clamp_weighting", false) ? std::min<Real>(weight, 1) : weight;
}

Real column_weight(const json& config, const ExactPairLogps& in, int row) {
  return config.value("use_weights", false) ? in.weights[row] : 1;
}

Real pair_preference(const Pairs& pairs, OfDelta of_delta, OfScores of_scores, int row) {
  const Real w = pairs.w[row];
  const Real l = pairs.l[row];
  const Real delta = w - l + offset(pairs, row);
  const bool known = !pairs.config.value("use_label_probs", false);
  const Real p = known ? 1 : pairs.in.label_probs[row];
  const Real right = of_delta ? of_delta(pairs, delta, row) : of_scores(pairs, w, l, row);
  if (known) return right;
  // The swapped pair has the opposite reward gap, and the KLs and lengths of the other side.
  ExactPairLogps swapped_in = pairs.in, swapped_frozen = pairs.frozen;
  swapped_in.margins = -pairs.in.margins;
  std::swap(swapped_in.chosen_lens, swapped_in.rejected_lens);
  for (ExactPairLogps* in : {&swapped_in, &swapped_frozen}) {
    std::swap(in->chosen_seq_kl, in->rejected_seq_kl);
  }
  const Pairs swapped{pairs.config, swapped_in, swapped_frozen};
  const Real wrong = of_delta ? of_delta(swapped, l - w + offset(swapped, row), row)
                              : of_scores(swapped, l, w, row);
  return p * right + (1 - p) * wrong;
}

std::vector<Real> pair_losses(const Pairs& pairs, OfDelta of_delta, OfScores of_scores) {
  std::vector<Real> losses;
  for (int i = 0; i < static_cast<int>(pairs.w.size()); ++i) {
    losses.push_back(policy_weight(pairs.config, pairs.frozen, i) *
                     column_weight(pairs.config, pairs.in, i) *
                     pair_preference(pairs, of_delta, of_scores, i));
  }
  return losses;
}

// Of what lies at the frozen log-probs: each row's distance from the mean of the other rows.
std::vector<Real> above_the_others(const std::vector<Real>& x) {
  std::vector<Real> distances;
  for (std::size_t i = 0; i < x.size(); ++i) {
    Real others = 0;
    for (std::size_t j = 0; j < x.size(); ++j) others += j == i ? 0 : x[j];
    distances.push_back(x[i] - (x.size() > 1 ? others / static_cast<Real>(x.size() - 1) : 0));
  }
  return distances;
}

// A function of the log-probs whose slope at the frozen ones is the gradient through the data
// (2406.15567), and whose value there is 0.
Real data_term(const Pairs& pairs, OfDelta of_delta, OfScores of_scores) {
  const Real weight = pairs.config.value("data_gradient", 0.0);
  if (weight == 0) return 0;
  const Pairs still{pairs.config, pairs.frozen, pairs.frozen};
  const std::vector<Real> gains = above_the_others(pair_losses(still, of_delta, of_scores));
  std::vector<Real> terms;
  for (int i = 0; i < static_cast<int>(gains.size()); ++i) {
    const Real moved = static_cast<Real>(pairs.in.chosen_logps[i]) - pairs.frozen.chosen_logps[i] +
                       pairs.in.rejected_logps[i] - pairs.frozen.rejected_logps[i];
    terms.push_back(weight * gains[static_cast<std::size_t>(i)] * moved);
  }
  return mean(terms);
}

Real mean_over_pairs(const Pairs& pairs, OfDelta of_delta, OfScores of_scores) {
  return mean(pair_losses(pairs, of_delta, of_scores)) + data_term(pairs, of_delta, of_scores);
}

// Nash-MD-PG (2312.00886): the estimate of the regularized objective at the frozen log-probs, whose
// slope is the score function's.
Real policy_gradient(const json& config, const ExactPairLogps& in, const ExactPairLogps& frozen) {
  const Real tau = number(config, "tau");
  const auto rows = static_cast<int>(frozen.advantages.size());
  const auto logratio = [&](int i) -> Real {
    return tau == 0 ? 0 : static_cast<Real>(frozen.chosen_logps[i]) - frozen.ref_chosen_logps[i];
  };
  std::vector<Real> terms;
  for (int i = 0; i < rows; ++i) {
    Real others = 0, count = 0;
    for (int j = 0; j < rows; ++j) {
      if (config.at("kl_baseline") == "none" || j == i || frozen.groups[j] != frozen.groups[i]) {
        continue;
      }
      others += logratio(j);
      count += 1;
    }
    const Real baseline = count > 0 ? others / count : 0;
    const Real moved = static_cast<Real>(in.chosen_logps[i]) - frozen.chosen_logps[i];
    terms.push_back(column_weight(config, in, i) *
                    (tau * logratio(i) - in.advantages[i] +
                     (tau * (logratio(i) - baseline) - in.advantages[i]) * moved));
  }
  return mean(terms);
}

// Alignment by optimal transport (2406.05882): the k-th largest of one distribution against the
// k-th largest of the other, over the whole step.
Real aot(const json& config, const ExactPairLogps& in) {
  const Side w = chosen_side(in);
  const Side l = rejected_side(in);
  std::vector<Real> high, low;
  if (config.at("type") == "aot_unpaired") {
    high = scores(config, w);
    low = scores(config, l);
  } else {
    for (int i = 0; i < in.chosen_logps.size(); ++i) {
      const auto gap = [&](Real of_w, Real of_l) {
        return per_token(config, w, i, of_w) - per_token(config, l, i, of_l);
      };
      high.push_back(gap(policy(config, w, i), policy(config, l, i)));
      low.push_back(gap(reference(config, w, i), reference(config, l, i)));
    }
  }
  std::ranges::sort(high);
  std::ranges::sort(low);
  std::vector<Real> losses;
  for (std::size_t i = 0; i < high.size(); ++i) {
    losses.push_back(smoothed(number(config, "beta") * (high[i] - low[i]),
                              config.value("label_smoothing", 0.0)));
  }
  return mean(losses);
}

// Kahneman-Tversky value against z0, the KL estimated on mismatched completions (2402.01306).
Real kto(const json& config, const ExactPairLogps& in, const ExactPairLogps& frozen) {
  Real z0 = 0;
  if (config.at("estimate_kl")) {
    std::vector<Real> logratios;
    for (int i = 0; i < frozen.kl_logps.size(); ++i) {
      logratios.push_back(config.at("humanline")
                              ? Real(frozen.kl_limited_logratios[i])
                              : static_cast<Real>(frozen.kl_logps[i]) - frozen.ref_kl_logps[i]);
    }
    z0 = std::max<Real>(0, mean(logratios));
  }
  const std::vector<Real> score = scores(config, chosen_side(in));
  std::vector<Real> losses;
  for (int i = 0; i < static_cast<int>(score.size()); ++i) {
    const bool desirable = in.labels[i] == 1;
    const Real gain = number(config, "beta") * (desirable ? score[i] - z0 : z0 - score[i]);
    losses.push_back(number(config, desirable ? "desirable_weight" : "undesirable_weight") *
                     column_weight(config, in, i) * (1 - sigmoid(gain)));
  }
  return mean(losses);
}

// Binary classifier of the rewards around their running mean (2404.04656).
Real bco(const json& config, const ExactPairLogps& in, const ExactPairLogps& frozen) {
  const Real beta = number(config, "beta");
  std::vector<Real> rewards;
  for (const Real score : scores(config, chosen_side(frozen))) rewards.push_back(beta * score);
  const Real shift = running_mean(frozen, rewards);
  const std::vector<Real> score = scores(config, chosen_side(in));
  std::vector<Real> losses;
  for (int i = 0; i < static_cast<int>(score.size()); ++i) {
    const Real reward = beta * score[i] - shift;
    losses.push_back(column_weight(config, in, i) * softplus(in.labels[i] == 1 ? -reward : reward));
  }
  return mean(losses);
}

// Cross-entropy of a label, or of a given probability, with the logit beta Delta (2412.01981).
Real ce(const json& config, const ExactPairLogps& in) {
  const std::vector<Real> score = scores(config, chosen_side(in));
  std::vector<Real> losses;
  for (int i = 0; i < static_cast<int>(score.size()); ++i) {
    const Real reward = number(config, "beta") * score[i];
    const Real label = config.at("use_label_probs") ? in.label_probs[i] : in.labels[i];
    losses.push_back(column_weight(config, in, i) *
                     (label * softplus(-reward) + (1 - label) * softplus(reward)));
  }
  return mean(losses);
}

}  // namespace

std::optional<Real> mean_preference(const json& config, const ExactPairLogps& in,
                                    const ExactPairLogps& frozen) {
  const std::string type = config.at("type");
  if (type == "aot" || type == "aot_unpaired") return aot(config, in);
  if (type == "kto") return kto(config, in, frozen);
  if (type == "bco") return bco(config, in, frozen);
  if (type == "ce") return ce(config, in);
  if (type == "policy_gradient") return policy_gradient(config, in, frozen);
  const OfDelta of_delta = find_of_delta(type);
  const OfScores of_scores = find_of_scores(type);
  if (of_delta == nullptr && of_scores == nullptr) return std::nullopt;
  return mean_over_pairs({config, in, frozen}, of_delta, of_scores);
}

}  // namespace prefopt::testing_support
