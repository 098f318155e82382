// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>

#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"

namespace {

using namespace prefopt::testing_support;

TEST_CASE("prefopt lab: a list, an experiment with its files, errors", "[cli]") {
  const CliResult list = run_cli({"lab"});
  CHECK(list.code == 0);
  CHECK(list.out.find("rdpo-rates ") != std::string::npos);
  CHECK(std::count(list.out.begin(), list.out.end(), '\n') == 46);

  const TempDir folder;
  const CliResult run =
      run_cli({"lab", "dpo-is-rlhf", "--quick", "--seeds", "3", "--out", folder.file("new/out")});
  CHECK(run.code == 0);
  CHECK(run.err == "lab: dpo-is-rlhf\n");
  CHECK(run.out.starts_with("dpo-is-rlhf: holds: DPO's optimum is the closed form"));
  CHECK(std::count(run.out.begin(), run.out.end(), '\n') == 3);
  CHECK(
      read_text(folder.file("new/out/dpo-is-rlhf.csv"))
          .starts_with("case,newton_step,largest_log_distance\n\"dpo, all actions compared\",0,"));
  CHECK(read_text(folder.file("new/out/dpo-is-rlhf.svg")).starts_with("<svg "));

  const CliResult unknown = run_cli({"lab", "rdpo-rate", "--out", folder.file("none")});
  CHECK(unknown.code == 2);
  CHECK(unknown.out == "");
  CHECK(unknown.err ==
        "prefopt: lab: expected the name of an experiment, got 'rdpo-rate'; did you mean "
        "'rdpo-rates'?\n");
  const CliResult one =
      run_cli({"lab", "rdpo-rates", "--seeds", "1", "--out", folder.file("none")});
  CHECK(one.code == 2);
  CHECK(one.err ==
        "prefopt: --seeds: expected from 2 to 1000000, or 0 for as many as usual, got 1\n");
  const CliResult first =
      run_cli({"lab", "rdpo-rates", "--first-seed", "-1", "--out", folder.file("none")});
  CHECK(first.code == 2);
  CHECK(first.err == "prefopt: --first-seed: expected from 0 to 1000000000, got -1\n");
  const CliResult file =
      run_cli({"lab", "rdpo-rates", "--out", folder.file("new/out/dpo-is-rlhf.csv")});
  CHECK(file.code == 3);
  CHECK(
      file.err.ends_with("dpo-is-rlhf.csv: expected a folder to write to, got Not a directory\n"));
}

}  // namespace
