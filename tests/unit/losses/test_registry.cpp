// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "prefopt/error.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using nlohmann::json;

const std::string kBetaReason =
    "; it scales what separates chosen from rejected, and only a positive scale prefers the chosen";
const std::string kSmoothingReason =
    "; with one half of the labels wrong they say nothing, with more the opposite";

std::string type_of(const char* config) { return json::parse(make_loss(config).config())["type"]; }

TEST_CASE("losses by name and by TRL's names", "[losses]") {
  CHECK(type_of(R"({"type": "dpo"})") == "dpo");
  CHECK(type_of(R"({"type": "sigmoid"})") == "dpo");
  CHECK(type_of(R"({"type": "robust"})") == "robust_dpo");
  CHECK(type_of(R"({"loss_type": "ipo"})") == "ipo");
  CHECK(type_of(R"({"loss_type": ["robust"], "label_smoothing": 0.1})") == "robust_dpo");
  const json trl =
      json::parse(make_loss(R"({"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence",
                    "f_alpha_divergence_coef": 0.3})")
                      .config());
  CHECK(trl["divergence"] == "alpha_divergence");
  CHECK(trl["divergence_alpha"] == 0.3);
  CHECK(type_of(R"({"type": "spin"})") == "dpo");
  CHECK(type_of(R"({"loss_type": "sppo_hard"})") == "sppo");
}

json config_of(const char* config) { return json::parse(make_loss(config).config()); }

TEST_CASE("TRL's lists are mixes", "[losses]") {
  const json mpo = config_of(
      R"({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.3})");
  REQUIRE(mpo["type"] == "mix");
  REQUIRE(mpo["terms"].size() == 3);
  CHECK(mpo["terms"][0]["weight"] == 0.8);
  CHECK(mpo["terms"][0]["loss"]["type"] == "dpo");
  CHECK(mpo["terms"][0]["loss"]["beta"] == 0.3);
  CHECK(mpo["terms"][1]["loss"]["type"] == "bco_pair");
  CHECK(mpo["terms"][1]["loss"]["beta"] == 0.3);
  CHECK(mpo["terms"][2]["weight"] == 1);
  CHECK(mpo["terms"][2]["loss"] == json{{"type", "sft"},
                                        {"reduction", "token_mean"},
                                        {"use_weights", false},
                                        {"use_labels", false}});

  // Options go to the terms that have them, by TRL's names too.
  const json divergence = config_of(
      R"({"loss_type": ["ipo", "sft"], "f_divergence_type": "js_divergence", "ld_alpha": 0.5})");
  CHECK(divergence["terms"][0]["weight"] == 1);
  CHECK(divergence["terms"][0]["loss"]["divergence"] == "js_divergence");
  CHECK(divergence["terms"][0]["loss"]["ld_alpha"] == 0.5);
  CHECK_FALSE(divergence["terms"][1]["loss"].contains("ld_alpha"));

  // One loss is itself, unless it is weighed.
  CHECK(type_of(R"({"loss_type": ["sigmoid"], "loss_weights": [1.0]})") == "dpo");
  const json half = config_of(R"({"loss_type": ["sigmoid"], "loss_weights": [0.5]})");
  CHECK(half["type"] == "mix");
  CHECK(half["terms"][0]["weight"] == 0.5);

  CHECK(config_of(R"({"loss_type": "sigmoid", "use_weighting": true})")["weighting"] ==
        "sampled_alignment");
  CHECK(config_of(R"({"loss_type": "sigmoid", "use_weighting": false})")["weighting"] == "none");
}

TEST_CASE("TRL's lists that cannot be meant", "[losses]") {
  CHECK_THROWS_TEXT(
      make_loss(R"({"loss_type": ["sigmoid", "ipo"], "loss_weights": [1]})"), ConfigError,
      "loss: expected loss_type to be a name or a list of them, with as many loss_weights or none, "
      R"(got ["sigmoid","ipo"] with loss_weights [1])");
  CHECK_THROWS_TEXT(
      make_loss(R"({"loss_type": []})"), ConfigError,
      "loss: expected loss_type to be a name or a list of them, with as many loss_weights or none, "
      "got [] with loss_weights []");
  CHECK_THROWS_TEXT(make_loss(R"({"loss_type": ["sigmoid", "sfd"]})"), ConfigError,
                    "loss: expected a registered loss, got 'sfd'; did you mean 'sft'?");
  CHECK_THROWS_TEXT(make_loss(R"({"loss_type": ["sigmoid", "sft"], "lambda": 2})"), ConfigError,
                    R"(loss: expected an option of one of ["sigmoid","sft"], got 'lambda')");
  CHECK_THROWS_TEXT(make_loss(R"({"loss_type": ["sigmoid", "aot"], "use_weighting": true})"),
                    ConfigError,
                    "loss: expected losses that have use_weighting next to it, got 'aot'");
}

