// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

TEST_CASE("prefopt grad: the golden losses, gradient norms and metrics", "[cli]") {
  int cases = 0;
  for (const auto& golden : tiny_llama().at("cases")) {
    const auto& config = golden.at("config");
    // Token weights and other losses come with later registry entries.
    if (config.contains("use_weighting") || config.contains("ld_alpha") ||
        config.at("loss_type").size() == 3) {
      continue;
    }
    ++cases;
    INFO(config.dump());
    const json got = cli_json({"grad", "--model", kPolicy, "--ref", kReference, "--data", kPairs,
                               "--loss", config.dump()});
    check_close(got.at("loss"), golden.at("loss"), 1e-5);
    check_close(got.at("grad_norm"), golden.at("grad_norm"), 2e-4);
    REQUIRE(got.at("grad_norms").size() == golden.at("grad_norms").size());
    for (const auto& [name, norm] : golden.at("grad_norms").items()) {
      INFO(name);
      check_close(got.at("grad_norms").at(name), norm, 2e-4);
    }
    for (const auto& [name, value] : golden.at("metrics").items()) {
      INFO(name);
      check_close(got.at("metrics").at(name), value, 1e-5, 1e-6);
    }
  }
  CHECK(cases == 5);
}

TEST_CASE("prefopt grad: does not depend on how the file is cut", "[cli]") {
  const auto run = [](const std::string& micro) {
    return cli_json({"grad", "--model", kPolicy, "--ref", kReference, "--data", kPairs, "--loss",
                     R"({"type": "rpo"})", "--dtype", "float64", "--micro", micro});
  };
  const json whole = run("0");
  const json cut = run("4");
  check_close(cut.at("loss"), whole.at("loss"), 1e-12);
  for (const auto& [name, norm] : whole.at("grad_norms").items()) {
    INFO(name);
    check_close(cut.at("grad_norms").at(name), norm, 1e-11);
  }
}

TEST_CASE("prefopt grad: a reference is asked for only where it is used", "[cli]") {
  check_cli_refused({"grad", "--model", kPolicy, "--data", kPairs, "--loss", R"({"type": "dpo"})"},
                    2,
                    "--ref: expected a model folder, got none; dpo compares the policy with a "
                    "reference");
  const json sft =
      cli_json({"grad", "--model", kPolicy, "--data", kPairs, "--loss", R"({"type": "sft"})"});
  double sum = 0, tokens = 0;
  for (const auto& pair : tiny_llama().at("pairs")) {
    for (const double logp : pair.at("chosen_logps")) {
      sum -= logp;
      ++tokens;
    }
  }
  check_close(sft.at("loss"), sum / tokens, 1e-5);
}

}  // namespace
}  // namespace prefopt::testing_support
