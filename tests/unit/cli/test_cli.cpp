// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/counts.h"
#include "support/temp_dir.h"

namespace {

using nlohmann::json;
using namespace prefopt::testing_support;

std::string data_path(const std::string& name) { return PREFOPT_TEST_DATA_DIR "/" + name; }

std::vector<json> json_lines(const std::string& text) {
  std::vector<json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
  return lines;
}

void check_close(double got, double expected, double rtol, double atol = 0) {
  INFO("got " << got << ", expected " << expected);
  CHECK(std::abs(got - expected) <= atol + rtol * std::abs(expected));
}

const std::string kPolicy = data_path("tiny-llama/policy");
const std::string kReference = data_path("tiny-llama/reference");
const std::string kPairs = data_path("tiny-llama/pairs.jsonl");

const json& tiny_llama() {
  static const json expected = json::parse(read_text(data_path("tiny-llama/expected.json")));
  return expected;
}

/// A byte-level model small enough to train in a test, and rows for it.
class TrainingSetup {
 public:
  TrainingSetup() {
    std::string rows;
    for (int i = 0; i < 12; ++i) {
      const std::string letter(1, static_cast<char>('a' + i));
      rows +=
          json{{"prompt", letter + ">"}, {"chosen", "yes " + letter}, {"rejected", "no"}}.dump();
      rows += "\n";
    }
    write_text(folder.file("rows.jsonl"), rows);
    config = {{"output_dir", folder.file("run")},
              {"loss", {{"type", "dpo"}}},
              {"model",
               {{"decoder",
                 {{"hidden_size", 16},
                  {"intermediate_size", 32},
                  {"num_hidden_layers", 1},
                  {"num_attention_heads", 2},
                  {"num_key_value_heads", 1}}}}},
              {"data", {{"train", folder.file("rows.jsonl")}, {"eval_fraction", 0.25}}},
              {"train", {{"steps", 3}, {"batch_size", 4}, {"threads", 1}}}};
  }

  std::string config_path() const {
    write_text(folder.file("run.json"), config.dump());
    return folder.file("run.json");
  }

  TempDir folder;
  json config;
};

}  // namespace

TEST_CASE("prefopt: help, version and usage", "[cli]") {
  CHECK(run_cli({"--version"}).out == "prefopt 0.1.0\n");
  for (const std::string command : {"train", "score", "loss", "grad", "losses", "generate"}) {
    const CliResult help = run_cli({command, "--help"});
    CHECK(help.code == 0);
    CHECK(help.out.find("Usage: ") != std::string::npos);
    CHECK(help.err == "");
  }
  check_cli_refused({}, 2, "A subcommand is required; see prefopt --help");
  check_cli_refused({"train"}, 2, "--config is required; see prefopt train --help");
  check_cli_refused({"losses", "--jsno"}, 2,
                    "The following argument was not expected: --jsno; see prefopt losses --help");
  check_cli_refused({"score", "--model", kPolicy, "--data", kPairs, "--device", "cuda"}, 2,
                    "--device: expected cpu, got cuda; this build computes on the CPU");
  check_cli_refused({"score", "--model", kPolicy, "--data", kPairs, "--batch", "0"}, 2,
                    "--batch: expected at least 1, got 0");
}

TEST_CASE("prefopt score: the golden token log-probs", "[cli]") {
  const auto& expected = tiny_llama().at("pairs");
  // A batch that splits the file unevenly, and the whole file.
  for (const std::string batch : {"4", "6"}) {
    const CliResult result =
        run_cli({"score", "--model", kPolicy, "--data", kPairs, "--per-token", "--batch", batch});
    REQUIRE(result.err == "");
    REQUIRE(result.code == 0);
    const auto rows = json_lines(result.out);
    REQUIRE(rows.size() == expected.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (const std::string side : {"chosen", "rejected"}) {
        const auto want = expected[i].at(side + "_logps").get<std::vector<double>>();
        const auto got = rows[i].at(side + "_token_logps").get<std::vector<double>>();
        REQUIRE(got.size() == want.size());
        CHECK(rows[i].at(side + "_len") == want.size());
        double sum = 0;
        for (std::size_t t = 0; t < want.size(); ++t) {
          check_close(got[t], want[t], 0, 1e-5);
          sum += want[t];
        }
        check_close(rows[i].at(side + "_logps"), sum, 1e-6);
      }
    }
  }
  const auto doubles = json_lines(
      run_cli({"score", "--model", kPolicy, "--data", kPairs, "--dtype", "float64"}).out);
  REQUIRE(doubles.size() == expected.size());
  CHECK_FALSE(doubles[0].contains("chosen_token_logps"));
  double sum = 0;
  for (const double logp : expected[0].at("chosen_logps")) sum += logp;
  // transformers keeps rotary positions and norms in float32.
  check_close(doubles[0].at("chosen_logps"), sum, 1e-8);
}

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

/// Loss, token gradients and metrics that the command gives for a golden case.
void check_golden_case(const json& item, const json& got) {
  const double rtol = item.at("rtol");
  INFO(item.at("id") << " " << item.at("config").dump());
  const auto& expected = item.at("expected");
  check_close(got.at("loss"), expected.at("loss"), rtol);
  double sum = 0;
  for (const double loss : got.at("losses")) sum += loss;
  check_close(sum / static_cast<double>(got.at("losses").size()), expected.at("loss"), rtol);
  for (const auto& [key, gradient] : expected.items()) {
    if (!key.starts_with("grad_")) continue;
    INFO(key);
    REQUIRE(got.at(key).size() == gradient.size());
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      REQUIRE(got.at(key)[i].size() == gradient[i].size());
      for (std::size_t t = 0; t < gradient[i].size(); ++t) {
        check_close(got.at(key)[i][t], gradient[i][t], rtol, 1e-14);
      }
    }
  }
  for (const auto& [name, value] : expected.at("metrics").items()) {
    INFO(name);
    // TRL counts accuracies in float32, and goes through it where rtol is coarse.
    const bool coarse = name == "rewards/accuracies";
    check_close(got.at("metrics").at(name), value, coarse ? 1e-7 : rtol,
                rtol > 1e-9 ? 1e-7 : 1e-14);
  }
}