TEST_CASE("TRL's config of all options is read as TRL reads it", "[losses]") {
  // Every DPOConfig has these, whatever the loss.
  const std::string rest =
      R"("loss_weights": null, "ld_alpha": null, "label_smoothing": 0.0, "discopop_tau": 0.05,
         "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "beta": 0.3})";
  for (const char* type : {"sigmoid", "hinge", "sft", "aot", "nca_pair"}) {
    const json config =
        config_of((R"({"loss_type": [")" + std::string(type) + "\"], " + rest).c_str());
    CHECK(config.value("beta", 0.3) == 0.3);
  }

  // Defaults are TRL's in its own form, and ours in ours.
  CHECK(config_of(R"({"loss_type": ["discopop"]})")["beta"] == 0.1);
  CHECK(config_of(R"({"type": "discopop"})")["beta"] == 0.05);
  CHECK(config_of(R"({"loss_type": "simpo", "cpo_alpha": 0})")["gamma"] == 0.5);
  CHECK(config_of(R"({"loss_type": "simpo", "simpo_gamma": 0.7})")["gamma"] == 0.7);
  CHECK(config_of(R"({"loss_type": "tpo"})")["beta"] == 0.01);

  const json tpo = config_of(R"({"loss_type": "tpo-l", "tpo_l_gamma": 0.4})");
  CHECK(tpo["type"] == "tpo");
  CHECK(tpo["length_normalized"] == true);
  CHECK(tpo["gamma"] == 0.4);

  // Labels are smoothed where TRL smooths them.
  const json smoothed =
      config_of(R"({"loss_type": ["sigmoid", "exo_pair"], "label_smoothing": 0.1})");
  CHECK(smoothed["terms"][0]["loss"]["label_smoothing"] == 0);
  CHECK(smoothed["terms"][1]["loss"]["label_smoothing"] == 0.1);
  CHECK(smoothed["terms"][1]["loss"]["trl_constants"] == true);
  CHECK_THROWS_TEXT(
      make_loss(R"({"loss_type": ["sigmoid"], "label_smoothing": 0.1})"), ConfigError,
      R"(loss: expected no label_smoothing with ["sigmoid"], got 0.1; TRL's DPOTrainer ignores it )"
      "there, the type 'dpo' smooths labels");
  CHECK_THROWS_TEXT(make_loss(R"({"loss_type": ["sigmoid", "tdpo"], "ld_alpha": 0.5})"),
                    ConfigError, "loss: expected losses that have ld_alpha next to it, got 'tdpo'");
  CHECK(config_of(R"({"loss_type": ["sigmoid", "aot"], "ld_alpha": 0.5})")["terms"][1]["loss"]
                                                                          ["ld_alpha"] == 0.5);
  CHECK_THROWS_TEXT(make_loss(R"({"trainer": "CPOTrainer", "type": "ipo"})"), ConfigError,
                    "loss: expected one of type and trainer, got both");
  CHECK_THROWS_TEXT(make_loss(R"({"loss_type": "ipo", "type": "ipo"})"), ConfigError,
                    "loss: expected one of type and loss_type, got both");
}

// The options of `expected` in the config that make_loss makes of `given`.
void check_translation(const char* given, const json& expected) {
  CAPTURE(given);
  const json config = config_of(given);
  for (const auto& [option, value] : expected.items()) {
    CAPTURE(option);
    CHECK(config.value(option, json()) == value);
  }
}

TEST_CASE("each of TRL's trainers has its own defaults", "[losses]") {
  check_translation(R"({"trainer": "DPOTrainer"})", {{"type", "dpo"}, {"beta", 0.1}});
  check_translation(R"({"trainer": "KTOConfig"})", {{"type", "kto"}, {"estimate_kl", true}});
  check_translation(R"({"trainer": "CPOTrainer"})",
                    {{"type", "cpo"}, {"link", "sigmoid"}, {"alpha", 1}, {"gamma", 0}});
  check_translation(R"({"trainer": "ORPOConfig"})",
                    {{"type", "orpo"}, {"lambda", 0.1}, {"nll_over_prompt", true}});
  check_translation(R"({"trainer": "TPOTrainer"})",
                    {{"type", "tpo"}, {"beta", 0.01}, {"alpha", 1}, {"gamma", 0}});
  check_translation(R"({"trainer": "TPOTrainer", "loss_type": "ipo"})",
                    {{"type", "tpo"}, {"link", "ipo"}, {"length_normalized", true}});
  check_translation(R"({"trainer": "CPOTrainer", "loss_type": ["hinge"]})",
                    {{"type", "cpo"}, {"link", "hinge"}, {"length_normalized", false}});
}

TEST_CASE("TRL's RewardConfig", "[losses]") {
  check_translation(R"({"trainer": "RewardTrainer"})",
                    {{"type", "reward_bt"}, {"center_rewards_coefficient", 0}});
  check_translation(R"({"center_rewards_coefficient": 0.01})",
                    {{"type", "reward_bt"}, {"center_rewards_coefficient", 0.01}});
  // TRL's value for "not set", and TRL's margin of the rows.
  check_translation(
      R"({"trainer": "RewardConfig", "center_rewards_coefficient": null, "margin_scale": 1})",
      {{"type", "reward_bt"}, {"center_rewards_coefficient", 0}, {"margin_scale", 1}});
  CHECK_THROWS_TEXT(
      make_loss(R"({"trainer": "RewardTrainer", "beta": 0.1})"), ConfigError,
      "loss: expected keys of RewardTrainer, got 'beta' of DPOTrainer, KTOTrainer, CPOTrainer, "
      "ORPOTrainer, TPOTrainer");
}

