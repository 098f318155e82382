// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/small_decoder.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;
using IndexPairs = std::vector<std::pair<int, int>>;

template <class... Lines>
std::string lines_of(const Lines&... lines) {
  return ((lines.dump() + "\n") + ...);
}

/// A file of candidates, and the command on it.
class CandidatesFile {
 public:
  explicit CandidatesFile(const std::string& text) { write_text(path(), text); }

  std::string path() const { return folder_.file("candidates.jsonl"); }
  std::string output() const { return folder_.file("rows.jsonl"); }

  std::vector<std::string> arguments(const std::string& select,
                                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all = {"pairs", "--select", select, "--candidates", path()};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  CliResult run(const std::string& select, const std::vector<std::string>& more = {}) const {
    const CliResult result = run_cli(arguments(select, more));
    INFO(result.err);
    REQUIRE(result.code == 0);
    return result;
  }
  std::vector<json> rows(const std::string& select,
                         const std::vector<std::string>& more = {}) const {
    return json_lines(run(select, more).out);
  }
  void check_refused(const std::string& select, int code, const std::string& sentence,
                     const std::vector<std::string>& more = {}) const {
    check_cli_refused(arguments(select, more), code, sentence);
  }

 private:
  TempDir folder_;
};

IndexPairs indices(const std::vector<json>& rows) {
  IndexPairs pairs;
  for (const json& row : rows) pairs.emplace_back(row.at("chosen_index"), row.at("rejected_index"));
  return pairs;
}

json candidates(const std::vector<double>& rewards) {
  json line{{"prompt", "Q: "}, {"rewards", rewards}};
  for (std::size_t i = 0; i < rewards.size(); ++i)
    line["completions"].push_back("c" + std::to_string(i));
  return line;
}

json with_table(const json& table) {
  json line{{"prompt", "Q: "}, {"beats", table}};
  for (std::size_t i = 0; i < table.size(); ++i)
    line["completions"].push_back("c" + std::to_string(i));
  return line;
}

json golden() {
  return json::parse(read_text(PREFOPT_TEST_DATA_DIR "/online_selections.json")).at("hand");
}

TEST_CASE("prefopt pairs: rows of rewards, and the counts of what is left out", "[cli]") {
  json ties = candidates({0.4, 0.4, 0.4});
  json failed = candidates({0.5, 0.1, 0});
  failed["rewards"][2] = nullptr;
  const CandidatesFile file(lines_of(candidates({0.3, 1.2, -0.4}), ties, failed));
  const CliResult result = file.run(R"({"type": "best_worst"})");
  CHECK(json_lines(result.out) == std::vector<json>{{{"prompt", "Q: "},
                                                     {"chosen", "c1"},
                                                     {"rejected", "c2"},
                                                     {"chosen_index", 1},
                                                     {"rejected_index", 2}},
                                                    {{"prompt", "Q: "},
                                                     {"chosen", "c0"},
                                                     {"rejected", "c1"},
                                                     {"chosen_index", 0},
                                                     {"rejected_index", 1}}});
  CHECK(result.err ==
        "prefopt: pairs: 2 rows of 3 prompts; prompts without rows 1, ties 1, identical 0, failed "
        "1, unusable 0, missing 0\n");
  const CliResult written = file.run(R"({"type": "best_worst"})", {"--output", file.output()});
  CHECK(written.out.empty());
  CHECK(written.err == result.err);
  CHECK(read_text(file.output()) == result.out);
}

TEST_CASE("prefopt pairs: golden selections", "[cli]") {
  const json all = golden();
  const json& selections = all.at("selections");
  const CandidatesFile eight(lines_of(candidates(selections.at("tournament_rewards"))));
  CHECK(indices(eight.rows(R"({"type": "tournament"})")) == IndexPairs{{1, 5}});
  const CandidatesFile cyclic(lines_of(with_table(selections.at("tournament_cyclic_4").at("P"))));
  CHECK(cyclic.rows(R"({"type": "tournament"})").empty());

  const json& apart = selections.at("all_pairs");
  const CandidatesFile three(lines_of(candidates(apart.at("rewards"))));
  CHECK(indices(three.rows(json{{"type", "all_pairs"}, {"min_gap", apart.at("min_gap")}}.dump())) ==
        apart.at("pairs").get<IndexPairs>());

  const json& prct = selections.at("dno_prct");
  json line = candidates(prct.at("scores"));
  line["gold_index"] = prct.at("gold_index");
  json named = candidates(prct.at("scores"));
  named["sources"] = json(std::vector<std::string>(line["completions"].size(), "policy"));
  named["sources"][prct.at("gold_index").get<std::size_t>()] = "data";
  for (const json& form : {line, named}) {
    CHECK(
        indices(
            CandidatesFile(lines_of(form))
                .rows(
                    R"({"type": "all_pairs", "min_score": 5, "min_gap": 2, "min_gap_own": 1})")) ==
        prct.at("pairs").get<IndexPairs>());
  }

  const json& ended = selections.at("missing_eos");
  json cut = candidates(ended.at("rewards"));
  cut["ended"] = ended.at("ended");
  CHECK(indices(CandidatesFile(lines_of(cut))
                    .rows(R"({"type": "pair"})", {"--missing-eos-penalty", "1"})) ==
        IndexPairs{{1, 0}});
  CHECK(indices(CandidatesFile(lines_of(cut)).rows(R"({"type": "pair"})")) == IndexPairs{{0, 1}});
  CHECK(indices(
            CandidatesFile(lines_of(cut)).rows(R"({"type": "pair"})", {"--unfinished", "loses"})) ==
        IndexPairs{{1, 0}});

  const json& self_play = all.at("nash_md_advantages").at("self_play_of_3");
  const auto rows =
      CandidatesFile(lines_of(with_table(self_play.at("P")))).rows(R"({"type": "advantage"})");
  REQUIRE(rows.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(rows[i].at("index") == i);
    CHECK(rows[i].at("completion") == "c" + std::to_string(i));
    CHECK(rows[i].at("advantage").get<double>() ==
          Approx(self_play.at("advantages")[i].get<double>()));
  }
}

TEST_CASE("prefopt pairs: columns that selections set", "[cli]") {
  const CandidatesFile file(
      lines_of(with_table({{0.5, 0.8, 0.3}, {0.2, 0.5, 0.9}, {0.7, 0.1, 0.5}})));
  const auto rates = file.rows(R"({"type": "win_rates", "label_probs": true})");
  REQUIRE(rates.size() == 1);
  CHECK(rates[0].at("chosen_win_rate").get<double>() == Approx(0.55));
  CHECK(rates[0].at("rejected_win_rate").get<double>() == Approx(0.4));
  CHECK(rates[0].at("label_prob").get<double>() == Approx(1 / (1 + std::exp(-0.15))));
  CHECK(rates[0].at("weight") == 1);
  CHECK(file.rows(R"({"type": "pair", "soft": true})")[0].at("label_prob") == 0.8);

  // Comparisons of rewards: sigmoid(difference / T), or the larger wins.
  const CandidatesFile rewards(lines_of(candidates({2, 0})));
  const auto soft = [&](const char* temperature) {
    return rewards.rows(R"({"type": "pair", "soft": true})", {"--temperature", temperature})[0]
        .at("label_prob")
        .get<double>();
  };
  CHECK(soft("1") == Approx(1 / (1 + std::exp(-2.0))));
  CHECK(soft("4") == Approx(1 / (1 + std::exp(-0.5))));
  CHECK(soft("0") == 1);
}

TEST_CASE("prefopt pairs: equal texts are one completion, with the last reward", "[cli]") {
  const json line{{"prompt", "Q"}, {"completions", {"a", "b", "a"}}, {"rewards", {0, 1, 2}}};
  const CandidatesFile file(lines_of(line));
  CHECK(indices(file.rows(R"({"type": "rejection", "beta": 0, "n": 2})")) == IndexPairs{{0, 1}});
  const json same{{"prompt", "Q"}, {"completions", {"a", "a"}}, {"rewards", {0, 0}}};
  const CliResult none = CandidatesFile(lines_of(same)).run(R"({"type": "pair"})");
  CHECK(none.out.empty());
  CHECK(none.err ==
        "prefopt: pairs: 0 rows of 1 prompts; prompts without rows 1, ties 0, identical 1, failed "
        "0, unusable 0, missing 0\n");
  // Nothing was written, not even an end.
  const json empty{
      {"prompt", "Q"}, {"completions", {"", "a"}}, {"rewards", {2, 1}}, {"ended", {false, true}}};
  CHECK(CandidatesFile(lines_of(empty)).run(R"({"type": "pair"})").err.find("unusable 1") !=
        std::string::npos);
}

TEST_CASE("prefopt pairs: draws follow the seed and the place of the prompt", "[cli]") {
  const json line = candidates({0.3, 1.2, -0.4, 0.8, 0.1, 0.5, 0.2, 0.9});
  std::string text;
  for (int prompt = 0; prompt < 8; ++prompt) text += lines_of(line);
  const CandidatesFile file(text);
  const auto of_seed = [&](const char* seed) {
    return indices(file.rows(R"({"type": "best_random"})", {"--seed", seed}));
  };
  CHECK(of_seed("1") == of_seed("1"));
  CHECK(of_seed("1") != of_seed("2"));
  const IndexPairs pairs = of_seed("1");
  CHECK(std::set(pairs.begin(), pairs.end()).size() > 1);
}

TEST_CASE("prefopt pairs: lines that are refused", "[cli]") {
  const std::string pair = R"({"type": "pair"})";
  const auto refused = [&](const std::string& line, const std::string& sentence,
                           const std::string& select = R"({"type": "pair"})",
                           const std::vector<std::string>& more = {}) {
    const CandidatesFile file(candidates({1, 0}).dump() + "\n" + line + "\n");
    file.check_refused(select, 3, file.path() + ":2: " + sentence, more);
  };
  refused(R"({"prompt": "Q", "completions": ["a", "b"]})",
          "expected a key 'rewards' or 'beats', got a line without");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "reward": [1, 2]})",
          "expected a known key, got 'reward'; did you mean 'rewards'?");
  refused(R"({"completions": ["a"]})", "expected a key 'prompt', got a line without it");
  refused(R"({"prompt": [], "completions": ["a"]})", "expected 'prompt' to be text, got list");
  refused(R"({"prompt": "Q", "completions": []})",
          "expected 'completions' to be a list of texts, got an empty one");
  refused(R"({"prompt": "Q", "completions": ["a", 1]})",
          "expected 'completions[1]' to be text, got number");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "rewards": [1]})",
          "expected 'rewards' to be a list of 2, one for each completion, got 1");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "rewards": [1, "2"]})",
          "expected 'rewards[1]' to be a number or null, got \"2\"");
  refused(R"({"prompt": "Q", "completions": ["a"], "rewards": [1], "beats": [[0.5]]})",
          "expected one of 'rewards' and 'beats', got both");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "beats": [[0.5, 0.8], [0.3, 0.5]]})",
          "expected 'beats[1][0]' to be 1 - beats[0][1] = 0.2, got 0.3");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "beats": [[0.5, null], [0.3, 0.5]]})",
          "expected 'beats[1][0]' to be 1 - beats[0][1] = null, got 0.3");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "beats": [[0.4, 0.8], [0.2, 0.5]]})",
          "expected 'beats[0][0]', of a completion with itself, to be 0.5, got 0.4");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "beats": [[0.5, 1.2], [-0.2, 0.5]]})",
          "expected 'beats[0][1]' to be a probability in [0, 1], got 1.2");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "beats": [[0.5, 0.8], [0.2]]})",
          "expected 'beats[1]' to be a list of 2, one for each completion, got 1");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "rewards": [1, 2], "gold_index": 2})",
          "expected 'gold_index' to be the place of a completion, got 2");
  refused(R"({"prompt": "Q", "completions": ["a"], "rewards": [1], "sources": ["polisy"]})",
          "expected 'sources[0]' to be one of policy, reference, last, past, mixture, data, "
          "program, queue, got 'polisy'; did you mean 'policy'?");
  refused(R"({"prompt": "Q", "completions": ["a", "b"], "rewards": [1, 2], "ended": [1, true]})",
          "expected 'ended[0]' to be true or false, got 1");
  refused("[1]", "expected an object, got [1]");
  const CandidatesFile rewards(lines_of(candidates({1, 0})));
  rewards.check_refused(pair, 3,
                        rewards.path() +
                            ":1: expected a key 'ended', which --missing-eos-penalty "
                            "needs, got a line without",
                        {"--missing-eos-penalty", "1"});
  rewards.check_refused(pair, 3,
                        rewards.path() +
                            ":1: expected a key 'token_logps', which "
                            "--length-penalty needs, got a line without",
                        {"--length-penalty", "0.1"});
  const CandidatesFile empty(std::string{});
  empty.check_refused(pair, 3, empty.path() + ": expected at least one prompt, got none");
}

