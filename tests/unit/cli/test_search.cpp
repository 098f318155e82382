// SPDX-License-Identifier: Apache-2.0

// Trees from the shell: search, stop, continue, pairs of them, and steps that are chosen.

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

/// A reward as good as random, by a hash of the question.
const std::string kReward = json{"/bin/sh", "-c",
                                 "while read -r line; do set -- $(printf %s \"$line\" | cksum); "
                                 "echo \"{\\\"reward\\\": $(($1 % 9))}\"; done"}
                                .dump();
const std::string kTree = R"({"step_end": "", "step_tokens": 2, "iterations": 5})";

std::vector<std::string> search(const std::string& prompts, const std::string& output,
                                const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {
      "search", "--model",  kPolicy, "--tokenizer", "byte", "--data",           prompts, "--reward",
      kReward,  "--output", output,  "--seed",      "3",    "--max-new-tokens", "6"};
  if (std::find(more.begin(), more.end(), "--tree") == more.end()) {
    arguments.insert(arguments.end(), {"--tree", kTree});
  }
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST_CASE("prefopt search stops, continues and ends in the same bytes", "[cli]") {
  const TempDir folder;
  const std::string prompts = folder.file("prompts.jsonl");
  write_text(prompts, "{\"prompt\": \"ab\"}\n{\"prompt\": \"cd\"}\n");
  const std::string whole = folder.file("whole.jsonl"), parts = folder.file("parts.jsonl");
  const CliResult done = run_cli(search(prompts, whole));
  INFO(done.err);
  REQUIRE(done.code == 0);
  CHECK(done.out.empty());
  CHECK(done.err.find("prefopt: search: 10 iterations of 2 prompts, ") != std::string::npos);
  CHECK(done.err.ends_with(" tokens drawn, done\n"));
  for (int i = 0; i < 3; ++i) {
    const CliResult part = run_cli(search(prompts, parts, {"--iterations", "2"}));
    CHECK(part.err.ends_with(i < 2 ? ", not done\n" : ", done\n"));
    CHECK((read_text(parts) == read_text(whole)) == (i == 2));
  }
  const json tree = json_lines(read_text(whole)).at(1);
  CHECK(tree.at("prompt") == "cd");
  CHECK(tree.at("iterations") == 5);
  CHECK(tree.at("nodes").size() > 5);

  const CliResult other = run_cli(search(prompts, whole, {"--tree", R"({"breadth": 3})"}));
  CHECK(other.code == 2);
  CHECK(other.err.starts_with(
      "prefopt: " + whole +
      ": tree: expected a tree that was searched with the options {\"tree\":"));
  write_text(prompts, "{\"prompt\": \"ab\"}\n");
  check_cli_refused(search(prompts, whole), 3,
                    whole +
                        ": expected the trees of the 1 prompts of --data, got others; name another "
                        "--output");
  check_cli_refused(search(prompts, whole, {"--save-every", "0"}), 2,
                    "search: expected --iterations of at least 0 and --save-every of at least 1, "
                    "got 0 and 0");
}

TEST_CASE("prefopt pairs makes rows of trees", "[cli]") {
  const TempDir folder;
  const std::string trees = folder.file("trees.jsonl");
  const auto node = [](int parent, int id, int visits, double value) {
    return json{{"parent", parent}, {"ids", {id}},  {"text", "x"},    {"logps", {-1.0}},
                {"prior", 0.5},     {"end", false}, {"ended", false}, {"visits", visits},
                {"value", value},   {"reward", 0.0}};
  };
  const json root = {{"parent", -1}, {"visits", 10}, {"value", 0.5}, {"reward", 0.0}};
  const json tree = {
      {"prompt", "ab"},
      {"prompt_ids", {97, 98}},
      {"number", 0},
      {"search", ""},
      {"iterations", 10},
      {"drawn_tokens", 10},
      {"nodes",
       {root, node(0, 1, 8, 0.7), node(0, 2, 2, -0.5), node(1, 3, 4, 1), node(1, 4, 4, 1)}}};
  write_text(trees, tree.dump() + "\n");
  const auto rows =
      json_lines(run_cli({"pairs", "--select", R"({"type": "siblings"})", "--trees", trees}).out);
  REQUIRE(rows.size() == 1);
  CHECK(rows[0] == json{{"prompt_ids", {97, 98}},
                        {"chosen_ids", {1}},
                        {"rejected_ids", {2}},
                        {"label_prob", 0.8}});
  check_cli_refused({"pairs", "--select", R"({"type": "pair"})", "--trees", trees}, 2,
                    "--trees: expected a selection that pairs steps, 'siblings', got "
                    "{\"type\":\"pair\",\"soft\":false}");
  check_cli_refused(
      {"pairs", "--select", R"({"type": "siblings"})", "--trees", trees, "--length-penalty", "1"},
      2,
      "--trees: expected no option of feedback, as trees are rated, got one; it "
      "would do nothing");
}

TEST_CASE("prefopt generate chooses steps by their Q", "[cli]") {
  const auto generate = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "generate", "--model",          kPolicy, "--tokenizer",   "byte", "--prompt", "ab",
        "--json",   "--max-new-tokens", "6",     "--step-tokens", "2",    "--seed",   "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  const auto of = [&](const char* candidates, const std::string& model) {
    return json_lines(run_cli(generate({"--choose-steps", candidates, "--q-model", model,
                                        "--step-end", ""}))
                          .out)
        .at(0);
  };
  const json one = of("1", kReference), many = of("16", kReference);
  CHECK(one.at("step_ends").back() == one.at("ids").size());
  CHECK(one.at("qs").size() == one.at("step_ends").size());
  CHECK(many.at("qs")[0] > one.at("qs")[0]);
  // A model against itself has Q 0 everywhere.
  for (const double q : of("4", kPolicy).at("qs")) CHECK(q == 0);
  check_cli_refused(generate({"--choose-steps", "2"}), 2,
                    "--choose-steps: expected a --q-model whose Q chooses, got none");
  check_cli_refused(generate({"--q-model", kPolicy}), 2,
                    "--q-model: expected --choose-steps above 0, got 0");
  check_cli_refused(generate({"--choose-steps", "2", "--q-model", kPolicy, "--samples", "2"}), 2,
                    "--choose-steps: expected one completion a prompt, got --candidates or "
                    "--samples");
}

}  // namespace
}  // namespace prefopt::testing_support
