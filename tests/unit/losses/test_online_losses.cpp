// SPDX-License-Identifier: Apache-2.0

// Losses of online methods against known values. `hand` and `trl` are the groups of a file of
// goldens, online.json: formulas in float64 numpy, and TRL's own functions.

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/exact/loss.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"
#include "support/close.h"
#include "support/errors.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using Eigen::ArrayXd;
using nlohmann::json;
using namespace testing_support;

ArrayXd one(double x) { return ArrayXd::Constant(1, x); }

/// A pair with the given log-ratios to a reference whose log-probs are -8.
ExactPairLogps pair_of(double w, double l) {
  ExactPairLogps in;
  in.ref_chosen_logps = in.ref_rejected_logps = one(-8);
  in.chosen_logps = one(-8 + w);
  in.rejected_logps = one(-8 + l);
  return in;
}

ExactLossOutput evaluate(const json& config, const ExactPairLogps& in) {
  return exact::ExactLoss(config.dump()).evaluate(in);
}

TEST_CASE("seppo: known values", "[losses]") {
  struct Row {
    double w, l, loss, grad_w, grad_l, loss_of_indicator;
  };
  // hand.seppo, beta 0.1.
  for (const Row& row :
       {Row{2, 1, 0.6443966600735709, -0.047502081252106004, 0.047502081252106004,
            0.6443966600735709},
        Row{-2, 1, 0.744396660073571, -0.052497918747894, -0.052497918747894, 0.7981388693815917},
        Row{0, -1.5, 0.620957047789532, -0.04625701546562505, 0.04625701546562505,
            0.6931471805599453},
        Row{0.5, -3, 0.5333821554187769, -0.041338242108267004, 0.041338242108267004,
            0.5333821554187769}}) {
    CAPTURE(row.w, row.l);
    const ExactPairLogps in = pair_of(row.w, row.l);
    const ExactLossOutput out = evaluate({{"type", "seppo"}}, in);
    check_close(out.loss, row.loss, 1e-14);
    check_close(out.grad_chosen[0], row.grad_w, 1e-14);
    check_close(out.grad_rejected[0], row.grad_l, 1e-14);
    check_close(evaluate({{"type", "sspo"}, {"flip", "indicator"}}, in).loss, row.loss_of_indicator,
                1e-14);
  }
}

TEST_CASE("seppo is spin while the data are likelier than under the reference", "[losses]") {
  const ExactPairLogps all = random_pairs(40, 0, 3);
  for (int i = 0; i < 40; ++i) {
    const ExactPairLogps in = slice(all, i, 1);
    const ExactLossOutput spin = evaluate({{"type", "spin"}, {"beta", 0.4}}, in);
    const bool is_likelier = in.chosen_logps[0] > in.ref_chosen_logps[0];
    for (const char* flip : {"sign", "indicator", "none"}) {
      CAPTURE(i, flip);
      const ExactLossOutput out = evaluate({{"type", "seppo"}, {"beta", 0.4}, {"flip", flip}}, in);
      const bool is_spin = is_likelier || std::string(flip) == "none";
      CHECK((out.loss == spin.loss) == is_spin);
      CHECK((out.grad_chosen[0] == spin.grad_chosen[0] &&
             out.grad_rejected[0] == spin.grad_rejected[0]) == is_spin);
    }
  }
  CHECK_THROWS_TEXT(make_loss(R"({"type": "seppo", "use_label_probs": true})"), ConfigError,
                    "seppo: expected use_label_probs false, got true; a row says which completion "
                    "is the data's, not which is better");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "seppo", "reference_free": true})"), ConfigError,
                    "seppo: expected reference_free false, got true; the sign is that of the "
                    "log-ratio to the reference");
}

/// XPO's loss and slopes as TRL 0.29.1's XPOTrainer computes them, from the sums of token
/// log-probs.
struct XpoRow {
  double loss = 0, grad_w = 0, grad_l = 0;

