// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"
#include "support/golden_rollouts.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

/// The golden completions as rows.
std::vector<json> golden_rows() {
  const GoldenRollouts all = golden_rollouts();
  const auto starts = all.step.starts();
  std::vector<json> rows;
  for (std::size_t i = 0; i < all.step.lens.size(); ++i) {
    const auto list = [&](const Eigen::ArrayXd& x) {
      return std::vector<double>(x.begin() + starts[i], x.begin() + starts[i + 1]);
    };
    const auto at = static_cast<Eigen::Index>(i);
    rows.push_back({{"group", all.step.groups[i]},
                    {"logps", list(all.logps)},
                    {"old_logps", list(all.step.old_logps)},
                    {"ref_logps", list(all.step.ref_logps)},
                    {"sampler_logps", list(all.sampler_logps)},
                    {"extra_logps", list(all.step.extra_logps)},
                    {"values", list(all.step.values)},
                    {"old_values", list(all.old_values)},
                    {"reward", all.step.rewards[at]},
                    {"greedy_reward", all.step.greedy_rewards[at]}});
  }
  return rows;
}

std::string text_of(const std::vector<json>& rows, const std::string& end = "\n") {
  std::string text;
  for (const json& row : rows) text += row.dump() + end;
  return text;
}

struct RolloutsFile {
  TempDir folder;
  std::string path = folder.file("rollouts.jsonl");

  explicit RolloutsFile(const std::string& text) { write_text(path, text); }

  json loss(const std::string& config) const {
    return cli_json({"loss", "--loss", config, "--rollouts", path});
  }
  void check_refused(const std::string& config, int code, const std::string& sentence) const {
    check_cli_refused({"loss", "--loss", config, "--rollouts", path}, code, sentence);
  }
};

TEST_CASE("prefopt loss --rollouts: golden objectives", "[cli]") {
  const json golden = json::parse(read_text(PREFOPT_TEST_DATA_DIR "/policy_gradient.json"));
  const RolloutsFile file(text_of(golden_rows()));
  const auto check = [&](const std::string& config, const char* name) {
    const json got = file.loss(config);
    const json& expected = golden["policy_gradient"]["objectives"][name];
    check_close(got.at("loss"), expected.at("loss"), 1e-10);
    REQUIRE(got.at("grad").size() == 8);
    for (std::size_t i = 0; i < 8; ++i) {
      REQUIRE(got.at("grad")[i].size() == expected.at("grad")[i].size());
      for (std::size_t t = 0; t < got.at("grad")[i].size(); ++t) {
        check_close(got.at("grad")[i][t], expected.at("grad")[i][t], 1e-10, 1e-14);
      }
    }
  };
  check(R"({"type": "grpo"})", "grpo_k3_beta.04");
  check(R"({"type": "dapo"})", "dapo_eps.2_.28");
  check(R"({"type": "loop"})", "loop_paper_eps.1");
  check(R"({"loss_type": "grpo"})", "grpo");
  check(R"({"loss_type": "grpo", "beta": 0.04})", "grpo_k3xratio_beta.04");
  check(R"({"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 8})",
        "dr_grpo_max8");
  check(R"({"loss_type": "vespo"})", "vespo");
  check(R"({"trainer": "RLOOTrainer", "beta": 0})", "rloo_trl_seq_sum_ratio");

  const json ppo = file.loss(R"({"type": "ppo", "advantage": {"whiten": false},
                                 "aggregation": "sequence_token_mean",
                                 "value_loss": {"clip": 0.05}})");
  const json& values = golden["values_kl"];
  for (const char* key : {"advantages", "returns"}) {
    for (std::size_t i = 0; i < 8; ++i) {
      for (std::size_t t = 0; t < ppo.at(key)[i].size(); ++t) {
        check_close(ppo.at(key)[i][t], values["gae"][key][i][t], 1e-10, 1e-14);
      }
    }
  }
  check_close(ppo.at("metrics").at("loss/value"), values["value_loss"]["clip0.05_seq_mean"]["loss"],
              1e-10);
  CHECK(ppo.contains("grad_values"));
}

