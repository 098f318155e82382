// SPDX-License-Identifier: Apache-2.0

// Objectives on tokens against values made with numpy, TRL 1.16.0 and verl 0.9.1
// (tests/data/README.md).

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/objectives/reward_shaping.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/testing/objective_checks.h"
#include "support/catch.h"
#include "support/golden_rollouts.h"

namespace prefopt {
namespace {

using nlohmann::json;
using testing_support::golden_arrays;
using testing_support::golden_rollouts;
using testing_support::GoldenRollouts;
using testing_support::TokenArraysXd;

constexpr double kTolerance = 1e-10;

const json& golden() {
  static const json all = [] {
    std::ifstream file(PREFOPT_TEST_DATA_DIR "/policy_gradient.json");
    return json::parse(file);
  }();
  return all;
}

/// The numbers of a list, of lists one after the other.
Eigen::ArrayXd numbers(const json& x) {
  std::vector<double> all;
  const auto add = [&](const json& item, const auto& again) -> void {
    if (item.is_array()) {
      for (const json& inner : item) again(inner, again);
    } else {
      all.push_back(item.get<double>());
    }
  };
  add(x, add);
  return Eigen::Map<const Eigen::ArrayXd>(all.data(), static_cast<Eigen::Index>(all.size()));
}

void check_numbers(const Eigen::ArrayXd& got, const json& expected) {
  const Eigen::ArrayXd want = numbers(expected);
  REQUIRE(got.size() == want.size());
  for (Eigen::Index i = 0; i < got.size(); ++i) {
    CAPTURE(i, got[i], want[i]);
    CHECK(std::abs(got[i] - want[i]) <= kTolerance);
  }
}

Eigen::ArrayXd as_array(const at::Tensor& x) {
  const at::Tensor plain = x.detach().contiguous();
  return Eigen::Map<const Eigen::ArrayXd>(plain.data_ptr<double>(), plain.numel());
}

Eigen::ArrayXd array_of(std::initializer_list<double> x) {
  return Eigen::Map<const Eigen::ArrayXd>(x.begin(), static_cast<Eigen::Index>(x.size()));
}

/// The number of each completion of numbers that its tokens share.
Eigen::ArrayXd of_completions(const RolloutStep& step, const Eigen::ArrayXd& of_tokens) {
  Eigen::ArrayXd each(step.completions());
  for (Eigen::Index i = 0; i < each.size(); ++i) {
    each[i] = of_tokens[step.starts()[static_cast<std::size_t>(i)]];
  }
  return each;
}

TEST_CASE("golden inputs follow from the formulas", "[golden]") {
  const GoldenRollouts all = golden_rollouts();
  const json& inputs = golden()["inputs"];
  check_numbers(all.logps, inputs["logps"]);
  check_numbers(all.step.old_logps, inputs["old"]);
  check_numbers(all.step.ref_logps, inputs["ref"]);
  check_numbers(all.sampler_logps, inputs["sampler"]);
  check_numbers(all.step.rewards, inputs["rewards"]);
  check_numbers(all.step.values, golden()["values_kl"]["gae"]["values"]);
  check_numbers(all.old_values, golden()["values_kl"]["value_loss"]["old_values"]);
  check_numbers(all.step.extra_logps, golden()["methods"]["rto"]["dpo_logps"]);
}

TEST_CASE("golden advantages", "[golden]") {
  const RolloutStep step = golden_rollouts().step;
  const json& all = golden()["policy_gradient"]["advantages"];
  const std::pair<const char*, const char*> cases[] = {
      {"reinforce", R"({"kind": "none"})"},
      {"remax", R"({"kind": "greedy"})"},
      {"rloo", R"({"kind": "leave_one_out"})"},
      {"mean(dr_grpo)", R"({"kind": "group_mean"})"},
      {"grpo(ddof1,1e-4)", R"({"kind": "group_std"})"},
      {"grpo(ddof1,1e-6)", R"({"kind": "group_std", "epsilon": 1e-6})"},
      {"grpo(ddof0,0)", R"({"kind": "group_std", "epsilon": 0, "ddof": 0})"},
      {"batch_scale(1e-4)", R"({"kind": "batch_std"})"},
      {"loo_over_std(NeMo,1e-6)",
       R"({"kind": "group_std", "epsilon": 1e-6, "baseline": "leave_one_out"})"},
      {"opo", R"({"kind": "length_mean"})"},
      {"kimi_logmeanexp(tau=0.5)", R"({"kind": "soft_mean", "tau": 0.5})"}};
  for (const auto& [name, config] : cases) {
    CAPTURE(name);
    check_numbers(of_completions(step, make_advantage(config).of(step)), all.at(name));
  }
  check_numbers(make_advantage(R"({"kind": "whiten_tokens"})").of(step),
                all.at("reinforce_pp_baseline_tokens"));
  CHECK(all.size() == std::size(cases) + 1);
}

TEST_CASE("golden advantages: equal rewards are 0 exactly, the spread erases the scale",
          "[golden]") {
  RolloutStep step = golden_rollouts().step;
  step.rewards = Eigen::ArrayXd::Constant(8, 0.1 + 0.2);
  for (const char* kind : {"leave_one_out", "group_mean", "group_std", "batch_std", "whiten_tokens",
                           "length_mean", "soft_mean"}) {
    CAPTURE(kind);
    const Advantage advantage = make_advantage(json{{"kind", kind}}.dump());
    CHECK((advantage.of(step) == 0).all());
  }
  const json& scale = golden()["policy_gradient"]["advantages_scale"];
  step.rewards = numbers(scale["rewards"]);
  check_numbers(of_completions(step, make_advantage(R"({"kind": "group_std"})").of(step)),
                scale["grpo(1e-4)"]);
  check_numbers(of_completions(step, make_advantage(R"({"kind": "leave_one_out"})").of(step)),
                scale["rloo"]);
}

/// Loss and gradient of a config, by arrays and by tensors.
void check_objective_case(const std::string& config, const json& expected) {
  const TokenObjective objective = make_token_objective(config);
  const GoldenRollouts all = golden_rollouts();
  const TokenArraysXd in = golden_arrays(all, objective.advantages(all.step));
  const double beta = objective.options().kl.coefficient;
  const auto out = objective.formula(in, beta);
  CHECK(std::abs(out.loss - expected.at("loss").get<double>()) <= kTolerance);
  check_numbers(out.grad_logps, expected.at("grad"));

  TokenArrays tensors = testing::as_tensors(in);
  tensors.logps.requires_grad_();
  const ObjectiveOutput of_tensors = objective.forward(tensors);
  of_tensors.loss.backward();
  CHECK(std::abs(of_tensors.loss.item<double>() - expected.at("loss").get<double>()) <= kTolerance);
  check_numbers(as_array(tensors.logps.grad()), expected.at("grad"));
}

/// The config of an objective; `rest` are further members.
std::string config_of(const std::string& advantage, const std::string& rule,
                      const std::string& rest) {
  return R"({"type": "policy_gradient", "advantage": {)" + advantage + R"(}, "rule": {)" + rule +
         "}, " + rest + "}";
}

TEST_CASE("golden objectives, loss and gradient", "[golden]") {
  const std::string std_of_group = R"("kind": "group_std", "epsilon": 1e-4)";
  const std::string others = R"("kind": "leave_one_out")";
  const std::string ppo = R"("kind": "ppo", "low": 0.2, "high": 0.2)";
  const std::string dapo = R"("kind": "ppo", "low": 0.2, "high": 0.28)";
  const std::string token_mean = R"("aggregation": "token_mean")";
  const std::string of_completions = R"("aggregation": "sequence_token_mean")";
  const auto k3 = [&](const std::string& weight) {
    return of_completions + R"(, "kl": {"estimator": "k3", "coefficient": 0.04, "weight": ")" +
           weight + "\"}";
  };
  const auto corrected = [&](const std::string& correction) {
    return token_mean + R"(, "correction": {)" + correction + "}";
  };
  const std::pair<const char*, std::string> cases[] = {
      {"reinforce_token_mean", config_of(others, R"("kind": "none")", token_mean)},
      {"grpo", config_of(std_of_group, ppo, of_completions)},
      {"grpo_k3_beta.04", config_of(std_of_group, ppo, k3("none"))},
      {"grpo_k3xratio_beta.04", config_of(std_of_group, ppo, k3("ratio"))},
      {"dapo_eps.2_.28", config_of(std_of_group, dapo, token_mean)},
      {"dr_grpo_max8", config_of(R"("kind": "group_mean")", ppo,
                                 R"("aggregation": "fixed", "max_completion_length": 8)")},
      {"seq_sum(luspo agg)", config_of(std_of_group, ppo, R"("aggregation": "sequence_sum")")},
      {"two_sided_delta1.2", config_of(std_of_group, ppo + R"(, "delta": 1.2)", of_completions)},
      {"dual_clip1.25", config_of(std_of_group, ppo + R"(, "dual": 1.25)", token_mean)},
      {"gspo", config_of(std_of_group, R"("kind": "ppo", "low": 0.03, "high": 0.04)",
                         R"("level": "sequence_mean", )" + of_completions)},
      {"rloo_trl_seq_sum_ratio",
       config_of(others, ppo, R"("level": "sequence_sum", "aggregation": "sequence_sum")")},
      {"cispo_trl_max1.1", config_of(std_of_group, R"("kind": "cispo", "max": 1.1)", token_mean)},
      {"cispo_verl_.2_.28",
       config_of(std_of_group, R"("kind": "cispo", "min": 0.8, "max": 1.28)", token_mean)},
      {"sapo", config_of(std_of_group, R"("kind": "sapo")", of_completions)},
      {"loop_paper_eps.1",
       config_of(others, R"("kind": "ppo", "low": 0.1, "high": 0.1)", of_completions)},
      // The code's lower limit is 1 / (1 + epsilon).
      {"loop_code_eps.1",
       config_of(others, R"("kind": "ppo", "low": 0.090909090909090912, "high": 0.1)",
                 of_completions)},
      {"dapo_tis_truncate1.03",
       config_of(std_of_group, dapo, corrected(R"("kind": "truncate", "cap": 1.03)"))},
      {"dapo_tis_mask.97_1.03",
       config_of(std_of_group, dapo, corrected(R"("kind": "mask", "low": 0.97, "cap": 1.03)"))},
      {"dapo_seq_mask_is1.05",
       config_of(std_of_group, dapo, corrected(R"("kind": "sequence_mask", "cap": 1.05)"))},
      {"vespo", config_of(std_of_group, R"("kind": "vespo")", token_mean)}};
  const json& all = golden()["policy_gradient"]["objectives"];
  CHECK(all.size() == std::size(cases));
  for (const auto& [name, config] : cases) {
    CAPTURE(name);
    check_objective_case(config, all.at(name));
  }
}

TEST_CASE("golden objectives: no cut changes the loss", "[golden]") {
  const json& expected = golden()["policy_gradient"]["cut_dependence"];
  const GoldenRollouts all = golden_rollouts();
  for (const auto& [name, config] : {std::pair{"grpo", R"({"loss_type": "grpo"})"},
                                     std::pair{"dapo", R"({"loss_type": "dapo"})"}}) {
    const TokenObjective objective = make_token_objective(config);
    const TokenArraysXd in = golden_arrays(all, objective.advantages(all.step));
    const double whole = expected[name]["whole"];
    const std::vector<std::vector<std::int64_t>> cuts[] = {{{0, 1, 2, 3, 4, 5, 6, 7}},
                                                           {{0, 1, 2, 3}, {4, 5, 6, 7}},
                                                           {{0, 1}, {2, 3}, {4, 5}, {6, 7}},
                                                           {{0, 1, 2}, {3, 4, 5, 6, 7}}};
    for (const auto& parts : cuts) {
      double sum = 0;
      for (const auto& part : parts) {
        sum += objective.formula(testing::take_completions(in, part), 0).loss;
      }
      CHECK(std::abs(sum - whole) <= 1e-12);
    }
  }
}

TEST_CASE("golden generalized advantages, returns, whitening and value loss", "[golden]") {
  const json& values = golden()["values_kl"];
  const GoldenRollouts all = golden_rollouts();
  const auto objective = [](double gamma, double lambda, bool whiten, const std::string& rest) {
    const json gae = {{"kind", "gae"}, {"gamma", gamma}, {"lambda", lambda}, {"whiten", whiten}};
    return make_token_objective(R"({"type": "policy_gradient", "advantage": )" + gae.dump() +
                                R"(, "rule": {"kind": "ppo"},
           "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.05})" +
                                rest + "}");
  };
  const auto check = [&](const json& expected, double gamma, double lambda) {
    const StepAdvantages got = objective(gamma, lambda, false, "").advantages(all.step);
    check_numbers(got.advantages, expected["advantages"]);
    check_numbers(got.returns, expected["returns"]);
  };
  check(values["gae"], 1, 0.95);
  check(values["gae_0.99_0.9"], 0.99, 0.9);
  const StepAdvantages white = objective(1, 0.95, true, "").advantages(all.step);
  check_numbers(white.advantages, values["gae"]["whitened(eps1e-8,unbiased var)"]);
  check_numbers(white.returns, values["gae"]["returns"]);

  for (const auto& [name, clip, aggregation] :
       {std::tuple{"clip0.2_token_mean", "0.2", "token_mean"},
        std::tuple{"clip0.05_token_mean", "0.05", "token_mean"},
        std::tuple{"clip0.05_seq_mean", "0.05", "sequence_token_mean"}}) {
    CAPTURE(name);
    const TokenObjective of =
        objective(1, 0.95, false,
                  R"(, "value_loss": {"coefficient": 1, "clip": )" + std::string(clip) +
                      R"(}, "aggregation": ")" + aggregation + "\"");
    const auto out = of.formula(golden_arrays(all, of.advantages(all.step)), 0.05);
    const json& expected = values["value_loss"][name];
    REQUIRE(out.terms.back().name == "value");
    CHECK(std::abs(out.terms.back().value - expected["loss"].get<double>()) <= kTolerance);
    check_numbers(out.grad_values, expected["grad"]);
  }
}

