// SPDX-License-Identifier: Apache-2.0

// Tunes a real chat model to a rule-based reward by online DPO with a low-rank adapter: in each
// round the policy answers training prompts, the best and the worst answer to each make a pair, and
// the pairs train it against the model without adapter. Held-out prompts then show what was gained:
//   prefopt_demo --model MODEL [--tokenizer NAME] [--config FILE] [--prompts FILE] [--out DIR]
// Exit code 1 if the reward did not rise, beyond its confidence interval.

#include <ATen/Context.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/options.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"
#include "report.h"
#include "responses.h"
#include "settings.h"

namespace demo {
namespace {

using namespace prefopt;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::size_t kShown = 4;  // prompts whose responses are printed

struct Arguments {
  std::string model;
  std::string tokenizer;  // empty: the model's
  std::string config = "examples/configs/smollm2.json";
  std::string prompts = "examples/demo/prompts.jsonl";
  std::string out = "runs/smollm2";
};

Arguments parse(int argc, char** argv) {
  constexpr auto kUsage =
      "usage: prefopt_demo --model MODEL [--tokenizer NAME] [--config FILE] [--prompts FILE] "
      "[--out DIR]";
  Arguments arguments;
  const std::map<std::string, std::string*> flags{{"--model", &arguments.model},
                                                  {"--tokenizer", &arguments.tokenizer},
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
  if (arguments.tokenizer.empty()) arguments.tokenizer = arguments.model;
  return arguments;
}

Settings read_settings(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw ConfigError(path + ": expected a readable file");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  return options_from_json<Settings>(text, path);
}

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// One line, rewritten in place; nothing where nobody watches.
class StatusLine {
 public:
  void show(const std::string& text) const {
    if (watched_) fmt::print(stderr, "\r\x1b[K{}", text);
  }
  void clear() const { show(""); }
  Responder::Progress counter(std::string what) const {
    return [this, what = std::move(what)](std::size_t done, std::size_t total) {
      show(fmt::format("{}, {} of {}", what, done, total));
    };
  }

 private:
  bool watched_ = ::isatty(STDERR_FILENO) == 1;
};

// A file of the run folder, one JSON value a line.
class JsonLines {
 public:
  explicit JsonLines(std::string path) : path_(std::move(path)), file_(path_, std::ios::trunc) {}

  void write(const Json& line) {
    file_ << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
    if (!file_) throw CheckpointError(path_ + ": expected to append a line, got an error");
  }

 private:
  std::string path_;
  std::ofstream file_;
};

struct RankedPair {
  const Prompt* prompt;
  const Response* chosen;
  const Response* rejected;

  TokenRow tokens() const { return {prompt->ids, chosen->ids, rejected->ids}; }
};

// The best and the worst response to each prompt, where the reward tells them apart.
std::vector<RankedPair> rank(std::span<const Prompt> prompts, const Responses& responses,
                             double min_gap) {
  std::vector<RankedPair> pairs;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto [worst, best] = std::minmax_element(
        responses[i].begin(), responses[i].end(),
        [](const Response& a, const Response& b) { return a.reward < b.reward; });
    if (best->reward - worst->reward >= min_gap) pairs.push_back({&prompts[i], &*best, &*worst});
  }
  return pairs;
}

// The demo once everything is loaded.
class Demo {
 public:
  Demo(const Settings& settings, const std::string& out, std::shared_ptr<Decoder> policy,
       Responder responder, Prompts prompts)
      : settings_(settings),
        out_(out),
        policy_(std::move(policy)),
        reference_(policy_->without_adapter()),
        responder_(std::move(responder)),
        prompts_(std::move(prompts)),
        trainer_(policy_, make_frozen_reference(reference_), make_loss(settings.loss),
                 {.optimizer = settings.optimizer,
                  .total_steps = settings.rounds * steps_a_round(settings),
                  .micro_batch_tokens = settings.micro_batch_tokens}),
        metrics_(out + "/metrics.jsonl"),
        pairs_(out + "/pairs.jsonl") {}

