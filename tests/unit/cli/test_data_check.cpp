// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "support/catch.h"
#include "support/cli.h"
#include "support/files.h"
#include "support/small_decoder.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

const std::string kGood = R"({"prompt": "ab", "chosen": "cdef", "rejected": "cx"}
{"prompt": "ab", "chosen": "zz", "rejected": "y"}
)";

TEST_CASE("prefopt data check: a clean file", "[cli]") {
  const TempDir folder;
  put(folder.file("rows.jsonl"), kGood);
  const CliResult result = run_cli({"data", "check", "--data", folder.file("rows.jsonl")});
  CHECK(result.code == 0);
  CHECK(result.err == "");
  const std::string bar(40, '#');
  CHECK(result.out ==
        "train: 2 of 2 rows can be used\n"
        "  kinds       2 pairs\n"
        "  prompts     1 different, 1 row with that of an earlier one\n"
        "  truncated   none\n"
        "  end tokens  of 4 completions 4 before truncation, 4 after\n"
        "  sharing     25 tokens apart, 19 with prompts once (24.0 % saved), 18 with what "
        "completions begin with once (28.0 % saved)\n"
        "  prompt      6 tokens, 3 to 3 a row, mean 3.0, median 3, 95 % up to 3, 99 % up to 3\n"
        "                  0+                                          0\n"
        "                  1+                                          0\n"
        "                  2+                                          0\n"
        "                  3+ " +
            bar +
            " 2\n"
            "  chosen      8 tokens, 3 to 5 a row, mean 4.0, median 3, 95 % up to 5, 99 % up to 5\n"
            "                  0+                                          0\n"
            "                  1+                                          0\n"
            "                  2+                                          0\n"
            "                  3+ " +
            bar +
            " 1\n"
            "                  4+                                          0\n"
            "                  5+ " +
            bar +
            " 1\n"
            "  rejected    5 tokens, 2 to 3 a row, mean 2.5, median 2, 95 % up to 3, 99 % up to 3\n"
            "                  0+                                          0\n"
            "                  1+                                          0\n"
            "                  2+ " +
            bar +
            " 1\n"
            "                  3+ " +
            bar +
            " 1\n"
            "rows as the model sees them:\n"
            "  " +
            folder.file("rows.jsonl") +
            ":1\n"
            "    prompt    read    3 tokens: \"<begin>ab\"\n"
            "                      256 97 98\n"
            "    chosen    counts  5 tokens: \"cdef<end>\"\n"
            "                      99 100 101 102 257\n"
            "    rejected  counts  3 tokens: \"cx<end>\"\n"
            "                      99 120 257\n"
            "  " +
            folder.file("rows.jsonl") +
            ":2\n"
            "    prompt    read    3 tokens: \"<begin>ab\"\n"
            "                      256 97 98\n"
            "    chosen    counts  3 tokens: \"zz<end>\"\n"
            "                      122 122 257\n"
            "    rejected  counts  2 tokens: \"y<end>\"\n"
            "                      121 257\n");
}

TEST_CASE("prefopt data check: rows are shown with what counts, and harm no terminal", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  put(file, R"({"messages": [{"role": "user", "content": "a\u001b[2J\u202e\u0085b"}, )"
            R"({"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}, )"
            R"({"role": "assistant", "content": "e"}]})");
  const CliResult shown = run_cli({"data", "check", "--data", file});
  CHECK(shown.code == 0);
  const auto at = shown.out.find("    prompt ");
  REQUIRE(at != std::string::npos);
  CHECK(shown.out.substr(at) ==
        "    prompt    read    33 tokens: \"<begin>\\n\\nHuman: "
        "a\\u001b[2J\\u202e\\u0085b\\n\\nAssistant:\"\n"
        "                      256 10 10 72 117 109 97 110 58 32 97 27 … 10 10 65 115 115 105 "
        "115 116 97 110 116 58\n"
        "    completion counts  2 tokens: \" c\"\n"
        "                      32 99\n"
        "              read    22 tokens: \"\\n\\nHuman: d\\n\\nAssistant:\"\n"
        "                      10 10 72 117 109 97 110 58 32 100 10 10 65 115 115 105 115 116 97 "
        "110 116 58\n"
        "              counts  3 tokens: \" e<end>\"\n"
        "                      32 101 257\n");
  CHECK(shown.out.find("  counted     5 of 27 tokens of completions, the others are read\n") !=
        std::string::npos);
  const json row = cli_json({"data", "check", "--data", file, "--json"})["shown"][0];
  CHECK(row["line"] == 1);
  CHECK(row["prompt"]["ids"][0] == 256);
  CHECK(row["completion"]["text"] == " c\n\nHuman: d\n\nAssistant: e<end>");
  CHECK(row["completion"]["counts"][1] == 1);
  CHECK(row["completion"]["counts"][2] == 0);
  CHECK(row["completion"]["counts"].size() == row["completion"]["ids"].size());

  // A row of thousands of tokens is shown by its ends.
  put(file, R"({"prompt": "p", "completion": ")" + std::string(5000, 'x') + R"("})");
  const CliResult longer = run_cli({"data", "check", "--data", file, "--max-length", "0"});
  CHECK(longer.out.find("5001 tokens: \"xxxx") != std::string::npos);
  CHECK(longer.out.size() < 4000);
}

