// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"
#include "support/counts.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

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
    const json golden = json::parse(read_text(PREFOPT_TEST_DATA_DIR "/" + std::string(name)));
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
  SECTION("the side of the reference") {
    const std::string xpo = R"({"type": "xpo", "beta": 0.5, "alpha": 0.25})";
    const double dpo = -std::log(sigmoid(1.5));
    check_close(run(xpo, R"(, "from_reference": 0)").at("loss"), dpo, 1e-14);
    check_close(run(xpo, R"(, "from_reference": 1)").at("loss"), dpo - 0.25 * 3, 1e-14);
    const json got = run(xpo, R"(, "from_reference": 2)");
    check_close(got.at("loss"), dpo - 0.25 * 4, 1e-14);
    check_close(got.at("grad_rejected")[0][0], 0.5 * sigmoid(-1.5) + 0.25, 1e-14);
  }
  SECTION("advantages of single completions") {
    write_text(
        file,
        R"({"completion_logps": [-1, -2], "ref_completion_logps": [-2, -2], "advantage": 0.5,)"
        R"( "group": 1})"
        "\n"
        R"({"completion_logps": -4, "ref_completion_logps": -4, "advantage": -1, "group": 1})"
        "\n");
    const auto of = [&](const std::string& loss) {
      return cli_json({"loss", "--loss", loss, "--logps", file});
    };
    const json alone = of(R"({"type": "policy_gradient", "tau": 0.2})");
    CHECK(alone.at("losses") == json::parse("[-0.3, 1.0]"));
    CHECK(alone.at("grad_chosen") == json::parse("[[-0.15, -0.15], [0.5]]"));
    CHECK(alone.at("grad_rejected").empty());
    const json in_group = of(R"({"type": "policy_gradient", "tau": 0.2, "kl_baseline": "group"})");
    CHECK(in_group.at("losses") == alone.at("losses"));
    CHECK(in_group.at("grad_chosen") == json::parse("[[-0.15, -0.15], [0.4]]"));
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
                          ":1: expected chosen_logps token by token, or its length next to it, "
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
  refused(dpo, R"(, "from_reference": 3)",
          "from_reference: expected 0, 1 (chosen) or 2 (rejected), got 3");
  refused(dpo, R"(, "advantage": "1")", "advantage: expected a finite number, got \"1\"");
  refused(R"({"type": "xpo"})", "", "expected from_reference, got a row without it; xpo needs it");
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
          "expected rejected_logps token by token, or its length next to it, got a sum; ipo needs "
          "the number of tokens");
  const std::string ld = R"({"type": "dpo", "ld_alpha": 0.5})";
  refused(ld, R"(, "chosen_len": 3)",
          "expected rejected_logps token by token, or its length next to it, got a sum; dpo needs "
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
  report_count("bad log-prob rows refused", count);

  write_text(file, "");
  check_cli_refused({"loss", "--loss", R"({"type": "dpo"})", "--logps", file}, 3,
                    file + ": expected at least one row, got none");
}

TEST_CASE("prefopt loss --logps: names the keys that change nothing", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  const json first = {{"chosen_logps", {-1.0, -2.0, -0.5}},
                      {"rejected_logps", {-1.5, -0.25}},
                      {"ref_chosen_logps", {-1.25, -1.5, -0.75}},
                      {"ref_rejected_logps", {-0.75, -0.5}},
                      {"margin", 0.5},
                      {"weight", 0.5},
                      {"label_prob", 0.25},
                      {"chosen_win_rate", 0.25},
                      {"rejected_win_rate", 0.125}};
  const auto answer = [&](const json& row, const std::string& config) {
    write_text(file, row.dump());
    json got = cli_json({"loss", "--loss", config, "--logps", file});
    const json unread = got.value("unread", json::array());
    got.erase("unread");
    return std::pair(got, unread);
  };
  for (const std::string config :
       {R"({"type": "dpo"})", R"({"type": "dpo", "use_label_probs": true})",
        R"({"type": "dpo", "ld_alpha": 0.5})", R"({"type": "simpo"})", R"({"type": "sft"})",
        R"({"type": "sppo", "soft": true})", R"({"type": "dft"})"}) {
    const auto [plain, unread] = answer(first, config);
    for (const auto& [key, value] : first.items()) {
      CAPTURE(config, key);
      json changed = first;
      json& number = value.is_array() ? changed[key][0] : changed[key];
      number = number.get<double>() + 0.25;
      const bool changes_nothing = answer(changed, config).first == plain;
      CHECK(changes_nothing == (std::find(unread.begin(), unread.end(), key) != unread.end()));
    }
  }
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

}  // namespace
}  // namespace prefopt::testing_support