TEST_CASE("names and keys say whose config it is", "[losses]") {
  check_translation(R"({"loss_type": "simpo"})",
                    {{"type", "cpo"}, {"length_normalized", true}, {"gamma", 0.5}, {"alpha", 1}});
  check_translation(R"({"loss_type": "simpo", "cpo_alpha": 0.0})",
                    {{"type", "simpo"}, {"beta", 0.1}, {"gamma", 0.5}});
  check_translation(R"({"loss_type": "simpo", "cpo_alpha": 0, "alpha": 0.25})",
                    {{"type", "alphapo"}, {"beta", 0.1}, {"gamma", 0.5}, {"alpha", 0.25}});
  check_translation(R"({"loss_type": "simpo", "alpha": 0.25})",
                    {{"type", "cpo"}, {"reward_alpha", 0.25}, {"alpha", 1}});
  // TRL sets cpo_alpha to 0 there.
  check_translation(R"({"loss_type": "alphapo", "cpo_alpha": 1})",
                    {{"type", "simpo"}, {"gamma", 0.5}});
  check_translation(R"({"loss_type": "tpo-l"})",
                    {{"type", "tpo"}, {"gamma", 0.5}, {"length_normalized", true}, {"beta", 0.01}});
  for (const char* type : {"sigmoid", "hinge", "ipo"}) {
    const json with_key = {{"loss_type", type}, {"cpo_alpha", 0}};
    CHECK(json::parse(make_loss(with_key.dump()).config())["type"] == "cpo");
    const json tpo = {{"loss_type", type}, {"tpo_alpha", 1}};
    CHECK(json::parse(make_loss(tpo.dump()).config())["type"] == "tpo");
    const json shared = {{"loss_type", type}};
    CHECK(make_loss(shared.dump()).requirements().reference());
  }
  check_translation(R"({"loss_type": "ipo", "cpo_alpha": 0})",
                    {{"link", "ipo"}, {"length_normalized", true}, {"alpha", 0}});
  check_translation(R"({"loss_type": "apo_zero_unpaired", "undesirable_weight": 2})",
                    {{"type", "kto"}, {"estimate_kl", false}, {"undesirable_weight", 2}});
  check_translation(R"({"cpo_alpha": 0.5})", {{"type", "cpo"}, {"alpha", 0.5}});
  check_translation(R"({"f_divergence_type": "forward_kl", "loss_type": null})",
                    {{"type", "dpo"}, {"divergence", "forward_kl"}});
  check_translation(R"({"loss_type": "aot_pair"})", {{"type", "aot_unpaired"}});
  check_translation(R"({"type": "aot_pair"})", {{"type", "aot_unpaired"}});
  check_translation(R"({"loss_type": "orpo"})", {{"nll_over_prompt", true}});
  // TRL's limit.
  check_translation(R"({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1})",
                    {{"divergence", "reverse_kl"}});
  // Losses and options of ours among TRL's.
  check_translation(R"({"loss_type": "vpo", "alpha": 0.3})",
                    {{"type", "vpo"}, {"alpha", 0.3}, {"beta", 0.1}});
  check_translation(R"({"loss_type": "ipo", "tau": 0.3, "use_weights": true})",
                    {{"beta", 0.3}, {"use_weights", true}});
  check_translation(R"({"loss_type": "simpo", "gamma": 0.8})", {{"type", "cpo"}, {"gamma", 0.8}});
}

