// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "prefopt/evaluation/statistics.h"
#include "support/catch.h"

namespace prefopt {
namespace {

TEST_CASE("Wilson's interval has its known values", "[evaluation]") {
  // Of R's prop.test(x, n, correct = FALSE).
  const Estimate half = wilson_rate(0.5, 10);
  CHECK(half.low == Approx(0.2365931).margin(1e-6));
  CHECK(half.high == Approx(0.7634069).margin(1e-6));
  const Estimate all = wilson_rate(1, 48);
  CHECK(all.low == Approx(48 / (48 + 3.841458820694124)).margin(1e-9));
  CHECK(all.high == Approx(1).margin(1e-12));
  CHECK(wilson_rate(0, 48).low == Approx(0).margin(1e-12));
}

TEST_CASE("The bootstrap's interval is the normal one where that is right", "[evaluation]") {
  // A mean of 400 values of standard deviation 1 is normal: 1.96 / sqrt(400) on both sides.
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(i % 2 == 0 ? 2 : 4);
  const Estimate estimate = bootstrap_mean(values, 7);
  CHECK(estimate.mean == 3);
  CHECK(estimate.low == Approx(3 - 0.098).margin(0.006));
  CHECK(estimate.high == Approx(3 + 0.098).margin(0.006));

  const Estimate again = bootstrap_mean(values, 7);
  CHECK(again.low == estimate.low);
  CHECK(again.high == estimate.high);
  const Estimate constant = bootstrap_mean({0.5, 0.5}, 1);
  CHECK(constant.low == 0.5);
  CHECK(constant.high == 0.5);
}

TEST_CASE("The interval of a million values takes no resampling", "[evaluation]") {
  // Half of them 2, half 4: standard deviation 1.
  std::vector<double> values;
  for (int i = 0; i < 1'000'000; ++i) values.push_back(i % 2 == 0 ? 2 : 4);
  const Estimate estimate = bootstrap_mean(values, 7);
  CHECK(estimate.mean == 3);
  CHECK(estimate.low == Approx(3 - 1.959963984540054e-3).epsilon(1e-12));
  CHECK(estimate.high == Approx(3 + 1.959963984540054e-3).epsilon(1e-12));
  // Where one form takes over from the other they agree.
  values.resize(10'000);
  const Estimate resampled = bootstrap_mean(values, 7);
  values.push_back(3);
  const Estimate normal = bootstrap_mean(values, 7);
  CHECK(resampled.low == Approx(normal.low).margin(6e-4));
  CHECK(resampled.high == Approx(normal.high).margin(6e-4));
}

TEST_CASE("Wilson's interval solves its own equation", "[evaluation]") {
  // Both ends are where (rate - p)^2 = z^2 p (1 - p) / n.
  for (const double rate : {0.1, 0.5, 0.73}) {
    const Estimate estimate = wilson_rate(rate, 37);
    for (const double p : {estimate.low, estimate.high}) {
      CHECK((rate - p) * (rate - p) == Approx(3.841458820694124 * p * (1 - p) / 37));
    }
  }
}

TEST_CASE("Correlation has its known values", "[evaluation]") {
  // Sums of squares around the means 17.5 and 70/3, of products 16.
  const Estimate some = correlation({1, 2, 3, 4, 5, 6}, {2, 1, 4, 3, 7, 5});
  CHECK(some.mean == Approx(16 / std::sqrt(17.5 * 70 / 3)));
  CHECK(some.low == Approx(std::tanh(std::atanh(some.mean) - 1.959963984540054 / std::sqrt(3.0))));
  CHECK(some.high == Approx(std::tanh(std::atanh(some.mean) + 1.959963984540054 / std::sqrt(3.0))));
  CHECK(correlation({1, 2, 3, 4}, {2, 4, 6, 8}).mean == Approx(1));
  CHECK(correlation({1, 2, 3, 4}, {-1, -2, -3, -4}).low == Approx(-1));
  const Estimate few = correlation({1, 2, 3}, {1, 3, 2});
  CHECK(few.mean == Approx(0.5));
  CHECK(few.low == -1);
  CHECK(few.high == 1);
  CHECK(std::isnan(correlation({1, 1, 1}, {1, 2, 3}).mean));
  CHECK(std::isnan(correlation({}, {}).mean));
}

TEST_CASE("The win rate counts ties by half", "[evaluation]") {
  CHECK(win_rate({1}, {0}) == 1);
  CHECK(win_rate({0}, {1}) == 0);
  CHECK(win_rate({1, 0}, {1, 0}) == 0.5);
  CHECK(win_rate({1, 0.5}, {0.5, 0}) == 0.875);
}

}  // namespace
}  // namespace prefopt
