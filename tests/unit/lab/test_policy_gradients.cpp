// SPDX-License-Identifier: Apache-2.0

// The exact numbers of the policy-gradient experiments, against golden/policy_gradient.json
// (experiments, experiments2: float64 numpy, made from the formulas).

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "lab/experiments.h"
#include "lab/token_steps.h"
#include "prefopt/objectives/advantages/none.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

using Eigen::ArrayXd;

/// Two instances, as the numbers that are compared do not depend on them.
constexpr Settings kQuick{.quick = true, .seeds = {0, 2}};

const Data& data_of(const Report& report, const std::string& name) {
  for (const Data& data : report.data) {
    if (data.name == name) return data;
  }
  FAIL("no data named " << name);
  return report.data.front();
}

/// The numbers of the first row that begins with these texts.
std::vector<double> numbers(const Data& data, const std::vector<std::string>& texts) {
  for (const auto& row : data.rows) {
    bool is_it = true;
    std::vector<double> rest;
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (const double* number = std::get_if<double>(&row[i])) {
        rest.push_back(*number);
      } else {
        is_it = is_it && i < texts.size() && std::get<std::string>(row[i]) == texts[i];
      }
    }
    if (is_it) return rest;
  }
  FAIL("no row of " << texts.front() << " in " << data.name);
  return {};
}

void check_numbers(const Data& data, const std::vector<std::string>& texts,
                   const std::vector<double>& expected, double margin) {
  const std::vector<double> found = numbers(data, texts);
  CAPTURE(data.name, texts);
  REQUIRE(found.size() >= expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(found[i] - expected[i]) < margin);
  }
}

TEST_CASE("lab: gradients of groups have the scale, direction and variance of the golden file",
          "[lab]") {
  const Report report = pg_baselines::run(kQuick);
  const Data& data = report.data[0];
  const std::string diffuse = "diffuse", worse = "a suboptimal action at 97 %",
                    best = "the best action at 97 %";
  const std::string none = "none (REINFORCE)", greedy = "greedy (ReMax)",
                    left = "leave_one_out (RLOO)", mean = "group_mean (Dr. GRPO)",
                    divided = "group_std (GRPO)", control = "control: the group's best";
  check_numbers(data, {diffuse, none}, {1, 1, 0.0714248331428377}, 1e-12);
  check_numbers(data, {diffuse, greedy}, {1, 1, 0.0496597310640643}, 1e-12);
  check_numbers(data, {diffuse, left}, {1, 1, 0.017083101479957}, 1e-12);
  check_numbers(data, {diffuse, mean}, {0.75, 1, 0.00960924458247578}, 1e-12);
  check_numbers(data, {diffuse, divided}, {2.46008221163064, 0.993954311687093, 0.13789436051625},
                1e-12);
  check_numbers(data, {diffuse, control}, {0.732089706525247, 0.990183955152308, 0.031822336264597},
                1e-12);
  check_numbers(data, {best, none}, {1, 1, 0.00271239486581169}, 1e-12);
  check_numbers(data, {best, greedy}, {1, 1, 0.00440741171385753}, 1e-12);
  check_numbers(data, {best, left}, {1, 1, 0.00425162686028708}, 1e-12);
  check_numbers(data, {best, divided}, {2.55237493382128, 0.993641680433091, 0.0266233370126195},
                1e-12);
  check_numbers(data, {worse, none}, {1, 1, 0.00467337043347417}, 1e-12);
  check_numbers(data, {worse, greedy}, {1, 1, 0.00116962105623903}, 1e-12);
  check_numbers(data, {worse, left}, {1, 1, 0.00117797914681325}, 1e-12);
  check_numbers(data, {worse, divided}, {5.38129077265284, 0.888428632312162, 0.0275334777961605},
                1e-12);
  check_numbers(data, {worse, control}, {0.896873147262799, 0.745042164603742, 0.00072496870983886},
                1e-12);
}

TEST_CASE("lab: norms of gradients at two scales of the rewards are those of the golden file",
          "[lab]") {
  const Data data = data_of(pg_scale::run(kQuick), "pg-scale");
  std::map<std::string, std::map<double, double>> norms;
  for (const auto& row : data.rows) {
    norms[std::get<std::string>(row[0])][std::get<double>(row[1])] = std::get<double>(row[2]);
  }
  auto& left = norms.at("leave_one_out, one of three");
  auto& divided = norms.at("group_std, one of three");
  CHECK(std::abs(left.at(1) - 0.272165526975909) < 1e-12);
  CHECK(std::abs(left.at(0.01) - 0.00272165526975909) < 1e-14);
  CHECK(std::abs(divided.at(1) - 0.383866882386673) < 1e-12);
  CHECK(std::abs(divided.at(0.01) - 0.376816979530437) < 1e-12);
}

TEST_CASE("lab: biases in length are those of the golden file", "[lab]") {
  const Data data = data_of(pg_length_bias::run(kQuick), "pg-length-bias-exact");
  // Completions of the step; gradients of the logits: right, end of right ones, of wrong ones.
  check_numbers(data, {"sequence_token_mean"},
                {2, 0.1734375, 0.0477864583333333, -0.0477864583333333}, 1e-12);
  check_numbers(data, {"token_mean"},
                {2, 0.153812504227543, 0.0278104531644571, -0.0278104531644571}, 1e-12);
  check_numbers(data, {"fixed"}, {2, 0.0416666666666667, 0, 0}, 1e-12);
  // experiments3 has simulated these: .00735 ± .00008 of 8 completions, .00178 ± .00005 of 32.
  for (const auto& row : data.rows) {
    if (std::get<std::string>(row[0]) != "token_mean") continue;
    const double size = std::get<double>(row[1]), bias = std::get<double>(row[3]);
    if (size == 8) CHECK(std::abs(bias - 0.00735) < 0.0002);
    if (size == 32) CHECK(std::abs(bias - 0.00178) < 0.00015);
  }
}