TEST_CASE("golden normalization of rewards and adaptive KL coefficient", "[golden]") {
  const json& values = golden()["values_kl"];
  const json& norm = values["reward_norm"];
  for (const auto& [name, centres, clip] :
       {std::tuple{"norm_clip0.8_unbiased", true, 0.8},
        std::tuple{"scale_only_clip10_unbiased", false, 10.0}}) {
    RewardNormalizer normalizer(centres, clip);
    for (std::size_t i = 0; i < norm["batches"].size(); ++i) {
      CAPTURE(name, i);
      check_numbers(normalizer(numbers(norm["batches"][i])), norm[name][i]["out"]);
      CHECK(std::abs(normalizer.mean() - norm[name][i]["mean"].get<double>()) <= kTolerance);
      CHECK(std::abs(normalizer.standard_deviation() - norm[name][i]["std"].get<double>()) <=
            kTolerance);
    }
  }
  for (const json& item : values["adaptive_kl"]) {
    CHECK(std::abs(adapted_kl_coefficient(item["beta"], item["kl"], item["target"], item["n"],
                                          item["horizon"]) -
                   item["new"].get<double>()) <= kTolerance);
  }
}

Eigen::ArrayXd log_softmax(const Eigen::ArrayXd& logits) {
  return logits - std::log(logits.exp().sum());
}

