// SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>

#include "prefopt/error.h"
#include "prefopt/objectives/steps.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

const Eigen::ArrayXd& rewards() {
  static const Eigen::ArrayXd all = (Eigen::ArrayXd(5) << 1, -2, 4, 0.5, 0.25).finished();
  return all;
}

TEST_CASE("steps: sums are those of their tokens", "[objectives]") {
  const Eigen::ArrayXd sums = step_sums(rewards(), {2, 3, 5}, "test");
  REQUIRE(sums.size() == 3);
  CHECK(sums[0] == -1);
  CHECK(sums[1] == 4);
  CHECK(sums[2] == 0.75);
  CHECK((step_sums(rewards(), every_token(5), "test") == rewards()).all());
  CHECK(step_sums(rewards(), {5}, "test")[0] == rewards().sum());
}

TEST_CASE("steps: aggregates", "[objectives]") {
  const Eigen::ArrayXd sums = step_sums(rewards(), {2, 3, 5}, "test");
  CHECK(aggregate_steps(sums, StepAggregate::kMin) == -1);
  CHECK(aggregate_steps(sums, StepAggregate::kMean) == 1.25);
  CHECK(aggregate_steps(sums, StepAggregate::kLast) == 0.75);
  CHECK(aggregate_steps(sums, StepAggregate::kSum) == 3.75);
  CHECK_THROWS_TEXT(aggregate_steps({}, StepAggregate::kMin), ShapeError,
                    "steps: expected at least one step, got none");
}

TEST_CASE("steps: ends that do not fit", "[objectives]") {
  const std::string expected = "test: expected ascending ends of steps, the last of them 5, got ";
  CHECK_THROWS_TEXT(step_sums(rewards(), {}, "test"), ShapeError, expected + "none");
  for (const StepEnds& ends : {StepEnds{2, 4}, {2, 2, 5}, {0, 5}, {3, 2, 5}, {6}}) {
    CHECK_THROWS_TEXT(step_sums(rewards(), ends, "test"), ShapeError, expected + "others");
  }
}

}  // namespace
}  // namespace prefopt