TEST_CASE("prefopt loss: all of TRL's golden cases", "[cli]") {
  for (const auto& [name, count] :
       {std::pair{"trl_losses.json", 66}, {"trl_trainers.json", 25}, {"trl_cpo.json", 9}}) {
    const json golden = json::parse(read_text(data_path(name)));
    REQUIRE(std::ssize(golden) == count);
    const TempDir folder;
    for (const auto& item : golden) {
      const std::string id = item.at("id");
      std::string rows;
      for (const auto& row : item.at(item.contains("rows") ? "rows" : "pairs")) {
        rows += row.dump() + "\n";
      }
      json config = item.at("config");
      if (item.contains("trainer")) config["trainer"] = item.at("trainer");
      write_text(folder.file(id + ".jsonl"), rows);
      write_text(folder.file(id + ".json"), config.dump());
    }
    for (const auto& item : golden) {
      const std::string id = item.at("id");
      check_golden_case(item, cli_json({"loss", "--loss", "@" + folder.file(id + ".json"),
                                        "--logps", folder.file(id + ".jsonl")}));
    }
  }
}

TEST_CASE("prefopt loss: TRL's ORPO without prompts averages the completions", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  write_text(file, R"({"chosen_logps": [-1, -2], "rejected_logps": [-3]})");
  const auto loss_of = [&](const std::string& config) {
    return cli_json({"loss", "--loss", config, "--logps", file}).at("loss").get<double>();
  };
  // 1.5 of the NLL and -0.1 log sigmoid of the log odds -1.5 - log(1 - e^-1.5) + 3 + log(1 - e^-3).
  const double odds = 1.5 - std::log1p(-std::exp(-1.5)) + std::log1p(-std::exp(-3.0));
  check_close(loss_of(R"({"trainer": "ORPOTrainer"})"), 1.5 + 0.1 * std::log1p(std::exp(-odds)),
              1e-9);
}

TEST_CASE("prefopt loss: sums in place of tokens", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("sums.jsonl");
  SECTION("policy = reference is log 2") {
    write_text(file, R"({"chosen_logps": -3, "rejected_logps": [-1, -1], "ref_chosen_logps": -3,)"
                     R"( "ref_rejected_logps": -2})");
    const json got =
        cli_json({"loss", "--loss", R"({"type": "dpo", "beta": 0.1})", "--logps", file});
    CHECK(got.at("loss") == std::log(2.0));
    CHECK(got.at("grad_chosen") == json::parse("[[-0.05]]"));
    CHECK(got.at("grad_rejected") == json::parse("[[0.05, 0.05]]"));
  }
  SECTION("a length serves losses that divide by it") {
    write_text(file,
               R"({"chosen_logps": -3, "chosen_len": 4, "rejected_logps": -2, "rejected_len": 2,)"
               R"( "ref_chosen_logps": -5, "ref_rejected_logps": -1})");
    const json got =
        cli_json({"loss", "--loss", R"({"type": "ipo", "beta": 0.5})", "--logps", file});
    // delta = 2/4 + 1/2 = 1, and (1 - 1/(2 * 0.5))^2 = 0
    check_close(got.at("loss"), 0, 0, 1e-15);
  }
  SECTION("a loss without reference and rejected") {
    write_text(file, "{\"chosen_logps\": [-1, -2]}\n{\"chosen_logps\": [-6]}\n");
    const json got = cli_json({"loss", "--loss", R"({"type": "sft"})", "--logps", file});
    check_close(got.at("loss"), 3, 1e-15);
    CHECK(got.at("grad_rejected") == json::array());
    CHECK(got.at("metrics") == json{{"logps/chosen", -4.5}});
  }
}

