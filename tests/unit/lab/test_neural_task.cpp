// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lab/neural_task.h"
#include "prefopt/error.h"
#include "prefopt/exact/measures.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::lab {
namespace {

using namespace exact;

constexpr const char* kDpo = R"({"type": "dpo", "beta": 0.1})";

/// Every way not to be a string of an open language, by the token at which it is seen: log-probs of
/// beginnings.
double probability_of_misses(Policy& policy, Index prompt) {
  std::vector<std::vector<std::int64_t>> misses{{kEnd}};
  for (std::int64_t a = 0; a < kLetters; ++a) {
    misses.push_back({a, kEnd});
    for (std::int64_t b = 0; b < kLetters; ++b) {
      for (std::int64_t more = 0; more < kLetters; ++more) misses.push_back({a, b, more});
    }
  }
  const auto start = prompt_tokens(prompt);
  std::vector<TokenSequence> sequences;
  for (const auto& miss : misses) sequences.push_back({start, miss});
  return sequence_logps(policy, make_batch(sequences)).logps.exp().sum().item<double>();
}

double largest_difference(const Table& a, const Table& b) { return (a - b).abs().maxCoeff(); }

TEST_CASE("lab: strings and anything else have all probability", "[lab]") {
  const auto network = fresh_network(Language::kOpen, 3);
  CHECK(language_of(*network) == Language::kOpen);
  const Answers found = answers(*network);
  REQUIRE(found.outcomes.rows() == kStrings + 1);
  REQUIRE(found.outcomes.cols() == kPrompts);
  for (Index x = 0; x < kPrompts; ++x) {
    const double misses = probability_of_misses(*network, x);
    CHECK(misses > 0.5);  // of a network that has not learned a thing
    CHECK(std::exp(found.outcomes(kStrings, x)) == Approx(misses).epsilon(1e-5));
    CHECK(found.outcomes.col(x).head(kStrings).exp().sum() + misses == Approx(1).epsilon(1e-5));
  }
  CHECK(largest_difference(found.strings().exp().colwise().sum(), Table::Ones(1, kPrompts)) <
        1e-12);
}

TEST_CASE("lab: a closed language has nothing but strings", "[lab]") {
  const auto network = fresh_network(Language::kClosed, 3);
  CHECK(language_of(*network) == Language::kClosed);
  const Answers found = answers(*network);
  CHECK(largest_difference(found.outcomes.topRows(kStrings), found.strings()) < 1e-6);
  CHECK(found.outcomes.row(kStrings).exp().maxCoeff() < 1e-6);
}

TEST_CASE("lab: rows of a network have no weights", "[lab]") {
  const Pairs pairs{{0, 3}, {1, 2}, {5, 6}, Eigen::ArrayXd::LinSpaced(2, 0.4, 0.6)};
  CHECK_THROWS_TEXT(token_pairs(pairs, Language::kClosed), ShapeError,
                    "token_pairs: expected pairs of one weight, got several; draw a batch");
}

TEST_CASE("lab: what is covered speaks of every letter in every place", "[lab]") {
  const Table covered = covered_strings();
  CHECK(covered.col(0).sum() == 7);
  CHECK((covered(2, 0) == 1 && covered(2 * kLetters, 0) == 1 && covered(kLetters + 2, 0) == 0));
  CHECK(string_tokens(kLetters + 2, Language::kClosed) == std::vector<std::int64_t>{1, 2});
  CHECK(string_tokens(kLetters + 2, Language::kOpen) == std::vector<std::int64_t>{1, 2, kEnd});

  const NeuralTask plain(5, 0), disappointing(5, 4);
  CHECK(largest_difference(plain.rewards - 4 * (1 - covered), disappointing.rewards) < 1e-12);
  for (Index x = 0; x < kPrompts; ++x) {
    const auto reward = [&](Index first, Index second) {
      return plain.rewards(kLetters * first + second, x);
    };
    // A string's reward is what its letters add, and the best string is never a covered one.
    CHECK(reward(2, 3) + reward(0, 0) == Approx(reward(2, 0) + reward(0, 3)));
    Index best = 0;
    plain.rewards.col(x).maxCoeff(&best);
    CHECK(covered(best, x) == 0);
  }
  const Table all = with_anything_else(plain.rewards);
  CHECK(all.rows() == kStrings + 1);
  CHECK(all(kStrings, 1) == plain.rewards.col(1).minCoeff());
}

TEST_CASE("lab: a supervised network learns its target", "[lab]") {
  const Table target = log_softmax(-2.5 * (1 - covered_strings()));
  for (const Language language : {Language::kClosed, Language::kOpen}) {
    const auto network = supervised_network(language, target, 1);
    const Answers found = answers(*network);
    CHECK(kl(target, found.strings()) < 0.02);
    CHECK(kl(target, answers(*fresh_network(language, 1)).strings()) > 0.1);
    CHECK(found.outcomes.row(kStrings).exp().maxCoeff() < 0.01);
  }
}

TEST_CASE("lab: training starts at the reference and leaves it alone", "[lab]") {
  const auto reference = fresh_network(Language::kOpen, 2);
  const Table before = answers(*reference).outcomes;
  const Pairs pairs{{0, 3}, {1, 2}, {5, 6}, Eigen::ArrayXd::Constant(2, 0.5)};
  std::vector<Table> tables;
  const auto train = [&](std::uint64_t seed, Index batch) {
    const NeuralTraining training{.loss = kDpo, .steps = 3, .batch = batch};
    return answers(*train_network(*reference, pairs, training, seed,
                                  [&](int step, Policy& policy) {
                                    CHECK(step == static_cast<int>(tables.size()));
                                    tables.push_back(answers(policy).outcomes);
                                  }))
        .outcomes;
  };
  const Table after = train(1, 0);
  REQUIRE(tables.size() == 4);
  CHECK(largest_difference(tables.front(), before) == 0);
  CHECK(largest_difference(tables.back(), after) == 0);
  CHECK(largest_difference(after, before) > 1e-3);
  CHECK(largest_difference(answers(*reference).outcomes, before) == 0);
  CHECK(after(1, 0) - after(5, 0) > before(1, 0) - before(5, 0));
  tables.clear();
  CHECK(largest_difference(train(1, 0), after) == 0);
  const auto batches_of = [&](std::uint64_t seed) {
    tables.clear();
    return train(seed, 1);
  };
  CHECK(largest_difference(batches_of(1), batches_of(1)) == 0);
  CHECK(largest_difference(batches_of(1), batches_of(2)) > 1e-4);
}

TEST_CASE("lab: a loss with fresh samples has them in both languages", "[lab]") {
  const Pairs pairs{{0, 3}, {1, 2}, {5, 6}, Eigen::ArrayXd::Constant(2, 0.5)};
  for (const Language language : {Language::kClosed, Language::kOpen}) {
    const auto reference = fresh_network(language, 2);
    const auto train = [&](std::uint64_t seed) {
      const NeuralTraining training{.loss = R"({"type": "hypo", "beta": 0.1, "lambda": 1})",
                                    .steps = 2};
      return answers(*train_network(*reference, pairs, training, seed)).outcomes;
    };
    CHECK(largest_difference(train(1), train(1)) == 0);
    CHECK(largest_difference(train(1), train(2)) > 1e-6);
  }
}

}  // namespace
}  // namespace prefopt::lab