  Comparison run() {
    before_ = answer_held_out("before training");
    fmt::print("before training: reward {:.3f} on held-out prompts, {:.0f} s\n",
               mean_reward(before_), clock_.seconds());
    for (std::int64_t round = 0; round < settings_.rounds; ++round) train_round(round);
    after_ = answer_held_out("after training");
    const auto kl = responder_.divergence(*policy_, *reference_, prompts_.held_out, settings_.seed);
    policy_->save_adapter(out_ + "/adapter");
    write_files(tokenizer_files(responder_.tokenizer(), settings_.chat_format), out_ + "/adapter");
    return compare(before_, after_, kl, static_cast<std::uint64_t>(settings_.seed));
  }

  void print(const Comparison& comparison) const {
    const std::size_t shown = std::min(kShown, prompts_.held_out.size());
    fmt::print("{}\n{}", side_by_side(std::span(prompts_.held_out).first(shown), before_, after_),
               comparison_table(comparison));
    fmt::print("{:<22} {:>8.0f} sampling, {:.0f} training\n", "tokens a second",
               responder_.speed().per_second(), training_.per_second());
  }

  void write_results(const Comparison& c) const {
    write_samples();
    Json terms;
    for (const auto& [name, before, after] : c.terms) {
      terms[std::string(name)] = {{"before", before}, {"after", after}};
    }
    const Json result{
        {"reward_before", c.reward_before},
        {"reward_after", c.reward_after},
        {"reward_gain", interval(c.gain)},
        {"win_rate", interval(c.wins)},
        {"terms", terms},
        {"kl_per_response", c.kl.per_response},
        {"kl_per_token", c.kl.per_token},
        {"tokens_per_response_before", c.tokens_before},
        {"tokens_per_response_after", c.tokens_after},
        {"sampling_tokens_per_second", responder_.speed().per_second()},
        {"training_tokens_per_second", training_.per_second()},
        {"seconds", clock_.seconds()},
    };
    JsonLines(out_ + "/result.json").write(result);
  }

  double seconds() const { return clock_.seconds(); }

 private:
  static std::int64_t steps_a_round(const Settings& settings) {
    return (settings.prompts_per_round + settings.pairs_per_step - 1) / settings.pairs_per_step;
  }

  static Json interval(const prefopt::Estimate& estimate) {
    return {{"mean", estimate.mean}, {"low", estimate.low}, {"high", estimate.high}};
  }

  // The same draws before and after: what differs then is the policy.
  Responses answer_held_out(const std::string& when) {
    auto responses =
        responder_.respond(*policy_, prompts_.held_out, settings_.samples_per_held_out_prompt,
                           settings_.seed, status_.counter("held-out responses " + when));
    status_.clear();
    return responses;
  }

  std::vector<Prompt> prompts_of(std::int64_t round) const {
    std::vector<Prompt> prompts;
    const auto count = static_cast<std::size_t>(settings_.prompts_per_round);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t at = static_cast<std::size_t>(round) * count + i;
      prompts.push_back(prompts_.train[at % prompts_.train.size()]);
    }
    return prompts;
  }

  void train_round(std::int64_t round) {
    const std::string name = fmt::format("round {}/{}", round + 1, settings_.rounds);
    const auto prompts = prompts_of(round);
    const auto responses =
        responder_.respond(*policy_, prompts, settings_.samples_per_prompt,
                           settings_.seed + 1 + round, status_.counter(name + ": responses"));
    const double reward = mean_reward(responses);
    const auto pairs = rank(prompts, responses, settings_.min_reward_gap);
    for (const RankedPair& pair : pairs) write_pair(round, pair);

    Metrics metrics;
    const auto step = static_cast<std::size_t>(settings_.pairs_per_step);
    for (std::size_t first = 0; first < pairs.size(); first += step) {
      status_.show(fmt::format("{}: training, pair {} of {}", name, first, pairs.size()));
      std::vector<TokenRow> batch;
      for (std::size_t i = first; i < std::min(first + step, pairs.size()); ++i) {
        batch.push_back(pairs[i].tokens());
      }
      metrics = train_step(batch, round, reward);
    }
    status_.clear();
    fmt::print("{}: reward {:.3f} on fresh responses, {} pairs{}, {:.0f} s\n", name, reward,
               pairs.size(), metrics.empty() ? "" : described(metrics), clock_.seconds());
  }

