// SPDX-License-Identifier: Apache-2.0

// Values, per-token gradients and metrics that TRL 1.16.0 gives (tests/data/README.md).

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "prefopt/losses/registry.h"
#include "support/catch.h"

namespace prefopt {
namespace {

using nlohmann::json;

// Sums over the first `limit` tokens of each completion.
at::Tensor sums(
    const json& pairs, const char* key,
    std::size_t limit(const json& pair) = [](const json&) { return SIZE_MAX; }) {
  std::vector<double> values;
  for (const json& pair : pairs) {
    const json& tokens = pair[key];
    double sum = 0;
    for (std::size_t t = 0; t < std::min(tokens.size(), limit(pair)); ++t) {
      sum += tokens[t].get<double>();
    }
    values.push_back(sum);
  }
  return at::tensor(values, at::kDouble);
}

std::size_t head_length(const json& pair) {
  return std::min(pair["chosen_logps"].size(), pair["rejected_logps"].size());
}

at::Tensor lengths(const json& pairs, const char* key) {
  std::vector<std::int64_t> values;
  for (const json& pair : pairs) values.push_back(static_cast<std::int64_t>(pair[key].size()));
  return at::tensor(values, at::kLong);
}

PairLogps inputs(const json& pairs) {
  PairLogps in;
  in.chosen_logps = sums(pairs, "chosen_logps");
  in.rejected_logps = sums(pairs, "rejected_logps");
  in.ref_chosen_logps = sums(pairs, "ref_chosen_logps");
  in.ref_rejected_logps = sums(pairs, "ref_rejected_logps");
  in.chosen_lens = lengths(pairs, "chosen_logps");
  in.rejected_lens = lengths(pairs, "rejected_logps");
  in.chosen_overlap_logps = sums(pairs, "chosen_logps", head_length);
  in.rejected_overlap_logps = sums(pairs, "rejected_logps", head_length);
  in.ref_chosen_overlap_logps = sums(pairs, "ref_chosen_logps", head_length);
  in.ref_rejected_overlap_logps = sums(pairs, "ref_rejected_logps", head_length);
  in.chosen_log_sum_p_squared = sums(pairs, "chosen_log_sum_sq_probs");
  in.rejected_log_sum_p_squared = sums(pairs, "rejected_log_sum_sq_probs");
  return in;
}

// A token counts in the sum over its completion and, if it is one of the first, in the head's.
void check_token_gradients(const json& golden, const char* key, const at::Tensor& full,
                           const at::Tensor& head) {
  const json& pairs = golden["pairs"];
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    const json& tokens = golden["expected"][key][i];
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      CAPTURE(key, i, t);
      double gradient = full[row].item<double>();
      if (head.defined() && t < head_length(pairs[i])) gradient += head[row].item<double>();
      CHECK(gradient ==
            Approx(tokens[t].get<double>()).epsilon(golden["rtol"].get<double>()).margin(1e-14));
    }
  }
}

TEST_CASE("TRL's losses, token gradients and metrics", "[golden]") {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/trl_losses.json");
  const json cases = json::parse(file);
  REQUIRE(cases.size() == 66);
  for (const json& golden : cases) {
    CAPTURE(golden["id"].get<std::string>(), golden["config"].dump());
    const json& expected = golden["expected"];
    const LossOutput out = make_loss(golden["config"].dump())(inputs(golden["pairs"]));
    CHECK(out.loss.item<double>() ==
          Approx(expected["loss"].get<double>()).epsilon(golden["rtol"].get<double>()));
    check_token_gradients(golden, "grad_chosen", out.grad_chosen, out.grad_chosen_overlap);
    check_token_gradients(golden, "grad_rejected", out.grad_rejected, out.grad_rejected_overlap);

    const json& metrics = expected["metrics"];
    const auto metric = [&](const char* name) {
      return Approx(metrics[name].get<double>()).epsilon(1e-6).margin(1e-7);
    };
    CHECK(out.chosen_rewards.mean().item<double>() == metric("rewards/chosen"));
    CHECK(out.rejected_rewards.mean().item<double>() == metric("rewards/rejected"));
    CHECK(out.margins.mean().item<double>() == metric("rewards/margins"));
    CHECK(out.margins.gt(0).to(at::kDouble).mean().item<double>() == metric("rewards/accuracies"));
  }
}

}  // namespace
}  // namespace prefopt
