// SPDX-License-Identifier: Apache-2.0
// Losses on tokens, rewards of steps, guides and the search by values, on the command line.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"
#include "support/golden_rollouts.h"
#include "support/reward_models.h"
#include "support/temp_dir.h"
#include "support/text_files.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

const json& golden_methods() {
  static const json file = json::parse(read_text(PREFOPT_TEST_DATA_DIR "/token_losses.json"));
  return file.at("methods");
}

/// The golden completions with what oreo reads.
std::vector<json> oreo_rows() {
  const GoldenRollouts all = golden_rollouts();
  const auto starts = all.step.starts();
  const json& ends = golden_methods()["oreo"]["step"]["ends"];
  std::vector<json> rows;
  for (std::size_t i = 0; i < 8; ++i) {
    const auto list = [&](const Eigen::ArrayXd& x) {
      return std::vector<double>(x.begin() + starts[i], x.begin() + starts[i + 1]);
    };
    rows.push_back({{"logps", list(all.logps)},
                    {"ref_logps", list(all.step.ref_logps)},
                    {"values", list(all.step.values)},
                    {"reward", all.step.rewards[static_cast<Eigen::Index>(i)]},
                    {"step_ends", ends[std::to_string(i)]}});
  }
  return rows;
}

struct RowsFile {
  TempDir folder;
  std::string path = folder.file("rows.jsonl");

  explicit RowsFile(const std::vector<json>& rows) {
    std::string text;
    for (const json& row : rows) text += row.dump() + "\n";
    write_text(path, text);
  }
  json loss(const std::string& config) const {
    return cli_json({"loss", "--loss", config, "--rollouts", path});
  }
  void check_refused(const std::string& config, const std::string& sentence) const {
    check_cli_refused({"loss", "--loss", config, "--rollouts", path}, 3, path + sentence);
  }
};

void check_lists(const json& got, const json& expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE(got[i].size() == expected[i].size());
    for (std::size_t t = 0; t < got[i].size(); ++t) {
      check_close(got[i][t], expected[i][t], 1e-10, 1e-15);
    }
  }
}

TEST_CASE("prefopt loss --rollouts: golden losses of OREO", "[cli]") {
  const RowsFile file(oreo_rows());
  const json& oreo = golden_methods()["oreo"];
  const json token = file.loss(R"({"type": "oreo", "alpha": 0})");
  check_close(token["loss"], oreo["token"]["value_loss"], 1e-12);
  check_lists(token["grad"], oreo["token"]["policy_grad"]);
  check_lists(token["grad_values"], oreo["token"]["value_grad"]);
  check_close(token["metrics"]["loss/bellman"], oreo["token"]["value_loss"], 1e-12);
  const json step = file.loss(R"({"type": "oreo", "alpha": 0, "level": "step"})");
  check_close(step["loss"], oreo["step"]["loss"], 1e-12);
  check_lists(step["grad"], oreo["step"]["policy_grad"]);
  const json response = file.loss(R"({"type": "oreo", "alpha": 0, "level": "response"})");
  check_close(response["loss"], oreo["response"]["loss"], 1e-12);
  check_lists(response["grad"], oreo["response"]["policy_grad"]);
}

TEST_CASE("prefopt loss --rollouts: tokens that nobody chose have no loss", "[cli]") {
  std::vector<json> rows = oreo_rows();
  for (json& row : rows) {
    for (const char* key : {"logps", "ref_logps", "values"}) row[key].push_back(-3);
    row.erase("step_ends");
    std::vector<int> acted(row["logps"].size(), 1);
    acted.back() = 0;
    row["acted"] = acted;
  }
  const json got = RowsFile(rows).loss(R"({"type": "oreo", "alpha": 0})");
  check_close(got["loss"], golden_methods()["oreo"]["token"]["value_loss"], 1e-12);
  for (const json& of_row : got["grad"]) CHECK(of_row.back() == 0);
}

