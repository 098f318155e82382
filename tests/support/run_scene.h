// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs of a second or less, and what they leave behind.

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::testing_support {

using Json = nlohmann::ordered_json;

inline std::vector<Json> read_lines(const std::string& path) {
  std::istringstream text(read_text(path));
  std::vector<Json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

/// The lines of metrics.jsonl without what depends on the clock.
inline std::vector<Json> untimed(const std::string& folder) {
  auto lines = read_lines(folder + "/metrics.jsonl");
  for (auto& line : lines) {
    line.erase("seconds");
    line.erase("tokens_per_second");
  }
  return lines;
}

inline RunResult run_config(const Json& config, const std::string& resume = {}) {
  return run_training(options_from_json<RunOptions>(config.dump(), "run"), {}, resume);
}

/// A program that rewards completions that are long as JSON, where escapes are.
inline Json measures_text() {
  return {"/bin/sh", "-c",
          "while read -r line; do c=${line#*completion}; echo \"{\\\"reward\\\": ${#c}}\"; done"};
}

inline const DecoderOptions kTiny = {.hidden_size = 16,
                                     .intermediate_size = 24,
                                     .num_hidden_layers = 1,
                                     .num_attention_heads = 2,
                                     .num_key_value_heads = 1,
                                     .max_position_embeddings = 64};

/// Rows, and options of a short run on them.
class Scene {
 public:
  Scene() {
    ControlledTask task({.seed = 5});
    task.write_preferences(file("pairs.jsonl"), 24);
    task.write_sft(file("sft.jsonl"), 24);
  }

  std::string file(const std::string& name) const { return folder_.file(name); }

  RunOptions options(const std::string& run, const std::string& type) const {
    RunOptions options;
    options.output_dir = file(run);
    options.loss = R"({"type": ")" + type + R"("})";
    options.model.decoder = kTiny;
    options.data.train = file(type == "sft" ? "sft.jsonl" : "pairs.jsonl");
    options.data.eval_fraction = 0.25;
    options.optimizer.learning_rate = 1e-2;
    options.batch.steps = 3;
    options.batch.rows = 4;
    options.seed = 1;
    options.sampling.max_new_tokens = 4;
    return options;
  }

  /// Of a run that evaluates and saves every so many steps. One thread, as two runs are compared.
  RunOptions evaluated(const std::string& run, const std::string& type, std::int64_t steps,
                       std::int64_t eval_every, std::int64_t save_every) const {
    auto options = this->options(run, type);
    options.batch.steps = steps;
    options.evaluate.every = eval_every;
    options.checkpoint.every = save_every;
    options.machine.threads = 1;
    return options;
  }

 private:
  TempDir folder_;
};

inline std::int64_t count_containing(const std::vector<std::string>& lines,
                                     const std::string& part) {
  return std::count_if(lines.begin(), lines.end(), [&](const std::string& line) {
    return line.find(part) != std::string::npos;
  });
}

}  // namespace prefopt::testing_support