TEST_CASE("prefopt loss --rollouts: a file as others write it", "[cli]") {
  const json plain = RolloutsFile(text_of(golden_rows())).loss(R"({"type": "grpo"})");
  CHECK(RolloutsFile(text_of(golden_rows(), "\r\n")).loss(R"({"type": "grpo"})") == plain);
  CHECK(RolloutsFile("\xEF\xBB\xBF" + text_of(golden_rows(), "\n\n")).loss(R"({"type": "grpo"})") ==
        plain);
}

TEST_CASE("prefopt loss --rollouts: one update, masks, turns, rewards that nobody could say",
          "[cli]") {
  SECTION("without old log-probs the ratio is 1") {
    const RolloutsFile file(R"({"logps": [-1, -2], "reward": 3})");
    const json got = file.loss(R"({"type": "reinforce"})");
    check_close(got.at("loss"), -6, 1e-14);
    CHECK(got.at("grad") == json{{-3.0, -3.0}});
    CHECK(got.at("advantages") == json{{3.0, 3.0}});
  }
  SECTION("tokens that the policy did not choose have no gradient and do not count") {
    const RolloutsFile file(R"({"logps": [-1, -2, -3], "acted": [1, 0, 1], "reward": 3})"
                            "\n"
                            R"({"logps": [-1, -2], "acted": [0, false], "reward": 9})");
    const json got = file.loss(
        R"({"type": "policy_gradient", "advantage": {"kind": "none"},
            "aggregation": "sequence_token_mean"})");
    check_close(got.at("loss"), -3, 1e-14);
    CHECK(got.at("grad") == json{{-1.5, 0.0, -1.5}, {0.0, 0.0}});
  }
  SECTION("unfinished completions may be left out") {
    const RolloutsFile file(R"({"group": 0, "logps": [-1], "reward": 1, "finished": false})"
                            "\n"
                            R"({"group": 0, "logps": [-1], "reward": 0})");
    const json got =
        file.loss(R"({"type": "rloo", "unfinished": "mask", "kl": {"coefficient": 0}})");
    CHECK(got.at("grad") == json{{0.0}, {1.0}});
  }
  SECTION("turns") {
    const RolloutsFile file(
        R"({"logps": [-1, -1, -1], "old_logps": [-2, -1, -1], "reward": 1, "turn_ends": [1, 3]})");
    const json got =
        file.loss(R"({"type": "policy_gradient", "level": "turn", "aggregation": "sequence_sum"})");
    // One turn of ratio e, one of two tokens and ratio 1.
    check_close(got.at("loss"), -std::exp(1.0) - 1, 1e-14);
    check_close(got.at("grad")[0][0], -std::exp(1.0), 1e-14);
    CHECK(got.at("grad")[0][1] == -1);
  }
  SECTION("null is a reward that nobody could say") {
    const RolloutsFile file(R"({"group": 0, "logps": [-1], "reward": 1})"
                            "\n"
                            R"({"group": 0, "logps": [-1], "reward": null})"
                            "\n"
                            R"({"group": 0, "logps": [-1], "reward": 0})");
    CHECK(file.loss(R"({"type": "dr_grpo"})").at("advantages") == json{{0.5}, {0.0}, {-0.5}});
    file.check_refused(R"({"type": "dr_grpo", "advantage": {"unscorable": "error"}})", 3,
                       "advantage: expected a reward of each completion, got none of completion 1");
  }
  SECTION("given advantages, one a completion or one a token") {
    const RolloutsFile file(R"({"logps": [-1, -1], "advantage": 2})"
                            "\n"
                            R"({"logps": [-1, -1], "advantage": [1, 0]})");
    const json got = file.loss(R"({"type": "policy_gradient", "advantage": {"kind": "given"}})");
    CHECK(got.at("grad") == json{{-0.5, -0.5}, {-0.25, 0.0}});
  }
}

