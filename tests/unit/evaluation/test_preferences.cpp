// SPDX-License-Identifier: Apache-2.0

#include <cmath>

#include "prefopt/error.h"
#include "prefopt/evaluation/preferences.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using testing_support::BigramPolicy;
using testing_support::pairs;

TEST_CASE("Sums of log-probs are those of the formula, however they are cut", "[evaluation]") {
  BigramPolicy policy(3);
  for (const std::int64_t batch_size : {1, 2, 8}) {
    const auto sums = pair_sums(policy, pairs(), batch_size);
    REQUIRE(sums.size() == pairs().size());
    for (std::size_t i = 0; i < sums.size(); ++i) {
      CAPTURE(batch_size, i);
      CHECK(sums[i].chosen == Approx(policy.sum_logps(pairs()[i].prompt, pairs()[i].chosen)));
      CHECK(sums[i].rejected == Approx(policy.sum_logps(pairs()[i].prompt, pairs()[i].rejected)));
    }
  }
}

TEST_CASE("Five pairs, by hand", "[evaluation]") {
  // Differences of length in tokens: 2, -3, 0, 2, -1. Deltas: 4, -2, 0, 6, 2.
  const std::vector<PairSums> reference(5, {-10, -10});
  const std::vector<PairSums> policy = {{-7, -11}, {-12, -10}, {-9, -9}, {-8, -14}, {-10, -12}};
  const auto result = evaluate_preferences(pairs(), policy, reference, {.beta = 0.5, .bins = 2});
  CHECK(result.pairs == 5);
  CHECK(result.ties == 1);
  CHECK(result.accuracy.mean == Approx(0.6));
  CHECK(result.margin.mean == Approx(0.5 * 10 / 5));
  CHECK(result.margin.low < result.margin.mean);
  CHECK(result.chosen_reward.mean == Approx(0.5 * (3 - 2 + 1 + 2 + 0) / 5));
  CHECK(result.rejected_reward.mean == Approx(0.5 * (-1 + 0 + 1 - 4 - 2) / 5));
  CHECK(result.shorter.pairs == 2);
  CHECK(result.shorter.rate.mean == 0.5);
  CHECK(result.as_long.pairs == 1);
  CHECK(result.as_long.rate.mean == 0);
  CHECK(result.longer.pairs == 2);
  CHECK(result.longer.rate.mean == 1);
  // Deltas around 2: 2, -4, -2, 4, 0; lengths around 0: 2, -3, 0, 2, -1.
  CHECK(result.length_correlation.mean == Approx((4 + 12 + 0 + 8 + 0) / std::sqrt(40.0 * 18)));
  // Margins 2, -1, 0, 3, 1 and their log losses.
  double log_loss = 0;
  for (const double margin : {2, -1, 0, 3, 1}) log_loss += std::log1p(std::exp(-margin)) / 5;
  CHECK(result.calibration.log_loss == Approx(log_loss));
  CHECK(result.calibration.bins.size() == 2);
}

TEST_CASE("A policy that is its reference ties on every pair", "[evaluation]") {
  BigramPolicy policy(5);
  const auto sums = pair_sums(policy, pairs());
  const auto result = evaluate_preferences(pairs(), sums, sums);
  CHECK(result.ties == 5);
  CHECK(result.accuracy.mean == 0);
  CHECK(result.margin.mean == 0);
  CHECK(result.margin.high == 0);
  CHECK(result.calibration.expected_error == 0);
  CHECK(result.calibration.log_loss == Approx(std::log(2)));
  CHECK(std::isnan(result.length_correlation.mean));
}

TEST_CASE("An evaluation refuses what does not fit", "[evaluation]") {
  const std::vector<PairSums> sums(5);
  CHECK_THROWS_TEXT(
      evaluate_preferences(pairs(), sums, {{}}), ShapeError,
      "evaluate_preferences: expected log-probs of 5 pairs, got 5 of the policy and 1 "
      "of the reference");
  CHECK_THROWS_TEXT(evaluate_preferences(pairs(), sums, sums, {.beta = 0}), ConfigError,
                    "evaluate_preferences: expected beta > 0, got 0");
  CHECK_THROWS_TEXT(evaluate_preferences({}, {}, {}), DataError,
                    "evaluate_preferences: expected a pair, got none");
  BigramPolicy policy(3);
  CHECK_THROWS_TEXT(pair_sums(policy, pairs(), 0), ConfigError,
                    "pair_sums: expected a batch_size of at least 1, got 0");
  policy.poisoned = true;
  CHECK_THROWS_TEXT(pair_sums(policy, pairs()), NonFiniteError,
                    "pair_sums: expected finite log-probs, got nan and nan for pair 1; the model's "
                    "weights may be broken");
}

}  // namespace
}  // namespace prefopt
