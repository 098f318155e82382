// SPDX-License-Identifier: Apache-2.0

// The work of a run apart from its steps: metrics.jsonl, TensorBoard, notes, state of the log, and
// checkpoints. Each step is timed from the moment at which the run asks whether to stop until it
// reports the step; the rest, up to the next question, is what a bare loop over Trainer::step would
// not pay. Evaluations, samples and the report are work that a config asks for, and left out.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/run/run.h"

namespace prefopt::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string model;  ///< empty: a fresh decoder of the shape below
  std::int64_t steps = 40;
  std::int64_t pairs = 4;
  std::int64_t threads = 2;
  std::int64_t prompt = 114, completion = 56;  ///< characters
  std::string folder = "run-overhead";
  std::string json;
};

/// Random letters, so that no completions share a beginning to speak of.
void write_rows(const std::string& path, const Arguments& a) {
  std::mt19937_64 random(1);
  const auto text = [&](std::int64_t length) {
    std::string letters;
    for (std::int64_t i = 0; i < length; ++i) letters += static_cast<char>('a' + random() % 26);
    return letters;
  };
  std::ofstream file(path);
  for (std::int64_t i = 0; i < a.steps * a.pairs; ++i) {
    file << nlohmann::json{{"prompt", text(a.prompt)},
                           {"chosen", text(a.completion)},
                           {"rejected", text(a.completion)}}
         << '\n';
  }
}

struct Times {
  std::vector<double> steps, others;  ///< milliseconds; the first of each is left out
};

Times run(const Arguments& a, const std::string& name, std::int64_t save_every) {
  RunOptions options;
  options.output_dir = fmt::format("{}/{}", a.folder, name);
  options.model.path = a.model;
  options.model.decoder = {.hidden_size = 256, .intermediate_size = 688, .num_hidden_layers = 6};
  options.data.train = a.folder + "/rows.jsonl";
  options.batch.steps = a.steps;
  options.batch.rows = a.pairs;
  options.checkpoint.every = save_every;
  options.machine.threads = a.threads;
  Times times;
  Clock::time_point mark;
  const auto lap = [&] {
    const auto now = Clock::now();
    return std::chrono::duration<double, std::milli>(now - std::exchange(mark, now)).count();
  };
  RunEvents events;
  std::int64_t done = 0;
  events.should_stop = [&] {
    const double elapsed = lap();
    if (done > 1) times.others.push_back(elapsed);
    return false;
  };
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) {
    const double elapsed = lap();
    if (++done > 1) times.steps.push_back(elapsed);
  };
  run_training(options, events);
  return times;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double largest(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

void bench(const Arguments& a) {
  constexpr double kTarget = 1;  // percent
  if (!std::filesystem::create_directories(a.folder)) {
    throw ConfigError(a.folder + ": expected a folder that is not there yet; it will be removed");
  }
  write_rows(a.folder + "/rows.jsonl", a);
  const Times plain = run(a, "plain", 0);
  const Times saving = run(a, "saving", a.steps / 4);
  std::filesystem::remove_all(a.folder);

  const double step = median(plain.steps), other = median(plain.others);
  const double share = 100 * other / step;
  const double checkpoint = largest(saving.others);
  const nlohmann::json result = {
      {"step_ms", step},
      {"run_ms", other},
      {"largest_run_ms", largest(plain.others)},
      {"share_percent", share},
      {"target_percent", kTarget},
      {"checkpoint_ms", checkpoint},
      {"steps_a_checkpoint_for_target", 100 * checkpoint / step / kTarget}};
  fmt::print("a step                                  {:9.3f} ms\n", step);
  fmt::print("the run around it, median               {:9.3f} ms, {:.3f} % (target {} %: {})\n",
             other, share, kTarget, share <= kTarget ? "met" : "missed");
  fmt::print("the run around it, at most              {:9.3f} ms\n", largest(plain.others));
  fmt::print("a checkpoint, at most                   {:9.3f} ms, 1 % of {:.0f} steps\n",
             checkpoint, 100 * checkpoint / step);
  if (!a.json.empty()) std::ofstream(a.json) << result.dump(2) << '\n';
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  prefopt::bench::Arguments a;
  CLI::App app("Times what a run does besides its steps");
  app.add_option("--model", a.model, "Hugging Face folder or GGUF; default: a fresh small decoder");
  app.add_option("--steps", a.steps)->check(CLI::Range(8, 100000));
  app.add_option("--pairs", a.pairs, "pairs a step")->check(CLI::PositiveNumber);
  app.add_option("--threads", a.threads)->check(CLI::PositiveNumber);
  app.add_option("--folder", a.folder, "a new one, where the runs write; removed afterwards");
  app.add_option("--json", a.json, "file for the figures");
  CLI11_PARSE(app, argc, argv);
  try {
    prefopt::bench::bench(a);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_run_overhead: {}\n", error.what());
    return 1;
  }
  return 0;
}