TEST_CASE("prefopt loss: fresh samples", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("samples.jsonl");
  const std::string pair =
      R"("chosen_logps": -3, "rejected_logps": -2, "ref_chosen_logps": -3, "ref_rejected_logps": -2)";
  write_text(file, "{" + pair +
                       R"(, "sample_logps": [[-1, -2], -4], "ref_sample_logps": [[-1, -2], -4]})");
  const json got =
      cli_json({"loss", "--loss", R"({"type": "hypo", "num_samples": 2})", "--logps", file});
  check_close(got.at("loss"), std::log(2.0), 1e-12);
  REQUIRE(got.at("grad_samples").size() == 1);
  REQUIRE(got.at("grad_samples")[0].size() == 2);
  CHECK(got.at("grad_samples")[0][0].size() == 2);
  CHECK(got.at("grad_samples")[0][1].size() == 1);

  check_cli_refused({"loss", "--loss", R"({"type": "dpo"})", "--logps", file + ".none"}, 3,
                    file + ".none: expected a readable file, got No such file or directory");
  write_text(file, "{" + pair + "}");
  check_cli_refused({"loss", "--loss", R"({"type": "hypo"})", "--logps", file}, 3,
                    file + ":1: expected sample_logps, got a row without it; hypo needs it");
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_CASE("prefopt loss: single completions with a label", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("labelled.jsonl");
  const std::string desirable =
      R"({"completion_logps": [-1, -1], "ref_completion_logps": [-2, -2], "label": true,)"
      R"( "kl_logps": -3, "ref_kl_logps": [-2, -3]})"
      "\n";
  write_text(file, desirable + R"({"chosen_logps": -5, "ref_chosen_logps": -4, "label": 0,)"
                               R"( "kl_logps": [-4], "ref_kl_logps": [-4]})");
  const json got = cli_json({"loss", "--loss", R"({"type": "kto", "beta": 0.5})", "--logps", file});
  // z0 = (2 + 0) / 2, log-ratios 2 and -1.
  check_close(got.at("losses")[0], sigmoid(-0.5), 1e-14);
  check_close(got.at("losses")[1], sigmoid(-1), 1e-14);
  check_close(got.at("loss"), (sigmoid(-0.5) + sigmoid(-1)) / 2, 1e-14);
  REQUIRE(got.at("grad_chosen")[0].size() == 2);
  check_close(got.at("grad_chosen")[0][1], -0.25 * sigmoid(0.5) * sigmoid(-0.5), 1e-14);
  check_close(got.at("grad_chosen")[1][0], 0.25 * sigmoid(1) * sigmoid(-1), 1e-14);
  CHECK(got.at("metrics") == json{{"rewards/chosen", 1},
                                  {"rewards/rejected", -0.5},
                                  {"rewards/margins", 1.5},
                                  {"logps/chosen", -2},
                                  {"logps/rejected", -5},
                                  {"kl", 1}});

  const auto refused = [&](const std::string& type, const std::string& row,
                           const std::string& sentence) {
    write_text(file, desirable + row);
    check_cli_refused({"loss", "--loss", R"({"type": ")" + type + "\"}", "--logps", file}, 3,
                      file + sentence);
  };
  refused("bco", R"({"completion_logps": -1, "ref_completion_logps": -1, "label": 0.5})",
          ":2: label: expected true, false, 1 or 0, got 0.5");
  refused("bco", R"({"completion_logps": -1, "ref_completion_logps": -1, "label": "good"})",
          ":2: label: expected true, false, 1 or 0, got \"good\"");
  refused("bco", R"({"completion_logps": -1, "ref_completion_logps": -1})",
          ":2: expected label, got a row without it; bco needs it");
  refused("bco", R"({"completion_logps": -1, "label": false})",
          ":2: expected ref_completion_logps, got a row without it; bco needs it");
  refused("kto", R"({"completion_logps": -1, "ref_completion_logps": -1, "label": false})",
          ":2: expected kl_logps, got a row without it; kto needs it");
  refused("bco", R"({"completion_logps": -1, "chosen_logps": -1})",
          ":2: expected one of chosen_logps and completion_logps, got both");
  refused("bco", R"({"completion_logps": [-1], "ref_completion_logps": [-1, -2]})",
          ":2: expected 1 tokens in ref_completion_logps as in completion_logps, got 2");
  write_text(file, desirable);
  check_cli_refused({"loss", "--loss", R"({"type": "dpo"})", "--logps", file}, 2,
                    file + ": expected pairs, which dpo compares, got rows of one completion");
  write_text(file, R"({"chosen_logps": -1, "rejected_logps": -2})");
  check_cli_refused(
      {"loss", "--loss", R"({"type": "kto"})", "--logps", file}, 2,
      file + ": expected rows of one completion and a label, which kto is for, got pairs");
}

