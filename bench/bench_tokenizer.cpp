// SPDX-License-Identifier: Apache-2.0

// Texts to tokens, in megabytes of UTF-8 a second on some threads. bench/peers/compare_tokenizer.py
// runs it next to the package `tokenizers`.

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"

namespace prefopt::bench {
namespace {

struct Arguments {
  std::string tokenizer, texts;
  std::int64_t threads = 1;
  std::int64_t repeats = 5;
};

/// One JSON string a line.
std::vector<std::string> read_texts(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> texts;
  for (std::string line; std::getline(file, line);) {
    texts.push_back(nlohmann::json::parse(line).get<std::string>());
  }
  return texts;
}

void run(const Arguments& arguments) {
  at::set_num_threads(static_cast<int>(arguments.threads));
  const auto tokenizer = make_tokenizer(arguments.tokenizer);
  const std::vector<std::string> texts = read_texts(arguments.texts);
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  std::size_t bytes = 0, tokens = 0;
  for (const std::string& text : texts) bytes += text.size();
  double best = 0;  // caches are warm from the second time on
  for (std::int64_t i = 0; i < arguments.repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer->encode_batch(views);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(bytes) / seconds.count() / 1e6);
    tokens = 0;
    for (const auto& text_ids : ids) tokens += text_ids.size();
  }
  fmt::print("{}\n",
             nlohmann::json{
                 {"threads", arguments.threads}, {"tokens", tokens}, {"megabytes_per_second", best}}
                 .dump());
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  CLI::App app{"Times the encoding of texts."};
  prefopt::bench::Arguments arguments;
  app.add_option("tokenizer", arguments.tokenizer, "folder or tokenizer.json")->required();
  app.add_option("texts", arguments.texts, "file with a JSON string a line")->required();
  app.add_option("--threads", arguments.threads);
  app.add_option("--repeats", arguments.repeats);
  CLI11_PARSE(app, argc, argv);
  try {
    prefopt::bench::run(arguments);
  } catch (const prefopt::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
