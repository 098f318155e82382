// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "core/chart.h"
#include "lab/experiment.h"
#include "lab/neural_experiments.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

/// Claims about tables that do not reproduce; docs/lab.md says why.
const std::set<std::string> kFailing{
    "rDPO's gap in reward against d, which the paper's bound lets grow as d^0.5: exponent",
    "the order of the ends holds at β = 1.6 too: share",
    "reverse KL has more reward than Jensen–Shannon at the same β: share",
    "optimism saves regret: DPO's less VPO's at the end",
    "rDPO, told the rate, has more reward than DPO at the same distance",
    "length-normalized DPO is shorter than DPO: tokens",
    "XPO, exact, draws the rarest action early: median round",
    "the world of vpo-regret, minimized exactly: optimism saves regret",
    "the whole gradient has more regularized reward than online DPO: by",
    "steps of the policy alone over those of PPO++",
    "over those of AggreVaTeD",
    "over those of LOLS",
    "pairs until the gap is 0.05 against N_E, where the bound says −1: exponent",
    "the best action at 97 %: greedy's variance over that of none",
    "the best action at 97 %: leave_one_out's variance over that of none",
    "batch_std keeps the scale between prompts of a step: the same share",
    "k3 in the loss ends at the optimum: log distance, largest",
    "the squared loss with the mean of the data does: largest",
    "with the soft mean of the data: largest",
    "the best alone: by",
    "kept completions are the policy's own: total variation, best and worst of three",
    "the mask at 2: by",
    "than sft stopped at the same entropy, too: nats",
    "than sft at its best step, too: nats",
    "pairs of a search less pairs of whole completions, 144 letters: share",
};

/// And those about networks.
const std::set<std::string> kFailingNetworks{
    "DPO's plateau, transformer over log-linear",
    "control, open language: pairs of all strings keep DPO with strings: probability of anything "
    "else",
    "transformer: k3 in the loss ends at the optimum: KL",
};

// Sums in another order end in other networks. Runs are held to one set of instructions, but the
// next LibTorch or compiler has other sums too. So a verdict is checked only if it was the
// documented one with each set that was tried, and the end of its interval that decides was at
// least this far from its limit, in widths of the interval.
constexpr double kLeastDistance = 0.25;

using Distances = std::map<std::string, double>;

/// Those that are left out, with the least distance of them all; below 0 the claim did not hold.
/// Six networks, trained as long as in the full form: avx2, and avx512 but for overoptimization.
const Distances kUnsettled{
    {"transformer: DPO's gap stops falling: share left at the most pairs", 0.13},
    {"transformer: and falls: lost from step 256 to the end", -0.02},
    {"control, transformer: with new pairs of all strings: lost", 0.12},
    {"transformer: DPO loses more than where they are as good as they look: by", -0.001},
    {"transformer: RPO's does not fall: lost", -0.44},
    {"transformer: RPO ends above DPO: by", -0.80},
    {"control, transformer: not where strings without data are as good as they look: by", -0.07},
    {"transformer: DPO's KL(π ‖ π_ref) grows with log(1/p): slope", -0.29},
    {"where p is least DPO's KL, transformer over log-linear", -0.39},
    {"the same with all strings covered", 0.13},
    {"control, transformer: with all strings covered it is not: by", 0.001},
    {"transformer: and above the reference's: by", -0.25},
    // Of three or four networks, avx2 alone.
    {"transformer: sequence_token_mean makes wrong answers longer: by", 0.04},
    {"transformer: their pairs train better than the reference's own: gain, by", -0.08},
    {"transformer: and closer to the most that the same KL allows: share, by", -0.42},
    {"control, transformer: where nothing is rejected they do not: gain, by", -0.46},
};

/// Two networks, trained briefly: avx2, avx512 and scalar, those that write their own rows avx2
/// alone. Much of what is here takes longer.
const Distances kBriefUnsettled{
    {"transformer: rDPO's falls: share left", -1.24},
    {"control, transformer: without flips DPO's gap falls: share left", -0.81},
    {"transformer: and falls: lost from step 256 to the end", -63.31},
    {"log-linear, the same pairs: lost from step 32", 0.08},
    {"control, transformer: with new pairs of all strings: lost", -0.29},
    {"transformer: DPO loses more than where they are as good as they look: by", -1.00},
    {"transformer: RPO ends above DPO: by", -3.64},
    {"open language: DPO goes to what is no string: probability", 0.249},
    {"open language: RPO does not: probability", 0.16},
    {"transformer: DPO's KL(π ‖ π_ref) grows with log(1/p): slope", -0.59},
    {"control, transformer: with all strings covered it hardly grows: slope", -0.28},
    {"where p is least DPO's KL, transformer over log-linear", -0.66},
    {"the same with all strings covered", -0.95},
    {"transformer: where p is least DPO's KL is above that bound: KL", -0.08},
    {"control, transformer: with all strings covered it is not: KL", -0.48},
    {"transformer: DPO's KL is larger than with all strings covered: by", 0.06},
    {"transformer: where p is least HyPO's reward is above DPO's: by", -0.47},
    {"control, transformer: with all strings covered it is not: by", 0.015},
    {"transformer: and above the reference's: by", -0.29},
    {"transformer: sequence_token_mean makes wrong answers longer: by", -40},
    {"transformer: and right ones shorter: by", 0.12},
    {"transformer: at the end wrong ones are longer than right ones: tokens", -0.52},
    {"transformer: k1 in the reward ends at the optimum: KL", -1.36},
    {"transformer: nearer to it than to the end of the tokens' own KL: by", 0.46},
    {"transformer: k2 in the loss ends at the optimum: KL", -36},
    {"transformer: it ends where each token pays for its own KL: KL", -2.32},
    {"transformer: nearer to that than to the optimum: by", -0.73},
    {"transformer: k3 in the loss ends at the optimum: KL", -2.25},
    {"transformer: it ends at that of E r − β KL(π_ref ‖ π), token by token: KL", -0.95},
    {"transformer: nearer to that than to the optimum of the tokens: by", -0.55},
    {"transformer: Nash-MD moves towards it: share of KL(π* ‖ π) left", -25},
    {"transformer: 8 accepted of 64 follow π_r: their reward above its", -0.41},
    {"transformer: their pairs train better than the reference's own: gain, by", -0.21},
    {"transformer: and closer to the most that the same KL allows: share, by", -0.60},
    {"control, transformer: where nothing is rejected they do not: gain, by", -0.68},
};