TEST_CASE("prefopt loss: what else a row may say", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  const std::string pair =
      R"({"chosen_logps": -3, "ref_chosen_logps": -5, "rejected_logps": -4, "ref_rejected_logps": -3)";
  const auto run = [&](const std::string& loss, const std::string& more) {
    write_text(file, pair + more + "}");
    return cli_json({"loss", "--loss", loss, "--logps", file});
  };
  SECTION("weight") {
    const json got =
        run(R"({"type": "dpo", "beta": 0.5, "use_weights": true})", R"(, "weight": 3)");
    check_close(got.at("loss"), 3 * -std::log(sigmoid(1.5)), 1e-14);
  }
  SECTION("margin") {
    const json got =
        run(R"({"type": "dpo", "beta": 0.5, "margin_scale": 2})", R"(, "margin": 0.25)");
    check_close(got.at("loss"), -std::log(sigmoid(1)), 1e-14);
  }
  SECTION("label_prob") {
    const json got =
        run(R"({"type": "dpo", "beta": 0.5, "use_label_probs": true})", R"(, "label_prob": 0.75)");
    check_close(got.at("loss"), -0.75 * std::log(sigmoid(1.5)) - 0.25 * std::log(sigmoid(-1.5)),
                1e-14);
  }
  SECTION("win rates") {
    const json got = run(R"({"type": "sppo", "beta": 0.5, "soft": true})",
                         R"(, "chosen_win_rate": 1, "rejected_win_rate": 0.25)");
    check_close(got.at("loss"), 1 + 0.25, 1e-14);  // (2 - 0.5/0.5)^2 + (-1 + 0.25/0.5)^2
  }
  SECTION("a third completion") {
    const json got = run(R"({"type": "tpo", "beta": 0.5, "alpha": 3})",
                         R"(, "chosen_len": 1, "rejected_len": 1, "gold_logps": [-1, -2])");
    check_close(got.at("loss"), -std::log(sigmoid(0.5)) + 3 * 1.5, 1e-14);
    CHECK(got.at("grad_gold") == json::parse("[[-1.5, -1.5]]"));
  }
  SECTION("the prompt's own tokens") {
    const json got = run(R"({"trainer": "ORPOTrainer"})",
                         R"(, "chosen_len": 2, "rejected_len": 4, "prompt_logps": [-1, -2])");
    const double odds_w = -1.5 - std::log(1 - std::exp(-1.5)),
                 odds_l = -1 - std::log(1 - std::exp(-1));
    check_close(got.at("loss"), 6.0 / 4 - 0.1 * std::log(sigmoid(odds_w - odds_l)), 1e-12);
    CHECK(got.at("grad_prompt") == json::parse("[[-0.25, -0.25]]"));
    CHECK(got.at("metrics").at("logps/chosen") == -1.5);
  }
  SECTION("log of a reward gap") {
    const json got = run(R"({"type": "odpo", "beta": 0.5})", R"(, "margin": 3)");
    check_close(got.at("loss"), -std::log(sigmoid(1.5 - std::log(3))), 1e-14);
    const json least = run(R"({"type": "odpo", "beta": 0.5})", R"(, "margin": -3)");
    check_close(least.at("loss"), -std::log(sigmoid(1.5 - std::log(1e-12))), 1e-12, 1e-14);
  }
  SECTION("sequence KLs") {
    const std::string kls = R"(, "chosen_seq_kl": 1, "rejected_seq_kl": [1.5, 0.5])";
    const json first = run(R"({"type": "tdpo", "beta": 0.5, "variant": "tdpo1"})", kls);
    check_close(first.at("loss"), -std::log(sigmoid(1)), 1e-14);
    check_close(first.at("grad_chosen_seq_kl")[0][0], -0.5 * sigmoid(-1), 1e-14);
    REQUIRE(first.at("grad_rejected_seq_kl")[0].size() == 2);
    check_close(first.at("grad_rejected_seq_kl")[0][1], 0.5 * sigmoid(-1), 1e-14);
    const json second = run(R"({"type": "tdpo", "beta": 0.5, "alpha": 0.5})", kls);
    check_close(second.at("loss"), -std::log(sigmoid(1.25)), 1e-14);
    CHECK_FALSE(second.contains("grad_chosen_seq_kl"));
  }
  SECTION("a sum is its own head where no token is beyond it") {
    const std::string loss = R"({"type": "dpo", "beta": 0.5, "ld_alpha": 0.25})";
    const json got = run(loss, R"(, "chosen_len": 2, "rejected_len": 2)");
    check_close(got.at("loss"), -std::log(sigmoid(1.5)), 1e-14);
    check_close(got.at("grad_chosen")[0][0], -0.5 * sigmoid(-1.5), 1e-14);
  }
}

TEST_CASE("prefopt loss: tokens that count by themselves", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  const auto run = [&](const std::string& loss, const std::string& row) {
    write_text(file, row);
    return cli_json({"loss", "--loss", loss, "--logps", file});
  };
  SECTION("by the policy's own probability") {
    const json got = run(R"({"type": "dft"})", R"({"chosen_logps": [-1, -2]})");
    check_close(got.at("loss"), (std::exp(-1) + 2 * std::exp(-2)) / 2, 1e-14);
    check_close(got.at("grad_chosen")[0][0], -std::exp(-1) / 2, 1e-14);
    check_close(got.at("grad_chosen")[0][1], -std::exp(-2) / 2, 1e-14);
  }
  SECTION("within limits of the log-ratio") {
    // Token log-ratios 2, -0.5 against -3, 1: 1.5 - 0.5 = 1 against -1 + 1 = 0.
    const json got = run(R"({"type": "dpo", "beta": 0.5, "humanline": true})",
                         R"({"chosen_logps": [-1, -2.5], "ref_chosen_logps": [-3, -2],)"
                         R"( "rejected_logps": [-4, -1], "ref_rejected_logps": [-1, -2]})");
    check_close(got.at("loss"), -std::log(sigmoid(0.5)), 1e-14);
    check_close(got.at("grad_chosen")[0][1], -0.5 * sigmoid(-0.5), 1e-14);
    CHECK(got.at("grad_chosen")[0][0] == 0);
    CHECK(got.at("grad_rejected")[0][0] == 0);
    check_close(got.at("grad_rejected")[0][1], 0.5 * sigmoid(-0.5), 1e-14);
    check_close(got.at("metrics").at("rewards/chosen"), 0.5, 1e-14);
  }
  SECTION("in the rows that KTO compares with") {
    const json got =
        run(R"({"type": "kto", "beta": 0.5, "humanline": true, "log_epsilon_p": -0.5})",
            R"({"completion_logps": [-1, -2], "ref_completion_logps": [-2, -1], "label": true,)"
            R"( "kl_logps": [-1], "ref_kl_logps": [-4]})");
    // Delta = 1 - 0.5 and z0 = 1.5 in place of 0 and 3.
    check_close(got.at("loss"), sigmoid(0.5), 1e-14);
    CHECK(got.at("metrics").at("kl") == 1.5);
  }
  SECTION("a sum has no tokens") {
    write_text(file, R"({"chosen_logps": -3})");
    check_cli_refused({"loss", "--loss", R"({"type": "dft"})", "--logps", file}, 3,
                      file +
                          ":1: expected chosen_logps token by token, or its length beside it, "
                          "got a sum; dft needs the number of tokens");
    write_text(file, R"({"chosen_logps": -3, "chosen_len": 2})");
    check_cli_refused({"loss", "--loss", R"({"type": "dft"})", "--logps", file}, 3,
                      file +
                          ":1: expected chosen_logps token by token, got a sum; dft weighs each "
                          "token");
  }
}

