// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

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

}  // namespace
}  // namespace prefopt::testing_support
