// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <string>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/objectives/token_rule.h"
#include "prefopt/testing/objective_checks.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

TEST_CASE("every registered rule passes the kit", "[objectives]") {
  CHECK(registered_rules().size() == 6);
  for (const RuleEntry& entry : registered_rules()) {
    const TokenRule rule = make_rule("{\"kind\": \"" + entry.info.kind + "\"}");
    CHECK(testing::check_rule(rule).text() == "");
    CHECK(entry.info.formula != "");
    CHECK(rule.properties().policy_gradient);
  }
  for (const char* config :
       {R"({"kind": "ppo", "low": 0.1, "high": 0.3, "delta": 1.5, "dual": 2})",
        R"({"kind": "ppo", "low": 0, "high": 0, "dual": 1.1})",
        R"({"kind": "cispo", "min": 0.8, "max": 1.28})", R"({"kind": "cispo", "max": 0.2})",
        R"({"kind": "sapo", "tau_positive": 3, "tau_negative": 0.5})",
        R"({"kind": "vespo", "k_positive": 0, "lambda_positive": 0})",
        R"({"kind": "regress", "tau": 2})"}) {
    CHECK(testing::check_rule(make_rule(config), {.seed = 3}).text() == "");
  }
}

double loss_at(const char* config, double ratio, double advantage) {
  const auto one = [](double x) { return Eigen::ArrayXd(Eigen::ArrayXd::Constant(1, x)); };
  return make_rule(config)(RuleInputs<Eigen::ArrayXd>{.log_ratios = one(std::log(ratio)),
                                                      .ratios = one(ratio),
                                                      .ratio_slopes = one(ratio),
                                                      .logps = one(-1),
                                                      .advantages = one(advantage)})
      .losses[0];
}

TEST_CASE("ppo: all branches", "[objectives]") {
  const char* plain = R"({"kind": "ppo", "low": 0.2, "high": 0.5})";
  CHECK(loss_at(plain, 1.25, 2) == -2.5);
  CHECK(loss_at(plain, 4, 2) == -3);      // limited at 1.5
  CHECK(loss_at(plain, 0.5, 2) == -1);    // a fall is free to be taken back
  CHECK(loss_at(plain, 4, -2) == 8);      // and so is a rise
  CHECK(loss_at(plain, 0.5, -2) == 1.6);  // limited at 0.8
  const char* two_sided = R"({"kind": "ppo", "low": 0.2, "high": 0.5, "delta": 3})";
  CHECK(loss_at(two_sided, 2, -2) == 4);
  CHECK(loss_at(two_sided, 4, -2) == 6);
  CHECK(loss_at(two_sided, 4, 2) == -3);
  const char* dual = R"({"kind": "ppo", "low": 0.2, "high": 0.5, "dual": 2.5})";
  CHECK(loss_at(dual, 4, -2) == 5);
  CHECK(loss_at(dual, 0.5, -2) == 1.6);
  const char* both = R"({"kind": "ppo", "low": 0.2, "high": 0.5, "delta": 3, "dual": 2.5})";
  CHECK(loss_at(both, 4, -2) == 5);
}

TEST_CASE("errors of a rule's config", "[objectives]") {
  const std::pair<const char*, const char*> cases[] = {
      {"{}", "rule: expected an object with a key 'kind', got {}"},
      {R"({"kind": "pppo"})", "rule: expected a registered kind, got 'pppo'; did you mean 'ppo'?"},
      {R"({"kind": "ppo", "eps": 0.2})", "ppo: expected a known option, got 'eps'"},
      {R"({"kind": "ppo", "low": 1.5})", "ppo: expected low in [0, 1], got 1.5"},
      {R"({"kind": "ppo", "high": 0.5, "delta": 1.2})",
       "ppo: expected delta of at least 1 + high, 1.5, or 0, got 1.2"},
      {R"({"kind": "ppo", "dual": 1})", "ppo: expected dual above 1, or 0, got 1"},
      {R"({"kind": "cispo", "min": 2, "max": 1})", "cispo: expected min of at most max, 1, got 2"},
      {R"({"kind": "regress", "tau": 0})", "regress: expected tau > 0, got 0"}};
  for (const auto& [config, text] : cases) {
    CHECK_THROWS_TEXT(make_rule(config), ConfigError, text);
  }
  // The limit is that of the clip itself.
  CHECK_NOTHROW(make_rule(R"({"kind": "ppo", "high": 0.2, "delta": 1.2})"));
}

}  // namespace
}  // namespace prefopt