TEST_CASE("prefopt loss: columns that cannot be used", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("bad.jsonl");
  const std::string pair =
      R"({"chosen_logps": -3, "ref_chosen_logps": -5, "rejected_logps": -4, "ref_rejected_logps": -3)";
  const auto refused = [&](const std::string& loss, const std::string& more,
                           const std::string& sentence) {
    INFO(more);
    write_text(file, pair + more + "}");
    check_cli_refused({"loss", "--loss", loss, "--logps", file}, 3, file + ":1: " + sentence);
  };
  const std::string dpo = R"({"type": "dpo"})";
  refused(dpo, R"(, "weight": -1)", "weight: expected a number of at least 0, got -1");
  refused(dpo, R"(, "label_prob": 1.5)", "label_prob: expected a number in [0, 1], got 1.5");
  refused(dpo, R"(, "margin": NaN)", "margin: expected a finite number, got NaN");
  refused(dpo, R"(, "chosen_win_rate": true)",
          "chosen_win_rate: expected a number in [0, 1], got true");
  refused(dpo, R"(, "wieght": 1)", "expected a known key, got 'wieght'; did you mean 'weight'?");
  refused(dpo, R"(, "gold_logps": [-1], "gold_len": 2)",
          "gold_len: expected 1, the length of the list, got 2");
  refused(R"({"type": "dpo", "use_weights": true})", "",
          "expected weight, got a row without it; dpo needs it");
  refused(R"({"type": "sppo", "soft": true})", R"(, "chosen_win_rate": 1)",
          "expected rejected_win_rate, got a row without it; sppo needs it");
  refused(R"({"type": "dpo", "weighting": "sampled_alignment"})",
          R"(, "chosen_len": 1, "rejected_len": 1)",
          "expected chosen_log_sum_sq_probs, got a row without it; dpo needs it");
  refused(R"({"type": "ipo"})", R"(, "chosen_len": 1)",
          "expected rejected_logps token by token, or its length beside it, got a sum; ipo needs "
          "the number of tokens");
  const std::string ld = R"({"type": "dpo", "ld_alpha": 0.5})";
  refused(ld, R"(, "chosen_len": 3)",
          "expected rejected_logps token by token, or its length beside it, got a sum; dpo needs "
          "the number of tokens");
  refused(ld, R"(, "chosen_len": 3, "rejected_len": 2)",
          "expected chosen_logps token by token, got a sum; dpo needs that of the first 2 of 3 "
          "tokens");
  refused(ld, R"(, "chosen_len": 2, "rejected_len": 3)",
          "expected rejected_logps token by token, got a sum; dpo needs that of the first 2 of 3 "
          "tokens");

  write_text(file, pair + "}\n" + pair + R"(, "weight": 1})");
  check_cli_refused({"loss", "--loss", dpo, "--logps", file}, 3,
                    file + ":1: expected weight, got a row without it; line 2 has it");
}

TEST_CASE("prefopt loss: bad log-probs", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("bad.jsonl");
  const std::string good =
      R"({"chosen_logps": [-1], "rejected_logps": [-2], "ref_chosen_logps": [-1], "ref_rejected_logps": [-2]})"
      "\n";
  std::size_t count = 0;
  const auto refused = [&](const std::string& row, const std::string& sentence) {
    INFO(row);
    write_text(file, good + row);
    check_cli_refused({"loss", "--loss", R"({"type": "dpo"})", "--logps", file}, 3,
                      file + sentence);
    ++count;
  };
  refused(R"({"chosen_logps": [-1, -2, NaN]})",
          ":2: chosen_logps: expected finite numbers, got NaN at token 2");
  refused(R"({"note \"NaN": 1, "chosen_logps": [-Infinity]})",
          ":2: expected a known key, got 'note \"NaN'");
  refused(R"({"chosen_logps": [-Infinity]})",
          ":2: chosen_logps: expected finite numbers, got -Infinity at token 0");
  refused(R"({"rejected_logps": [-1, null]})",
          ":2: rejected_logps: expected finite numbers, got null at token 1");
  refused(R"({"chosen_logps": Infinity})",
          ":2: chosen_logps: expected a finite number or a list of them, got Infinity");
  refused(R"({"chosen_logps": []})",
          ":2: chosen_logps: expected a finite number or a list of them, got an empty list");
  refused(R"({"chosen_logps": [-1e308, -1e308]})",
          ":2: chosen_logps: expected a finite sum, got -inf");
  refused(R"({"chosen_logp": [-1]})",
          ":2: expected a known key, got 'chosen_logp'; did you mean 'chosen_logps'?");
  refused(R"([1])", ":2: expected an object, got [1]");
  refused(R"({"chosen_logps": [-1], "ref_chosen_logps": [-1, -2]})",
          ":2: expected 1 tokens in ref_chosen_logps as in chosen_logps, got 2");
  refused(R"({"chosen_logps": [-1], "chosen_len": 2})",
          ":2: chosen_len: expected 1, the length of the list, got 2");
  refused(R"({"chosen_logps": -1, "chosen_len": 0})",
          ":2: chosen_len: expected a count of tokens, got 0");
  refused(R"({"chosen_logps": -1, "chosen_len": 18446744073709551615})",
          ":2: chosen_len: expected a count of tokens, got 18446744073709551615");
  refused(R"({"sample_logps": [[-1, NaN]]})",
          ":2: sample_logps: sample 0: expected finite numbers, got NaN at token 1");
  refused(R"({"chosen_logps": [-1], "ref_chosen_logps": [-1], "ref_rejected_logps": [-1]})",
          ":2: expected rejected_logps, got a row without it; dpo needs it");
  refused(R"({"chosen_logps": [-1], "rejected_logps": [-1], "ref_rejected_logps": [-1]})",
          ":2: expected ref_chosen_logps, got a row without it; dpo needs it");
  prefopt::testing_support::report_count("bad log-prob rows refused", count);

  write_text(file, "");
  check_cli_refused({"loss", "--loss", R"({"type": "dpo"})", "--logps", file}, 3,
                    file + ": expected at least one row, got none");
}

