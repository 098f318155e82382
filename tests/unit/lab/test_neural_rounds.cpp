// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <set>

#include "lab/neural_rounds.h"
#include "prefopt/exact/measures.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

using namespace exact;

/// Rewards that are the place of the string, and of the prompt.
Table places() {
  return Table::NullaryExpr(kStrings, kPrompts, [](Index y, Index x) { return 100.0 * x + y; });
}

Rollout written(Index prompt, Index string) {
  return {.prompt = prompt_tokens(prompt), .completion = string_tokens(string, Language::kClosed)};
}

TEST_CASE("lab: feedback knows strings and prompts by their tokens", "[lab]") {
  for (Index y = 0; y < kStrings; ++y) {
    CHECK(string_of(string_tokens(y, Language::kClosed)) == y);
  }
  const Rollout a = written(2, 7), b = written(2, 11), c = written(1, 0);
  const auto rewards = rewarding(places());
  CHECK(rewards->rewards({&a, &b, &c}) == std::vector<double>{207, 211, 100});
  CHECK(rewards->beats({{&a, &b}, {&b, &a}, {&a, &a}}) == std::vector<double>{0, 1, 0.5});

  std::vector<Eigen::MatrixXd> matrices(kPrompts,
                                        Eigen::MatrixXd::Constant(kStrings, kStrings, 0.5));
  matrices[2](7, 11) = 0.8;
  matrices[2](11, 7) = 1 - 0.8;
  const auto comparisons = comparing(Preferences::general(matrices));
  CHECK_FALSE(comparisons->has_rewards());
  const std::vector<double> found = comparisons->beats({{&a, &b}, {&b, &a}, {&c, &c}});
  CHECK(found == std::vector<double>{0.8, 1 - 0.8, 0.5});
}

TEST_CASE("lab: the rows of a round are those of the selection", "[lab]") {
  const auto reference = fresh_network(Language::kClosed, 1);
  NeuralRounds rounds{.loss = make_loss(R"({"type": "dpo"})"),
                      .sources = {writer(SourceKind::kReference, "reference", 2)},
                      .feedback = rewarding(places()),
                      .copies = 8,
                      .rounds = {.rounds = 1, .steps = 1}};
  const auto rows = first_rows(*reference, rounds, 1);
  CHECK(rows.size() > 20);
  CHECK(rows.size() <= 8 * kPrompts);
  std::set<std::int64_t> prompts;
  for (const TokenRow& row : rows) {
    prompts.insert(row.prompt.front());
    CHECK(string_of(row.chosen) > string_of(row.rejected));
  }
  CHECK(std::ssize(prompts) == kPrompts);
  const auto chosen = [&](std::uint64_t seed) {
    std::vector<Index> strings;
    for (const TokenRow& row : first_rows(*reference, rounds, seed)) {
      strings.push_back(string_of(row.chosen));
    }
    return strings;
  };
  CHECK(chosen(1) == chosen(1));
  CHECK(chosen(1) != chosen(2));
}

TEST_CASE("lab: a network learns from rounds of a loss and of an objective", "[lab]") {
  const auto reference = fresh_network(Language::kClosed, 1);
  const Table rewards = NeuralTask(1, 0).rewards;
  const Table ref = answers(*reference).strings();
  NeuralRounds rounds{.loss = TokenObjective({.advantage = R"({"kind": "leave_one_out"})",
                                              .aggregation = Aggregation::kSequenceSum}),
                      .sources = {writer(SourceKind::kPolicy, "policy", 8)},
                      .feedback = rewarding(rewards),
                      .selection = R"({"type": "best_of"})",
                      .copies = 2,
                      .rounds = {.rounds = 10, .steps = 1}};
  for (const bool has_objective : {true, false}) {
    CAPTURE(has_objective);
    if (!has_objective) rounds.loss = make_loss(R"({"type": "sft"})");
    std::vector<double> gains;
    const auto network = train_rounds(*reference, rounds, 1, [&](int round, Policy& policy) {
      CHECK(round == std::ssize(gains));
      gains.push_back(expectation(answers(policy).strings(), rewards) - expectation(ref, rewards));
    });
    REQUIRE(gains.size() == 11);
    CHECK(gains.front() == 0);
    CHECK(gains.back() > 0.5);
    CHECK(expectation(answers(*network).strings(), rewards) - expectation(ref, rewards) ==
          gains.back());
    CHECK((answers(*reference).strings() == ref).all());  // a copy was trained
  }
}

}  // namespace
}  // namespace prefopt::lab