TEST_CASE("keys of two trainers, and keys that TRL does not read", "[losses]") {
  const auto check = [](const char* config, const char* text) {
    CHECK_THROWS_TEXT(make_loss(config), ConfigError, text);
  };
  check(R"({"loss_type": "sigmoid", "cpo_alpha": 1, "ld_alpha": 0.5})",
        "loss: expected a config of one TRL trainer, got 'ld_alpha' of DPOTrainer next to "
        "'cpo_alpha' of CPOTrainer; 'trainer' says whose it is");
  check(R"({"loss_type": "nca_pair", "cpo_alpha": 0})",
        "loss: expected a config of one TRL trainer, got 'cpo_alpha' of CPOTrainer next to "
        "loss_type 'nca_pair' of DPOTrainer; 'trainer' says whose it is");
  check(R"({"loss_type": ["sigmoid", "sft"], "alpha": 2})",
        "loss: expected a config of one TRL trainer, got 'alpha' of CPOTrainer next to loss_type "
        "'sft' of DPOTrainer; 'trainer' says whose it is");
  check(R"({"trainer": "CPOTrainer", "ld_alpha": 0.5})",
        "loss: expected keys of CPOTrainer, got 'ld_alpha' of DPOTrainer");
  check(R"({"trainer": "CPOTrainer", "loss_type": "kto_pair"})",
        "loss: expected loss_type of CPOTrainer to be one of sigmoid, cpo, hinge, ipo, simpo, "
        "alphapo, got 'kto_pair'");
  check(R"({"trainer": "CPOTrainr"})",
        "loss: expected trainer to be one of DPOTrainer, DPOConfig, KTOTrainer, KTOConfig, "
        "CPOTrainer, CPOConfig, ORPOTrainer, ORPOConfig, TPOTrainer, TPOConfig, RewardTrainer, "
        "RewardConfig, got 'CPOTrainr'; did you mean 'CPOTrainer'?");
  check(R"({"trainer": "CPOTrainer", "loss_type": ["simpo", "sigmoid"]})",
        "loss: expected one loss_type without loss_weights, got [\"simpo\",\"sigmoid\"] with "
        "loss_weights []; CPOTrainer takes no list");
  check(R"({"trainer": "CPOTrainer", "simpo_gamma": 0.7})",
        "loss: expected no simpo_gamma with [\"sigmoid\"], got 0.7; TRL's CPOTrainer ignores it "
        "there");
  check(R"({"loss_type": "hinge", "cpo_alpha": 1, "label_smoothing": 0.1})",
        "loss: expected no label_smoothing with [\"hinge\"], got 0.1; TRL's CPOTrainer ignores it "
        "there");
  check(R"({"loss_type": "sigmoid", "discopop_tau": 0.1})",
        "loss: expected no discopop_tau with [\"sigmoid\"], got 0.1; TRL's DPOTrainer ignores it "
        "there");
  check(R"({"loss_type": "simpo", "simpo_gamma": 0.5, "gamma": 0.5})",
        "loss: expected gamma once, got it as 'simpo_gamma' and by our name");
  check(R"({"loss_type": "sigmoid", "use_weighting": 1})",
        "loss: expected use_weighting to be true or false, got 1");
  check(R"({"loss_type": "exo_pair"})",
        "exo_pair: expected label_smoothing in (0, 0.5), got 0; the loss has "
        "log(label_smoothing), and from one half on labels say nothing");
  // Keys that losses of ours have too say nothing of TRL.
  check(R"({"ld_alpha": 0.5})",
        R"(loss: expected a key 'type' that names a loss, got {"ld_alpha":0.5})");
}

TEST_CASE("a value that a loss refuses is named as TRL names it", "[losses]") {
  const auto check = [](const char* config, const std::string& text) {
    CHECK_THROWS_TEXT(make_loss(config), ConfigError, text);
  };
  check(R"({"loss_type": "simpo", "simpo_gamma": -0.2})",
        "CPOTrainer simpo: expected simpo_gamma >= 0, got -0.2");
  check(R"({"loss_type": "simpo", "cpo_alpha": 0, "simpo_gamma": -0.2})",
        "CPOTrainer simpo: expected simpo_gamma >= 0, got -0.2");
  check(R"({"loss_type": "robust", "label_smoothing": 0.5})",
        "DPOTrainer robust: expected label_smoothing in [0, 0.5), got 0.5" + kSmoothingReason);
  check(R"({"trainer": "CPOTrainer", "label_smoothing": 0.5})",
        "CPOTrainer sigmoid: expected label_smoothing in [0, 0.5), got 0.5" + kSmoothingReason);
  check(R"({"trainer": "ORPOTrainer", "beta": -1})",
        "ORPOTrainer orpo: expected beta > 0, got -1" + kBetaReason);
  check(R"({"loss_type": "tpo-l", "tpo_l_gamma": "much"})",
        "TPOTrainer tpo-l: expected tpo_l_gamma to be a number, got \"much\"");
  // Ours are named as we name them.
  check(R"({"loss_type": "simpo", "gamma": -0.2})", "cpo: expected gamma >= 0, got -0.2");
  check(R"({"loss_type": "vpo", "beta": -1})", "vpo: expected beta > 0, got -1" + kBetaReason);
}

TEST_CASE("a preset is a loss with some of its options set", "[losses]") {
  check_translation(R"({"type": "tpo-l"})",
                    {{"type", "tpo"}, {"gamma", 0.5}, {"length_normalized", true}});
  check_translation(R"({"type": "tpo-l", "tpo_l_gamma": 2})", {{"gamma", 2}});
  check_translation(R"({"type": "odpo"})",
                    {{"type", "dpo"}, {"margin_scale", 1}, {"margin_of", "log_gap"}});
  CHECK_THROWS_TEXT(make_loss(R"({"type": "apo_zero_unpaired", "estimate_kl": true})"), ConfigError,
                    "loss: expected estimate_kl false with 'apo_zero_unpaired', which stands for "
                    "it, got true");
  CHECK(find_loss("odpo").info.name == "dpo");
  LossEntry entry = find_loss("dpo");
  entry.info.name = "another";
  entry.info.aliases = {};
  CHECK_THROWS_TEXT(register_loss(entry), ConfigError,
                    "loss: expected a name that is free, got 'odpo'");
}