TEST_CASE("prefopt: a loss config that cannot be meant", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  write_text(file, R"({"chosen_logps": -1, "rejected_logps": -1})");
  const CliResult result =
      run_cli({"loss", "--loss", R"({"type": "dpo", "betta": 0.1})", "--logps", file});
  CHECK(result.code == 2);
  CHECK(result.err == "prefopt: dpo: expected a known option, got 'betta'; did you mean 'beta'?\n");
}

TEST_CASE("prefopt: model files that cannot be used", "[cli]") {
  const TempDir folder;
  std::filesystem::copy(kPolicy, folder.file("model"));
  const std::string weights = folder.file("model/model.safetensors");
  std::filesystem::permissions(weights, std::filesystem::perms::owner_all);
  std::filesystem::resize_file(weights, std::filesystem::file_size(weights) / 2);
  check_cli_refused({"score", "--model", folder.file("model"), "--data", kPairs}, 4,
                    weights +
                        ": tensor 'model.layers.0.self_attn.k_proj.weight': expected data_offsets "
                        "within 388476 bytes of data, got [385536, 393728]");

  std::filesystem::remove(weights);
  check_cli_refused({"score", "--model", folder.file("model"), "--data", kPairs}, 4,
                    weights + ": expected a readable file, got No such file or directory");
}

TEST_CASE("prefopt score: rows that cannot be used", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  const auto refused = [&](const std::string& row, const std::string& sentence) {
    INFO(row);
    write_text(file, R"({"prompt": "a", "chosen": "b", "rejected": "c"})"
                     "\n" +
                         row + "\n");
    check_cli_refused({"score", "--model", kPolicy, "--tokenizer", "byte", "--data", file}, 3,
                      file + sentence);
  };
  refused(R"({"prompt": "a", "chosen": "b"})",
          ":2: expected a key 'rejected', got {chosen, prompt}");
  refused(R"({"prompt": "a", "chosen": "", "rejected": "c"})",
          ":2: expected a usable row, got one with 'empty completion'; the option unusable = "
          "'drop' leaves such rows out");
  refused(R"({"prompt_ids": [1], "chosen_ids": [512], "rejected_ids": [3]})",
          ": expected token ids from 0 to 511, got 512 in the chosen completion of pair 1; were "
          "the ids made for another model?");
}

TEST_CASE("prefopt score: weights that are not finite", "[cli]") {
  const TempDir folder;
  std::filesystem::copy(kPolicy, folder.file("model"));
  const std::string weights = folder.file("model/model.safetensors");
  std::filesystem::permissions(weights, std::filesystem::perms::owner_all);
  std::string bytes = read_text(weights);
  for (std::size_t i = bytes.size() - 400; i < bytes.size(); ++i) bytes[i] = '\x7f';
  for (std::size_t i = bytes.size() - 400; i + 3 < bytes.size(); i += 4) {
    bytes[i + 2] = '\xff';  // 0x7fff7f7f is NaN
  }
  write_text(weights, bytes);
  check_cli_refused(
      {"score", "--model", folder.file("model"), "--data", kPairs}, 5,
      folder.file("model") +
          ": expected finite log-probs, got nan and nan in row 1; the model's weights "
          "may be broken");
}

TEST_CASE("prefopt tokenize: ids and their text", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("texts.jsonl");
  write_text(file, "\"a\\u00e9\"\n[97, 255]\n\"\"\n");
  const auto lines = json_lines(run_cli({"tokenize", "--data", file}).out);
  const std::vector<json> expected{
      {{"ids", {97, 0xC3, 0xA9}}, {"text", "a\u00e9"}},
      {{"ids", {97, 255}}, {"text", "a\uFFFD"}},
      {{"ids", json::array()}, {"text", ""}},
  };
  CHECK(lines == expected);

  const std::string tokenizer = data_path("tokenizers/gpt2");
  write_text(file, "\"<|endoftext|>\"\n");
  CHECK(json_lines(run_cli({"tokenize", "--tokenizer", tokenizer, "--data", file}).out) ==
        std::vector<json>{{{"ids", {0}}, {"text", ""}}});
  write_text(file, "\"a\"\n[256]\n");
  check_cli_refused({"tokenize", "--data", file}, 3,
                    file + ":2: expected text or a list of bytes, got list");
  check_cli_refused(
      {"tokenize", "--tokenizer", "bpe", "--data", file}, 2,
      "make_tokenizer: expected 'byte', a tokenizer.json, a folder that holds one or a "
      ".gguf file, got 'bpe'");
}

TEST_CASE("prefopt: chat formats are named", "[cli]") {
  check_cli_refused(
      {"score", "--model", kPolicy, "--data", kPairs, "--chat-format", "chatmml"}, 2,
      "chat_format: expected a chat format among chatml, smollm2, qwen2, qwen2.5, llama3, "
      "zephyr, alpaca, plain, dialogue, got 'chatmml'; did you mean 'chatml'?");
}