TEST_CASE("golden KL estimators on three actions", "[golden]") {
  const json& kl = golden()["values_kl"]["kl"];
  const Eigen::ArrayXd logps = log_softmax(numbers(kl["logits"]));
  const Eigen::ArrayXd ref_logps = log_softmax(numbers(kl["ref_logits"]));
  const Eigen::ArrayXd behaviour = log_softmax(numbers(kl["behaviour_logits"]));
  const Eigen::ArrayXd pi = logps.exp();

  // The gradient in the logits of Σ_a weights(a) slopes(a) log π(a).
  const auto to_logits = [&](const Eigen::ArrayXd& weighed_slopes) {
    return Eigen::ArrayXd(weighed_slopes - pi * weighed_slopes.sum());
  };
  // The gradient in log π of a loss of one token of each action, drawn by `drawn`.
  const auto gradients = [&](KlEstimator estimator, KlWeight weight, const Eigen::ArrayXd& drawn) {
    TokenObjectiveOptions options;
    options.kl = {.estimator = estimator, .weight = weight, .coefficient = 1};
    const TokenObjective objective(options);
    Eigen::ArrayXd result(3);
    for (Eigen::Index a = 0; a < 3; ++a) {
      TokenArraysXd in;
      in.logps = logps.segment(a, 1);
      in.old_logps = drawn.segment(a, 1);
      in.ref_logps = ref_logps.segment(a, 1);
      in.advantages = in.completions = array_of({0});
      in.lens = array_of({1});
      in.completion_count = 1;
      in.totals = {.tokens = 1, .completions = 1, .groups = 1};
      result[a] = objective.formula(in, 1).grad_logps[0];
    }
    return result;
  };
  const auto estimate = [&](KlEstimator estimator) {
    return estimate_kl<Eigen::ArrayXd>(estimator, logps, ref_logps).values;
  };
  for (const auto& [name, estimator] :
       {std::pair{"k1", KlEstimator::kK1}, std::pair{"k2", KlEstimator::kK2},
        std::pair{"k3", KlEstimator::kK3}}) {
    CAPTURE(name);
    const Eigen::ArrayXd values = estimate(estimator);
    check_numbers(values, kl["per_action"][name]);
    const double mean = (pi * values).sum();
    CHECK(std::abs(mean - kl["expectation_under_pi"][name].get<double>()) <= kTolerance);
    CHECK(std::abs((pi * (values - mean).square()).sum() -
                   kl["variance_under_pi"][name].get<double>()) <= kTolerance);
    check_numbers(to_logits(pi * gradients(estimator, KlWeight::kNone, logps)),
                  kl["expected_grad_in_loss"][name]);
  }
  check_numbers(to_logits(pi * estimate(KlEstimator::kK1)),
                kl["k1_in_reward(score function k1*grad logp)"]);
  const Eigen::ArrayXd drawn = behaviour.exp();
  const auto off_policy = [&](KlEstimator estimator, KlWeight weight) {
    return to_logits(drawn * gradients(estimator, weight, behaviour));
  };
  check_numbers(off_policy(KlEstimator::kK3, KlWeight::kRatio), kl["k3 x ratio under behaviour"]);
  check_numbers(off_policy(KlEstimator::kK1, KlWeight::kRatio), kl["k1 x ratio under behaviour"]);
  check_numbers(off_policy(KlEstimator::kK3, KlWeight::kNone),
                kl["k3 uncorrected under behaviour: grad"]);
  CHECK(std::abs((drawn * estimate(KlEstimator::kK3)).sum() -
                 kl["k3 uncorrected under behaviour: value"].get<double>()) <= kTolerance);
}

