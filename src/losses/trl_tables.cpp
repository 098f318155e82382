// SPDX-License-Identifier: Apache-2.0
#include "losses/trl_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using TrlNames = std::vector<std::string_view>;

template <class T>
void add(std::vector<T>& rows, std::initializer_list<std::type_identity_t<T>> more) {
  rows.insert(rows.end(), more);
}

TrlNames with(TrlNames names, std::initializer_list<std::string_view> more) {
  add(names, more);
  return names;
}

// A flag in place of our choice, and a coefficient at which TRL falls back to the reverse KL.
void finish_dpo(Json& loss) {
  if (const auto given = loss.find("weighting"); given != loss.end() && !given->is_string()) {
    if (!given->is_boolean()) {
      throw ConfigError(fmt::format("loss: expected use_weighting to be true or false, got {}",
                                    shown_json(*given)));
    }
    *given = given->get<bool>() ? "sampled_alignment" : "none";
  }
  const auto coefficient = loss.find("divergence_alpha");
  if (loss.value("divergence", Json()) == "alpha_divergence" && coefficient != loss.end() &&
      coefficient->is_number() && std::abs(coefficient->get<double>() - 1) < 1e-6) {
    loss["divergence"] = "reverse_kl";
    loss.erase("divergence_alpha");
  }
}

// Without an NLL, SimPO and AlphaPO are other types here.
void finish_cpo(Json& loss) {
  const bool of_means = loss.value("length_normalized", false) && !loss.contains("link");
  if (!of_means || loss["alpha"] != 0) return;
  const Json shape = loss["reward_alpha"];
  loss.erase("alpha");
  loss.erase("reward_alpha");
  loss["type"] = shape == 0 ? "simpo" : "alphapo";
  if (shape != 0) loss["alpha"] = shape;
  if (!loss.contains("gamma")) loss["gamma"] = 0;
}

