// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/pretend_device.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;
using Arguments = std::vector<std::string>;

Arguments on(const std::string& device, Arguments arguments) {
  arguments.insert(arguments.end(), {"--device", device});
  return arguments;
}

/// The same values, numbers up to rounding.
void check_same(const json& got, const json& expected, const std::string& path = "") {
  INFO(path);
  if (expected.is_number_float()) {
    CHECK(got.get<double>() == Approx(expected.get<double>()).epsilon(1e-8).margin(1e-9));
  } else if (expected.is_structured()) {
    REQUIRE(got.size() == expected.size());
    for (const auto& item : expected.items()) {
      const json& other =
          expected.is_object() ? got.at(item.key()) : got.at(std::stoul(item.key()));
      check_same(other, item.value(), path + "/" + item.key());
    }
  } else {
    CHECK(got == expected);
  }
}

}  // namespace

TEST_CASE("commands on a device answer what they answer on the CPU", "[cli][device]") {
  const Arguments command = GENERATE_COPY(
      Arguments{"score", "--model", kPolicy, "--data", kPairs, "--dtype", "float64"},
      Arguments{"grad", "--model", kPolicy, "--ref", kReference, "--data", kPairs, "--dtype",
                "float64", "--loss", R"({"type": "dpo"})"},
      Arguments{"eval", "--model", kPolicy, "--ref", kReference, "--data", kPairs, "--dtype",
                "float64", "--samples", "1", "--prompts", "3", "--max-new-tokens", "4", "--json"},
      Arguments{"generate", "--model", kPolicy, "--prompt", "ab", "--dtype", "float64", "--json",
                "--max-new-tokens", "8", "--tokenizer", "byte"});
  INFO(command[0]);
  const CliResult there = run_cli(on("pretend", command)), here = run_cli(on("cpu", command));
  INFO(there.err);
  REQUIRE(here.code == 0);
  REQUIRE(there.code == 0);
  const auto got = json_lines(there.out), expected = json_lines(here.out);
  REQUIRE(got.size() == expected.size());
  REQUIRE_FALSE(expected.empty());
  for (std::size_t i = 0; i < expected.size(); ++i) check_same(got[i], expected[i]);
}

TEST_CASE("commands refuse a device that is not there", "[cli][device]") {
  const std::string missing =
      "--device: expected a device that LibTorch can use, got 'pretend:2' where it has 1 of that "
      "type; cpu runs everywhere";
  for (const Arguments& command :
       {Arguments{"score", "--model", kPolicy, "--data", kPairs},
        Arguments{"eval", "--model", kPolicy, "--ref", kReference, "--data", kPairs},
        Arguments{"generate", "--model", kPolicy, "--prompt", "a", "--tokenizer", "byte"}}) {
    const CliResult result = run_cli(on("pretend:2", command));
    CHECK(result.code != 0);
    CHECK(result.err == "prefopt: " + missing + "\n");
  }
}

TEST_CASE("prefopt train --device sets model.device", "[cli][device]") {
  const TempDir folder;
  const std::string config = folder.file("config.json");
  write_text(config, "{}");
  const CliResult result =
      run_cli({"train", "--config", config, "--device", "cuda:1", "--print-config"});
  REQUIRE(result.code == 0);
  CHECK(json::parse(result.out)["model"]["device"] == "cuda:1");
}

}  // namespace prefopt::testing_support
