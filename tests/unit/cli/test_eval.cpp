// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <filesystem>
#include <string>

#include "support/catch.h"
#include "support/cli.h"
#include "support/files.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

double sum(const json& list) {
  double total = 0;
  for (const json& value : list) total += value.get<double>();
  return total;
}

/// Margins of the pairs, from token log-probs that transformers gave.
std::vector<double> margins(double beta) {
  std::vector<double> list;
  for (const json& pair : tiny_llama()["pairs"]) {
    list.push_back(beta * (sum(pair["chosen_logps"]) - sum(pair["ref_chosen_logps"]) -
                           sum(pair["rejected_logps"]) + sum(pair["ref_rejected_logps"])));
  }
  return list;
}

TEST_CASE("prefopt eval: accuracy, margin and calibration of known log-probs", "[cli]") {
  const json report = cli_json({"eval", "--model", kPolicy, "--ref", kReference, "--data", kPairs,
                                "--beta", "0.2", "--samples", "0", "--json"});
  CHECK(report["beta"] == 0.2);
  const json& model = report["models"][0];
  const auto expected = margins(0.2);
  double mean = 0, right = 0, log_loss = 0;
  for (const double margin : expected) {
    const auto n = static_cast<double>(expected.size());
    mean += margin / n;
    right += (margin > 0 ? 1 : 0) / n;
    log_loss += std::log1p(std::exp(-margin)) / n;
  }
  CHECK(model["pairs"] == expected.size());
  CHECK(model["ties"] == 0);
  CHECK(model["accuracy"]["mean"].get<double>() == Approx(right));
  CHECK(model["margin"]["mean"].get<double>() == Approx(mean).epsilon(1e-4));
  CHECK(model["calibration"]["log_loss"].get<double>() == Approx(log_loss).epsilon(1e-4));
  CHECK_FALSE(model.contains("kl"));
  CHECK_FALSE(model.contains("win_rate"));
}

TEST_CASE("prefopt eval: models side by side", "[cli]") {
  const TempDir folder;
  const CliResult result =
      run_cli({"eval", "--model", kPolicy, kReference, "--ref", kReference, "--data", kPairs,
               "--samples", "2", "--max-new-tokens", "3", "--loss",
               R"({"type": "dpo", "beta": 0.3})", "--out", folder.file("report")});
  INFO(result.err);
  REQUIRE(result.code == 0);
  CHECK(result.out.starts_with(kPairs + " against " + kReference +
                               ", beta 0.3; 95 % intervals in brackets\n[1] " + kPolicy + "\n[2] " +
                               kReference + "\n\n"));
  const json report = json::parse(bytes_of(folder.file("report/evaluation.json")));
  REQUIRE(report["models"].size() == 2);
  const json &policy = report["models"][0], &same = report["models"][1];
  CHECK(policy["kl"]["mean"] > 0);
  CHECK(policy["loss"].get<double>() ==
        Approx(policy["calibration"]["log_loss"].get<double>()).epsilon(1e-5));
  // The reference itself: no margin, no KL, and log 2.
  CHECK(same["ties"] == same["pairs"]);
  CHECK(same["margin"]["high"] == 0);
  CHECK(std::abs(same["kl"]["mean"].get<double>()) < 1e-5);
  CHECK(same["loss"].get<double>() == Approx(std::log(2)));
  CHECK(same["length"]["correlation"]["mean"].is_null());
  const std::string svg = bytes_of(folder.file("report/reliability.svg"));
  CHECK(svg.starts_with("<svg"));
  CHECK(svg.find(kPolicy) != std::string::npos);
}

TEST_CASE("prefopt eval: an adapter of the reference", "[cli]") {
  const TempDir folder;
  const json config = {{"output_dir", folder.file("run")},
                       {"loss", {{"type", "dpo"}}},
                       {"model", {{"path", kReference}, {"use_lora", true}, {"lora", {{"r", 2}}}}},
                       {"data", {{"train", kPairs}}},
                       {"batch", {{"steps", 2}, {"rows", 2}}},
                       {"machine", {{"threads", 1}}},
                       {"optimizer", {{"learning_rate", 0.01}}}};
  put(folder.file("run.json"), config.dump());
  REQUIRE(run_cli({"train", "--config", folder.file("run.json"), "--quiet"}).code == 0);
  const std::string adapter = folder.file("run/checkpoints/last");
  REQUIRE(std::filesystem::exists(adapter + "/adapter_config.json"));
  const json report = cli_json({"eval", "--model", adapter, "--ref", kReference, "--data", kPairs,
                                "--samples", "0", "--json"});
  CHECK(report["models"][0]["ties"] == 0);
  CHECK(report["models"][0]["margin"]["mean"] > 0);
}