TEST_CASE("prefopt losses: the registry", "[cli]") {
  const json all = cli_json({"losses", "--json"});
  std::vector<std::string> names;
  for (const auto& loss : all) names.push_back(loss.at("name"));
  for (const std::string name :
       {"dpo", "robust_dpo", "f_dpo", "ipo", "rpo", "vpo", "hypo", "sft"}) {
    CHECK(std::count(names.begin(), names.end(), name) == 1);
  }
  const std::string table = run_cli({"losses"}).out;
  CHECK(table.starts_with("loss"));
  CHECK(static_cast<std::size_t>(std::count(table.begin(), table.end(), '\n')) == all.size() + 1);

  const json dpo = cli_json({"losses", "sigmoid", "--json"});
  CHECK(dpo.at("name") == "dpo");
  CHECK(dpo.at("options")[0].at("name") == "beta");
  const std::string page = run_cli({"losses", "dpo"}).out;
  CHECK(page.find(dpo.at("formula").get<std::string>()) != std::string::npos);
  CHECK(page.find("2305.18290") != std::string::npos);
  const CliResult unknown = run_cli({"losses", "dop"});
  CHECK(unknown.code == 2);

  // A preset is known by its name, and an option that a loss takes no other value of is not listed.
  CHECK(run_cli({"losses", "tpo-l"}).out.find("preset") != std::string::npos);
  CHECK(cli_json({"losses", "apo_zero_unpaired", "--json"}).at("name") == "kto");
  const std::string sided = run_cli({"losses", "nca_pair"}).out;
  CHECK(sided.find("margin_scale") == std::string::npos);
  CHECK(sided.find("divergence") == std::string::npos);
  CHECK(page.find("total_variation") == std::string::npos);
  const std::string simpo = run_cli({"losses", "simpo"}).out;
  CHECK(simpo.find("'js_divergence' (without reference_free)") != std::string::npos);
}

TEST_CASE("prefopt losses: what each loss needs and looks like", "[cli]") {
  for (const json& loss : cli_json({"losses", "--json"})) {
    INFO(loss.at("name"));
    CHECK(loss.at("inputs")[0] == "chosen_logps");
    REQUIRE(loss.at("curve").size() == 81);
    for (const json& point : loss.at("curve")) {
      // JSON has no NaN: a value that is not finite is written as null.
      CHECK((point.size() == 3 && point[1].is_number() && point[2].is_number()));
    }
  }

  const json dpo = cli_json({"losses", "dpo", "--json"});
  CHECK(dpo.at("inputs") ==
        json{"chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"});
  CHECK(dpo.at("conditions") == json::array());
  const json& further = dpo.at("further_inputs");
  const auto has = [&](const json& entry) {
    return std::count(further.begin(), further.end(), entry) == 1;
  };
  CHECK(has({{"setting", "use_weights"}, {"inputs", {"weights"}}}));
  CHECK(has({{"setting", "margin_scale other than 0"}, {"inputs", {"margins"}}}));
  CHECK(has({{"setting", "weighting = unaligned"}, {"inputs", {"chosen_lens", "rejected_lens"}}}));
  CHECK(has({{"setting", "ld_alpha other than 1"},
             {"inputs",
              {"chosen_head_logps", "rejected_head_logps", "ref_chosen_head_logps",
               "ref_rejected_head_logps"}}}));
  for (const json& point : dpo.at("curve")) {
    const double z = 0.1 * point[0].get<double>();
    check_close(point[1], -std::log(sigmoid(z)), 1e-14);
    check_close(point[2], -0.1 * sigmoid(-z), 1e-14);
  }
  CHECK(dpo.at("curve")[0][0] == -20);
  CHECK(dpo.at("curve")[80][0] == 20);

  const json kto = cli_json({"losses", "kto", "--json"});
  CHECK(kto.at("inputs") ==
        json{"chosen_logps", "ref_chosen_logps", "labels", "kl_logps", "ref_kl_logps"});
  CHECK(kto.at("conditions") ==
        json{"rows of one completion and a label", "all rows of an optimizer step in one call"});
  check_close(kto.at("curve")[80][1], sigmoid(-2), 1e-14);
  check_close(kto.at("curve")[80][2], -0.1 * sigmoid(2) * sigmoid(-2), 1e-14);

  const json hypo = cli_json({"losses", "hypo", "--json"});
  CHECK(hypo.at("conditions") == json{"fresh samples of the policy, 2 a prompt"});

  const std::string page = run_cli({"losses", "kto"}).out;
  CHECK(page.find("Thumbs up or down in place of pairs.") != std::string::npos);
  CHECK(page.find("chosen_logps, ref_chosen_logps, labels, kl_logps, ref_kl_logps") !=
        std::string::npos);
  CHECK(page.find("use_weights: weights") != std::string::npos);
  CHECK(page.find("TRL: KTOTrainer (z0 over each micro-batch)") != std::string::npos);
}

TEST_CASE("prefopt train: a run folder and a summary", "[cli]") {
  const TrainingSetup setup;
  const CliResult result = run_cli({"train", "--config", setup.config_path()});
  INFO(result.err);
  REQUIRE(result.code == 0);
  CHECK(result.out.starts_with("checkpoint: " + setup.folder.file("run") + "/checkpoints/"));
  CHECK(result.out.find("eval_rewards/accuracies: ") != std::string::npos);
  CHECK(result.err.find("evaluation at step 0  loss 0.6931") != std::string::npos);
  CHECK(result.err.find("step 3/3  loss ") != std::string::npos);
  CHECK(result.err.find('\r') == std::string::npos);
  CHECK(result.err.find('\033') == std::string::npos);

  const CliResult again = run_cli({"train", "--config", setup.config_path()});
  CHECK(again.code == 2);

  const std::string checkpoint = setup.folder.file("run/checkpoints/last");
  const CliResult scored =
      run_cli({"score", "--model", checkpoint, "--data", setup.folder.file("rows.jsonl")});
  CHECK(json_lines(scored.out).size() == 12);
}