TEST_CASE("a name that means two losses is refused with both", "[losses]") {
  CHECK_THROWS_TEXT(make_loss(R"({"type": "rdpo"})"), ConfigError,
                    "loss: expected 'robust_dpo' or 'r_dpo', got 'rdpo'; robust DPO "
                    "(arXiv:2403.00409) and length-regularized R-DPO (arXiv:2403.19159) both go by "
                    "it");
}

TEST_CASE("options that would do nothing are refused", "[losses]") {
  const auto check = [](const char* config, const std::string& option, const std::string& reason) {
    const std::string name = json::parse(config)["type"];
    CHECK_THROWS_TEXT(make_loss(config), ConfigError,
                      name + ": expected " + option +
                          " at its default, got another value that would do nothing; " + reason);
  };
  check(R"({"type": "dpo", "divergence_alpha": 0.3})", "divergence_alpha",
        "only divergence 'alpha_divergence' reads it");
  check(R"({"type": "ipo", "divergence_gamma": 0.3, "divergence": "forward_kl"})",
        "divergence_gamma", "only divergence 'chi_squared_mix' reads it");
  check(R"({"type": "dpo", "ld_policy_only": true})", "ld_policy_only",
        "at ld_alpha 1 no token counts less");
  check(R"({"type": "hinge", "clamp_weighting": true})", "clamp_weighting",
        "there are no weights of weighting to limit");
  check(R"({"type": "tdpo", "variant": "tdpo1", "alpha": 0.7})", "alpha",
        "it weighs the KLs in variant 'tdpo2' alone");
  check(R"({"type": "vpo", "num_samples": 3})", "num_samples", "calibration is not 'samples'");
  check(R"({"type": "vpo", "alpha": 0, "mode": "online"})", "mode",
        "the value incentive has weight 0");
  check(R"({"type": "hypo", "lambda": 0, "clip": 1})", "clip",
        "the KL on fresh samples has weight 0");
  check(R"({"type": "hypo", "lambda": 0, "num_samples": 3})", "num_samples",
        "the KL on fresh samples has weight 0");
  check(R"({"type": "cpo", "alpha": 0, "reduction": "sum"})", "reduction",
        "the NLL that it reduces has weight 0");
  check(R"({"type": "rpo", "eta": 0, "baseline": "rejected"})", "baseline", "its NLL has weight 0");
  check(R"({"type": "dpo", "margin_of": "log_gap"})", "margin_of", "margin_scale is 0");
  check(R"({"type": "kto", "log_epsilon_p": -2})", "log_epsilon_p",
        "only humanline limits the log-ratios of tokens");
}

TEST_CASE("terms of weight 0 ask for nothing", "[losses]") {
  CHECK(make_loss(R"({"type": "hypo", "lambda": 0})").requirements().samples_per_prompt == 0);
  CHECK_FALSE(make_loss(R"({"type": "tpo", "alpha": 0})").requirements().gold());
  CHECK_FALSE(make_loss(R"({"type": "cpo", "alpha": 0})").requirements().has(Input::chosen_lens));
}

TEST_CASE("humanline where it cannot be meant", "[losses]") {
  const auto check = [](const char* config, const char* text) {
    CHECK_THROWS_TEXT(make_loss(config), ConfigError, text);
  };
  check(R"({"type": "simpo", "humanline": true})",
        "simpo: expected humanline false where reference_free is true, got true; it limits what "
        "separates a token of the policy from the reference's");
  check(R"({"type": "dpo", "humanline": true, "ld_alpha": 0.5})",
        "dpo: expected ld_alpha 1 next to humanline, got 0.5; both say how much a token counts");
  check(R"({"type": "aot", "humanline": true})",
        "aot: expected humanline false, got true; policy and reference are sorted apart, so that "
        "no token has a log-ratio");
  check(
      R"({"type": "odpo", "use_label_probs": true})",
      "dpo: expected margin_of 'gap' next to use_label_probs, got 'log_gap'; the swapped pair has "
      "the negative gap, which has no logarithm");
  check(R"({"type": "mix", "terms": [{"loss": {"type": "dpo", "humanline": true}},
            {"loss": {"type": "ipo", "humanline": true, "log_epsilon_p": -2}}]})",
        "mix: expected terms with the same log_epsilon_p and log_epsilon_r of humanline, got "
        "different ones");
}

TEST_CASE("sft follows the labels of the rows that it is mixed with", "[losses]") {
  const json config = config_of(
      R"({"type": "mix", "terms": [{"loss": {"type": "kto"}}, {"weight": 2, "loss": {"type": "nll"}}]})");
  CHECK(config["terms"][1]["loss"]["use_labels"] == true);
  CHECK(json::parse(make_loss(config.dump()).config()) == config);
  PairLogps logps;
  for (at::Tensor* value :
       {&logps.chosen_logps, &logps.ref_chosen_logps, &logps.kl_logps, &logps.ref_kl_logps}) {
    *value = at::tensor({-3.0, -5.0}, at::kDouble);
  }
  logps.chosen_lens = at::tensor({4.0, 6.0}, at::kDouble);
  logps.labels = at::tensor({1.0, 0.0}, at::kDouble);
  const LossOutput out = make_loss(config.dump())(logps);
  // KTO at the reference is one half; the NLL is the desirable row's over the step's 10 tokens.
  CHECK(out.loss.item<double>() == Approx(0.5 + 2 * 0.3));
  CHECK(out.terms[1].value.item<double>() == Approx(2 * 0.3));
}