TEST_CASE("prefopt eval: judges and rewards", "[cli]") {
  const std::vector<std::string> common = {
      "eval", "--model",          kPolicy, "--ref",  kReference,    "--data", kPairs, "--samples",
      "1",    "--max-new-tokens", "4",     "--json", "--tokenizer", "byte"};
  const auto with = [&](std::initializer_list<std::string> more) {
    auto arguments = common;
    arguments.insert(arguments.end(), more);
    return arguments;
  };
  const TempDir folder;
  const auto program = [&](const std::string& name, const std::string& body) {
    put(folder.file(name), "#!/bin/sh\n" + body + "\n");
    std::filesystem::permissions(folder.file(name), std::filesystem::perms::owner_all);
    return folder.file(name);
  };

  const std::string first =
      program("first", R"(while read -r line; do echo '{"winner": "a"}'; done)");
  const json model = cli_json(with({"--judge", first}))["models"][0];
  CHECK(model["contests"]["wins"] == 0);
  CHECK(model["contests"]["ties"] == model["contests"]["count"]);
  CHECK(model["contests"]["inconsistent"] > 0);
  CHECK(model["win_rate"]["mean"] == 0.5);

  const std::string zero =
      program("zero", R"(while read -r line; do echo '{"reward": 0.25}'; done)");
  const json rewarded = cli_json(with({"--reward", zero}))["models"][0];
  CHECK(rewarded["reward"]["mean"] == 0.25);
  CHECK(rewarded["reference_reward"]["mean"] == 0.25);
  CHECK(rewarded["contests"]["ties"] == rewarded["contests"]["count"]);

  const auto refused = [&](const std::vector<std::string>& arguments, int code,
                           const std::string& sentence) {
    const CliResult result = run_cli(arguments);
    CHECK(result.err.ends_with("prefopt: " + sentence + "\n"));
    CHECK(result.code == code);
    CHECK(result.out == "");
  };
  const std::string dead = program("dead", "exit 7");
  refused(with({"--judge", dead}), 3,
          "judge '" + dead + "': expected an answer, got its end with exit status 7");
  const std::string mute = program("mute", "exec sleep 30");
  refused(with({"--judge", mute, "--judge-timeout", "0.2"}), 3,
          "judge '" + mute + "': expected an answer, got none within 0.2 s");
  const std::string wordy = program("wordy", "while read -r line; do echo hello; done");
  refused(with({"--reward", wordy}), 3,
          "reward program '" + wordy +
              "': expected JSON, got something else: parse error at line 1, column 1: syntax error "
              "while "
              "parsing value - invalid literal; last read: 'h'");
  refused(with({"--judge", "x", "--reward", "y"}), 2,
          "--judge: expected a judge or a reward, got both");
}

TEST_CASE("prefopt eval: usage", "[cli]") {
  const std::vector<std::string> common = {"eval",     "--model", kPolicy, "--ref",
                                           kReference, "--data",  kPairs};
  const auto refused = [&](std::initializer_list<std::string> more, const std::string& sentence) {
    auto arguments = common;
    arguments.insert(arguments.end(), more);
    check_cli_refused(arguments, 2, sentence);
  };
  refused({"--samples", "-1"}, "--samples: expected at least 0, got -1");
  refused({"--batch", "0"}, "--batch: expected at least 1, got 0");
  refused({"--samples", "0", "--reward", "controlled_task"},
          "--samples: expected at least 1 to judge completions, got 0");
  for (const std::string option : {"--prompts", "--max-new-tokens", "--end-tokens"}) {
    refused({"--samples", "0", option, "1"},
            option + ": expected completions to draw (--samples), got none; it would do nothing");
  }
  refused({"--judge-timeout", "5"},
          "--judge-timeout: expected a program that answers (--judge or --reward), got none; it "
          "would do nothing");
  refused({"--loss", R"({"type": "kto"})"},
          "--loss: expected a loss of pairs, which are what is evaluated, got kto");
  refused({"--samples", "0", "--beta", "0"}, "--beta: expected more than 0, got 0");
}

}  // namespace
}  // namespace prefopt::testing_support
