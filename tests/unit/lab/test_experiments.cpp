// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <set>
#include <string>

#include "core/chart.h"
#include "lab/experiment.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

/// Claims that do not reproduce; docs/lab.md says why.
const std::set<std::string> kFailing{
    "rDPO's gap in reward against d, which the paper's bound lets grow as d^0.5: exponent",
    "the order of the ends holds at β = 1.6 too: share",
    "reverse KL has more reward than Jensen–Shannon at the same β: share",
    "optimism saves regret: DPO's less VPO's at the end",
    "rDPO, told the rate, has more reward than DPO at the same distance",
    "length-normalized DPO is shorter than DPO: tokens",
    "DPO's plateau, transformer over log-linear",
    "control, open language: pairs of all strings keep DPO with strings: probability of anything "
    "else",
};

/// Those whose intervals over the few networks of the quick form reach their limits: what the last
/// digits are on a machine may decide. The full form settles them, docs/lab.md.
const std::set<std::string> kUnsettled{
    "transformer: RPO ends above DPO: by",
    "transformer: DPO loses more than where they are as good as they look: by",
    "control, transformer: with all strings covered it is not: by",
    "transformer: and falls: lost from step 256 to the end",
    "control, transformer: where strings without data are as good as they look: lost",
    "transformer: RPO's does not fall: lost",
    "transformer: DPO's KL(π ‖ π_ref) grows with log(1/p): slope",
    "where p is least DPO's KL, transformer over log-linear",
    "the same with all strings covered",
    "transformer: and above the reference's: by",
    "transformer: DPO's gap stops falling: share left at the most pairs",
};

// What each experiment finds in its quick form. A claim's control is among its verdicts: that the
// effect is absent where it should be.
TEST_CASE("lab: every claim holds, or fails as documented", "[lab]") {
  std::set<std::string> failed, unsettled;
  for (const Experiment& experiment : experiments()) {
    CAPTURE(experiment.name);
    const Report report = experiment.run({.quick = true, .seeds = {0, experiment.quick_seeds}});
    CHECK(report.verdicts.size() >= 3);
    for (const Verdict& verdict : report.verdicts) {
      CAPTURE(to_line(verdict));
      if (kUnsettled.contains(verdict.claim)) {
        unsettled.insert(verdict.claim);
      } else {
        CHECK(verdict.holds == !kFailing.contains(verdict.claim));
        if (!verdict.holds) failed.insert(verdict.claim);
      }
      CHECK(std::isfinite(verdict.measured.value));
      CHECK(verdict.measured.low <= verdict.measured.value);
      CHECK(verdict.measured.value <= verdict.measured.high);
    }
    CHECK(!report.data.empty());
    for (const Data& data : report.data) {
      CHECK(!data.rows.empty());
      for (const auto& row : data.rows) CHECK(row.size() == data.columns.size());
    }
    CHECK(!report.pictures.empty());
    for (const Picture& picture : report.pictures) {
      const std::string svg = detail::to_svg(picture.chart);
      CHECK(svg.size() < 100000);
      CHECK(svg.find("nan") == std::string::npos);
    }
  }
  CHECK(failed == kFailing);
  CHECK(unsettled == kUnsettled);
}

TEST_CASE("lab: the same seeds give the same numbers", "[lab]") {
  const Experiment& experiment = find_experiment("hypo-coverage");
  const auto csv = [&](SeedRange seeds) {
    return to_csv(experiment.run({.quick = true, .seeds = seeds}).data[0]);
  };
  CHECK(csv({0, 3}) == csv({0, 3}));
  CHECK(csv({0, 3}) != csv({0, 4}));
  CHECK(csv({0, 3}) != csv({1, 3}));
}

}  // namespace
}  // namespace prefopt::lab
