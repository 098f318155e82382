// SPDX-License-Identifier: Apache-2.0

// Tunes a real chat model to a rule-based reward by online DPO with a low-rank adapter: in each
// round the policy answers training prompts, the best and the worst answer to each make a pair, and
// the pairs train it against the model without adapter. Held-out prompts then show the gain:
//   prefopt_demo --model MODEL [--config FILE] [--prompts FILE] [--out DIR]
// Started again with the same arguments, it continues from the last checkpoint in DIR.
// Exit code 1 if the reward did not rise, beyond its confidence interval.

#include <ATen/Context.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/prompts.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/evaluation/sampled_kl.h"
#include "prefopt/prefopt.h"
#include "report.h"
#include "responses.h"
#include "rounds.h"
#include "settings.h"

namespace demo {
namespace {

using namespace prefopt;
using Json = nlohmann::ordered_json;

constexpr std::size_t kShown = 4;  // prompts whose responses are printed

struct Arguments {
  std::string model;
  std::string config = "examples/configs/smollm2.json";
  std::string prompts = "examples/demo/prompts.jsonl";
  std::string out;  // empty: as the config says
};

Arguments parse(int argc, char** argv) {
  constexpr auto kUsage =
      "usage: prefopt_demo --model MODEL [--config FILE] [--prompts FILE] [--out DIR]";
  Arguments arguments;
  const std::map<std::string, std::string*> flags{{"--model", &arguments.model},
                                                  {"--config", &arguments.config},
                                                  {"--prompts", &arguments.prompts},
                                                  {"--out", &arguments.out}};
  for (int i = 1; i < argc; i += 2) {
    const auto flag = flags.find(argv[i]);
    if (flag == flags.end() || i + 1 == argc) {
      throw ConfigError(fmt::format("{}, got '{}'", kUsage, argv[i]));
    }
    *flag->second = argv[i + 1];
  }
  if (arguments.model.empty()) throw ConfigError(fmt::format("{}, got no --model", kUsage));
  return arguments;
}

Settings read_settings(const Arguments& arguments) {
  std::ifstream file(arguments.config);
  if (!file) throw ConfigError(arguments.config + ": expected a readable file");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  Settings settings = options_from_json<Settings>(text, arguments.config);
  if (!arguments.out.empty()) settings.run.output_dir = arguments.out;
  return settings;
}

struct Prompts {
  std::vector<Prompt> train, held_out;
};

// Holds out the last of each four prompts in a row.
Prompts read_prompts(const std::string& path, const Tokenizer& tokenizer,
                     const std::string& chat_format) {
  // The text of a prompt is what a person asks, a turn of the chat format.
  auto all = load_prompts(path, tokenizer,
                          {.chat_format = chat_format, .columns = R"({"question": "prompt"})"});
  if (all.size() < 4) {
    throw DataError(fmt::format("{}: expected at least 4 prompts, got {}", path, all.size()));
  }
  Prompts prompts;
  for (std::size_t i = 0; i < all.size(); ++i) {
    (i % 4 == 3 ? prompts.held_out : prompts.train).push_back(std::move(all[i]));
  }
  return prompts;
}

void print_step(std::int64_t step, std::int64_t total, const Metrics& metrics) {
  fmt::print(
      "round {}/{}: reward {:.3f} on fresh responses, {:.0f} pairs, loss {:.3f}, margin {:+.2f}, "
      "accuracy {:.2f}\n",
      step, total, metric(metrics, "reward"), metric(metrics, "pairs"), metric(metrics, "loss"),
      metric(metrics, "rewards/margins"), metric(metrics, "rewards/accuracies"));
}

Json to_json(const Estimate& estimate) {
  return {{"mean", estimate.mean}, {"low", estimate.low}, {"high", estimate.high}};
}

Json to_json(const std::vector<Response>& responses) {
  Json list = Json::array();
  for (const Response& response : responses) {
    Json terms;
    for (const auto& [name, value] : response.terms.named()) terms[std::string(name)] = value;
    list.push_back({{"text", response.text}, {"reward", response.reward()}, {"terms", terms}});
  }
  return list;
}

void write_lines(const std::string& path, const std::vector<Json>& lines) {
  std::ofstream file(path);
  for (const Json& line : lines) {
    file << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }
  if (!file.flush()) throw CheckpointError(path + ": expected to write lines, got an error");
}

int train(const Arguments& arguments) {
  Settings settings = read_settings(arguments);
  RunOptions& options = settings.run;
  const std::string tokenizer_name = tokenizer_of_model(arguments.model);
  const auto tokenizer = make_tokenizer(tokenizer_name);
  const Prompts prompts = read_prompts(arguments.prompts, *tokenizer, settings.chat_format);
  at::manual_seed(static_cast<std::uint64_t>(options.seed));  // of the adapter
  const auto policy = Decoder::load(arguments.model);
  policy->add_adapter(settings.lora);
  const auto reference = policy->without_adapter();
  options.sampling = with_end_tokens(options.sampling, *policy, *tokenizer, settings.chat_format);

  SamplingOptions sampling = options.sampling;
  ++sampling.seed;  // other draws than those of training, and the same before and after
  const auto answer = [&](Policy& model) {
    return respond(
        model, *tokenizer, prompts.held_out,
        {.samples_per_prompt = settings.samples_per_held_out_prompt, .sampling = sampling});
  };
  fmt::print("{}, rewarded for short, direct answers in plain prose\n", arguments.model);
  fmt::print("{} prompts to train on, {} held out\n", prompts.train.size(),
             prompts.held_out.size());
  const Responses before = answer(*reference);
  fmt::print("before training: reward {:.3f} on held-out prompts\n", mean_reward(before));

  const auto rounds = std::make_shared<Rounds>(settings, prompts.train, tokenizer,
                                               options.output_dir + "/pairs.jsonl");
  RunEvents events;
  events.note = [](const std::string& line) { fmt::print("{}\n", line); };
  events.step = print_step;
  const RunResult result =
      run(policy, make_frozen_reference(reference), rounds, options, events, "auto");

  const Responses after = answer(*policy);
  const Comparison comparison = compare(before, after);
  sampling.temperature = 1;  // KL is of the policy's own distribution
  sampling.top_k = 0;
  sampling.top_p = 1;
  const Estimate kl = sampled_kl(*policy, *reference, ids_of(prompts.held_out), 1, sampling).kl;
  const std::size_t shown = std::min(kShown, prompts.held_out.size());
  fmt::print("{}\n{}", shown_responses(std::span(prompts.held_out).first(shown), before, after),
             comparison_table(comparison, kl));

  std::vector<Json> answers;
  for (std::size_t i = 0; i < prompts.held_out.size(); ++i) {
    answers.push_back({{"prompt", prompts.held_out[i].question},
                       {"before", to_json(before[i])},
                       {"after", to_json(after[i])}});
  }
  const std::string& out = options.output_dir;
  write_lines(out + "/answers.jsonl", answers);
  const Json numbers = {{"reward_before", comparison.reward_before},
                        {"reward_after", comparison.reward_after},
                        {"reward_gain", to_json(comparison.gain)},
                        {"win_rate", to_json(comparison.wins)},
                        {"kl_per_response", to_json(kl)}};
  write_lines(out + "/result.json", {numbers});
  policy->save_adapter(out + "/adapter");
  write_files(tokenizer_files(tokenizer_name, settings.chat_format), out + "/adapter");
  fmt::print("\n{:.0f} s of training; adapter, report.html, pairs and answers are in {}\n",
             result.seconds, out);
  if (comparison.gain.low > 0) return 0;
  fmt::print(
      "the reward did not rise: the 95 % interval of its gain, {:+.3f} to {:+.3f}, reaches "
      "down to 0\n",
      comparison.gain.low, comparison.gain.high);
  return 1;
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines appear when they are known, in a file too
  try {
    return demo::train(demo::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