TEST_CASE("options that contradict each other are refused with the reason", "[losses]") {
  CHECK_THROWS_TEXT(make_loss(R"({"type": "rpo_sq", "margin_scale": 1})"), ConfigError,
                    "rpo_sq: expected margin_scale 0, got another; the loss reads the margins as "
                    "the reward gap, which eta scales");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "sppo", "soft": true, "use_label_probs": true})"),
                    ConfigError,
                    "sppo: expected use_label_probs false where soft is true, got true; win rates "
                    "already say how likely each completion is the better one");
  CHECK_THROWS_TEXT(
      make_loss(R"({"type": "cpo", "link": "ipo", "label_smoothing": 0.1})"), ConfigError,
      "cpo: expected label_smoothing 0 where link is not sigmoid, got 0.1; the hinge and "
      "the squared link have none");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "tpo", "link": "hinge", "gamma": 0.5})"), ConfigError,
                    "tpo: expected gamma 0 where link is not sigmoid, got 0.5; the hinge and the "
                    "squared link have none");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "tpo", "link": "ipo", "label_smoothing": 0.2})"),
                    ConfigError,
                    "tpo: expected label_smoothing 0 where link is not sigmoid, got 0.2; the hinge "
                    "and the squared link have none");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "aot", "reference_free": true})"), ConfigError,
                    "aot: expected reference_free false, got true; the policy's margins are held "
                    "against the reference's");
}

TEST_CASE("rewards have AlphaPO's shape, and log-probs are a token's, where the loss looks at that",
          "[losses]") {
  PairLogps logps;
  logps.chosen_logps = at::tensor({-4.0}, at::kDouble);
  logps.rejected_logps = at::tensor({-6.0}, at::kDouble);
  logps.chosen_lens = at::tensor({4.0}, at::kDouble);
  logps.rejected_lens = at::tensor({3.0}, at::kDouble);
  const LossOutput out = make_loss(R"({"type": "alphapo", "beta": 2.5, "alpha": 0.25})")(logps);
  // The review's numbers: a = -1 and -2.
  CHECK(out.chosen_rewards.item<double>() == Approx(-2.840).epsilon(1e-3));
  CHECK(out.rejected_rewards.item<double>() == Approx(-6.487).epsilon(1e-3));
  CHECK(out.logged_chosen_logps.item<double>() == -1);
  CHECK(out.logged_rejected_logps.item<double>() == -2);
  CHECK_FALSE(make_loss(R"({"type": "cpo"})")(logps).logged_chosen_logps.defined());
}

TEST_CASE("rewards are of what the loss looks at", "[losses]") {
  PairLogps logps;
  logps.chosen_logps = at::tensor({-8.0}, at::kDouble);
  logps.rejected_logps = at::tensor({-6.0}, at::kDouble);
  logps.chosen_lens = at::tensor({8.0}, at::kDouble);
  logps.rejected_lens = at::tensor({2.0}, at::kDouble);
  // Per token the chosen completion is the likelier one: -1 against -3.
  const LossOutput simpo = make_loss(R"({"type": "simpo", "beta": 2})")(logps);
  CHECK(simpo.chosen_rewards.item<double>() == -2);
  CHECK(simpo.rejected_rewards.item<double>() == -6);
  const LossOutput aot = make_loss(
      R"({"type": "aot_unpaired", "beta": 2, "reference_free": true, "length_normalized": true})")(
      logps);
  CHECK(aot.chosen_rewards.item<double>() == -2);
  CHECK(aot.rejected_rewards.item<double>() == -6);
  // A normalized DPO has the reward of DPO.
  logps.ref_chosen_logps = at::tensor({-9.0}, at::kDouble);
  logps.ref_rejected_logps = at::tensor({-9.0}, at::kDouble);
  const LossOutput dpo = make_loss(R"({"type": "dpo", "length_normalized": true})")(logps);
  CHECK(dpo.chosen_rewards.item<double>() == Approx(0.1));
  CHECK(dpo.rejected_rewards.item<double>() == Approx(0.3));
}

TEST_CASE("equal terms of a mix have metrics of their own", "[losses]") {
  PairLogps logps;
  for (at::Tensor* value : {&logps.chosen_logps, &logps.rejected_logps, &logps.ref_chosen_logps,
                            &logps.ref_rejected_logps}) {
    *value = at::tensor({-3.0}, at::kDouble);
  }
  const LossOutput out = make_loss(
      R"({"type": "mix", "terms": [{"loss": {"type": "dpo"}}, {"loss": {"type": "dpo", "beta": 1}}]})")(
      logps);
  REQUIRE(out.terms.size() == 2);
  CHECK(out.terms[0].name == "dpo");
  CHECK(out.terms[1].name == "dpo_2");
}