TrlTrainer dpo_trainer() {
  const TrlNames all = {"beta", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"};
  const TrlNames weighed = with(all, {"use_weighting"});
  return {
      .name = "DPOTrainer",
      .config_name = "DPOConfig",
      .keys = {{"beta", "beta", "0.1"},
               {"label_smoothing", "label_smoothing", "0"},
               {"f_divergence_type", "divergence", R"("reverse_kl")"},
               {"f_alpha_divergence_coef", "divergence_alpha", "0.5"},
               {"ld_alpha", "ld_alpha", "1", true},
               {"use_weighting", "weighting", "false", true},
               {"discopop_tau", "tau", "0.05"}},
      .losses = {{"sigmoid", R"({"type": "dpo"})", weighed},
                 {"hinge", R"({"type": "hinge"})", weighed},
                 {"ipo", R"({"type": "ipo"})", weighed},
                 {"exo_pair", R"({"type": "exo_pair", "trl_constants": true})",
                  with(weighed, {"label_smoothing"})},
                 {"nca_pair", R"({"type": "nca_pair"})", weighed},
                 {"robust", R"({"type": "robust_dpo"})", with(weighed, {"label_smoothing"})},
                 {"bco_pair", R"({"type": "bco_pair"})", weighed},
                 {"sppo_hard", R"({"type": "sppo"})", weighed},
                 {"aot", R"({"type": "aot"})", with(all, {"label_smoothing"})},
                 {"aot_unpaired", R"({"type": "aot_unpaired"})", with(all, {"label_smoothing"})},
                 {"aot_pair", R"({"type": "aot_unpaired"})", with(all, {"label_smoothing"})},
                 {"apo_zero", R"({"type": "apo_zero"})", weighed},
                 {"apo_down", R"({"type": "apo_down"})", weighed},
                 {"discopop", R"({"type": "discopop"})", with(weighed, {"discopop_tau"})},
                 // Of beta TRL makes the rewards of the metrics alone.
                 {"sft",
                  R"({"type": "sft"})",
                  {},
                  {"beta", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"}},
                 {"sigmoid_norm", R"({"type": "sigmoid_norm"})", weighed}},
      .takes_lists = true,
      .finish = finish_dpo};
}

TrlTrainer kto_trainer() {
  const TrlNames all = {"beta", "desirable_weight", "undesirable_weight"};
  return {.name = "KTOTrainer",
          .config_name = "KTOConfig",
          .keys = {{"beta", "beta", "0.1"},
                   {"desirable_weight", "desirable_weight", "1"},
                   {"undesirable_weight", "undesirable_weight", "1"}},
          .losses = {{"kto", R"({"type": "kto"})", all},
                     {"apo_zero_unpaired", R"({"type": "apo_zero_unpaired"})", all}}};
}

/// Keys and losses that CPOTrainer and TPOTrainer have alike: `type` with each link. The logistic
/// ones read `smoothed`, the others `all`.
TrlTrainer link_trainer(std::string_view type, std::string_view beta, const TrlNames& all,
                        const TrlNames& smoothed) {
  const auto config = [&](std::string_view more) {
    return fmt::format(R"({{"type": "{}"{}}})", type, more);
  };
  return {.keys = {{"beta", "beta", beta}, {"label_smoothing", "label_smoothing", "0"}},
          .losses = {{"sigmoid", config(""), smoothed},
                     {type, config(""), smoothed},
                     {"hinge", config(R"(, "link": "hinge")"), all},
                     {"ipo", config(R"(, "link": "ipo", "length_normalized": true)"), all}}};
}

TrlTrainer cpo_trainer() {
  const TrlNames all = {"beta", "cpo_alpha", "alpha"};
  const TrlNames smoothed = with(all, {"label_smoothing"});
  TrlTrainer trainer = link_trainer("cpo", "0.1", all, smoothed);
  trainer.name = "CPOTrainer";
  trainer.config_name = "CPOConfig";
  add(trainer.keys, {{"cpo_alpha", "alpha", "1"},
                     {"simpo_gamma", "gamma", "0.5"},
                     {"alpha", "reward_alpha", "0"}});
  add(trainer.losses,
      {{"simpo", R"({"type": "cpo", "length_normalized": true})", with(smoothed, {"simpo_gamma"})},
       // TRL sets cpo_alpha to 0, whatever it was.
       {"alphapo",
        R"({"type": "cpo", "length_normalized": true, "alpha": 0})",
        {"beta", "alpha", "label_smoothing", "simpo_gamma"},
        {"cpo_alpha"}}});
  trainer.finish = finish_cpo;
  return trainer;
}

TrlTrainer orpo_trainer() {
  return {.name = "ORPOTrainer",
          .config_name = "ORPOConfig",
          .keys = {{"beta", "lambda", "0.1"}},
          .losses = {{"orpo", R"({"type": "orpo", "nll_over_prompt": true})", {"beta"}}}};
}

TrlTrainer tpo_trainer() {
  const TrlNames all = {"beta", "tpo_alpha"};
  const TrlNames smoothed = with(all, {"label_smoothing"});
  TrlTrainer trainer = link_trainer("tpo", "0.01", all, smoothed);
  trainer.name = "TPOTrainer";
  trainer.config_name = "TPOConfig";
  add(trainer.keys, {{"tpo_alpha", "alpha", "1"}, {"tpo_l_gamma", "gamma", "0.5"}});
  add(trainer.losses, {{"tpo-l", R"({"type": "tpo", "length_normalized": true})",
                        with(smoothed, {"tpo_l_gamma"})}});
  return trainer;
}

// Of its config one key shapes the loss; it has no loss_type. A margin it takes from the rows, ours
// is the option margin_scale.
TrlTrainer reward_trainer() {
  return {
      .name = "RewardTrainer",
      .config_name = "RewardConfig",
      .keys = {{"center_rewards_coefficient", "center_rewards_coefficient", "0"}},
      .losses = {{"bradley_terry", R"({"type": "reward_bt"})", {"center_rewards_coefficient"}}}};
}

template <class Row>
const Row* find_named(const std::vector<Row>& rows, std::string_view name) {
  const auto found =
      std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

}  // namespace

const TrlKey* TrlTrainer::key(std::string_view key_name) const {
  return find_named(keys, key_name);
}

const TrlLoss* TrlTrainer::loss(std::string_view loss_name) const {
  return find_named(losses, loss_name);
}

const std::vector<TrlTrainer>& trl_trainers() {
  static const std::vector<TrlTrainer> trainers = {dpo_trainer(),  kto_trainer(), cpo_trainer(),
                                                   orpo_trainer(), tpo_trainer(), reward_trainer()};
  return trainers;
}

}  // namespace prefopt::detail
