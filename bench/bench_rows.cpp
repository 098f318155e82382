// SPDX-License-Identifier: Apache-2.0
// Rows per second from files: read alone, and loaded as rows of bytes. Files with the same rows in
// several formats compare the formats.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/lines.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"

namespace {

/// Returns the least seconds of three goes.
template <class Work>
double seconds_of(Work&& work) {
  double least = 1e9;
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    least = std::min(least, taken.count());
  }
  return least;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Rows per second from files");
  std::vector<std::string> files;
  app.add_option("files", files, "files of rows")->required();
  CLI11_PARSE(app, argc, argv);
  fmt::print("{:<32} {:>10} {:>14} {:>14}\n", "file", "rows", "read, rows/s", "load, rows/s");
  for (const std::string& path : files) {
    std::int64_t rows = 0;
    const double read = seconds_of([&] {
      rows = 0;
      prefopt::detail::read_rows(path, [&](std::int64_t, std::string_view) { return ++rows > 0; });
    });
    const double load = seconds_of([&] {
      prefopt::load_dataset(path, prefopt::ByteTokenizer(),
                            {.unused = prefopt::UnusedColumns::kNote});
    });
    const auto count = static_cast<double>(rows);
    fmt::print("{:<32} {:>10} {:>14.0f} {:>14.0f}\n", path, rows, count / read, count / load);
  }
}