TEST_CASE("golden mirror descent of Kimi k1.5", "[golden]") {
  const json& kimi = golden()["methods"]["kimi"];
  const GoldenRollouts all = golden_rollouts();
  for (const auto& [name, advantage] :
       {std::pair{"mean", R"("kind": "group_mean")"},
        std::pair{"logmeanexp", R"("kind": "soft_mean", "tau": 0.5)"}}) {
    const TokenObjective objective = make_token_objective(
        config_of(advantage, R"("kind": "regress", "tau": 0.5)",
                  R"("level": "sequence_sum", "aggregation": "sequence_sum")"));
    const auto out = objective.formula(golden_arrays(all, objective.advantages(all.step)), 0);
    // The golden loss is not divided by 2 tau, which is 1 here.
    CHECK(std::abs(out.loss - kimi[name]["squared_loss"].get<double>()) <= kTolerance);
    check_numbers(of_completions(all.step, out.grad_logps), kimi[name]["dloss/dS"]);
  }
}

TEST_CASE("golden rewards by length, overlong penalties, weights by rank, priorities", "[golden]") {
  const json& methods = golden()["methods"];
  for (const json& item : methods["kimi"]["length_reward"]) {
    std::vector<bool> correct;
    for (const json& flag : item["correct"]) correct.push_back(flag.get<int>() == 1);
    check_numbers(length_rewards(numbers(item["lens"]), correct), item["out"]);
  }
  check_numbers(prompt_priorities(array_of({0, 0.25, 0.5, 1})),
                methods["kimi"]["prioritized_probs(success rates 0,.25,.5,1)"]);
  const json& overlong = methods["overlong"];
  check_numbers(overlong_penalties(numbers(overlong["lens"]), overlong["max"], overlong["buffer"],
                                   overlong["factor"]),
                overlong["penalty"]);

  const json& pf = methods["pf_ppo"];
  const std::pair<const char*, RankFilter> filters[] = {{"none", RankFilter::kNone},
                                                        {"bon", RankFilter::kBest},
                                                        {"br", RankFilter::kBestRandom},
                                                        {"bw", RankFilter::kBestWorst}};
  const Eigen::ArrayXd p = numbers(pf["induced_policy"]["p"]);
  const Eigen::ArrayXd rewards = numbers(pf["induced_policy"]["reward"]);
  for (const auto& [name, filter] : filters) {
    CAPTURE(name);
    check_numbers(rank_weights(array_of({4, 3, 2, 1}), filter),
                  pf["rank_weights"][std::string(name) + "_N4"]);
    check_numbers(rank_weights(array_of({5, 4, 3, 2, 1}), filter),
                  pf["rank_weights"][std::string(name) + "_N5"]);
    // Over all draws of three completions.
    Eigen::ArrayXd induced = Eigen::ArrayXd::Zero(3);
    for (int draw = 0; draw < 27; ++draw) {
      const int actions[] = {draw / 9, draw / 3 % 3, draw % 3};
      const Eigen::ArrayXd weights = rank_weights(
          array_of({rewards[actions[0]], rewards[actions[1]], rewards[actions[2]]}), filter);
      const double probability = p[actions[0]] * p[actions[1]] * p[actions[2]];
      for (int i = 0; i < 3; ++i) induced[actions[i]] += probability * weights[i];
    }
    check_numbers(induced, pf["induced_policy"][name]);
  }
}