TEST_CASE("prefopt train: quiet, dry and printed runs", "[cli]") {
  const TrainingSetup setup;
  SECTION("--quiet keeps remarks and leaves progress out") {
    const CliResult result = run_cli({"train", "--config", setup.config_path(), "--quiet"});
    CHECK(result.code == 0);
    CHECK(result.err.find("step ") == std::string::npos);
    CHECK(result.err.find("rows of") != std::string::npos);
  }
  SECTION("--dry-run leaves nothing behind") {
    const CliResult result = run_cli({"train", "--config", setup.config_path(), "--dry-run"});
    INFO(result.err);
    CHECK(result.code == 0);
    CHECK(result.err.find("12 of 12 rows") != std::string::npos);
    for (const std::string fact :
         {"steps: 3 of 4 pairs", "tokens/s", "peak memory: ", "time to finish: about "}) {
      CHECK(result.out.find(fact) != std::string::npos);
    }
    CHECK_FALSE(std::filesystem::exists(setup.folder.file("run")));
  }
  SECTION("--print-config shows every option and what --set made of them") {
    const json config =
        cli_json({"train", "--config", setup.config_path(), "--set", "loss.beta=0.25", "--set",
                  "train.steps=7", "--set", "data.eval=held out.jsonl", "--print-config"});
    CHECK(config.at("loss").at("type") == "dpo");
    CHECK(config.at("loss").at("beta") == 0.25);
    CHECK(config.at("train").at("steps") == 7);
    CHECK(config.at("train").at("batch_size") == 4);
    CHECK(config.at("data").at("eval") == "held out.jsonl");
    CHECK(config.at("optimizer").contains("learning_rate"));
    CHECK_FALSE(std::filesystem::exists(setup.folder.file("run")));
  }
}

TEST_CASE("prefopt train: configurations that cannot be meant", "[cli]") {
  TrainingSetup setup;
  const std::string path = setup.config_path();
  const auto refused = [&](const std::string& set, const std::string& sentence) {
    INFO(set);
    check_cli_refused({"train", "--config", path, "--set", set}, 2, sentence);
  };
  refused("train.stpes=3", path +
                               " with --set: config.train: expected a known option, got 'stpes'; "
                               "did you mean 'steps'?");
  refused("train.steps=many", path +
                                  " with --set: config.train: expected steps to be a whole "
                                  "number, got \"many\"");
  refused("steps", "--set: expected KEY=VALUE, got 'steps'");
  refused("output_dir.x=1", "--set output_dir.x: expected output_dir to be an object, got \"" +
                                setup.folder.file("run") + "\"");
  refused("loss={\"a\": 1, \"a\": 2}", "--set loss: expected JSON, got the key 'a' twice");

  setup.config["outputdir"] = "x";
  check_cli_refused({"train", "--config", setup.config_path()}, 2,
                    path +
                        ": config: expected a known option, got 'outputdir'; did you mean "
                        "'output_dir'?");
  check_cli_refused({"train", "--config", path + ".none"}, 2,
                    path + ".none: expected a readable file, got No such file or directory");
}

TEST_CASE("prefopt generate: text, lines, and the same again", "[cli]") {
  const auto generate = [](const std::string& seed) {
    return json_lines(
        run_cli({"generate", "--model", kPolicy, "--tokenizer", "byte", "--prompt", "ab",
                 "--samples", "2", "--max-new-tokens", "5", "--seed", seed, "--json"})
            .out);
  };
  const auto lines = generate("1");
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].at("prompt") == "ab");
  CHECK(lines[0].at("ids").size() <= 5);
  CHECK(lines[0].at("ids") != lines[1].at("ids"));
  CHECK(generate("1") == lines);
  CHECK(generate("2") != lines);

  const TempDir folder;
  const std::string file = folder.file("prompts.jsonl");
  write_text(file, R"({"prompt": "ab"})"
                   "\n"
                   R"({"prompt_ids": [256, 97, 98]})"
                   "\n"
                   R"({"prompt": "ab", "chosen": "c", "rejected": "d"})"
                   "\n");
  const auto greedy_of = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "generate",      "--model", kPolicy,  "--tokenizer",      "byte", "--data", file,
        "--temperature", "0",       "--json", "--max-new-tokens", "3"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return json_lines(run_cli(arguments).out);
  };
  const auto greedy = greedy_of({});
  REQUIRE(greedy.size() == 3);
  CHECK(greedy[0] == greedy[1]);
  CHECK(greedy[0] == greedy[2]);

  write_text(file, R"([{"frage": "ab", "question": "cd"}, {"frage": "ab"}])");
  CHECK(greedy_of({"--columns", R"({"prompt": "frage"})", "--unused", "note"}) ==
        std::vector<json>{greedy[0], greedy[0]});
  check_cli_refused({"generate", "--model", kPolicy, "--tokenizer", "byte", "--data", file,
                     "--columns", R"({"prompt": "frage"})"},
                    3,
                    file +
                        ":1: expected every column of a prompt to be read, got 'question', which "
                        "nothing reads; name what it is in data.columns, or leave it out with "
                        "data.unused = 'note'");
  check_cli_refused({"generate", "--model", kPolicy, "--tokenizer", "byte", "--data", file,
                     "--columns", "sharegtp"},
                    2,
                    "--columns: expected the columns of fields or one of orca, alpaca, sharegpt, "
                    "openai, pku, shp, ultrafeedback, completions, got 'sharegtp'; did you mean "
                    "'sharegpt'?");

  check_cli_refused({"generate", "--model", kPolicy}, 2,
                    "generate: expected one of --prompt, --message and --data, got none");
  check_cli_refused({"generate", "--model", kPolicy, "--prompt", "a", "--data", file}, 2,
                    "generate: expected one of --prompt, --message and --data, got several");
  check_cli_refused({"generate", "--model", kPolicy, "--prompt", "a", "--temperature", "-1"}, 2,
                    "generate: expected temperature >= 0, got -1");
}
