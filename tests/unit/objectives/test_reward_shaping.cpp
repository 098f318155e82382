// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/objectives/reward_shaping.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

Eigen::ArrayXd list(std::initializer_list<double> x) {
  return Eigen::Map<const Eigen::ArrayXd>(x.begin(), static_cast<Eigen::Index>(x.size()));
}

TEST_CASE("weights by rank: ties, one completion, none, no rewards", "[objectives]") {
  // Ranks 1 and 2 share 1/2 and 1/6.
  const auto tied = rank_weights(list({3, 1, 3, 0}), RankFilter::kBestRandom);
  CHECK((tied - list({1.0 / 3, 1.0 / 6, 1.0 / 3, 1.0 / 6})).abs().maxCoeff() < 1e-15);
  CHECK((rank_weights(list({2, 2, 2}), RankFilter::kBest) - 1.0 / 3).abs().maxCoeff() < 1e-15);
  for (const auto filter :
       {RankFilter::kNone, RankFilter::kBest, RankFilter::kBestRandom, RankFilter::kBestWorst}) {
    CHECK((rank_weights(list({5}), filter) == list({1})).all());
    CHECK(rank_weights(list({}), filter).size() == 0);
    CHECK((rank_weights(list({kNone, 5}), filter) == list({0, 1})).all());
    CHECK((rank_weights(list({kNone, kNone}), filter) == 0.5).all());
    CHECK(std::abs(rank_weights(list({1, kNone, 3, 2}), filter).sum() - 1) < 1e-15);
  }
  CHECK((rank_weights(list({1, kNone, 3, 2}), RankFilter::kBestWorst) == list({0.5, 0, 0.5, 0}))
            .all());
}

TEST_CASE("length rewards and overlong penalties refuse what makes no sense", "[objectives]") {
  CHECK_THROWS_TEXT(length_rewards(list({1, 2}), {true}), ShapeError,
                    "length_rewards: expected correct [2], got [1]");
  CHECK(length_rewards(list({}), {}).size() == 0);
  CHECK_THROWS_TEXT(overlong_penalties(list({1}), 10, 0), ConfigError,
                    "overlong: expected a buffer above 0 and up to max 10, got 0");
  CHECK_THROWS_TEXT(overlong_penalties(list({1}), 10, 11), ConfigError,
                    "overlong: expected a buffer above 0 and up to max 10, got 11");
  CHECK((overlong_penalties(list({0, 5, 10}), 10, 10) == list({0, -0.5, -1})).all());
}

TEST_CASE("priorities of prompts", "[objectives]") {
  CHECK((prompt_priorities(list({1, 1})) == 0.5).all());
  CHECK(prompt_priorities(list({})).size() == 0);
  CHECK_THROWS_TEXT(
      prompt_priorities(list({0.5, 1.5})), DataError,
      "prompt_priorities: expected rates of success from 0 to 1, got 1.5 of prompt 1");
  CHECK_THROWS_TEXT(
      prompt_priorities(list({kNone})), DataError,
      "prompt_priorities: expected rates of success from 0 to 1, got nan of prompt 0");
}

}  // namespace
}  // namespace prefopt
