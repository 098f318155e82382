// SPDX-License-Identifier: Apache-2.0

// A small policy is made by supervised training on the controlled task, then trained with each loss
// from its own config, and judged by the task's true reward on held-out prompts:
//   prefopt_demo_small [--out runs/demo] [--configs examples/configs/demo]
// Exit code 1 if an effect that should show does not.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "judge.h"
#include "prefopt/data/controlled_task.h"
#include "prefopt/error.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"

namespace {

using namespace prefopt;
namespace fs = std::filesystem;

constexpr double kFlipRate = 0.3;
constexpr int kHeldOutPrompts = 1024;
constexpr double kMostKl = 15;  // nats; a response is some seven tokens

struct Arguments {
  std::string out = "runs/demo";
  std::string configs = "examples/configs/demo";
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (i + 1 < argc && flag == "--out") {
      arguments.out = argv[++i];
    } else if (i + 1 < argc && flag == "--configs") {
      arguments.configs = argv[++i];
    } else {
      throw ConfigError("usage: prefopt_demo_small [--out DIR] [--configs DIR], got '" + flag +
                        "'");
    }
  }
  return arguments;
}

// The configs name their files under runs/demo, so that `prefopt train` takes them as they are.
void move_to(std::string& path, const std::string& out) {
  constexpr std::string_view kDefault = "runs/demo/";
  if (path.starts_with(kDefault)) path.replace(0, kDefault.size() - 1, out);
}

RunOptions read_config(const Arguments& arguments, const std::string& name) {
  const std::string path = arguments.configs + "/" + name + ".json";
  std::ifstream file(path);
  if (!file) throw ConfigError(path + ": expected a readable file");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  auto options = options_from_json<RunOptions>(text, path);
  for (std::string* each :
       {&options.output_dir, &options.model.path, &options.data.train, &options.data.eval}) {
    move_to(*each, arguments.out);
  }
  return options;
}

RunResult train(const Arguments& arguments, const std::string& name) {
  const RunOptions options = read_config(arguments, name);
  if (!options.output_dir.starts_with(arguments.out + "/")) {
    throw ConfigError(fmt::format("{}: expected an output_dir inside of {}, got {}", name,
                                  arguments.out, options.output_dir));
  }
  fs::remove_all(options.output_dir);  // an earlier demo's
  std::int64_t shown = 0;
  RunEvents events;
  events.step = [&](std::int64_t step, std::int64_t total, const Metrics& metrics) {
    if (step < total && step - shown < total / 4) return;
    shown = step;
    fmt::print(stderr, "  {:<20} step {:4}/{}  loss {:.4f}\n", name, step, total,
               metric(metrics, "loss"));
  };
  return run_training(options, events);
}

// Preferences that are clear but not certain, from a base that knows the task by half.
ControlledTask make_task(std::int64_t seed, double flip_rate = 0) {
  return ControlledTask(
      {.reward_scale = 8, .flip_rate = flip_rate, .prompt_affinity = 0.5, .seed = seed});
}

void write_data(const std::string& folder) {
  fs::create_directories(folder);
  make_task(1).write_sft(folder + "/sft.jsonl", 16384);
  make_task(2).write_preferences(folder + "/preferences.jsonl", 8192);
  make_task(3, kFlipRate).write_preferences(folder + "/preferences-flipped.jsonl", 8192);
  make_task(4).write_preferences(folder + "/held-out.jsonl", 512);
}

void print_row(const std::string& name, const demo::Judgement& before, const demo::Judgement& after,
               const RunResult& run) {
  fmt::print("{:<20} {:>7.3f} {:>7.3f} ±{:.3f} {:>7.2f} {:>8.3f} {:>9.3f} {:>8.1f}\n", name,
             before.reward, after.reward, after.reward_error, after.kl,
             metric(run.last_evaluation, "rewards/margins"),
             metric(run.last_evaluation, "rewards/accuracies"), run.seconds);
  std::fflush(stdout);
}

// One line of the verdict.
bool show(bool holds, const std::string& claim) {
  fmt::print("{}  {}\n", holds ? "yes" : "NO ", claim);
  return holds;
}

int run(const Arguments& arguments) {
  const auto start = std::chrono::steady_clock::now();
  write_data(arguments.out + "/data");
  ControlledTask task = make_task(5);
  std::vector<std::string> prompts;
  for (int i = 0; i < kHeldOutPrompts; ++i) prompts.push_back(task.sample_prompt());

  fmt::print(stderr, "supervised training of the first policy\n");
  const RunResult sft = train(arguments, "sft");
  const auto reference = sft.policy->frozen_copy();
  const demo::Judgement before = demo::judge(*sft.policy, *reference, task, prompts, 1);

  fmt::print(stderr, "preference training\n");
  fmt::print("\n{:<20} {:^7} {:^14} {:>7} {:>8} {:>9} {:>8}\n", "loss", "before", "reward after",
             "KL", "margin", "accuracy", "seconds");
  const std::vector<std::string> losses{"dpo", "robust_dpo", "f_dpo", "ipo", "rpo", "vpo", "hypo"};
  std::map<std::string, demo::Judgement> after;
  const auto train_and_judge = [&](const std::string& name) {
    const RunResult result = train(arguments, name);
    after[name] = demo::judge(*result.policy, *reference, task, prompts, 1);
    print_row(name, before, after[name], result);
  };
  for (const std::string& loss : losses) train_and_judge(loss);
  fmt::print("with {:.0f} % of the labels flipped\n", 100 * kFlipRate);
  for (const char* name : {"dpo-flipped", "robust_dpo-flipped"}) train_and_judge(name);

  fmt::print("\nresponses (the reward likes letters of the prompt, six of them)\n");
  for (std::size_t i = 0; i < before.examples.size(); ++i) {
    fmt::print("  before: {:<18} after dpo: {}\n", before.examples[i], after["dpo"].examples[i]);
  }

  fmt::print("\n");
  bool all = true;
  const bool rises = std::all_of(losses.begin(), losses.end(), [&](const std::string& loss) {
    const demo::Judgement& judged = after[loss];
    return judged.reward - before.reward > 4 * (judged.reward_error + before.reward_error);
  });
  all &= show(rises, "the reward rises for all seven losses, by more than four standard errors");
  const bool bounded = std::all_of(losses.begin(), losses.end(), [&](const std::string& loss) {
    return after[loss].kl < kMostKl;
  });
  all &= show(bounded, fmt::format("the KL to the reference stays below {} nats", kMostKl));
  const demo::Judgement& dpo = after["dpo-flipped"];
  const demo::Judgement& robust = after["robust_dpo-flipped"];
  all &= show(robust.reward - dpo.reward > 2 * (robust.reward_error + dpo.reward_error),
              fmt::format("with flipped labels rDPO ({:.3f}) ends above DPO ({:.3f})",
                          robust.reward, dpo.reward));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  fmt::print("\n{:.0f} s in all; run folders, metrics and checkpoints are in {}\n", took.count(),
             arguments.out);
  return all ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