  XpoRow(const ExactPairLogps& in, int i, double beta, double alpha, bool is_ipo) {
    const double logits = in.chosen_logps[i] - in.ref_chosen_logps[i] -
                          (in.rejected_logps[i] - in.ref_rejected_logps[i]);
    const double gap = logits - 1 / (2 * beta);
    loss = is_ipo ? gap * gap : -std::log(sigmoid(beta * logits));
    const double slope = is_ipo ? 2 * gap : -beta * sigmoid(-beta * logits);
    const bool is_chosen = in.from_reference[i] == 1, is_rejected = in.from_reference[i] == 2;
    if (is_chosen) loss += alpha * in.chosen_logps[i];
    if (is_rejected) loss += alpha * in.rejected_logps[i];
    grad_w = slope + (is_chosen ? alpha : 0);
    grad_l = -slope + (is_rejected ? alpha : 0);
  }
};

TEST_CASE("xpo: known values, and TRL's formula", "[losses]") {
  // hand.xpo_is_vpo
  ExactPairLogps in = pair_of(-1.5, 0.5);
  in.from_reference = one(2);
  check_close(evaluate({{"type", "xpo"}, {"alpha", 0.02}}, in).loss, 0.6481388693815917, 1e-14);

  for (const bool is_ipo : {false, true}) {
    ExactPairLogps rows = random_pairs(5, 0, 8);
    rows.from_reference << 1, 2, 0, 2, 1;
    // Identical completions: the preference has no gradient, the optimism has.
    rows.rejected_logps[4] = rows.chosen_logps[4];
    rows.ref_rejected_logps[4] = rows.ref_chosen_logps[4];
    const json config{
        {"type", "xpo"}, {"beta", 0.3}, {"alpha", 0.05}, {"link", is_ipo ? "ipo" : "sigmoid"}};
    const ExactLossOutput out = evaluate(config, rows);
    for (int i = 0; i < 5; ++i) {
      const XpoRow expected(rows, i, 0.3, 0.05, is_ipo);
      check_close(out.losses[i], expected.loss, 1e-12);
      check_close(5 * out.grad_chosen[i], expected.grad_w, 1e-12);
      check_close(5 * out.grad_rejected[i], expected.grad_l, 1e-12);
    }
    check_close(5 * (out.grad_chosen[4] + out.grad_rejected[4]), 0.05, 1e-12);
  }
}

TEST_CASE("xpo is vpo online, calibrated on the reference's side", "[losses]") {
  // hand.xpo_is_vpo
  ExactPairLogps in = pair_of(-1.5, 0.5);
  in.from_reference = one(2);
  const json vpo{{"type", "vpo"}, {"mode", "online"}, {"calibration", "reference_side"}};
  const auto with_alpha = [&](double alpha) {
    json config = vpo;
    config["alpha"] = alpha;
    return config;
  };
  // The value incentive there is 0.02 * (-7.5 + 8), where xpo has 0.02 * -7.5.
  check_close(evaluate(with_alpha(0.2), in).loss, 0.8081388693815917, 1e-14);

  const ExactPairLogps rows = random_pairs(9, 0, 2);
  const json xpo{{"type", "xpo"}, {"alpha", 0.02}};
  const ExactLossOutput a = evaluate(xpo, rows), b = evaluate(with_alpha(0.2), rows);
  CHECK((a.grad_chosen - b.grad_chosen).abs().maxCoeff() < 1e-15);
  CHECK((a.grad_rejected - b.grad_rejected).abs().maxCoeff() < 1e-15);
  double constant = 0;
  for (int i = 0; i < 9; ++i) {
    if (rows.from_reference[i] == 1) constant += rows.ref_chosen_logps[i] / 9;
    if (rows.from_reference[i] == 2) constant += rows.ref_rejected_logps[i] / 9;
  }
  check_close(a.loss - b.loss, 0.02 * constant, 1e-12);
  // Pessimism is another loss.
  json offline = with_alpha(0.2);
  offline["mode"] = "offline";
  CHECK((evaluate(offline, rows).grad_chosen - a.grad_chosen).abs().maxCoeff() > 1e-4);
}