double number_at(std::string_view text) {
  constexpr std::string_view kMinus = "−";
  const bool is_negative = text.starts_with(kMinus);
  if (is_negative) text.remove_prefix(kMinus.size());
  const double size = std::stod(std::string(text));
  return is_negative ? -size : size;
}

/// How far the end of the interval that decides is from its limit, in widths of the interval: above
/// 0 where the claim holds. From the words of what was expected, and checked against the verdict.
double distance_from_limit(const Verdict& verdict) {
  const auto& [value, low, high] = verdict.measured;
  const std::string_view words = verdict.expected;
  constexpr std::string_view kAbove = "above ", kBelow = "below ", kWithin = " within ";
  double gap = 0;
  if (words.starts_with(kAbove)) {
    gap = low - number_at(words.substr(kAbove.size()));
  } else if (words.ends_with(" in size")) {
    gap = number_at(words.substr(kBelow.size())) - std::max(std::abs(low), std::abs(high));
  } else if (words.starts_with(kBelow)) {
    gap = number_at(words.substr(kBelow.size())) - high;
  } else {
    REQUIRE(words.find(kWithin) != std::string_view::npos);
    const double middle = number_at(words);
    const double most = number_at(words.substr(words.find(kWithin) + kWithin.size()));
    gap = std::min(low - (middle - most), middle + most - high);
  }
  CHECK(verdict.holds == (gap > 0));
  return gap / (high - low);
}

void check_report(const Report& report) {
  CHECK(report.verdicts.size() >= 3);
  for (const Verdict& verdict : report.verdicts) {
    CAPTURE(to_line(verdict));
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

/// Trains `networks` for each experiment and checks what is not among `unsettled`.
void check_networks(Length length, int networks, const Distances& unsettled) {
  std::set<std::string> failed, left;
  using Run = Report (*)(const Settings&, Length);
  for (const Run run : std::initializer_list<Run>{
           neural_noise::run, neural_overoptimization::run, neural_coverage::run,
           neural_length_bias::run, neural_kl_placement::run, neural_nash::run, neural_rso::run}) {
    const Report report = run({.quick = true, .seeds = {0, networks}}, length);
    check_report(report);
    for (const Verdict& verdict : report.verdicts) {
      CAPTURE(to_line(verdict));
      const double distance = distance_from_limit(verdict);
      if (unsettled.contains(verdict.claim)) {
        left.insert(verdict.claim);
        continue;
      }
      CHECK(verdict.holds == !kFailingNetworks.contains(verdict.claim));
      if (!verdict.holds) failed.insert(verdict.claim);
      if (std::abs(distance) < kLeastDistance) {
        WARN(to_line(verdict) << ": " << distance << " widths from its limit");
      }
    }
  }
  std::set<std::string> expected, listed;
  for (const std::string& claim : kFailingNetworks) {
    if (!unsettled.contains(claim)) expected.insert(claim);
  }
  for (const auto& [claim, distance] : unsettled) listed.insert(claim);
  CHECK(failed == expected);
  CHECK(left == listed);
}

// A claim's control is among its verdicts: that the effect is absent where it should be.
TEST_CASE("lab: every claim about tables holds, or fails as documented", "[lab]") {
  std::set<std::string> failed;
  for (const Experiment& experiment : experiments()) {
    if (experiment.name.starts_with("neural-")) continue;
    CAPTURE(experiment.name);
    const Report report = experiment.run({.quick = true, .seeds = {0, experiment.quick_seeds}});
    check_report(report);
    for (const Verdict& verdict : report.verdicts) {
      CAPTURE(to_line(verdict));
      CHECK(verdict.holds == !kFailing.contains(verdict.claim));
      if (!verdict.holds) failed.insert(verdict.claim);
    }
  }
  CHECK(failed == kFailing);
}

TEST_CASE("lab: what a brief training of networks settles is as documented", "[lab]") {
  check_networks(Length::kBrief, 2, kBriefUnsettled);
}

TEST_CASE("lab: what the whole training of networks settles is as documented", "[lab][.long]") {
  check_networks(Length::kWhole, 6, kUnsettled);
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