TEST_CASE("prefopt loss --rollouts: rows that cannot be used", "[cli]") {
  struct Case {
    const char *text, *config, *sentence;
  };
  const char* reinforce = R"({"type": "reinforce"})";
  const char* grpo = R"({"type": "grpo", "kl": {"coefficient": 0}})";
  const Case cases[] = {
      {R"({"logps": [-1], "reward": 1, "old_logp": [-1]})", reinforce,
       ":1: expected keys of a rollout, got 'old_logp'; did you mean 'old_logps'?"},
      {R"({"reward": 1})", reinforce, ":1: expected logps, got a row without it"},
      {R"({"logps": [], "reward": 1})", reinforce,
       ":1: expected at least one token in logps, got none"},
      {R"({"logps": [-1]})", reinforce,
       ":1: expected reward, got a row without it; reinforce needs it"},
      {R"({"logps": [-1], "reward": 1})", grpo,
       ":1: expected group, got a row without it; grpo needs it"},
      {R"({"logps": [-1], "reward": 1})", R"({"type": "remax"})",
       ":1: expected greedy_reward, got a row without it; remax needs it"},
      {R"({"logps": [-1], "reward": 1, "greedy_reward": 0})", R"({"type": "remax"})",
       ":1: expected ref_logps, got a row without it; remax needs it"},
      // Rewards of tokens are read by to_go and gae alone.
      {R"({"logps": [-1], "token_rewards": [1]})", reinforce,
       ":1: expected reward, got a row without it; reinforce needs it"},
      {R"({"logps": [-1, -2], "old_logps": [-1], "reward": 1})", reinforce,
       ":1: expected old_logps of the 2 tokens of logps, got 1"},
      {R"({"logps": [-1, "a"], "reward": 1})", reinforce,
       ":1: expected finite numbers in logps, got \"a\""},
      {R"({"logps": [true], "reward": 1})", reinforce,
       ":1: expected finite numbers in logps, got true"},
      {R"({"logps": [-1], "reward": 1, "group": 18446744073709551615})", reinforce,
       ":1: expected whole numbers in group, got 18446744073709551615"},
      {R"({"logps": -1, "reward": 1})", reinforce, ":1: expected a list in logps, got -1"},
      {R"({"logps": [-1], "reward": 1, "acted": [2]})", reinforce,
       ":1: expected 0 or 1 in acted, got 2.0"},
      {R"({"logps": [-1], "reward": 1, "finished": 1})", reinforce,
       ":1: expected true or false in finished, got 1"},
      {R"({"logps": [-1], "reward": 1, "group": 0.5})", reinforce,
       ":1: expected whole numbers in group, got 0.5"},
      {R"({"logps": [-1, -1], "reward": 1, "turn_ends": [1]})", reinforce,
       ":1: expected ascending ends in turn_ends, the last of them 2, got [1]"},
      {R"([1])", reinforce, ":1: expected an object, got [1]"},
      {"", reinforce, ": expected at least one row, got none"},
      {R"({"logps": [-1], "reward": 1, "acted": [0]})", reinforce,
       ": expected a completion that counts, got none"}};
  for (const Case& item : cases) {
    const RolloutsFile file(item.text);
    file.check_refused(item.config, 3, file.path + item.sentence);
  }
  const RolloutsFile second(R"({"logps": [-1], "old_logps": [-1], "reward": 1})"
                            "\n"
                            R"({"logps": [-1], "reward": 1})");
  second.check_refused(reinforce, 3,
                       second.path + ":2: expected old_logps, got a row without it; line 1 has it");
  const RolloutsFile one(R"({"group": 4, "logps": [-1], "reward": 1})");
  one.check_refused(grpo, 2,
                    "advantage: expected at least 2 completions of each prompt, as 'group_std' "
                    "compares them, got 1 in group 4");
}