TEST_CASE("policy_gradient: known values", "[losses]") {
  struct Row {
    double advantage, logp, ref_logp, loss;
  };
  // hand.policy_gradient, tau 0.05: the derivative is the same number.
  for (const Row& row : {Row{0.3, -5, -5, -0.3}, Row{0.3, -5, -6.5, -0.22499999999999998},
                         Row{-0.15, -0.8, -0.4, 0.13}}) {
    ExactPairLogps in;
    in.chosen_logps = one(row.logp);
    in.ref_chosen_logps = one(row.ref_logp);
    in.advantages = one(row.advantage);
    const ExactLossOutput out = evaluate({{"type", "policy_gradient"}, {"tau", 0.05}}, in);
    check_close(out.loss, row.loss, 1e-14);
    check_close(out.grad_chosen[0], row.loss, 1e-14);
    CHECK(out.grad_rejected.size() == 0);
  }
}

TEST_CASE("policy_gradient on single tokens is TRL's Nash-MD gradient", "[losses]") {
  // trl.nash_md: 0.29.1, beta 0.1, two completions of 3 and 2 tokens with P = 0.8 and 0.35.
  ExactPairLogps in;
  in.chosen_logps.resize(5);
  in.ref_chosen_logps.resize(5);
  in.advantages.resize(5);
  in.chosen_logps << -0.5, -1.2, -0.3, -0.7, -0.1;
  in.ref_chosen_logps << -0.6, -1.0, -0.9, -0.2, -0.4;
  in.advantages << 0.3, 0.3, 0.3, -0.15, -0.15;
  in.totals.pairs = 2;
  ArrayXd expected(5);
  expected << -0.14500000000000002, -0.16000000000000003, -0.12000000000000002, 0.05000000000000002,
      0.09000000000000001;
  const ExactLossOutput out = evaluate({{"type", "policy_gradient"}, {"tau", 0.1}}, in);
  CHECK((out.grad_chosen - expected).abs().maxCoeff() < 1e-15);
  // TRL's value is that gradient times the log-probs.
  check_close((out.grad_chosen * in.chosen_logps).sum(), 0.25650000000000006, 1e-14);
}

TEST_CASE("policy_gradient: a baseline is the mean of the prompt's other rows", "[losses]") {
  ExactPairLogps in;
  in.chosen_logps.resize(4);
  in.chosen_logps << -3, -5, -1, -2;
  in.ref_chosen_logps = ArrayXd::Constant(4, -4);  // log-ratios 1, -1, 3, 2
  in.advantages = ArrayXd::Zero(4);
  in.groups.resize(4);
  in.groups << 7, 2, 7, 7;
  const json config{{"type", "policy_gradient"}, {"tau", 2}, {"kl_baseline", "group"}};
  const ExactLossOutput out = evaluate(config, in);
  ArrayXd expected(4);
  expected << 1 - 2.5, -1, 3 - 1.5, 2 - 2.0;
  CHECK((out.grad_chosen - 2 * expected / 4).abs().maxCoeff() < 1e-15);
  CHECK(out.loss == Approx(2 * 5.0 / 4));  // the value has no baseline
  CHECK_THROWS_TEXT(
      make_loss(R"({"type": "policy_gradient", "tau": 0, "kl_baseline": "group"})"), ConfigError,
      "policy_gradient: expected kl_baseline at its default, got another value that would do "
      "nothing; the KL penalty has weight 0");
}

TEST_CASE("INPO is ipo against a combined reference", "[losses]") {
  struct Row {
    double d_pi, d_ref, d_t, loss, grad;
  };
  // hand.inpo_loss: eta 0.3, tau 0.1; differences of log-probs, chosen less rejected.
  for (const Row& row : {Row{0, 0, 0, 2.777777777777778, -3.3333333333333335},
                         Row{1.5, 0.4, -0.2, 0.027777777777777804, -0.3333333333333335},
                         Row{-2, 1, 1, 21.777777777777782, -9.333333333333334}}) {
    ExactPairLogps in;
    in.chosen_logps = one(-9 + row.d_pi);
    in.rejected_logps = in.ref_rejected_logps = one(-9);
    in.ref_chosen_logps = one(-9 + row.d_ref / 3 + 2 * row.d_t / 3);
    const json config{{"type", "ipo"}, {"beta", 0.3}, {"length_normalized", false}};
    const ExactLossOutput out = evaluate(config, in);
    check_close(out.loss, row.loss, 1e-12);
    check_close(out.grad_chosen[0], row.grad, 1e-12);
  }
  // The paper's eta, at the reference.
  const json config{{"type", "ipo"}, {"beta", 0.005}, {"length_normalized", false}};
  check_close(evaluate(config, pair_of(0, 0)).loss, 10000, 1e-14);
}

