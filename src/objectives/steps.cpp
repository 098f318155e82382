// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "prefopt/error.h"

namespace prefopt {

void check_step_ends(const StepEnds& ends, std::int64_t tokens, std::string_view where) {
  const bool ascends =
      std::adjacent_find(ends.begin(), ends.end(), std::greater_equal<>()) == ends.end();
  if (!ends.empty() && ascends && ends.front() > 0 && ends.back() == tokens) return;
  throw ShapeError(fmt::format("{}: expected ascending ends of steps, the last of them {}, got {}",
                               where, tokens, ends.empty() ? "none" : "others"));
}

Eigen::ArrayXd step_sums(const Eigen::ArrayXd& of_tokens, const StepEnds& ends,
                         std::string_view where) {
  check_step_ends(ends, of_tokens.size(), where);
  Eigen::ArrayXd sums(static_cast<Eigen::Index>(ends.size()));
  Eigen::Index begin = 0;
  for (Eigen::Index i = 0; i < sums.size(); ++i) {
    const Eigen::Index end = ends[static_cast<std::size_t>(i)];
    sums[i] = of_tokens.segment(begin, end - begin).sum();
    begin = end;
  }
  return sums;
}

double aggregate_steps(const Eigen::ArrayXd& of_steps, StepAggregate aggregate) {
  if (of_steps.size() == 0) throw ShapeError("steps: expected at least one step, got none");
  switch (aggregate) {
    case StepAggregate::kMin:
      return of_steps.minCoeff();
    case StepAggregate::kMean:
      return of_steps.mean();
    case StepAggregate::kLast:
      return of_steps[of_steps.size() - 1];
    case StepAggregate::kSum:
      break;
  }
  return of_steps.sum();
}

StepEnds every_token(std::int64_t tokens) {
  StepEnds ends(static_cast<std::size_t>(tokens));
  std::iota(ends.begin(), ends.end(), 1);
  return ends;
}

}  // namespace prefopt
