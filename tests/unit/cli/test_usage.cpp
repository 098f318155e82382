// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/files.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

TEST_CASE("prefopt: help, version and usage", "[cli]") {
  CHECK(run_cli({"--version"}).out == "prefopt 0.1.0\n");
  for (const std::string command :
       {"train", "score", "loss", "grad", "losses", "generate", "pairs"}) {
    const CliResult help = run_cli({command, "--help"});
    CHECK(help.code == 0);
    CHECK(help.out.find("Usage: ") != std::string::npos);
    CHECK(help.err == "");
  }
  check_cli_refused({}, 2, "A subcommand is required; see prefopt --help");
  check_cli_refused({"train"}, 2, "--config is required; see prefopt train --help");
  check_cli_refused({"losses", "--jsno"}, 2,
                    "The following argument was not expected: --jsno; see prefopt losses --help");
  check_cli_refused({"score", "--model", kPolicy, "--data", kPairs, "--batch", "0"}, 2,
                    "--batch: expected at least 1, got 0");
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

TEST_CASE("prefopt: chat formats are named", "[cli]") {
  check_cli_refused(
      {"score", "--model", kPolicy, "--data", kPairs, "--chat-format", "chatmml"}, 2,
      "--chat-format: expected a chat format among chatml, smollm2, qwen2, qwen2.5, llama3, "
      "zephyr, alpaca, plain, dialogue, got 'chatmml'; did you mean 'chatml'?");
}

TEST_CASE("prefopt: a dtype that the weights do not have is said by its flag", "[cli]") {
  const std::string blocks = std::string(PREFOPT_TEST_DATA_DIR) + "/gguf/blocks.gguf";
  const std::string keeps = "--dtype: expected a GGUF file with blocks to keep them (quantized), ";
  check_cli_refused({"score", "--model", kPolicy, "--data", kPairs, "--dtype", "quantized"}, 2,
                    keeps + "got '" + kPolicy + "'");
  check_cli_refused(
      {"eval", "--model", kPolicy, "--ref", kReference, "--data", kPairs, "--dtype", "quantized"},
      2, keeps + "got '" + kReference + "'");
  check_cli_refused({"generate", "--model", kPolicy, "--guide", blocks + ":1", "--prompt", "a",
                     "--tokenizer", "byte", "--dtype", "q8_0"},
                    2,
                    "--dtype: expected weights without blocks to make some (q8_0), got '" + blocks +
                        "', whose own quantized keeps");
}

TEST_CASE("prefopt: errors name flags that were given, and no others", "[cli]") {
  const TempDir folder;
  put(folder.file("rows.jsonl"), R"({"prompt": "a", "chosen": "b", "rejected": "c"})");
  const std::string rows = folder.file("rows.jsonl");
  check_cli_refused({"data", "check", "--data", rows, "--max-length", "-3"}, 2,
                    "--max-length: expected max_length >= 0, got -3");
  check_cli_refused({"data", "check", "--data", rows, "--loss", R"({"type": "dpoo"})"}, 2,
                    "--loss: expected a registered loss, got 'dpoo'; did you mean 'dpo'?");
  check_cli_refused({"score", "--model", kPolicy, "--data", rows, "--tokenizer", "bite"}, 2,
                    "--tokenizer: expected 'byte', a tokenizer.json, a folder that holds one or a "
                    ".gguf file, got 'bite'");
  check_cli_refused({"generate", "--model", kPolicy, "--prompt", "a", "--top-p", "2"}, 2,
                    "--top-p: expected top_p in (0, 1], got 2");
  check_cli_refused({"search", "--model", kPolicy, "--data", rows, "--reward", R"(["true"])",
                     "--output", folder.file("trees"), "--tokenizer", "byte", "--top-k", "-1"},
                    2, "--top-k: expected top_k >= 0, got -1");
  // The option of another place.
  check_cli_refused({"eval", "--model", kPolicy, "--ref", kReference, "--data", rows, "--beta", "1",
                     "--loss", R"({"type": "dpo", "beta": -1})"},
                    2,
                    "dpo: expected beta > 0, got -1; it scales what separates chosen from "
                    "rejected, and only a positive scale prefers the chosen");
}

TEST_CASE("prefopt: a value may be empty behind an equals sign", "[cli]") {
  const std::vector<std::string> score{"score",  "--model", kPolicy,     "--ref", kReference,
                                       "--data", kPairs,    "--rewards", "steps"};
  const auto with_end = [&](const std::vector<std::string>& words) {
    std::vector<std::string> all = score;
    all.insert(all.end(), words.begin(), words.end());
    return run_cli(all);
  };
  const CliResult apart = with_end({"--step-end", ""});
  CHECK(apart.code == 0);
  CHECK(with_end({"--step-end="}).out == apart.out);
  CHECK(with_end({"--step-end=x"}).out != apart.out);
}

}  // namespace
}  // namespace prefopt::testing_support