TEST_CASE("golden token rewards of RTO", "[golden]") {
  const RolloutStep step = golden_rollouts().step;
  const json& rto = golden()["methods"]["rto"];
  for (const auto& [clip, name] :
       {std::pair{"0", "token_rewards"}, std::pair{"0.05", "token_rewards_clip.05"}}) {
    // With gamma 0 the sum of rewards to go is the token's own.
    const TokenObjective objective = make_token_objective(
        config_of(R"("kind": "to_go", "gamma": 0)", R"("kind": "none")",
                  R"("kl": {"estimator": "k1", "place": "reward", "coefficient": 0.01},
                     "dpo_reward": {"coefficient": 0.05, "clip": )" +
                      std::string(clip) + "}"));
    check_numbers(objective.advantages(step).advantages, rto[name]);
  }
}

TEST_CASE("golden mask of off-policy completions", "[golden]") {
  const json& golden_mask = golden()["misc"]["off_policy_mask_tau0.1"];
  const GoldenRollouts all = golden_rollouts();
  const auto gradient = [&](const std::string& rest) {
    const TokenObjective objective =
        make_token_objective(config_of(R"("kind": "group_std")", R"("kind": "none")", rest));
    return Eigen::ArrayXd(
        objective.formula(golden_arrays(all, objective.advantages(all.step)), 0).grad_logps);
  };
  const Eigen::ArrayXd free = gradient(R"("off_policy_drop": 0)");
  const Eigen::ArrayXd masked = gradient(R"("off_policy_drop": 0.1)");
  const Eigen::ArrayXd keep = all.step.spread(numbers(golden_mask["keep"]));
  CHECK((masked == free * keep).all());
}

TEST_CASE("golden unfinished completions do not count", "[golden]") {
  const json& expected = golden()["misc"]["mask_truncated"];
  const GoldenRollouts all = golden_rollouts();
  // Advantages are of all completions; completions 2 and 5 are then left out, of the totals too.
  const auto loss = [&](const char* config) {
    const TokenObjective objective = make_token_objective(config);
    TokenArraysXd in = testing::take_completions(golden_arrays(all, objective.advantages(all.step)),
                                                 {0, 1, 3, 4, 6, 7});
    in.totals = {.tokens = 12, .completions = 6, .groups = 2};
    return objective.formula(in, 0).loss;
  };
  CHECK(std::abs(loss(R"({"loss_type": "dapo"})") -
                 expected["dapo(token mean over remaining)"].get<double>()) <= kTolerance);
  // TRL divides by all eight completions, of which two have no tokens left.
  CHECK(std::abs(loss(R"({"loss_type": "grpo"})") * 6 / 8 -
                 expected["grpo(seq mean, empty rows count in N)"].get<double>()) <= kTolerance);
}

}  // namespace
}  // namespace prefopt
