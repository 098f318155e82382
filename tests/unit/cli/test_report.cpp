// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>

#include "core/file.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"

namespace {

using namespace prefopt::testing_support;

TEST_CASE("prefopt report: makes the page of a run folder again", "[cli]") {
  const TempDir folder;
  prefopt::detail::write_file<prefopt::DataError>(
      folder.file("metrics.jsonl"),
      "{\"step\": 0, \"eval_loss\": 2}\n{\"step\": 9, \"eval_loss\": 1}\n");
  const CliResult printed = run_cli({"report", "--print", folder.path()});
  CHECK(printed.code == 0);
  CHECK(printed.out.starts_with("<!DOCTYPE html>"));
  CHECK(printed.out.find("fell from 2 to 1") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(folder.file("report.html")));

  const CliResult written = run_cli({"report", folder.path()});
  CHECK(written.code == 0);
  CHECK(written.out == folder.file("report.html") + "\n");
  CHECK(prefopt::detail::read_file<prefopt::DataError>(folder.file("report.html")) == printed.out);

  const TempDir empty;
  const CliResult refused = run_cli({"report", empty.path()});
  CHECK(refused.code == 4);
  CHECK(refused.err ==
        "prefopt: " + empty.path() +
            ": expected a run folder, got one without config.json and metrics.jsonl\n");
}

}  // namespace