TEST_CASE("ipo with label probabilities aims at a smaller margin", "[losses]") {
  const double tau = 0.3, p = 0.7;
  ExactPairLogps in = pair_of(1.2, -0.4);
  in.label_probs = one(p);
  const json config{
      {"type", "ipo"}, {"beta", tau}, {"length_normalized", false}, {"use_label_probs", true}};
  const ExactLossOutput out = evaluate(config, in);
  const double h = 1.6, target = (2 * p - 1) / (2 * tau);
  check_close(out.grad_chosen[0], 2 * (h - target), 1e-13);
  const double constant = (1 - (2 * p - 1) * (2 * p - 1)) / (4 * tau * tau);
  check_close(out.loss, (h - target) * (h - target) + constant, 1e-13);
}

TEST_CASE("DNO is dpo with label probabilities", "[losses]") {
  // 2404.03715 eq. 12: cross-entropy of sigmoid(r1 - r2) and sigmoid(eta delta).
  const double eta = 0.5;
  for (const auto& [gap, delta] : {std::pair{0.0, 0.0}, {0.3, 1.7}, {-0.4, 0.9}, {0.8, -2.5}}) {
    ExactPairLogps in = pair_of(delta, 0);
    in.label_probs = one(sigmoid(gap));
    const ExactLossOutput out =
        evaluate({{"type", "dpo"}, {"beta", eta}, {"use_label_probs", true}}, in);
    check_close(out.loss,
                -sigmoid(gap) * std::log(sigmoid(eta * delta)) -
                    sigmoid(-gap) * std::log(sigmoid(-eta * delta)),
                1e-14);
    check_close(out.grad_chosen[0], eta * (sigmoid(eta * delta) - sigmoid(gap)), 1e-14, 1e-16);
  }
}

TEST_CASE("sppo with win rates: known values", "[losses]") {
  struct Row {
    double beta, p_w, p_l, w, l, loss, grad_w, grad_l;
  };
  // hand.sppo_soft
  for (const Row& row : {Row{0.1, 0.9, 0.2, 0, 0, 25, -8, 6}, Row{0.1, 0.9, 0.2, 4, -3, 0, 0, 0},
                         Row{0.001, 0.8, 0.3, 0, 0, 130000, -600, 400}}) {
    ExactPairLogps in = pair_of(row.w, row.l);
    in.chosen_win_rates = one(row.p_w);
    in.rejected_win_rates = one(row.p_l);
    const ExactLossOutput out =
        evaluate({{"type", "sppo"}, {"beta", row.beta}, {"soft", true}}, in);
    check_close(out.loss, row.loss, 1e-13, 1e-13);
    check_close(out.grad_chosen[0], row.grad_w, 1e-13, 1e-13);
    check_close(out.grad_rejected[0], row.grad_l, 1e-13, 1e-13);
  }
}