TEST_CASE("apo_zero_unpaired is KTO around zero", "[losses]") {
  const json config = config_of(R"({"type": "apo_zero_unpaired", "beta": 0.3})");
  CHECK(config["type"] == "kto");
  CHECK(config["estimate_kl"] == false);
  CHECK(config["beta"] == 0.3);
  const LossRequirements needs = make_loss(config.dump()).requirements();
  CHECK(needs.labels());
  CHECK_FALSE(needs.has(Input::kl_logps));
  CHECK_FALSE(needs.whole_step);
}

// Combinations from which no loss follows, with the reason.
TEST_CASE("options that contradict each other", "[losses]") {
  const auto check = [](const char* config, const char* text) {
    CHECK_THROWS_TEXT(make_loss(config), ConfigError, text);
  };
  check(R"({"type": "dpo", "divergence": "alpha_divergence", "divergence_alpha": 1})",
        "dpo: expected divergence_alpha other than 1, got 1; the formula divides by a - 1, its "
        "limit is divergence 'reverse_kl'");
  check(R"({"type": "alphapo", "alpha": 0})",
        "alphapo: expected alpha other than 0, got 0; the reward divides by alpha, its limit is "
        "the loss 'simpo'");
  check(R"({"type": "nca_pair", "divergence": "forward_kl"})",
        "nca_pair: expected divergence 'reverse_kl', got 'forward_kl'; the loss looks at each "
        "completion by itself, and the normalizer of a divergence cancels in a difference only "
        "(arXiv:2309.16240)");
  check(R"({"type": "simpo", "divergence": "js_divergence"})",
        "simpo: expected divergence 'reverse_kl', got 'js_divergence'; without a reference there "
        "is nothing to diverge from");
  check(R"({"type": "bco_pair", "margin_scale": 0.5})",
        "bco_pair: expected margin_scale 0, got 0.5; the loss looks at each completion by itself, "
        "and a margin belongs to a difference");
  check(R"({"type": "orpo", "reference_free": false})",
        "orpo: expected reference_free and length_normalized to be true, got false; odds are those "
        "of the mean token's probability");
  for (const char* type : {"dpo", "robust_dpo", "simpo", "aot", "cpo"}) {
    const json config{{"type", type}, {"label_smoothing", 0.5}};
    CHECK_THROWS_TEXT(
        make_loss(config.dump()), ConfigError,
        std::string(type) + ": expected label_smoothing in [0, 0.5), got 0.5" + kSmoothingReason);
  }
  check(
      R"({"type": "exo_pair", "label_smoothing": 0.5})",
      "exo_pair: expected label_smoothing in (0, 0.5), got 0.5; the loss has log(label_smoothing), "
      "and from one half on labels say nothing");
  check(R"({"type": "exo_pair", "label_smoothing": 0})",
        "exo_pair: expected label_smoothing in (0, 0.5), got 0; the loss has log(label_smoothing), "
        "and from one half on labels say nothing");
}

TEST_CASE("beta is positive in every loss that has one", "[losses]") {
  for (const std::string& name : registered_losses()) {
    const auto& options = find_loss(name).options;
    if (std::ranges::none_of(options, [](const FieldDoc& o) { return o.name == "beta"; })) continue;
    for (const char* beta : {"0", "-0.1"}) {
      CHECK_THROWS_TEXT(make_loss("{\"type\": \"" + name + "\", \"beta\": " + beta + "}"),
                        ConfigError, name + ": expected beta > 0, got " + beta + kBetaReason);
    }
  }
}

TEST_CASE("mixes that cannot be meant", "[losses]") {
  const auto check = [](const std::string& terms, const std::string& text) {
    CHECK_THROWS_TEXT(make_loss(R"({"type": "mix", "terms": )" + terms + "}"), ConfigError, text);
  };
  check("[]", "mix: expected terms to be a list of at least one, got []");
  check(
      R"([{"weight": 1}])",
      R"(mix: expected terms of the form {"weight": number, "loss": {"type": …}}, got {"weight":1})");
  check(R"([{"loss": {"type": "dpo"}, "wait": 1}])",
        R"(mix: expected terms of the form {"weight": number, "loss": {"type": …}}, )"
        R"(got {"loss":{"type":"dpo"},"wait":1})");
  check(R"([{"loss": {"type": "dpo"}}, {"loss": {"type": "kto"}}])",
        "mix: expected terms for the same kind of rows, got one for pairs and one for single "
        "completions with a label");
  check(
      R"([{"loss": {"type": "beta_dpo"}}, {"loss": {"type": "bco_pair", "running_delta": true}}])",
      "mix: expected at most one term with a running mean, got two");
  check(R"([{"loss": {"type": "hypo"}}, {"loss": {"type": "vpo", "calibration": "samples"}}])",
        "mix: expected terms that want the same fresh samples, got different sources or numbers "
        "of them");
  check(R"([{"loss": {"type": "dpo", "beta": -1}}])",
        "dpo: expected beta > 0, got -1" + kBetaReason);
}

