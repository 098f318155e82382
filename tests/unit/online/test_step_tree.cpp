// SPDX-License-Identifier: Apache-2.0

// Trees of steps by the golden values of tests/data/tree_search.json, by their formulas, and their
// files.

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/online/step_choice.h"
#include "prefopt/online/step_tree.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt {
namespace {

using nlohmann::json;
using testing_support::read_text;

const json& golden(const std::string& method) {
  static const json file = json::parse(read_text(PREFOPT_TEST_DATA_DIR "/tree_search.json"));
  return file.at(method);
}

constexpr double kTolerance = 1e-10;

StepNode step(std::int64_t token, double logp = -1, bool is_end = false) {
  return {.tokens = {token},
          .text = std::string(1, static_cast<char>('a' + token)),
          .token_logps = {logp},
          .is_end = is_end,
          .ended = is_end};
}

TEST_CASE("PUCT is that of the golden file", "[online]") {
  const json& of = golden("mcts_dpo");
  const json& children = of.at("children(Q,prior,N)");
  for (std::size_t i = 0; i < children.size(); ++i) {
    const json& child = children[i];
    CHECK(puct(child[0], child[1], child[2], of.at("parent_N"), of.at("w_exp")) ==
          Approx(of.at("puct")[i].get<double>()).margin(kTolerance));
    CHECK(puct(child[0], child[1], child[2], of.at("parent_N"), 0) == child[0]);
  }
}

TEST_CASE("UCT adds a bonus that falls with visits", "[online]") {
  CHECK(uct(0.4, 4, 10, 1) ==
        Approx(golden("step_q").at("uct Q+sqrt(2 ln Np/N)")[0].get<double>()).margin(kTolerance));
  CHECK(uct(0.4, 4, 10, 0) == 0.4);
  CHECK(uct(-3, 0, 10, 1) == std::numeric_limits<double>::infinity());
}

TEST_CASE("the prior of a step is that of the golden file", "[online]") {
  // log-probs of the golden file: -(0.2 + 0.13 ((7 i + 3 t) mod 11)).
  const std::vector<std::size_t> lens = {3, 1, 4, 2};
  for (std::size_t i = 0; i < lens.size(); ++i) {
    std::vector<double> logps;
    for (std::size_t t = 0; t < lens[i]; ++t) {
      logps.push_back(-(0.2 + 0.13 * static_cast<double>((7 * i + 3 * t) % 11)));
    }
    const json& expected = golden("mcts_dpo").at("prior exp(sum logp/len^1.25)");
    CHECK(step_prior(logps, 1.25) ==
          Approx(expected.at(std::to_string(i)).get<double>()).margin(kTolerance));
  }
  CHECK(step_prior({-0.5, -1.5}, 1) == Approx(std::exp(-1.0)));
  CHECK(step_prior({-0.5, -1.5}, 0) == Approx(std::exp(-2.0)));
}

TEST_CASE("labels by visits are those of the golden file", "[online]") {
  for (const json& row : golden("mcts_dpo").at("smoothing")) {
    CHECK(visit_label_prob(row.at("N_w"), row.at("N_l")) ==
          Approx(row.at("label_prob").get<double>()).margin(kTolerance));
  }
}

TEST_CASE("a transition backs up rewards and the mean by visits", "[online]") {
  const json& of = golden("mcts_dpo").at("backup");
  const StepTreeOptions options;
  // Two ends after a state with its own reward: visits 2 and 1, as in the golden file.
  StepTree tree({1}, "p");
  tree.expand(0, {step(0)}, options);
  tree.rate(1, of.at("r_a"));
  tree.expand(1, {step(1, -1, true), step(2, -1, true)}, options);
  tree.rate(2, of.at("children").at("c")[0]);
  tree.rate(3, of.at("children").at("d")[0]);
  for (const std::int64_t end : {2, 2, 3}) tree.back_up(end, options);
  CHECK(tree.node(2).visits == of.at("children").at("c")[1]);
  CHECK(tree.node(3).visits == of.at("children").at("d")[1]);
  CHECK(tree.node(1).value == Approx(of.at("Q_a").get<double>()).margin(kTolerance));
  CHECK(tree.node(1).visits == 3);
  CHECK(tree.node(0).value == Approx(of.at("Q_a").get<double>()).margin(kTolerance));
  // With γ the state's value counts for less: Q = r + γ V.
  const StepTreeOptions discounted{.discount = 0.5};
  tree.back_up(3, discounted);
  const double v = (2 * 0.6 + 2 * -0.2) / 4;
  CHECK(tree.node(1).value == Approx(0.1 + 0.5 * v));
  CHECK(tree.node(0).value == Approx(0.5 * (0.1 + 0.5 * v)));
}

TEST_CASE("the mean of rewards is that of the golden file", "[online]") {
  const json& of = golden("step_q").at("expand_example");
  const StepTreeOptions options{.back_up = BackUp::kMean};
  StepTree tree({1}, "p");
  const json& rewards = of.at("rewards");
  std::vector<StepNode> steps;
  for (std::size_t i = 0; i < rewards.size(); ++i) {
    steps.push_back(step(static_cast<std::int64_t>(i), -1, true));
  }
  tree.expand(0, steps, options);
  for (std::size_t i = 0; i < rewards.size(); ++i) {
    const auto place = static_cast<std::int64_t>(i) + 1;
    tree.rate(place, rewards[i]);
    tree.back_up(place, options);
    CHECK(tree.node(0).value == Approx(of.at("values")[i].get<double>()).margin(kTolerance));
    CHECK(tree.node(place).value == rewards[i]);
  }
}

TEST_CASE("Q of a step is that of the paper in the golden file", "[online]") {
  const json& of = golden("step_q");
  const auto logp = [](const json& logits, std::size_t target) {
    double sum = 0;
    for (const double z : logits) sum += std::exp(z);
    return logits[target].get<double>() - std::log(sum);
  };
  std::vector<double> logps, ref_logps;
  for (std::size_t t = 0; t < of.at("targets").size(); ++t) {
    logps.push_back(logp(of.at("policy_logits")[t], of.at("targets")[t]));
    ref_logps.push_back(logp(of.at("ref_logits")[t], of.at("targets")[t]));
  }
  CHECK(step_q(logps, ref_logps, of.at("beta")) ==
        Approx(of.at("paper: beta*sum log ratio").get<double>()).margin(kTolerance));
  CHECK_THROWS_TEXT(step_q(logps, std::vector<double>{-1}, 0.1), ShapeError,
                    "step_q: expected as many reference log-probs as log-probs, 2, got 1");
}

TEST_CASE("a search follows the rule, then the prior, then the order", "[online]") {
  const StepTreeOptions options;
  StepTree tree({1}, "p");
  CHECK(tree.select(options) == 0);
  CHECK(tree.expand(0, {step(0, -2), step(1, -1), step(1, -3), step(2, -1)}, options) == 3);
  CHECK(tree.node(2).tokens == std::vector<std::int64_t>{1});
  // Without visits PUCT has Q alone: the larger prior counts, of equal ones the first.
  CHECK(tree.select(options) == 2);
  tree.expand(2, {step(3, -1, true)}, options);
  CHECK(tree.select(options) == 4);
  tree.rate(4, -1);
  tree.back_up(4, options);
  // Q = −1 against the bonus of the others.
  CHECK(tree.select(options) == 3);
  CHECK(tree.select({.exploration = 0}) == 3);
  CHECK(tree.select({.rule = TreeRule::kUct}) == 3);
  CHECK(tree.context(4) == std::vector<std::int64_t>{1, 1, 3});
  CHECK(tree.context_text(4) == "pbd");
}

TEST_CASE("ends that nobody could rate lead nowhere", "[online]") {
  const StepTreeOptions options;
  StepTree tree({1}, "p");
  tree.expand(0, {step(0), step(1, -1, true)}, options);
  tree.expand(1, {step(2, -1, true), step(3, -1, true)}, options);
  tree.rate(3, std::nan(""));
  tree.back_up(3, options);
  CHECK(tree.select(options, 1) == 4);
  CHECK(tree.node(0).visits == 0);
  tree.rate(4, std::nan(""));
  tree.back_up(4, options);
  CHECK(tree.select(options) == 2);
  CHECK(tree.is_live());
  CHECK(tree.best_path().empty());
  tree.rate(2, 0.5);
  tree.back_up(2, options);
  CHECK(tree.node(0).value == 0.5);  // dead ends have no part in a mean
  CHECK(tree.best_path() == std::vector<std::int64_t>{2});
  StepTree dead({1}, "p");
  dead.expand(0, {step(0, -1, true)}, options);
  dead.rate(1, std::nan(""));
  dead.back_up(1, options);
  CHECK_FALSE(dead.is_live());
}

TEST_CASE("the best path ends with the largest reward", "[online]") {
  const StepTreeOptions options;
  StepTree tree({1}, "p");
  tree.expand(0, {step(0), step(1)}, options);
  tree.expand(1, {step(2, -1, true)}, options);
  tree.expand(2, {step(3, -1, true), step(4, -1, true)}, options);
  for (const auto& [end, reward] : {std::pair(3, 1.0), {4, 1.0}, {5, -1.0}}) {
    tree.rate(end, reward);
    tree.back_up(end, options);
  }
  // Of two right ends the one whose first step has the larger value.
  CHECK(tree.best_path() == std::vector<std::int64_t>{1, 3});
  CHECK_THROWS_TEXT(StepTree({}, ""), ShapeError,
                    "StepTree: expected a prompt of at least one token, got none");
}

TEST_CASE("trees are read as they were saved", "[online]") {
  const testing_support::TempDir dir;
  const StepTreeOptions options;
  StepTree tree({1, 7}, "p \"q\"\n", 3);
  tree.expand(0, {step(0, -1.0 / 3), step(1, -1e-300, true), step(2, -1, true)}, options);
  tree.rate(2, 1.0 / 3);
  tree.back_up(2, options);
  tree.rate(3, std::nan(""));
  tree.back_up(3, options);
  tree.set_progress(2, 17);
  tree.set_search("{}");
  const std::string path = dir.file("trees.jsonl");
  save_trees({tree, StepTree({5}, "")}, path);
  const std::string text = read_text(path);
  auto again = load_trees(path);
  REQUIRE(again.size() == 2);
  CHECK(again[0].prompt() == tree.prompt());
  CHECK(again[0].prompt_text() == tree.prompt_text());
  CHECK(again[0].number() == 3);
  CHECK(again[0].iterations() == 2);
  CHECK(again[0].drawn_tokens() == 17);
  CHECK(again[0].search() == "{}");
  CHECK(again[0].node(2).value == 1.0 / 3);
  CHECK(again[0].node(2).is_rated);
  CHECK_FALSE(again[0].node(1).is_rated);
  CHECK(std::isnan(again[0].node(3).reward));
  CHECK(again[0].node(3).is_dead);
  CHECK(again[0].node(0).children == std::vector<std::int64_t>{1, 2, 3});
  save_trees(again, path);
  CHECK(read_text(path) == text);
}

TEST_CASE("files that hold no trees are refused", "[online]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("trees.jsonl");
  const json root = {{"parent", -1}, {"visits", 0}, {"value", 0.0}, {"reward", 0.0}};
  const json child = {{"parent", 0},     {"ids", {1}},   {"text", "a"},
                      {"logps", {-1.0}}, {"prior", 0.5}, {"end", false},
                      {"ended", false},  {"visits", 0},  {"value", 0.0}};
  const json tree = {{"prompt", "p"},         {"prompt_ids", {1}}, {"number", 0},
                     {"search", ""},          {"iterations", 0},   {"drawn_tokens", 0},
                     {"nodes", {root, child}}};
  const auto refused = [&](const json& change, const std::string& expected) {
    json changed = tree;
    changed.merge_patch(change);
    testing_support::put(path, changed.dump() + "\n");
    CHECK_THROWS_TEXT(load_trees(path), DataError, path + ":1" + expected);
  };
  testing_support::put(path, tree.dump() + "\n");
  CHECK(load_trees(path).size() == 1);
  const auto with = [&](const char* key, const json& value) {
    json changed = child;
    changed[key] = value;
    if (value.is_null()) changed.erase(key);
    return json{{"nodes", {root, changed}}};
  };
  refused({{"nods", 1}}, ": expected keys of a tree, got 'nods'; did you mean 'nodes'?");
  refused({{"number", nullptr}}, ": expected a key 'number', got none");
  refused({{"nodes", json::array()}}, ": expected a prompt and its node, got none");
  refused({{"iterations", -1}}, ": expected iterations to be an integer of at least 0, got -1");
  refused(with("parent", 1), ": expected a parent before it of node 1, got 1");
  refused(with("ids", json::array()), ": node 1: expected logps of the 0 tokens of ids, got 1");
  refused(with("ids", {-1}), ": node 1: expected token ids in ids, got -1");
  refused(with("logps", "x"), ": node 1: expected a list in logps, got \"x\"");
  refused(with("value", "x"), ": node 1: expected value to be a number, got \"x\"");
  refused(with("end", 1), ": node 1: expected end to be true or false, got 1");
  refused(with("texd", "a"), ": node 1: expected keys of a node, got 'texd'; did you mean 'text'?");
  refused({{"nodes", json::array({child})}}, ": expected parent -1 of node 0, got 0");
  refused({{"nodes", {root, with("end", true)["nodes"][1], with("parent", 1)["nodes"][1]}}},
          ": expected a parent that is no end of node 2, got 1");
  testing_support::put(path, "");
  CHECK_THROWS_TEXT(load_trees(path), DataError, path + ": expected at least one tree, got none");
  CHECK_THROWS_AS(save_trees({StepTree({1}, "")}, dir.file("none/trees.jsonl")), DataError);
}

}  // namespace
}  // namespace prefopt
