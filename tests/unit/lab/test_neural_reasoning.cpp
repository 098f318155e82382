// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lab/experiment.h"
#include "lab/neural_experiments.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

// A brief training learns too little for claims about success; that all have as many sampled tokens
// does not depend on it.
TEST_CASE("lab: the arms of the reasoning task draw as many tokens", "[lab]") {
  const Report report = neural_reasoning({.quick = true, .seeds = {0, 1}}, Length::kBrief);
  REQUIRE(report.verdicts.size() >= 6);
  CHECK(report.verdicts.front().claim == "tokens of plain DPO over those of the search");
  CHECK(report.verdicts.front().holds);
  for (const Verdict& verdict : report.verdicts) CHECK(std::isfinite(verdict.measured.value));
  REQUIRE(report.data.size() == 1);
  for (const auto& row : report.data[0].rows) CHECK(row.size() == report.data[0].columns.size());
}

TEST_CASE("lab: the reasoning task's claims hold as documented", "[lab][.long]") {
  const Report report = neural_reasoning({.seeds = {0, 3}}, Length::kWhole);
  for (const Verdict& verdict : report.verdicts) WARN(to_line(verdict));
  CHECK(report.verdicts.front().holds);
}

}  // namespace
}  // namespace prefopt::lab