TEST_CASE("prefopt loss --rollouts: a row of iqlearn", "[cli]") {
  // lambda r² − lp by hand: r = (-1 + 2 - 0.5 · 1.5, -0.5 + 1.5).
  const std::vector<json> rows{{{"logps", {-1, -0.5}}, {"log_normalizers", {2, 1.5}}}};
  const RowsFile file(rows);
  const json got = file.loss(R"({"type": "iqlearn", "lambda": 0.2, "gamma": 0.5})");
  const double first = 0.25, second = 1;
  check_close(got["loss"], (0.2 * (first * first + second * second) + 1.5) / 2, 1e-12);
  check_close(got["grad"][0][0], 0.2 * first - 0.5, 1e-12);
  check_close(got["grad_log_normalizers"][0][1], 0.2 * (second - 0.5 * first), 1e-12);
  check_close(got["metrics"]["rewards/implicit"], (first + second) / 2, 1e-12);
}

TEST_CASE("prefopt loss --rollouts: rows that lack what a loss on tokens reads", "[cli]") {
  const auto refused = [](const char* key, const std::string& config, const std::string& sentence) {
    std::vector<json> rows = oreo_rows();
    rows[1].erase(key);
    RowsFile(rows).check_refused(config, sentence);
  };
  const std::string oreo = R"({"type": "oreo", "alpha": 0})";
  refused("values", oreo, ":2: expected values, got a row without it; oreo needs it");
  refused("reward", oreo, ":2: expected reward, got a row without it; oreo needs it");
  refused("step_ends", R"({"type": "oreo", "alpha": 0, "level": "step"})",
          ":2: expected step_ends, got a row without it; oreo needs it");
  refused("group", R"({"type": "oreo"})",
          ":1: expected exact_kls, got a row without it; oreo needs it");
  refused("group", R"({"type": "iqlearn"})",
          ":1: expected log_normalizers, got a row without it; iqlearn needs it");
  std::vector<json> rows = oreo_rows();
  rows[2]["reward"] = nullptr;
  RowsFile(rows).check_refused(oreo, ":3: expected a reward for oreo, got null");
}

TEST_CASE("prefopt losses: losses on tokens have pages", "[cli]") {
  const json page = cli_json({"losses", "oreo", "--json"});
  CHECK(page["kind"] == "oreo");
  CHECK(page["options"].size() == 4);
  CHECK(run_cli({"losses", "iqlearn"}).out.find("lambda") != std::string::npos);
  CHECK(run_cli({"losses"}).out.find("oreo") != std::string::npos);
  check_cli_refused({"loss", "--loss", R"({"type": "oreo"})", "--logps", "rows.jsonl"}, 2,
                    "loss: expected a loss on sums of tokens, got 'oreo', which is on tokens; "
                    "`prefopt loss --rollouts` evaluates it");
}

TEST_CASE("prefopt score --rewards: log-ratios of tokens", "[cli]") {
  const auto& expected = tiny_llama().at("pairs");
  const auto rows = json_lines(run_cli({"score", "--model", kPolicy, "--ref", kReference, "--data",
                                        kPairs, "--rewards", "tokens", "--beta", "0.5"})
                                   .out);
  REQUIRE(rows.size() == expected.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (const std::string side : {"chosen", "rejected"}) {
      const auto logps = expected[i].at(side + "_logps").get<std::vector<double>>();
      const auto ref = expected[i].at("ref_" + side + "_logps").get<std::vector<double>>();
      const auto got = rows[i].at(side + "_rewards").get<std::vector<double>>();
      REQUIRE(got.size() == logps.size());
      for (std::size_t t = 0; t < got.size(); ++t) {
        check_close(got[t], 0.5 * (logps[t] - ref[t]), 0, 1e-5);
      }
    }
  }
}

const std::vector<std::string> kScoreSteps{"score",    "--model",    kPolicy, "--ref",
                                           kReference, "--rewards",  "steps", "--tokenizer",
                                           "byte",     "--step-end", "."};

