// SPDX-License-Identifier: Apache-2.0

// What TRL 1.16.0's trainers give for their configs, and for none (tests/data/README.md).

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "prefopt/losses/registry.h"
#include "support/catch.h"

namespace prefopt {
namespace {

using nlohmann::json;

json golden_cases(const char* name) {
  std::ifstream file(std::string(PREFOPT_TEST_DATA_DIR "/") + name);
  return json::parse(file);
}

at::Tensor column_of_sums(const json& rows, const char* key) {
  std::vector<double> values;
  for (const json& row : rows) {
    if (!row.contains(key)) return {};
    double sum = 0;
    for (const json& logp : row[key]) sum += logp.get<double>();
    values.push_back(sum);
  }
  return at::tensor(values, at::kDouble);
}

at::Tensor column_of_lengths(const json& rows, const char* key) {
  std::vector<double> values;
  for (const json& row : rows) {
    if (!row.contains(key)) return {};
    values.push_back(static_cast<double>(row[key].size()));
  }
  return at::tensor(values, at::kDouble);
}

// Sums over the tokens that both completions have.
at::Tensor column_of_heads(const json& rows, const char* key) {
  std::vector<double> values;
  for (const json& row : rows) {
    if (!row.contains(key) || !row.contains("rejected_logps")) return {};
    const auto shared = std::min(row["chosen_logps"].size(), row["rejected_logps"].size());
    double sum = 0;
    for (std::size_t t = 0; t < std::min(row[key].size(), shared); ++t) {
      sum += row[key][t].get<double>();
    }
    values.push_back(sum);
  }
  return at::tensor(values, at::kDouble);
}

PairLogps logps_of_rows(const json& rows) {
  const bool labelled = rows[0].contains("completion_logps");
  const char* const chosen = labelled ? "completion_logps" : "chosen_logps";
  PairLogps in;
  in.chosen_logps = column_of_sums(rows, chosen);
  in.rejected_logps = column_of_sums(rows, "rejected_logps");
  in.ref_chosen_logps =
      column_of_sums(rows, labelled ? "ref_completion_logps" : "ref_chosen_logps");
  in.ref_rejected_logps = column_of_sums(rows, "ref_rejected_logps");
  in.chosen_lens = column_of_lengths(rows, chosen);
  in.rejected_lens = column_of_lengths(rows, "rejected_logps");
  in.chosen_overlap_logps = column_of_heads(rows, "chosen_logps");
  in.rejected_overlap_logps = column_of_heads(rows, "rejected_logps");
  in.ref_chosen_overlap_logps = column_of_heads(rows, "ref_chosen_logps");
  in.ref_rejected_overlap_logps = column_of_heads(rows, "ref_rejected_logps");
  in.chosen_log_sum_p_squared = column_of_sums(rows, "chosen_log_sum_sq_probs");
  in.rejected_log_sum_p_squared = column_of_sums(rows, "rejected_log_sum_sq_probs");
  in.gold_logps = column_of_sums(rows, "gold_logps");
  in.gold_lens = column_of_lengths(rows, "gold_logps");
  in.prompt_logps = column_of_sums(rows, "prompt_logps");
  in.prompt_lens = column_of_lengths(rows, "prompt_logps");
  in.kl_logps = column_of_sums(rows, "kl_logps");
  in.ref_kl_logps = column_of_sums(rows, "ref_kl_logps");
  if (labelled) {
    std::vector<double> labels;
    for (const json& row : rows) labels.push_back(row["label"].get<bool>() ? 1 : 0);
    in.labels = at::tensor(labels, at::kDouble);
  }
  return in;
}

double row_of(const at::Tensor& x, std::size_t i) {
  return x.defined() ? x[static_cast<std::int64_t>(i)].item<double>() : 0;
}

// A token counts in the sum over its completion and, if it is one of the first, in the head's.
void check_gradient_of_tokens(const json& golden, const json& rows, const char* key,
                              const at::Tensor& full, const at::Tensor& head) {
  const json expected = golden["expected"].value(key, json::array());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const bool is_pair = rows[i].contains("rejected_logps");
    const std::size_t shared =
        is_pair ? std::min(rows[i]["chosen_logps"].size(), rows[i]["rejected_logps"].size()) : 0;
    for (std::size_t t = 0; t < expected[i].size(); ++t) {
      CAPTURE(key, i, t);
      const double got = row_of(full, i) + (t < shared ? row_of(head, i) : 0);
      CHECK(
          got ==
          Approx(expected[i][t].get<double>()).epsilon(golden["rtol"].get<double>()).margin(1e-14));
    }
  }
}

// As `prefopt loss` prints them.
std::map<std::string, double> logged_metrics(const PairLogps& in, const LossOutput& out) {
  std::map<std::string, double> metrics;
  const auto mean = [](const at::Tensor& x) { return x.mean().item<double>(); };
  if (in.labels.defined()) {
    for (const auto& [side, label] : {std::pair{"chosen", 1}, {"rejected", 0}}) {
      const at::Tensor rows = in.labels.eq(label);
      metrics[std::string("rewards/") + side] = mean(out.chosen_rewards.masked_select(rows));
      metrics[std::string("logps/") + side] = mean(in.chosen_logps.masked_select(rows));
    }
    return metrics;
  }
  metrics["rewards/chosen"] = mean(out.chosen_rewards);
  metrics["rewards/rejected"] = mean(out.rejected_rewards);
  metrics["rewards/margins"] = mean(out.margins);
  const bool sums = !out.logged_chosen_logps.defined();
  metrics["logps/chosen"] = mean(sums ? in.chosen_logps : out.logged_chosen_logps);
  metrics["logps/rejected"] = mean(sums ? in.rejected_logps : out.logged_rejected_logps);
  return metrics;
}

void check_trainer_case(const json& golden) {
  CAPTURE(golden["id"].get<std::string>(), golden["config"].dump());
  const json& rows = golden.contains("rows") ? golden["rows"] : golden["pairs"];
  const json& expected = golden["expected"];
  json config = golden["config"];
  config["trainer"] = golden["trainer"];
  const PairLogps in = logps_of_rows(rows);
  const LossOutput out = make_loss(config.dump())(in);
  CHECK(out.loss.item<double>() ==
        Approx(expected["loss"].get<double>()).epsilon(golden["rtol"].get<double>()));
  check_gradient_of_tokens(golden, rows, "grad_chosen", out.grad_chosen, out.grad_chosen_overlap);
  check_gradient_of_tokens(golden, rows, "grad_rejected", out.grad_rejected,
                           out.grad_rejected_overlap);
  check_gradient_of_tokens(golden, rows, "grad_gold", out.grad_gold, {});
  check_gradient_of_tokens(golden, rows, "grad_prompt", out.grad_prompt, {});
  for (const auto& [name, value] : logged_metrics(in, out)) {
    CAPTURE(name);
    CHECK(value == Approx(expected["metrics"].value(name, value)).epsilon(1e-6).margin(1e-7));
  }
}

TEST_CASE("TRL's trainers by their configs, defaults omitted", "[golden]") {
  const json cases = golden_cases("trl_trainers.json");
  REQUIRE(cases.size() == 25);
  std::set<std::string> without_keys;
  for (const json& golden : cases) {
    if (golden["config"].empty()) without_keys.insert(golden["trainer"].get<std::string>());
    check_trainer_case(golden);
  }
  CHECK(without_keys.size() == 5);
}

TEST_CASE("CPOTrainer's values", "[golden]") {
  const json cases = golden_cases("trl_cpo.json");
  REQUIRE(cases.size() == 9);
  for (const json& golden : cases) check_trainer_case(golden);
}

}  // namespace
}  // namespace prefopt
