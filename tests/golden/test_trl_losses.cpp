// SPDX-License-Identifier: Apache-2.0

// Values and per-token gradients that TRL 1.16.0 gives (tests/data/README.md). Every case that the
// registered losses cover must pass; the others are counted, so that none is lost silently.

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "prefopt/losses/registry.h"
#include "support/catch.h"

namespace prefopt {
namespace {

using nlohmann::json;

bool covered(const json& config) {
  static const std::set<std::string> kTypes{"sigmoid", "robust", "ipo"};
  const json& types = config["loss_type"];
  if (config.contains("ld_alpha") || config.contains("use_weighting")) return false;
  if (types == json{"sigmoid", "sft"}) return true;
  return types.size() == 1 && kTypes.contains(types[0]);
}

at::Tensor sums(const json& pairs, const char* key) {
  std::vector<double> values;
  for (const json& pair : pairs) {
    double sum = 0;
    for (double x : pair[key]) sum += x;
    values.push_back(sum);
  }
  return at::tensor(values, at::kDouble);
}

at::Tensor lengths(const json& pairs, const char* key) {
  std::vector<std::int64_t> values;
  for (const json& pair : pairs) values.push_back(static_cast<std::int64_t>(pair[key].size()));
  return at::tensor(values, at::kLong);
}

TEST_CASE("TRL's losses and gradients", "[golden]") {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/trl_losses.json");
  const json cases = json::parse(file);
  int checked = 0;
  for (const json& golden : cases) {
    if (!covered(golden["config"])) continue;
    ++checked;
    CAPTURE(golden["id"].get<std::string>(), golden["config"].dump());
    const json& pairs = golden["pairs"];
    const json& expected = golden["expected"];
    const double rtol = golden["rtol"];
    PairLogps in;
    in.chosen_logps = sums(pairs, "chosen_logps");
    in.rejected_logps = sums(pairs, "rejected_logps");
    in.ref_chosen_logps = sums(pairs, "ref_chosen_logps");
    in.ref_rejected_logps = sums(pairs, "ref_rejected_logps");
    in.chosen_lens = lengths(pairs, "chosen_logps");
    in.rejected_lens = lengths(pairs, "rejected_logps");
    const LossOutput out = make_loss(golden["config"].dump())(in);

    CHECK(out.loss.item<double>() == Approx(expected["loss"].get<double>()).epsilon(rtol));
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i);
      for (double gradient : expected["grad_chosen"][i]) {
        CHECK(out.grad_chosen[row].item<double>() == Approx(gradient).epsilon(rtol).margin(1e-14));
      }
      for (double gradient : expected["grad_rejected"][i]) {
        CHECK(out.grad_rejected[row].item<double>() ==
              Approx(gradient).epsilon(rtol).margin(1e-14));
      }
    }
    const json& metrics = expected["metrics"];
    CHECK(out.chosen_rewards.mean().item<double>() ==
          Approx(metrics["rewards/chosen"].get<double>()).epsilon(1e-6).margin(1e-7));
    CHECK(out.rejected_rewards.mean().item<double>() ==
          Approx(metrics["rewards/rejected"].get<double>()).epsilon(1e-6).margin(1e-7));
    CHECK(out.margins.mean().item<double>() ==
          Approx(metrics["rewards/margins"].get<double>()).epsilon(1e-6).margin(1e-7));
  }
  // sigmoid, robust, ipo with and without a divergence, and sigmoid + sft.
  CHECK(checked == 18);
}

}  // namespace
}  // namespace prefopt