TEST_CASE("online dpo and ipo: TRL's values", "[losses]") {
  // trl.online_dpo: OnlineDPOTrainer of 1.16.0, beta 0.1, without and with a penalty of 1 on the
  // completion without an end token, which turns the second pair around.
  const std::vector<double> logps{-1.5, -0.9, -1.5, -1.8}, refs{-1.4, -0.9, -1.8, -1.5};
  struct Case {
    const char* type;
    std::vector<std::size_t> chosen, rejected;
    std::vector<double> losses, slopes;
  };
  for (const Case& c :
       {Case{"dpo",
             {0, 1},
             {2, 3},
             {0.713347167228034, 0.6782596763414485},
             {-0.025499933343998273, -0.02462502812246898}},
        Case{"dpo",
             {0, 3},
             {2, 1},
             {0.713347167228034, 0.7082596763414484},
             {-0.025499933343998273, -0.025374971877531023}},
        Case{"ipo", {0, 1}, {2, 3}, {29.160000000000004, 22.090000000000003}, {-5.4, -4.7}},
        Case{"ipo", {0, 3}, {2, 1}, {29.160000000000004, 28.09}, {-5.4, -5.3}}}) {
    const auto taken = [](const std::vector<double>& of, const std::vector<std::size_t>& places) {
      return ArrayXd(Eigen::Array2d(of[places[0]], of[places[1]]));
    };
    ExactPairLogps in;
    in.chosen_logps = taken(logps, c.chosen);
    in.rejected_logps = taken(logps, c.rejected);
    in.ref_chosen_logps = taken(refs, c.chosen);
    in.ref_rejected_logps = taken(refs, c.rejected);
    const ExactLossOutput out =
        evaluate({{"type", c.type}, {"length_normalized", false}, {"beta", 0.1}}, in);
    for (int i = 0; i < 2; ++i) {
      const auto row = static_cast<std::size_t>(i);
      check_close(out.losses[i], c.losses[row], 1e-12);
      check_close(out.grad_chosen[i], c.slopes[row], 1e-12);
      check_close(out.grad_rejected[i], -c.slopes[row], 1e-12);
    }
  }
}

/// The same pairs with the other label.
ExactPairLogps swapped(const ExactPairLogps& in) {
  ExactPairLogps out = in;
  std::swap(out.chosen_logps, out.rejected_logps);
  std::swap(out.ref_chosen_logps, out.ref_rejected_logps);
  std::swap(out.chosen_lens, out.rejected_lens);
  std::swap(out.chosen_overlap_logps, out.rejected_overlap_logps);
  std::swap(out.ref_chosen_overlap_logps, out.ref_rejected_overlap_logps);
  std::swap(out.chosen_log_sum_p_squared, out.rejected_log_sum_p_squared);
  std::swap(out.chosen_seq_kl, out.rejected_seq_kl);
  std::swap(out.chosen_limited_logratios, out.rejected_limited_logratios);
  out.margins = -in.margins;
  for (double& side : out.from_reference) side = side == 0 ? 0 : 3 - side;
  return out;
}

TEST_CASE("soft labels have the mean of loss and gradient of hard ones", "[losses]") {
  std::set<std::string> refusing;
  int checked = 0;
  for (const std::string& name : registered_losses()) {
    CAPTURE(name);
    json config{{"type", name}};
    const exact::ExactLoss hard(config.dump());
    if (!hard.requirements().rejected() || name == "mix") continue;
    config["use_label_probs"] = true;
    try {
      (void)make_loss(config.dump());
    } catch (const ConfigError& error) {
      CHECK(std::string(error.what()).find("; ") != std::string::npos);
      refusing.insert(name);
      continue;
    }
    // With a mean over the step in them a loss is no sum over pairs.
    if (hard.requirements().whole_step) continue;
    const auto samples = static_cast<int>(hard.requirements().samples_per_prompt);
    const ExactPairLogps in = random_pairs(6, samples, 4);
    const ExactLossOutput given = hard.evaluate(in), other = hard.evaluate(swapped(in));
    const ExactLossOutput soft = exact::ExactLoss(config.dump()).evaluate(in);
    const ArrayXd p = in.label_probs;
    // A given gap changes its sign with the order of the pair: these losses are the same then.
    const bool is_even = name.starts_with("rpo_");
    const auto is_mean = [&](const ArrayXd& of_soft, const ArrayXd& of_given,
                             const ArrayXd& of_other) {
      const ArrayXd mean = p * of_given + (1 - p) * of_other;
      CHECK((of_soft - mean).abs().maxCoeff() <= 1e-12 * (1 + mean.abs().maxCoeff()));
      CHECK(((of_soft - of_given).abs().maxCoeff() > 1e-6) != is_even);  // the labels do matter
    };
    is_mean(soft.losses, given.losses, other.losses);
    is_mean(soft.grad_chosen, given.grad_chosen, other.grad_rejected);
    is_mean(soft.grad_rejected, given.grad_rejected, other.grad_chosen);
    ++checked;
  }
  CHECK(refusing ==
        std::set<std::string>{"aot", "aot_unpaired", "cpo", "orpo", "rpo", "seppo", "vpo"});
  CHECK(checked >= 20);
}