TEST_CASE("prefopt pairs: options that are refused", "[cli]") {
  const CandidatesFile rewards(lines_of(candidates({1, 0})));
  rewards.check_refused(R"({"type": "pairs"})", 2,
                        "--select: expected a known selection, got 'pairs'; did you mean 'pair'?");
  rewards.check_refused(R"({"type": "pair"})", 2,
                        "--unfinished: expected as_judged or loses, got 'wins'",
                        {"--unfinished", "wins"});
  const CandidatesFile table(lines_of(with_table({{0.5, 0.8}, {0.2, 0.5}})));
  table.check_refused(
      R"({"type": "best_worst"})", 2,
      table.path() + ":1: best_worst: expected rewards of completions, got comparisons alone");
  for (const std::string option : {"--missing-eos-penalty", "--length-penalty", "--temperature"}) {
    table.check_refused(
        R"({"type": "pair"})", 3,
        table.path() + ":1: expected a key 'rewards', which " + option + " is about, got 'beats'",
        {option, "0.5"});
    rewards.check_refused(R"({"type": "against_data"})", 2,
                          option +
                              ": expected a selection that asks for feedback, got "
                              R"({"type":"against_data","data_source":"data",)"
                              R"("weigh_prompts":true}; it would do nothing)",
                          {option, "0.5"});
  }
  const CandidatesFile one(lines_of(candidates({1})));
  one.check_refused(R"({"type": "win_rates"})", 2,
                    one.path() +
                        ":1: win_rates: expected at least 2 completions of a prompt to compare "
                        "with each other, got 1; draw more of them");
}

