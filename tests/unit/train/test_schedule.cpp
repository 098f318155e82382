// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "prefopt/error.h"
#include "prefopt/train/trainer.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

constexpr double kTolerance = 1e-15;

TEST_CASE("the warmup climbs in equal parts and wastes no step", "[train]") {
  const OptimizerOptions options{
      .learning_rate = 0.8, .schedule = Schedule::kConstant, .warmup_steps = 4};
  CHECK(learning_rate_at(options, 0, 10) == Approx(0.2).margin(kTolerance));
  CHECK(learning_rate_at(options, 1, 10) == Approx(0.4).margin(kTolerance));
  CHECK(learning_rate_at(options, 2, 10) == Approx(0.6).margin(kTolerance));
  CHECK(learning_rate_at(options, 3, 10) == 0.8);
  CHECK(learning_rate_at(options, 4, 10) == 0.8);
  CHECK(learning_rate_at(options, 1000, 10) == 0.8);
}

TEST_CASE("the linear schedule falls to its floor at total_steps", "[train]") {
  OptimizerOptions options{.learning_rate = 1, .schedule = Schedule::kLinear, .warmup_steps = 2};
  CHECK(learning_rate_at(options, 0, 10) == 0.5);
  CHECK(learning_rate_at(options, 2, 10) == 1);
  CHECK(learning_rate_at(options, 4, 10) == 0.75);
  CHECK(learning_rate_at(options, 9, 10) == 0.125);
  CHECK(learning_rate_at(options, 10, 10) == 0);
  CHECK(learning_rate_at(options, 11, 10) == 0);

  options.min_learning_rate_ratio = 0.2;
  CHECK(learning_rate_at(options, 2, 10) == 1);
  CHECK(learning_rate_at(options, 6, 10) == Approx(0.6).margin(kTolerance));
  CHECK(learning_rate_at(options, 10, 10) == Approx(0.2).margin(kTolerance));
}

TEST_CASE("the cosine schedule falls to its floor at total_steps", "[train]") {
  const OptimizerOptions options{
      .learning_rate = 2, .schedule = Schedule::kCosine, .min_learning_rate_ratio = 0.1};
  CHECK(learning_rate_at(options, 0, 6) == 2);
  // cos(pi/3) = 1/2, cos(pi/2) = 0, cos(2 pi/3) = -1/2
  CHECK(learning_rate_at(options, 2, 6) == Approx(2 * (0.1 + 0.9 * 0.75)).margin(kTolerance));
  CHECK(learning_rate_at(options, 3, 6) == Approx(2 * (0.1 + 0.9 * 0.5)).margin(kTolerance));
  CHECK(learning_rate_at(options, 4, 6) == Approx(2 * (0.1 + 0.9 * 0.25)).margin(kTolerance));
  CHECK(learning_rate_at(options, 6, 6) == Approx(0.2).margin(kTolerance));
}

TEST_CASE("a warmup longer than the run is never divided by zero", "[train]") {
  const OptimizerOptions options{
      .learning_rate = 1, .schedule = Schedule::kLinear, .warmup_steps = 8};
  CHECK(learning_rate_at(options, 3, 4) == 0.5);
  CHECK(learning_rate_at(options, 8, 8) == 0);
}

TEST_CASE("optimizer options know Hugging Face's names and their ranges", "[train]") {
  const auto options = options_from_json<OptimizerOptions>(
      R"({"lr_scheduler_type": "cosine", "min_lr_rate": 0.5, "warmup_steps": 3})", "optimizer");
  CHECK(options.schedule == Schedule::kCosine);
  CHECK(options.min_learning_rate_ratio == 0.5);
  CHECK(options.warmup_steps == 3);
  const auto again = options_from_json<OptimizerOptions>(options_to_json(options), "optimizer");
  CHECK(options_to_json(again) == options_to_json(options));

  CHECK_THROWS_TEXT(options_from_json<OptimizerOptions>(R"({"adam_beta2": 1})", "optimizer"),
                    ConfigError, "optimizer: expected adam_beta2 in [0, 1), got 1");
}

}  // namespace
}  // namespace prefopt
