// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lab/experiment.h"
#include "lab/statistics.h"
#include "prefopt/error.h"
#include "prefopt/exact/random.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::lab {
namespace {

TEST_CASE("lab: slopes and exponents", "[lab]") {
  CHECK(slope({1, 2, 4}, {3, 5, 9}) == Approx(2));
  CHECK(slope({0, 1, 2}, {0, 1, 0}) == Approx(0).margin(1e-15));
  // y = c x^-0.5 with another c a seed: each resample has the same exponent.
  std::vector<std::vector<double>> by_seed;
  for (const double c : {1.0, 2.0, 5.0}) by_seed.push_back({7, c, -c / 2, c / 4});
  const Estimate fit = exponent(by_seed, 1, {1, 4, 16});
  CHECK(fit.value == Approx(-0.5));
  CHECK(fit.low == Approx(-0.5));
  CHECK(fit.high == Approx(-0.5));
  CHECK(root_mean_square(by_seed, 1).value == Approx(std::sqrt(30.0 / 3)));
}

TEST_CASE("lab: a 95 % interval covers the truth about that often", "[lab]") {
  exact::Random random(3);
  int covered = 0;
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<std::vector<double>> by_seed;
    for (int seed = 0; seed < 30; ++seed) by_seed.push_back({1 + random.normal()});
    const Estimate estimate = mean(by_seed, 0);
    covered += estimate.low < 1 && 1 < estimate.high ? 1 : 0;
    CHECK((estimate.low < estimate.value && estimate.value < estimate.high));
  }
  CHECK(covered > 200 * 0.87);
  CHECK(covered < 200 * 0.99);
}

TEST_CASE("lab: results come in the order of the seeds", "[lab]") {
  const auto by_seed = for_each_seed(
      {3, 9}, [](int seed) { return std::vector<double>{static_cast<double>(seed * seed)}; });
  REQUIRE(by_seed.size() == 9);
  for (std::size_t i = 0; i < 9; ++i) {
    CHECK(by_seed[i][0] == static_cast<double>((i + 3) * (i + 3)));
  }
}

TEST_CASE("lab: differences and curves over seeds", "[lab]") {
  const std::vector<std::vector<double>> by_seed{{9, 1, 2, 4}, {9, 3, 5, 6}, {9, 8, 11, 8}};
  // Seed by seed: 1, 2, 3, whatever the columns themselves are.
  const Estimate more = mean_difference(by_seed, 2, 1);
  CHECK(more.value == Approx(2));
  CHECK((more.low >= 1 && more.high <= 3 && more.low < more.high));
  // (2 − 1) − (9 − 4), (5 − 3) − (9 − 6), (11 − 8) − (9 − 8).
  CHECK(difference_of_differences(by_seed, {2, 1}, {0, 3}).value == Approx((-4 - 1 + 2) / 3.0));
  CHECK(mean_ratio(by_seed, 1, 3).value == Approx(12.0 / 18));
  CHECK(mean_curve(by_seed, {0, 1, 1}, 1, 3) == std::vector<double>{7.0 / 3, 4, 16.0 / 3});
}

TEST_CASE("lab: lines and files", "[lab]") {
  CHECK(to_line({"a claim", {1.5, 1.25, 1.75}, "1.5 within 0.1", true}) ==
        "holds: a claim: 1.5 [1.25, 1.75], expected 1.5 within 0.1");
  CHECK(to_line({"another", exactly(1e-9), "above 1", false}) ==
        "fails: another: 1e-09, expected above 1");
  CHECK(to_csv({"name", {"x", "of"}, {{0.5, "a"}, {2.0, "b, \"c\""}}}) ==
        "x,of\n0.5,a\n2,\"b, \"\"c\"\"\"\n");
  CHECK_THROWS_TEXT(find_experiment("rdpo-rate"), ConfigError,
                    "lab: expected the name of an experiment, got 'rdpo-rate'; did you mean "
                    "'rdpo-rates'?");
  CHECK_THROWS_TEXT(find_experiment("zzz"), ConfigError,
                    "lab: expected the name of an experiment, got 'zzz'");
}

}  // namespace
}  // namespace prefopt::lab