  static std::string described(const Metrics& metrics) {
    return fmt::format(", loss {:.3f}, margin {:+.2f}, accuracy {:.2f}", metric(metrics, "loss"),
                       metric(metrics, "rewards/margins"), metric(metrics, "rewards/accuracies"));
  }

  Metrics train_step(const std::vector<TokenRow>& batch, std::int64_t round, double reward) {
    const Stopwatch watch;
    const Metrics metrics = trainer_.step(batch);
    training_.seconds += watch.seconds();
    training_.tokens = metric(metrics, "num_tokens");
    Json line{{"step", trainer_.steps_done()}, {"round", round + 1}, {"reward", reward}};
    for (const auto& [name, value] : metrics) line[name] = value;
    line["seconds"] = clock_.seconds();
    metrics_.write(line);
    return metrics;
  }

  // A row that `prefopt train` takes as well.
  void write_pair(std::int64_t round, const RankedPair& pair) {
    pairs_.write({{"prompt_ids", pair.prompt->ids},
                  {"chosen_ids", pair.chosen->ids},
                  {"rejected_ids", pair.rejected->ids},
                  {"round", round + 1},
                  {"prompt", pair.prompt->text},
                  {"chosen", pair.chosen->text},
                  {"rejected", pair.rejected->text},
                  {"rewards", {pair.chosen->reward, pair.rejected->reward}}});
  }

  void write_samples() const {
    JsonLines samples(out_ + "/samples.jsonl");
    const auto described = [](const std::vector<Response>& responses) {
      Json list = Json::array();
      for (const Response& response : responses) {
        Json terms;
        for (const auto& [name, value] : response.terms.named()) terms[std::string(name)] = value;
        list.push_back({{"text", response.text}, {"reward", response.reward}, {"terms", terms}});
      }
      return list;
    };
    for (std::size_t i = 0; i < before_.size(); ++i) {
      samples.write({{"prompt", prompts_.held_out[i].text},
                     {"before", described(before_[i])},
                     {"after", described(after_[i])}});
    }
  }

  const Settings& settings_;
  const std::string& out_;
  std::shared_ptr<Decoder> policy_;
  std::shared_ptr<Decoder> reference_;
  Responder responder_;
  Prompts prompts_;
  Trainer trainer_;
  JsonLines metrics_;
  JsonLines pairs_;
  StatusLine status_;
  Stopwatch clock_;
  Speed training_;
  Responses before_, after_;
};

int run(const Arguments& arguments) {
  const Settings settings = read_settings(arguments.config);
  Responder responder(arguments.tokenizer, settings.chat_format, settings.sampling);
  Prompts prompts = responder.read_prompts(arguments.prompts);
  at::manual_seed(static_cast<std::uint64_t>(settings.seed));
  const auto policy = Decoder::load(arguments.model);
  responder.end_with(*policy);
  policy->add_adapter(settings.lora);
  fs::create_directories(arguments.out);
  std::ofstream(arguments.out + "/config.json") << options_to_json(settings, 2) << '\n';

  fmt::print("{}, rewarded for short, direct answers in plain prose\n", arguments.model);
  fmt::print("{} prompts to train on, {} held out\n", prompts.train.size(),
             prompts.held_out.size());
  Demo demo(settings, arguments.out, policy, std::move(responder), std::move(prompts));
  const Comparison comparison = demo.run();
  demo.print(comparison);
  demo.write_results(comparison);
  fmt::print("\n{:.0f} s in all; adapter, metrics, pairs and samples are in {}\n", demo.seconds(),
             arguments.out);
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
    return demo::run(demo::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