std::vector<std::string> with(std::vector<std::string> arguments,
                              const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST_CASE("prefopt score --rewards: candidates get what pairs reads", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("candidates.jsonl");
  write_text(file, R"({"prompt": "a", "completions": ["b.c", "d.ef.g"], "ended": [true, false]})"
                   "\n");
  const json line = cli_json(with(kScoreSteps, {"--candidates", file}));
  CHECK(line["completions"] == json({"b.c", "d.ef.g"}));
  CHECK(line["ended"] == json({true, false}));
  REQUIRE(line["step_rewards"].size() == 2);
  CHECK(line["step_rewards"][0].size() == 2);
  CHECK(line["step_rewards"][1].size() == 3);
  for (std::size_t i = 0; i < 2; ++i) {
    double least = line["step_rewards"][i][0];
    for (const json& reward : line["step_rewards"][i])
      least = std::min(least, reward.get<double>());
    CHECK(line["rewards"][i] == least);
  }
  const json sums = cli_json(with(kScoreSteps, {"--candidates", file, "--aggregate", "sum"}));
  double sum = 0;
  for (const json& reward : line["step_rewards"][1]) sum += reward.get<double>();
  check_close(sums["rewards"][1], sum, 1e-12);

  const std::string rated = folder.file("rated.jsonl");
  write_text(rated, line.dump() + "\n");
  const json row = cli_json({"pairs", "--select", R"({"type": "best_of"})", "--candidates", rated});
  const bool is_first = line["rewards"][0] > line["rewards"][1];
  CHECK(row["completion"] == (is_first ? "b.c" : "d.ef.g"));
  check_cli_refused(with(kScoreSteps, {"--candidates", rated}), 3,
                    rated + ":1: expected a line without 'rewards', got one with it");
}

TEST_CASE("prefopt score --rewards: without a text that ends steps each token is one", "[cli]") {
  const std::vector<std::string> of_rows{"score",    "--model", kPolicy, "--ref",
                                         kReference, "--data",  kPairs,  "--rewards"};
  const auto tokens = run_cli(with(of_rows, {"tokens"})).out;
  CHECK(tokens.find("chosen_rewards") != std::string::npos);
  CHECK(run_cli(with(of_rows, {"steps", "--step-end", ""})).out == tokens);
}

TEST_CASE("prefopt score --rewards: options that would do nothing", "[cli]") {
  const auto refused = [](const std::vector<std::string>& arguments, const std::string& sentence) {
    check_cli_refused(arguments, 2, sentence);
  };
  const std::vector<std::string> plain{"score", "--model", kPolicy, "--data", kPairs};
  refused(with(plain, {"--beta", "1"}),
          "--beta: expected --rewards steps or tokens, which it is of, got none");
  refused(with(plain, {"--rewards", "lines", "--ref", kReference}),
          "--rewards: expected steps or tokens, got 'lines'");
  refused(with(plain, {"--rewards", "tokens"}),
          "--ref: expected the reference that the model was trained with, as rewards are of both, "
          "got none");
  const auto tokens = with(plain, {"--rewards", "tokens", "--ref", kReference});
  refused(with(tokens, {"--step-end", "."}), "--step-end: expected --rewards steps, got tokens");
  refused(with(tokens, {"--beta", "0"}), "--beta: expected more than 0, got 0");
  refused(with(tokens, {"--per-token"}),
          "--per-token: expected --rewards tokens in place of it, got both");
  refused(with(tokens, {"--aggregate", "min"}),
          "--aggregate: expected --candidates, which have one reward each, got rows");
}

TEST_CASE("prefopt generate --guide: weights of further models", "[cli]") {
  const std::vector<std::string> plain{
      "generate", "--model",          kPolicy, "--tokenizer",  "byte", "--prompt", "ab",
      "--json",   "--max-new-tokens", "8",     "--end-tokens", "-1"};
  const json alone = cli_json(plain);
  CHECK(cli_json(with(plain, {"--guide", kReference + ":0"})) == alone);
  const json guided = cli_json(with(plain, {"--guide", kReference + ":4"}));
  CHECK(guided["ids"] != alone["ids"]);
  CHECK(guided["ids"].size() == 8);
  for (const std::string& wrong : {kReference, kReference + ":x", std::string(":1")}) {
    check_cli_refused(
        with(plain, {"--guide", wrong}), 2,
        "--guide: expected a model and its weight, as in runs/arm:2, got '" + wrong + "'");
  }
  check_cli_refused(with(plain, {"--beams", "3"}), 2,
                    "--beams: expected a --value that steps are searched by, got none");
  check_cli_refused(with(plain, {"--value", "v", "--samples", "2"}), 2,
                    "--value: expected no --samples, got it; the search gives one completion of a "
                    "prompt, the best");
}

}  // namespace
}  // namespace prefopt::testing_support