TEST_CASE("a part of a step is refused where rows depend on each other", "[losses]") {
  using namespace testing_support;
  for (const char* type : {"aot", "kto", "beta_dpo"}) {
    PairLogps part = to_tensors(random_pairs(3, 0, 1));
    part.totals.pairs = 8;
    CHECK_THROWS_TEXT(make_loss(json{{"type", type}}.dump())(part), ShapeError,
                      std::string(type) +
                          ": expected all 8 rows of the step at once, got 3; each row's loss "
                          "depends on the others");
  }
}

TEST_CASE("configs that cannot be meant", "[losses]") {
  CHECK_THROWS_TEXT(make_loss(R"({"beta": 0.1})"), ConfigError,
                    R"(loss: expected a key 'type' that names a loss, got {"beta":0.1})");
  CHECK_THROWS_TEXT(make_loss("[]"), ConfigError,
                    "loss: expected an object with a key 'type', got []");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dop"})"), ConfigError,
                    "loss: expected a registered loss, got 'dop'; did you mean 'dpo'?");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "robust_dop"})"), ConfigError,
                    "loss: expected a registered loss, got 'robust_dop'; did you mean "
                    "'robust_dpo'?");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dpo", "beta": 0})"), ConfigError,
                    "dpo: expected beta > 0, got 0" + kBetaReason);
  CHECK_THROWS_TEXT(make_loss(R"({"type": "robust", "label_smoothing": 0.5})"), ConfigError,
                    "robust_dpo: expected label_smoothing in [0, 0.5), got 0.5" + kSmoothingReason);
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dpo", "beta": "0.1"})"), ConfigError,
                    R"(dpo: expected beta to be a number, got "0.1")");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dpo", "beta": 1, "beta": 2})"), ConfigError,
                    "loss: expected JSON, got the key 'beta' twice");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "ipo", "beta": 1, "tau": 2})"), ConfigError,
                    "ipo: expected beta once, got it as 'beta' and as 'tau'");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "vpo", "mode": "onlin"})"), ConfigError,
                    "vpo: expected mode to be one of 'offline', 'online', got 'onlin'; did you "
                    "mean 'online'?");
  CHECK_THROWS_TEXT(DpoLoss({.beta = -1}), ConfigError,
                    "dpo: expected beta > 0, got -1" + kBetaReason);
  CHECK_THROWS_TEXT(DpoLoss({.beta = std::nan("")}), ConfigError,
                    "dpo: expected beta > 0, got nan" + kBetaReason);
}

// A loss of a user's own: hinge, by the same algebra.
struct MyHingeLink {
  double beta;
  template <class T>
  T value(const T& delta) const {
    const T z = beta * delta;
    return at::relu(1 - z);
  }
  template <class T>
  T derivative(const T& delta) const {
    const T z = beta * delta;
    return -beta * (z < 1).to(delta.scalar_type());
  }
};

class MyHinge : public PairwiseLoss<MyHinge, DpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;
  MyHingeLink link() const { return {options_.beta}; }
  static LossInfo info() { return {.name = "my_hinge", .aliases = {"my_slic"}}; }
};

TEST_CASE("a loss that is not registered can be used as it is", "[losses]") {
  using namespace testing_support;
  PairLogps in = to_tensors(random_pairs(5, 0, 9));
  in.chosen_logps.requires_grad_();
  const Loss loss = MyHinge({.beta = 0.2});
  const LossOutput out = loss(in);
  const at::Tensor delta =
      (in.chosen_logps - in.ref_chosen_logps) - (in.rejected_logps - in.ref_rejected_logps);
  const at::Tensor expected = at::clamp_min(1 - 0.2 * delta, 0).mean();
  CHECK(out.loss.item<double>() == Approx(expected.item<double>()));
  out.loss.backward();
  const at::Tensor gradient = in.chosen_logps.grad().clone();
  in.chosen_logps.mutable_grad().zero_();
  expected.backward();
  CHECK(at::allclose(gradient, in.chosen_logps.grad()));
}

TEST_CASE("an option cannot change what a name of TRL's stands for", "[losses]") {
  for (const char* config :
       {R"({"loss_type": "ipo", "cpo_alpha": 1, "link": "hinge"})",
        R"({"trainer": "CPOTrainer", "loss_type": "simpo", "length_normalized": false})"}) {
    CAPTURE(config);
    CHECK_THROWS_AS(make_loss(config), ConfigError);
  }
}

TEST_CASE("names that are taken are refused", "[losses]") {
  LossEntry entry = loss_entry<MyHinge>();
  entry.info.name = "dpo";
  CHECK_THROWS_TEXT(register_loss(entry), ConfigError,
                    "loss: expected a name that is free, got 'dpo'");
  entry.info.name = "other";
  entry.info.aliases = {"robust"};
  CHECK_THROWS_TEXT(register_loss(entry), ConfigError,
                    "loss: expected a name that is free, got 'robust'");
}

}  // namespace
}  // namespace prefopt