TEST_CASE("prefopt loss: rows and rollouts do not mix", "[cli]") {
  const RolloutsFile file(R"({"logps": [-1], "reward": 1})");
  file.check_refused(R"({"type": "dpo"})", 2,
                     "loss: expected an objective on tokens, which takes rollouts, got 'dpo', a "
                     "loss on rows");
  check_cli_refused({"loss", "--loss", R"({"type": "grpo"})", "--logps", file.path}, 2,
                    "loss: expected a loss on rows, got an objective on tokens, which takes "
                    "rollouts (`prefopt loss --rollouts`)");
  file.check_refused(R"({"loss_type": "bnpo"})", 2,
                     "GRPOTrainer: expected a loss_type that does not depend on how a step is cut, "
                     "got 'bnpo', which divides by the tokens of each micro-batch; 'dapo' divides "
                     "by those of the step");
  const CliResult both = run_cli({"loss", "--loss", "{}", "--logps", "a", "--rollouts", "b"});
  CHECK(both.code == 2);
  const CliResult none = run_cli({"loss", "--loss", "{}"});
  CHECK(none.code == 2);
}

TEST_CASE("prefopt loss --rollouts: names the keys that change nothing", "[cli]") {
  const auto answer = [](const std::vector<json>& rows, const std::string& config) {
    json got = RolloutsFile(text_of(rows)).loss(config);
    const json unread = got.value("unread", json::array());
    got.erase("unread");
    return std::pair(got, unread);
  };
  for (const std::string config :
       {R"({"type": "grpo"})", R"({"type": "remax"})", R"({"type": "ppo"})", R"({"type": "rto"})",
        R"({"loss_type": "dapo", "beta": 0})",
        R"({"type": "grpo", "correction": {"kind": "truncate"}})"}) {
    const std::vector<json> rows = golden_rows();
    const auto [plain, unread] = answer(rows, config);
    CHECK(unread.size() > 0);
    for (const auto& [key, value] : rows[0].items()) {
      if (key == "group") continue;
      CAPTURE(config, key);
      std::vector<json> changed = rows;
      json& number = value.is_array() ? changed[0][key][0] : changed[0][key];
      number = number.get<double>() + 3;
      const bool changes_nothing = answer(changed, config).first == plain;
      CHECK(changes_nothing == (std::find(unread.begin(), unread.end(), key) != unread.end()));
    }
  }
  // Of a loss on tokens.
  const json oreo =
      RolloutsFile(R"({"logps": [-1], "ref_logps": [-1], "values": [0], "reward": 1, )"
                   R"("token_rewards": [2], "group": 1})")
          .loss(R"({"type": "oreo", "alpha": 0})");
  CHECK(oreo.at("unread") == json{"group", "token_rewards"});
}

TEST_CASE("prefopt losses: objectives on tokens", "[cli]") {
  const json all = cli_json({"losses", "objectives", "--json"});
  CHECK(all.at("presets").size() == 16);
  CHECK(all.at("advantages").size() == 12);
  CHECK(all.at("rules").size() == 6);
  const json grpo = cli_json({"losses", "grpo", "--json"});
  CHECK(grpo.at("name") == "grpo");
  CHECK(grpo.at("config").at("kl").at("coefficient") == 0.04);
  CHECK(grpo.at("advantage").at("kind") == "group_std");
  CHECK(grpo.at("rule").at("options")[0].at("name") == "low");
  const std::string page = run_cli({"losses", "grpo"}).out;
  for (const char* part : {"objective  grpo", "arXiv:2402.03300", "(r - mean) / (std + epsilon)",
                           "advantage.epsilon", "rule.low", "kl.coefficient", "TRL 1.16"}) {
    CAPTURE(part);
    CHECK(page.find(part) != std::string::npos);
  }
  const std::string table = run_cli({"losses", "objectives"}).out;
  CHECK(table.find("leave_one_out") != std::string::npos);
  CHECK(run_cli({"losses"}).out.find("\nobjective") != std::string::npos);
}

}  // namespace
}  // namespace prefopt::testing_support