TEST_CASE("prefopt data check and score: rows longer than the model's context", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  put(file, R"({"prompt": "0123456789", "chosen": "abcd", "rejected": "x"})");
  json decoder = small_decoder();
  decoder["max_position_embeddings"] = 12;
  const json config = {{"output_dir", folder.file("run")},
                       {"model", {{"decoder", decoder}}},
                       {"data", {{"train", file}}},
                       {"batch", {{"steps", 1}, {"rows", 1}}},
                       {"machine", {{"threads", 1}}}};
  put(folder.file("run.json"), config.dump());
  const CliResult trained = run_cli({"train", "--config", folder.file("run.json")});
  CHECK(trained.code == 0);
  const std::string remark = "longer than the model's context";
  CHECK(trained.err.find("data.train: kept 1 row: " + remark + " (line 1)\n") != std::string::npos);
  const std::string checkpoint = folder.file("run") + "/checkpoints/last";
  const CliResult checked = run_cli({"data", "check", "--data", file, "--model", checkpoint});
  CHECK(checked.out.find("remark      1 row: " + remark + " (long_context = 'keep'") !=
        std::string::npos);
  CHECK(checked.out.find("context     the model is made for 12 tokens\n") != std::string::npos);
  const CliResult scored = run_cli({"score", "--model", checkpoint, "--data", file});
  CHECK(scored.code == 0);
  CHECK(scored.err.find("kept 1 row: " + remark + " (line 1)\n") != std::string::npos);
}

TEST_CASE("prefopt data check: text that nothing reads", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  put(file, R"({"prompt": "ab", "chosen": "c", "rejected": "d", "source": "web"}
{"query": "ab", "chosen": "xc", "rejected": "xd"}
)");
  const CliResult result = run_cli({"data", "check", "--data", file});
  CHECK(result.code == 3);
  CHECK(result.out.find("  refused     1 row: 'query', a column of prompts, is read by nothing "
                        "(unused = 'error'; " +
                        file + ":2)\n") != std::string::npos);
  CHECK(result.out.find("  remark      text that nothing reads: 'query' (50 % of the rows), "
                        "'source' (50 % of the rows)\n") != std::string::npos);
  const json report =
      cli_json({"data", "check", "--data", file, "--json", "--unused", "note"}).at("train");
  CHECK(report.at("usable") == 2);
  CHECK(report.at("unread_columns") == json{{{"column", "query"}, {"rows", 1}, {"share", 0.5}},
                                            {{"column", "source"}, {"rows", 1}, {"share", 0.5}}});
  put(file, R"({"query": "ab", "chosen": "xc", "rejected": "xd"})");
  const json mapped =
      cli_json({"data", "check", "--data", file, "--json", "--columns", R"({"prompt": "query"})"});
  CHECK(mapped.at("train").at("usable") == 1);
  CHECK(mapped.at("train").at("read_columns") ==
        json{{"chosen", 1}, {"query", 1}, {"rejected", 1}});
  CHECK(mapped.at("train").at("lengths").at("prompt").at("max") == 3);
}

TEST_CASE("prefopt data check: rows that would be refused", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  put(file, kGood + R"({"prompt": "a", "chosen": "b"})" + "\n" +
                R"({"prompt": "ab", "chosen": "zz", "rejected": "y"})" + "\n");
  const CliResult result = run_cli({"data", "check", "--data", file});
  CHECK(result.code == 3);
  CHECK(result.err == "prefopt: " + file +
                          ": expected rows that can all be used, got 1 of 4 that would be "
                          "refused\n");
  CHECK(
      result.out.starts_with("train: 3 of 4 rows can be used\n"
                             "  kinds       3 pairs\n"
                             "  refused     1 row: expected a key 'rejected' (unusable = 'drop'; " +
                             file +
                             ":3)\n"
                             "  remark      1 row: same as an earlier row (duplicate = 'keep'; " +
                             file + ":4)\n"));
  // Options of a run, in a file or not, and limits by name.
  put(folder.file("options.json"), R"({"duplicate": "error", "missing_key": "error"})");
  const CliResult strict =
      run_cli({"data", "check", "--data", file, "--options", "@" + folder.file("options.json"),
               "--max-completion-length", "3", "--json"});
  CHECK(strict.code == 3);
  const json report = json::parse(strict.out);
  CHECK(report["refused"] == 2);
  CHECK(report["train"]["defects"][1] == json{{"defect", "same as an earlier row"},
                                              {"option", "duplicate"},
                                              {"policy", "error"},
                                              {"rows", {{{"file", file}, {"line", 4}}}}});
  CHECK(report["train"]["truncated"]["tokens"] == 2);
  CHECK(report["train"]["lengths"]["chosen"]["histogram"]["counts"] == json{0, 0, 0, 1, 0, 1});
}

