// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "data/model_memory.h"
#include "prefopt/data/tokenizer.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::model_memory_test {
namespace {

using detail::remembered_rows;
using nlohmann::json;
using testing_support::TempDir;
using testing_support::write_text;

TEST_CASE("what says how rows are read is remembered, all of it", "[data]") {
  DataOptions options;
  options.train = "rows.jsonl";
  options.chat_format = "zephyr";
  options.leak = RowAction::kDrop;
  options.loss_on = LossOn::kLast;
  options.columns = R"({"prompt": "q"})";
  const json memory = json::parse(detail::row_memory(options));
  const json all = json::parse(options_to_json(options));
  json rest = all;
  for (const char* name :
       {"train", "eval", "eval_fraction", "max_rows", "leak", "token_cache", "chat_format"}) {
    CHECK(rest.erase(name) == 1);
  }
  CHECK(memory == rest);
  CHECK(memory["loss_on"] == "last");
  CHECK(memory["columns"] == json({{"prompt", "q"}}));

  const TempDir dir;
  write_files(tokenizer_files("", "", memory.dump()), dir.path());
  const auto back = remembered_rows({dir.path()});
  CHECK(back.folder == dir.path());
  CHECK(json::parse(back.options) == memory);
}

TEST_CASE("the first folder that remembers rows decides", "[data]") {
  const TempDir dir;
  const std::string adapter = dir.file("adapter"), model = dir.file("model");
  std::filesystem::create_directories(adapter);
  std::filesystem::create_directories(model);
  const auto loss_on = [&] {
    const auto rows = remembered_rows({adapter, "", dir.file("none.gguf"), model});
    return rows.options.empty() ? "nothing" : json::parse(rows.options)["loss_on"];
  };
  CHECK(loss_on() == "nothing");
  // As versions before wrote it.
  write_text(model + "/prefopt.json", R"({"tokenizer": "byte", "chat_format": "alpaca"})");
  CHECK(loss_on() == "nothing");
  write_text(model + "/prefopt.json", R"({"data": {"loss_on": "all"}})");
  CHECK(loss_on() == "all");
  write_text(adapter + "/prefopt.json", R"({"chat_format": "alpaca"})");
  CHECK(loss_on() == "all");
  // Options at their defaults are remembered too.
  write_text(adapter + "/prefopt.json", R"({"data": {}})");
  CHECK(loss_on() == "assistant");
}

}  // namespace
}  // namespace prefopt::model_memory_test
