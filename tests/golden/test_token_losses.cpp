// SPDX-License-Identifier: Apache-2.0

// Implicit process rewards, GenARM, OREO and IQLearn, against values from numpy and autograd
// (tests/data/token_losses.json).

#include <Eigen/Core>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lab/token_tree.h"
#include "prefopt/logps/token_logps.h"
#include "prefopt/losses/registry.h"
#include "prefopt/objectives/steps.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/policy/guided_policy.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/close.h"
#include "support/fixed_policy.h"
#include "support/golden_rollouts.h"
#include "support/text_files.h"

namespace prefopt {
namespace {

using nlohmann::json;
using namespace testing_support;
using Eigen::ArrayXd;

const json& token_golden() {
  static const json file = json::parse(read_text(PREFOPT_TEST_DATA_DIR "/token_losses.json"));
  return file;
}

const json& method(const char* name) { return token_golden().at("methods").at(name); }

std::vector<double> flat(const json& lists) {
  std::vector<double> all;
  for (const json& list : lists) {
    if (list.is_array()) {
      for (const json& x : list) all.push_back(x.get<double>());
    } else {
      all.push_back(list.get<double>());
    }
  }
  return all;
}

template <class Numbers>
void check_all(const Numbers& got, const json& lists, double rtol = 1e-10) {
  const std::vector<double> expected = flat(lists);
  REQUIRE(static_cast<std::size_t>(got.size()) == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    check_close(got[static_cast<Eigen::Index>(i)], expected[i], rtol, 1e-15);
  }
}

ArrayXd array_of(const at::Tensor& x) {
  const at::Tensor flat = x.to(at::kDouble).contiguous();
  return Eigen::Map<const ArrayXd>(flat.const_data_ptr<double>(), flat.numel());
}

/// The eight completions as a loss on tokens takes them.
BasicTokenRows<ArrayXd> golden_tokens(const json& ends) {
  const GoldenRollouts all = golden_rollouts();
  const RolloutStep& step = all.step;
  ArrayXd places(8), lens(8);
  BasicTokenRows<ArrayXd> in;
  in.steps = ArrayXd::Zero(step.tokens());
  Eigen::Index at = 0;
  for (Eigen::Index i = 0; i < 8; ++i) {
    places[i] = static_cast<double>(i);
    lens[i] = static_cast<double>(step.lens[static_cast<std::size_t>(i)]);
    std::int64_t t = 0;
    for (const json& end : ends.at(std::to_string(i))) {
      for (; t < end.get<std::int64_t>(); ++t) in.steps[at++] = static_cast<double>(in.step_count);
      ++in.step_count;
    }
  }
  in.logps = all.logps;
  in.ref_logps = step.ref_logps;
  in.values = step.values;
  in.rewards = step.spread(step.rewards);
  in.completions = step.spread(places);
  in.lens = step.spread(lens);
  in.completion_count = 8;
  in.totals = {.tokens = 21, .completions = 8};
  return in;
}

TEST_CASE("golden losses of OREO", "[golden]") {
  const json& oreo = method("oreo");
  const auto in = golden_tokens(oreo["step"]["ends"]);
  check_all(in.values, oreo["values"]);
  const auto with = [&](const std::string& level) {
    const TokenLoss loss = make_token_loss(
        R"({"type": "oreo", "beta": 0.03, "alpha": 0, "level": ")" + level + R"("})");
    return loss.formula<ArrayXd>(in);
  };
  const auto token = with("token");
  check_close(token.loss, oreo["token"]["value_loss"], 1e-12);
  check_all(token.grad_values, oreo["token"]["value_grad"]);
  check_all(token.grad_logps, oreo["token"]["policy_grad"]);
  const auto response = with("response");
  check_close(response.loss, oreo["response"]["loss"], 1e-12);
  check_all(response.grad_logps, oreo["response"]["policy_grad"]);
  const auto step = with("step");
  check_close(step.loss, oreo["step"]["loss"], 1e-12);
  check_all(step.grad_logps, oreo["step"]["policy_grad"]);
  check_all(step.grad_values, oreo["step"]["value_grad(at step starts)"]);
}

struct FromLogits {
  at::Tensor logits;
  double loss;
};

/// The loss of logits through the library's own log-probs and log-normalizers, with its gradient.
FromLogits iqlearn_of(const json& logits, const json& targets, const std::string& config) {
  const auto rows = static_cast<std::int64_t>(logits.size());
  FromLogits result;
  result.logits = torch::tensor(flat(logits), at::kDouble).view({rows, -1}).requires_grad_();
  const TokenLogps logps =
      token_logps(result.logits, torch::tensor(targets.get<std::vector<std::int64_t>>()),
                  {.differentiable = {.logsumexp = true}});
  const TokenRows in{.logps = logps.logps,
                     .log_normalizers = logps.by_products.logsumexp,
                     .completions = torch::zeros({rows}, at::kDouble),
                     .lens = torch::full({rows}, static_cast<double>(rows), at::kDouble),
                     .completion_count = 1,
                     .totals = {.tokens = static_cast<double>(rows), .completions = 1}};
  const TokenLossOutput out = make_token_loss(config).forward(in);
  out.loss.backward();
  result.loss = out.loss.item<double>();
  return result;
}

TEST_CASE("golden loss of IQLearn, in logits", "[golden]") {
  const json& mean = method("iqlearn");
  const auto got =
      iqlearn_of(mean["logits"], mean["targets"], R"({"type": "iqlearn", "lambda": 0.1})");
  check_close(got.loss, mean["loss"], 1e-12);
  check_all(array_of(got.logits.grad()), mean["grad"]);
  json shifted = mean["logits"];
  for (json& row : shifted) {
    for (json& x : row) x = x.get<double>() + 0.5;
  }
  check_close(iqlearn_of(shifted, mean["targets"], R"({"type": "iqlearn"})").loss,
              mean["shift_all_rows_by_0.5: loss"], 1e-12);
  check_close(
      iqlearn_of(mean["logits"], mean["targets"], R"({"type": "iqlearn", "lambda": 0})").loss,
      mean["lambda0 = NLL"], 1e-12);
}

TEST_CASE("golden loss of IQLearn as a sum", "[golden]") {
  const json& sum = token_golden()["iqlearn_sum"];
  const auto got =
      iqlearn_of(sum["logits"], sum["tokens"],
                 R"({"type": "iqlearn", "lambda": 0.5, "gamma": 1, "reduction": "sum"})");
  check_close(got.loss, sum["loss"], 1e-12);
  check_all(array_of(got.logits.grad()), sum["grad_logits"]);
}

/// Sums of log π and log π_ref over each golden completion.
std::pair<at::Tensor, at::Tensor> golden_sums() {
  const GoldenRollouts all = golden_rollouts();
  const auto starts = all.step.starts();
  std::vector<double> logps, ref_logps;
  for (std::size_t i = 0; i < 8; ++i) {
    const auto lens = all.step.lens[i];
    logps.push_back(all.logps.segment(starts[i], lens).sum());
    ref_logps.push_back(all.step.ref_logps.segment(starts[i], lens).sum());
  }
  return {torch::tensor(logps, at::kDouble), torch::tensor(ref_logps, at::kDouble)};
}

TEST_CASE("golden cross-entropy of implicit process rewards", "[golden]") {
  const json& ce = method("implicit_prm")["ce"];
  PairLogps in;
  std::tie(in.chosen_logps, in.ref_chosen_logps) = golden_sums();
  in.labels = torch::tensor(flat(ce["labels"]), at::kDouble);
  const LossOutput out = make_loss(R"({"type": "ce", "beta": 0.05})").forward(in);
  check_close(out.loss.item<double>(), ce["loss_mean"], 1e-12);
  check_all(array_of(out.grad_chosen), ce["dloss/dS"]);
  check_all(array_of(out.chosen_rewards), ce["logits"], 1e-9);
}

TEST_CASE("golden rewards of steps", "[golden]") {
  const GoldenRollouts all = golden_rollouts();
  const json& expected =
      method("implicit_prm")["ce"]["steps(seq 2: cut after tokens 2,4; seq 5: cut after 1,3,5)"];
  const ArrayXd rewards = 0.05 * (all.logps - all.step.ref_logps);
  const auto starts = all.step.starts();
  const auto steps = [&](std::size_t i, const StepEnds& ends) {
    return step_sums(rewards.segment(starts[i], all.step.lens[i]), ends, "test");
  };
  check_all(steps(2, {2, 4}), expected["2"], 1e-9);
  check_all(steps(5, {1, 3, 5}), expected["5"], 1e-9);
}

TEST_CASE("golden prefix values of implicit process rewards", "[golden]") {
  const json& prm = method("implicit_prm");
  const double beta = prm["beta"];
  constexpr lab::TokenTree kTree{.letters = 2, .depth = 3};
  lab::Table ref(2, kTree.nodes());
  const std::vector<std::string> prefixes{"", "0", "1", "0,0", "0,1", "1,0", "1,1"};
  for (std::size_t node = 0; node < prefixes.size(); ++node) {
    for (Eigen::Index letter = 0; letter < 2; ++letter) {
      const double p = prm["reference"][prefixes[node]][static_cast<std::size_t>(letter)];
      ref(letter, static_cast<Eigen::Index>(node)) = std::log(p);
    }
  }
  ArrayXd rewards(8);
  for (Eigen::Index leaf = 0; leaf < 8; ++leaf) {
    rewards[leaf] = prm["tree"][static_cast<std::size_t>(leaf)]["r"];
  }
  const ArrayXd values = lab::soft_values(kTree, ref, rewards, beta);
  const lab::Table model = lab::tilted_tree(kTree, ref, rewards, beta);
  for (Eigen::Index leaf = 0; leaf < 8; ++leaf) {
    const json& row = prm["tree"][static_cast<std::size_t>(leaf)];
    ArrayXd of_prefixes(4);
    for (Eigen::Index t = 0; t < 3; ++t) of_prefixes[t] = values[kTree.node_of(leaf, t)];
    of_prefixes[3] = rewards[leaf];
    check_all(of_prefixes, row["prefix_values q_0..q_H"], 1e-12);
    const ArrayXd of_tokens =
        beta * (lab::token_logps(kTree, model, leaf) - lab::token_logps(kTree, ref, leaf));
    check_all(of_tokens, row["process_rewards"], 1e-9);
  }
}

TEST_CASE("golden distributions of GenARM", "[golden]") {
  const json& arm = method("genarm");
  const auto model = [&](const char* name) -> std::shared_ptr<Policy> {
    const at::Tensor logits = torch::tensor(flat(arm[name]), at::kDouble).expand({2, 4, 4});
    return std::make_shared<FixedPolicy>(PolicyOutput{.hidden = {}, .logits = logits}, at::Tensor(),
                                         4);
  };
  const auto check = [&](std::vector<Guide> guides, const char* name) {
    GuidedPolicy policy(model("base_logits"), std::move(guides));
    const at::Tensor logits = policy.forward(small_batch()).logits.select(0, 0).select(0, 0);
    check_all(array_of(at::softmax(logits, -1)), arm[name], 1e-12);
  };
  check({{model("arm1_logits"), 2}}, "beta0.5_single");
  check({{model("arm1_logits"), 0.7}, {model("arm2_logits"), 0.3}}, "w(0.7,0.3)_two");
  check({{model("arm1_logits"), 0}}, "beta->inf equals base");
}

TEST_CASE("golden loss of an autoregressive reward model", "[golden]") {
  const json& arm = method("genarm")["arm_loss"];
  const at::Tensor sums = golden_sums().first;
  PairLogps in;
  in.chosen_logps =
      sums.index_select(0, torch::tensor(arm["chosen"].get<std::vector<std::int64_t>>()));
  in.rejected_logps =
      sums.index_select(0, torch::tensor(arm["rejected"].get<std::vector<std::int64_t>>()));
  const LossOutput out = make_loss(R"({"type": "genarm", "beta": 0.05})").forward(in);
  check_close(out.loss.item<double>(), arm["loss_mean"], 1e-12);
  check_all(array_of(out.grad_chosen), arm["dloss/dSw"]);
}

}  // namespace
}  // namespace prefopt