TEST_CASE("prefopt data check: leaks into the held-out rows", "[cli]") {
  const TempDir folder;
  const std::string train = folder.file("train.jsonl"), eval = folder.file("eval.jsonl");
  put(train, kGood);
  put(eval, R"({"prompt": "ab", "chosen": "zz", "rejected": "y"})");
  const CliResult result = run_cli({"data", "check", "--data", train, "--eval", eval});
  CHECK(result.code == 0);
  CHECK(result.out.find(
            "leaks: 2 training rows with a held-out prompt, 1 of them equal to a held-out row\n"
            "  remark      2 rows (leak = 'keep'; " +
            train + ":1, " + train + ":2)\n") != std::string::npos);
  CHECK(run_cli(
            {"data", "check", "--data", train, "--eval", eval, "--options", R"({"leak": "drop"})"})
            .code == 3);
}

TEST_CASE("prefopt data check: what a loss needs", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("rows.jsonl");
  put(file, R"({"prompt": "a", "completion": "b", "label": true})");
  CHECK(cli_json({"data", "check", "--data", file, "--json"})["train"]["labelled"] == 1);
  CHECK(run_cli({"data", "check", "--data", file, "--loss", R"({"type": "kto"})"}).code == 0);
  CHECK(run_cli({"data", "check", "--data", file, "--loss", R"({"type": "dpo"})"}).code == 3);

  // A conversation with a label could be meant for two losses.
  put(file,
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], )"
      R"("label": true})");
  const std::string assumed = "1 conversation with a label read as a prompt and its last answer";
  CHECK(run_cli({"data", "check", "--data", file}).out.find(assumed) != std::string::npos);
  CHECK(run_cli({"data", "check", "--data", file, "--loss", R"({"type": "sft"})"})
            .out.find(assumed) == std::string::npos);
}

TEST_CASE("prefopt train: leaks are settled and said before the first step", "[cli]") {
  const TempDir folder;
  const std::string train = folder.file("train.jsonl"), eval = folder.file("eval.jsonl");
  put(train, kGood + R"({"prompt": "other", "chosen": "b", "rejected": "c"})" + "\n");
  put(eval, R"({"prompt": "ab", "chosen": "zz", "rejected": "y"})");
  const auto run_with = [&](const std::string& policy) {
    const json config = {{"output_dir", folder.file("run")},
                         {"model", {{"decoder", small_decoder()}}},
                         {"data", {{"train", train}, {"eval", eval}, {"leak", policy}}},
                         {"batch", {{"steps", 1}, {"rows", 1}}},
                         {"machine", {{"threads", 1}}}};
    put(folder.file("run.json"), config.dump());
    return run_cli({"train", "--config", folder.file("run.json"), "--dry-run"});
  };
  const CliResult kept = run_with("keep");
  CHECK(kept.code == 0);
  CHECK(kept.err.find("data.train: kept 2 rows: prompt of a held-out row (lines 1, 2)\n") !=
        std::string::npos);
  const CliResult dropped = run_with("drop");
  CHECK(dropped.code == 0);
  CHECK(dropped.err.find("data.train: dropped 2 rows: prompt of a held-out row (lines 1, 2)\n") !=
        std::string::npos);
  const CliResult refused = run_with("error");
  CHECK(refused.code == 3);
  CHECK(refused.err.find("prefopt: " + train +
                         ":1: expected a prompt that is not held out, got that of line 1 of the "
                         "held-out rows; the option leak = 'drop' leaves such rows out of "
                         "training\n") != std::string::npos);
}

TEST_CASE("prefopt data check: usage", "[cli]") {
  check_cli_refused({"data"}, 2, "A subcommand is required; see prefopt --help");
  check_cli_refused({"data", "check"}, 2, "--data is required; see prefopt data check --help");
  check_cli_refused({"data", "check", "--data", "x", "--options", R"({"duplicates": "drop"})"}, 2,
                    "--options: expected a known option, got 'duplicates'; did you mean "
                    "'duplicate'?");
}

}  // namespace
}  // namespace prefopt::testing_support
