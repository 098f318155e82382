// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "prefopt/error.h"
#include "prefopt/evaluation/calibration.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

TEST_CASE("Calibration of six probabilities, by hand", "[evaluation]") {
  // Confidences .95 .9 .9 .65 .62 .5, of which .1 and .38 are wrong and .5 is half right.
  const CalibrationCurve calibration = calibrate({0.95, 0.1, 0.9, 0.65, 0.38, 0.5}, 5);
  REQUIRE(calibration.bins.size() == 3);
  const ReliabilityBin& low = calibration.bins[0];
  CHECK(low.low == 0.5);
  CHECK(low.high == Approx(0.6));
  CHECK(low.count == 1);
  CHECK(low.confidence == 0.5);
  CHECK(low.accuracy.mean == 0.5);
  const ReliabilityBin& middle = calibration.bins[1];
  CHECK(middle.low == Approx(0.6));
  CHECK(middle.count == 2);
  CHECK(middle.confidence == Approx(0.635));
  CHECK(middle.accuracy.mean == 0.5);
  const ReliabilityBin& high = calibration.bins[2];
  CHECK(high.high == 1);
  CHECK(high.count == 3);
  CHECK(high.confidence == Approx((0.95 + 0.9 + 0.9) / 3));
  CHECK(high.accuracy.mean == Approx(2.0 / 3));
  // Wilson's interval of 2 of 3, by its closed form.
  const double z2 = 3.841458820694124;
  const double reach = std::sqrt(2.0 / 9 / 3 * z2 + z2 * z2 / 36) / (1 + z2 / 3);
  CHECK(high.accuracy.low == Approx((2.0 / 3 + z2 / 6) / (1 + z2 / 3) - reach));

  const double high_gap = (0.95 + 0.9 + 0.9) / 3 - 2.0 / 3;
  CHECK(calibration.expected_error == Approx((3 * high_gap + 2 * 0.135 + 0) / 6));
  CHECK(calibration.maximum_error == Approx(high_gap));
  CHECK(calibration.log_loss == Approx(-std::log(0.95 * 0.1 * 0.9 * 0.65 * 0.38 * 0.5) / 6));
  CHECK(calibration.brier_score == Approx((0.0025 + 0.81 + 0.01 + 0.1225 + 0.3844 + 0.25) / 6));
}

TEST_CASE("Calibration at its ends", "[evaluation]") {
  CHECK(calibrate({1, 1}).expected_error == 0);
  CHECK(calibrate({1, 1}).bins.front().low == Approx(0.95));
  const CalibrationCurve wrong = calibrate({0});
  CHECK(wrong.expected_error == 1);
  CHECK(wrong.log_loss == Approx(708.4).margin(0.1));
  const CalibrationCurve undecided = calibrate({0.5, 0.5, 0.5});
  CHECK(undecided.expected_error == 0);
  CHECK(undecided.log_loss == Approx(std::log(2)));
  // Half of what is said with 0.8 is true.
  CHECK(calibrate({0.8, 0.2}).expected_error == Approx(0.3));
}

TEST_CASE("Calibration refuses what is no probability", "[evaluation]") {
  CHECK_THROWS_TEXT(calibrate({}), DataError,
                    "calibrate: expected at least one probability, got none");
  CHECK_THROWS_TEXT(calibrate({0.5, 1.5}), DataError,
                    "calibrate: expected probabilities in [0, 1], got 1.5");
  CHECK_THROWS_TEXT(calibrate({std::nan("")}), DataError,
                    "calibrate: expected probabilities in [0, 1], got nan");
  CHECK_THROWS_TEXT(calibrate({0.5}, 0), ConfigError, "calibrate: expected at least 1 bin, got 0");
}

}  // namespace
}  // namespace prefopt