TEST_CASE("lab: policy gradients end where the golden file says, by the place of the KL", "[lab]") {
  const Data data = data_of(pg_kl_placement::run(kQuick), "pg-kl-placement-ends");
  const std::vector<double> optimum{0.140722273486627, 0.286892099158606, 0.519902386580873,
                                    0.0524832407738947};
  for (const char* place : {"k1 in the reward", "k1 in the advantage", "k2 in the loss",
                            "k1 times the ratio in the loss", "k3 times the ratio in the loss",
                            "exact in the loss", "the optimum"}) {
    check_numbers(data, {place}, optimum, 1e-12);
  }
  check_numbers(data, {"k3 in the loss"},
                {0.169624214951074, 0.220888078469336, 0.558419196994776, 0.0510685095848143},
                1e-12);
  check_numbers(
      data, {"k1 in the loss"},
      {2.57463397359059e-05, 5.22646127306994e-05, 0.999892986607262, 2.90024402712738e-05}, 1e-12);
}

TEST_CASE("lab: objectives on completions of another policy end where the golden file says",
          "[lab]") {
  const Data data = data_of(pg_off_policy::run(kQuick), "pg-off-policy-ends");
  const std::vector<double> optimum{0.140722273486627, 0.286892099158606, 0.519902386580873,
                                    0.0524832407738947};
  check_numbers(data, {"squared loss, soft mean"}, optimum, 1e-10);
  check_numbers(data, {"policy gradient with the ratio"}, optimum, 1e-10);
  check_numbers(data, {"squared loss, mean of the data"},
                {0.141452896607513, 0.28797142014648, 0.513907765895042, 0.056667917350964}, 1e-10);
  check_numbers(data, {"control: policy gradient without the ratio"},
                {0.180195583739384, 0.277703394517606, 0.40151354333738, 0.14058747840563}, 1e-10);
}

TEST_CASE("lab: locks open after as many steps as in the golden file", "[lab]") {
  const Data data = data_of(pg_resets::run({.quick = true, .seeds = {0, 1}}), "pg-resets");
  const std::map<std::string, std::vector<double>> expected{
      {"no reset", {77, 6148, 20000}},
      {"resets", {64, 201, 401}},
      {"resets in half of the episodes", {52, 194, 444}},
      {"control: resets to random letters", {178, 13648, 20000}}};
  for (const auto& [name, steps] : expected) {
    std::vector<double> found;
    for (const auto& row : data.rows) {
      if (std::get<std::string>(row[0]) == name) found.push_back(std::get<double>(row[2]));
    }
    CAPTURE(name);
    CHECK(found == steps);
  }
}

TEST_CASE("lab: a filter by rank keeps the policies of the golden file", "[lab]") {
  const Report report = pg_rank_filter::run(kQuick);
  const Data& data = data_of(report, "pg-rank-filter-policies");
  check_numbers(data, {"none"}, {0.5, 0.3, 0.2}, 1e-12);
  check_numbers(data, {"best (BoN)"}, {0.125, 0.387, 0.488}, 1e-12);
  check_numbers(data, {"best and random (BR)"}, {0.40625, 0.32175, 0.272}, 1e-12);
  check_numbers(data, {"best and worst (BW)"}, {0.5, 0.252, 0.248}, 1e-12);
}

TEST_CASE("lab: corrections for the sampler trade as in the golden file", "[lab]") {
  const Data data = data_of(pg_sampler_mismatch::run(kQuick), "pg-sampler-mismatch-four");
  check_numbers(data, {"control: no limit"}, {1, 1, 0.669122708333333}, 1e-12);
  check_numbers(data, {"control: ignored"}, {0.908649085610966, 0.71482509716824, 0.03291594},
                1e-12);
  check_numbers(data, {"min(p/q, 2)"}, {0.958825472548227, 0.765713492504164, 0.118748637083333},
                1e-12);
  check_numbers(data, {"min(p/q, 3)"}, {0.984322754566538, 0.843808995002776, 0.249545343333333},
                1e-12);
  check_numbers(data, {"p/q up to 2, else 0"},
                {0.849844950539393, 0.60952248750694, 0.0151391770833333}, 1e-12);
}

TEST_CASE("lab: tokens that the policy did not write are no part of a listed step", "[lab]") {
  RolloutStep step = listed_step({3, 2}, ArrayXd{{1.0, 0.5}});
  step.acted << 0, 1, 1, 1, 0;
  const ArrayXd logps{{-1.0, -2.0, -3.0, -4.0, -5.0}};
  const TokenNumbers in = token_numbers(step, logps, Advantage(NoBaseline()).of(step));
  CHECK((in.logps == ArrayXd{{-2.0, -3.0, -4.0}}).all());
  CHECK((in.advantages == ArrayXd{{1.0, 1.0, 0.5}}).all());
  CHECK((in.completions == ArrayXd{{0.0, 0.0, 1.0}}).all());
  CHECK((in.lens == ArrayXd{{2.0, 2.0, 1.0}}).all());
  CHECK(in.totals.tokens == 3);
  CHECK(in.totals.completions == 2);
}

}  // namespace
}  // namespace prefopt::lab