TEST_CASE("losses without a probability form say why", "[losses]") {
  const auto refused = [](const char* config, const std::string& text) {
    CHECK_THROWS_TEXT(make_loss(config), ConfigError, text);
  };
  const std::string of_one_side =
      ": expected use_label_probs false, got true; a term of it is about the chosen or the "
      "rejected completion alone, which a probability leaves open";
  refused(R"({"type": "rpo", "use_label_probs": true})", "rpo" + of_one_side);
  refused(R"({"type": "orpo", "use_label_probs": true})", "orpo" + of_one_side);
  refused(R"({"type": "vpo", "calibration": "rejected", "use_label_probs": true})",
          "vpo" + of_one_side);
  const std::string of_no_pair =
      ": expected no key 'use_label_probs', got it; the loss does not compare the two completions "
      "of a pair, so that the probability of their order says nothing to it";
  for (const std::string name : {"aot", "sft", "kto", "policy_gradient"}) {
    refused((R"({"type": ")" + name + R"(", "use_label_probs": true})").c_str(), name + of_no_pair);
  }
  // Without these terms they have one.
  (void)make_loss(R"({"type": "rpo", "eta": 0, "use_label_probs": true})");
  (void)make_loss(R"({"type": "cpo", "alpha": 0, "use_label_probs": true})");
  (void)make_loss(R"({"type": "vpo", "calibration": "samples", "use_label_probs": true})");
}

TEST_CASE("RSO's sigmoid-norm is no other name of sigmoid_norm", "[losses]") {
  CHECK_THROWS_TEXT(make_loss(R"({"type": "sigmoid-norm"})"), ConfigError,
                    "loss: expected 'dpo' or 'sigmoid_norm', got 'sigmoid-norm'; RSO's "
                    "sigmoid-norm (arXiv:2309.06657 eq. 8) has a reference, dpo; Tulu 3's "
                    "sigmoid_norm divides by lengths");
  // Its eqs. 8, 9 and 10.
  const double gamma = 0.05, w = 3, l = -2;
  const ExactPairLogps in = pair_of(w, l);
  check_close(evaluate({{"type", "dpo"}, {"beta", gamma}}, in).loss,
              -std::log(sigmoid(gamma * (w - l))), 1e-14);
  check_close(evaluate({{"type", "hinge"}, {"beta", gamma}}, in).loss, 1 - gamma * (w - l), 1e-14);
  check_close(evaluate({{"type", "hinge"}, {"beta", gamma}, {"reference_free", true}}, in).loss,
              1 - gamma * (in.chosen_logps[0] - in.rejected_logps[0]), 1e-14);
}

TEST_CASE("configs without data_gradient are what they were before it", "[losses]") {
  CHECK_FALSE(json::parse(make_loss(R"({"type": "dpo"})").config()).contains("data_gradient"));
  const Loss loss = make_loss(R"({"type": "dpo", "data_gradient": 0.5})");
  CHECK(json::parse(loss.config())["data_gradient"] == 0.5);
  CHECK(loss.requirements().of_own_samples);
  CHECK(loss.requirements().whole_step);
}

TEST_CASE("a mix of pairs and of completions with advantages is refused", "[losses]") {
  CHECK_THROWS_TEXT(make_loss(R"({"type": "mix", "terms": [{"loss": {"type": "dpo"}},
                                  {"loss": {"type": "policy_gradient"}}]})"),
                    ConfigError,
                    "mix: expected terms for the same kind of rows, got one for pairs and one for "
                    "single completions with an advantage");
  CHECK(make_loss(R"({"type": "mix", "terms": [{"loss": {"type": "sft"}},
                      {"loss": {"type": "policy_gradient"}}]})")
            .requirements()
            .of_own_samples);
}

}  // namespace
}  // namespace prefopt