TEST_CASE("prefopt generate --candidates, pairs, train: iterative alignment", "[cli]") {
  const TempDir folder;
  const std::string prompts = folder.file("prompts.jsonl");
  write_text(prompts, R"({"prompt": "ab"})"
                      "\n"
                      R"({"prompt": "cd"})"
                      "\n");
  const std::vector<std::string> generate = {
      "generate", "--model", kPolicy, "--tokenizer",      "byte", "--data", prompts, "--samples",
      "3",        "--seed",  "4",     "--max-new-tokens", "5"};
  const auto with = [&](const std::vector<std::string>& more) {
    auto all = generate;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  auto lines = json_lines(run_cli(with({"--candidates"})).out);
  const auto single = json_lines(run_cli(with({"--json"})).out);
  REQUIRE(lines.size() == 2);
  REQUIRE(single.size() == 6);
  std::string rated;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    json& line = lines[i];
    CHECK(line.at("prompt") == (i == 0 ? "ab" : "cd"));
    for (std::size_t k = 0; k < 3; ++k) {
      const json& same = single[i * 3 + k];
      CHECK(line.at("completions")[k] == same.at("completion"));
      CHECK(line.at("token_logps")[k].size() == same.at("ids").size());
      CHECK(line.at("token_logps")[k][0] < 0);
      CHECK(line.at("ended")[k].is_boolean());
    }
    line["rewards"] = {0.1, 0.5, 0.3};
    rated += line.dump() + "\n";
  }
  write_text(folder.file("rated.jsonl"), rated);
  const std::string rows = folder.file("rows.jsonl");
  const CliResult pairs = run_cli({"pairs", "--select", R"({"type": "best_worst"})", "--candidates",
                                   folder.file("rated.jsonl"), "--output", rows});
  REQUIRE(pairs.code == 0);
  CHECK(json_lines(read_text(rows)).size() == 2);
  const json config = {{"output_dir", folder.file("run")},        {"loss", {{"type", "dpo"}}},
                       {"model", {{"decoder", small_decoder()}}}, {"data", {{"train", rows}}},
                       {"batch", {{"steps", 1}, {"rows", 2}}},    {"machine", {{"threads", 1}}}};
  write_text(folder.file("run.json"), config.dump());
  const CliResult trained = run_cli({"train", "--config", folder.file("run.json")});
  INFO(trained.err);
  CHECK(trained.code == 0);

  check_cli_refused(with({"--candidates", "--json"}), 2,
                    "--candidates: expected no --json, which prints a line per completion, got "
                    "both");
  check_cli_refused(with({"--candidates", "--temperature", "0"}), 2,
                    "--candidates: expected a temperature above 0, got 0; all 3 samples would be "
                    "equal");
}

}  // namespace
}  // namespace prefopt::testing_support
