// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

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

  const std::string tokenizer = PREFOPT_TEST_DATA_DIR "/tokenizers/gpt2";
  write_text(file, "\"<|endoftext|>\"\n");
  CHECK(json_lines(run_cli({"tokenize", "--tokenizer", tokenizer, "--data", file}).out) ==
        std::vector<json>{{{"ids", {0}}, {"text", ""}}});
  write_text(file, "\"a\"\n[256]\n");
  check_cli_refused({"tokenize", "--data", file}, 3,
                    file + ":2: expected text or a list of bytes, got list");
  check_cli_refused({"tokenize", "--tokenizer", "bpe", "--data", file}, 2,
                    "--tokenizer: expected 'byte', a tokenizer.json, a folder that holds one or a "
                    ".gguf file, got 'bpe'");
}

}  // namespace
}  // namespace prefopt::testing_support
