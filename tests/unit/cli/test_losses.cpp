// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

TEST_CASE("prefopt losses: the registry", "[cli]") {
  const CliResult listed = run_cli({"losses", "--json"});
  CHECK(listed.err ==
        "prefopt: these are losses on rows; `prefopt losses objectives --json` has those on tokens"
        "\n");
  const json all = json::parse(listed.out);
  std::vector<std::string> names;
  for (const auto& loss : all) names.push_back(loss.at("name"));
  for (const std::string name :
       {"dpo", "robust_dpo", "f_dpo", "ipo", "rpo", "vpo", "hypo", "sft"}) {
    CHECK(std::count(names.begin(), names.end(), name) == 1);
  }
  const std::string table = run_cli({"losses"}).out;
  CHECK(table.starts_with("loss"));
  // A line of each loss, and objectives on tokens after an empty one.
  const std::string losses = table.substr(0, table.find("\n\n") + 1);
  CHECK(static_cast<std::size_t>(std::count(losses.begin(), losses.end(), '\n')) == all.size() + 1);

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
              {"chosen_overlap_logps", "rejected_overlap_logps", "ref_chosen_overlap_logps",
               "ref_rejected_overlap_logps"}}}));
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

}  // namespace
}  // namespace prefopt::testing_support
