// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "core/file.h"
#include "prefopt/error.h"
#include "prefopt/report/report.h"
#include "prefopt/run/run.h"
#include "prefopt/train/epoch_rows.h"
#include "run/environment.h"
#include "run/run_log.h"
#include "run/sample_table.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/run_scene.h"
#include "support/tensorboard.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;
using detail::SampleTable;

/// Events of all files in `tb`, in TensorBoard's order, as TensorBoard takes them: a restart takes
/// back what was said of its step and later ones.
std::vector<ReadEvent> events_of(const std::string& run) {
  std::set<std::string> files;
  for (const auto& entry : fs::directory_iterator(run + "/tb")) files.insert(entry.path());
  std::vector<ReadEvent> all;
  for (const auto& file : files) {
    for (const ReadEvent& event : read_events(file)) {
      if (event.restart) {
        std::erase_if(all, [&](const ReadEvent& old) { return old.step >= event.step; });
      }
      all.push_back(event);
    }
  }
  return all;
}

/// `tag step` and value of each scalar.
std::map<std::string, float> scalars_of(const std::string& run) {
  std::map<std::string, float> scalars;
  for (const auto& event : events_of(run)) {
    for (const auto& [tag, value] : event.scalars) {
      scalars[tag + " " + std::to_string(event.step)] = value;
    }
  }
  return scalars;
}

std::map<std::string, float> scalars_of_metrics(const std::string& run) {
  std::map<std::string, float> scalars;
  for (const auto& line : read_lines(run + "/metrics.jsonl")) {
    const bool evaluation = line.contains("eval_loss");
    for (const auto& [key, value] : line.items()) {
      if (key == "step") continue;
      const std::string name = key.starts_with("eval_") ? key.substr(5) : key;
      scalars[(evaluation ? "eval/" : "train/") + name + " " + line["step"].dump()] =
          value.get<float>();
    }
  }
  return scalars;
}

TEST_CASE("a run folder holds notes, samples, TensorBoard's events and a report", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.evaluate.every = 2;
  options.evaluate.sample_prompts = 3;
  options.evaluate.sample_tokens = 5;
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  const auto result = run_training(options, events);
  const std::string run = scene.file("run");

  CHECK(scalars_of(run) == scalars_of_metrics(run));
  std::string config;
  for (const auto& event : events_of(run)) {
    if (event.texts.contains("config")) config = event.texts.at("config");
  }
  CHECK(Json::parse(config) == Json::parse(read_text(run + "/config.json")));
  CHECK(config.starts_with("    {\n      \""));  // a block of code in Markdown

  std::vector<std::string> kept;
  for (const auto& line : read_lines(run + "/notes.jsonl")) kept.push_back(line["note"]);
  CHECK(kept == notes);

  const auto facts = Json::parse(read_text(run + "/run.json"));
  CHECK(facts["train_rows"] == 18);
  CHECK(facts["eval_rows"] == 6);
  CHECK(facts["total_steps"] == 3);
  CHECK(facts["complete"] == true);
  std::int64_t parameters = 0;
  for (const auto& parameter : result.policy->named_parameters()) {
    parameters += parameter.value.numel();
  }
  CHECK(facts["parameters"] == parameters);
  CHECK(facts["trained_parameters"] == parameters);

  const auto samples = read_lines(run + "/samples.jsonl");
  REQUIRE(samples.size() == 9);  // three prompts at steps 0, 2, 3
  std::set<std::string> prompts;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto& line = samples[i];
    CHECK(line["step"] == (i < 3 ? 0 : i < 6 ? 2 : 3));
    CHECK(line["index"] == i % 3);
    CHECK(line["prompt"] == samples[i % 3]["prompt"]);
    CHECK(line["policy_tokens"] <= 5);
    CHECK((line["policy_tokens"] == 5 || line["policy_ended"] == true));
    CHECK(line.contains("reference") == (i < 3));
    prompts.insert(line["prompt"]);
    if (i < 3) {
      // The policy is its reference still, and both draw the same numbers.
      CHECK(line["reference"] == line["policy"]);
      CHECK(line["kl"].get<double>() == Approx(0).margin(1e-9));
    }
  }
  CHECK(prompts.size() == 3);
  const auto lines = read_lines(run + "/metrics.jsonl");
  const double mean = (samples[6]["kl"].get<double>() + samples[7]["kl"].get<double>() +
                       samples[8]["kl"].get<double>()) /
                      3;
  CHECK(lines.back()["eval_kl"].get<double>() == Approx(mean).epsilon(1e-12));
  CHECK(mean > 1e-3);

  CHECK(read_text(run + "/report.html") == report_html(run));
}

TEST_CASE("samples leave training as it was", "[run]") {
  const Scene scene;
  const auto type = GENERATE(as<std::string>{}, "dpo", "hypo", "sft");
  const auto weights = [&](const std::string& name, std::int64_t prompts) {
    auto options = scene.options(name, type);
    options.evaluate.every = 1;
    options.evaluate.sample_prompts = prompts;
    const auto result = run_training(options);
    auto lines = untimed(options.output_dir);
    // HyPO has its own KL, which has to stay.
    if (type != "hypo") {
      for (auto& line : lines) line.erase("eval_kl");
    }
    CHECK(fs::exists(options.output_dir + "/samples.jsonl") == (prompts > 0));
    return std::pair(content_hash(*result.policy), lines);
  };
  CHECK(weights("with", 4) == weights("without", 0));
}

TEST_CASE("without a reference the samples are the policy's alone", "[run]") {
  const Scene scene;
  const auto options = scene.options("run", "sft");
  run_training(options);
  const auto samples = read_lines(options.output_dir + "/samples.jsonl");
  REQUIRE(samples.size() == 8);
  for (const auto& line : samples) {
    CHECK_FALSE(line.contains("reference"));
    CHECK_FALSE(line.contains("kl"));
  }
  CHECK(read_text(options.output_dir + "/report.html").find("Policy at step 0") !=
        std::string::npos);
}

TEST_CASE("a run that continues leaves the logs of one that never stopped", "[run]") {
  const Scene scene;
  const auto options = [&](const std::string& name) {
    auto chosen = scene.options(name, "dpo");
    chosen.evaluate.every = 1;
    return chosen;
  };
  run_training(options("straight"));
  RunEvents events;
  std::int64_t steps = 0;
  events.step = [&](std::int64_t step, std::int64_t, const Metrics&) { steps = step; };
  events.should_stop = [&] { return steps == 2; };
  run_training(options("stopped"), events);
  const std::string run = scene.file("stopped");
  CHECK(Json::parse(read_text(run + "/run.json"))["complete"] == false);
  CHECK(read_text(run + "/report.html").find("step 2 of 3 is the last one") != std::string::npos);

  // As if the process had lived on after its last checkpoint and then died in the midst of a line.
  write_text(run + "/samples.jsonl", read_text(run + "/samples.jsonl") +
                                         "{\"step\": 3, \"index\": 0}\n{\"step\": 1, \"ind");
  write_text(run + "/notes.jsonl", read_text(run + "/notes.jsonl") + "{\"step\": 2, \"no");
  detail::EventFile late(run + "/tb", 1e9);
  late.add_scalars(3, 1e9, {{"train/loss", 99}, {"train/never", 1}});

  run_training(options("stopped"), {}, "auto");
  const std::string straight = scene.file("straight");
  CHECK(read_text(run + "/samples.jsonl") == read_text(straight + "/samples.jsonl"));
  CHECK(scalars_of(run) == scalars_of_metrics(run));
  CHECK(Json::parse(read_text(run + "/run.json")) ==
        Json::parse(read_text(straight + "/run.json")));
  CHECK(read_text(run + "/report.html").find("not complete") == std::string::npos);
  CHECK(read_text(run + "/report.html").find("not whole") == std::string::npos);
  bool says_so = false;
  for (const auto& line : read_lines(run + "/notes.jsonl")) {
    says_so =
        says_so || line["note"].get<std::string>().starts_with("resume: continues after step 2");
  }
  CHECK(says_so);
}

TEST_CASE("a run that starts again keeps no log of an earlier try", "[run]") {
  const Scene scene;
  const auto options = scene.options("run", "sft");
  RunEvents killed;
  killed.step = [](std::int64_t, std::int64_t, const Metrics&) { throw 1; };
  CHECK_THROWS_AS(run_training(options, killed), int);
  for (const auto* name : {"samples.jsonl", "notes.jsonl"}) {
    write_text(scene.file("run/") + name, "{\"step\": 0, \"note\": \"of an earlier try\"}\n");
  }
  run_training(options, {}, "auto");
  for (const auto* name : {"/samples.jsonl", "/notes.jsonl"}) {
    CHECK(read_text(options.output_dir + name).find("of an earlier try") == std::string::npos);
  }
}

TEST_CASE("a run that fails says so in its folder", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.optimizer.learning_rate = 1e30;
  options.optimizer.max_grad_norm = 0;
  options.batch.steps = 20;
  CHECK_THROWS_AS(run_training(options), NonFiniteError);
  const auto notes = read_lines(options.output_dir + "/notes.jsonl");
  CHECK(notes.back()["note"].get<std::string>().starts_with("stopped: step "));
  CHECK(read_text(options.output_dir + "/report.html").find("<li>Step ") != std::string::npos);
}

// ---- Its parts ----

EpochRows source_of(std::vector<TokenRow> held_out) {
  return EpochRows({.rows = pairs(),
                    .held_out = std::move(held_out),
                    .tokenizer = std::make_shared<ByteTokenizer>()},
                   {});
}

detail::Meeting& alone() {
  static detail::Meeting meeting(one_process());
  return meeting;
}

SampleTable table_of(std::int64_t prompts, SamplingOptions sampling) {
  static const EpochRows source = source_of(pairs());
  return SampleTable(source, std::move(sampling), {.prompts = prompts, .tokens = 6});
}

TEST_CASE("the KL of samples is summed exactly along them", "[run]") {
  BigramPolicy policy(1), reference(2);
  const SamplingOptions sampling{.max_new_tokens = 6, .eos_id = 4, .seed = 3};
  const auto draw = table_of(3, sampling).draw(0, policy, &reference, true, alone());
  const std::vector<std::vector<std::int64_t>> prompts{{0}, {2, 1}, {4, 4, 0}};
  const auto completions = sample(policy, prompts, sampling);
  double mean = 0;
  REQUIRE(draw.lines.size() == 3);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    double kl = 0;
    auto from = prompts[i].back();
    for (const auto to : completions[i]) {
      for (std::int64_t v = 0; v < kVocab; ++v) {
        const double logp = policy.logp(from, v);
        kl += std::exp(logp) * (logp - reference.logp(from, v));
      }
      from = to;
    }
    CHECK(draw.lines[i]["kl"].get<double>() == Approx(kl).epsilon(1e-9));
    CHECK(draw.lines[i]["policy_tokens"] == completions[i].size());
    CHECK(draw.lines[i]["policy_ended"] == (completions[i].back() == 4));
    mean += kl / 3;
  }
  CHECK(*draw.kl == Approx(mean).epsilon(1e-9));
}

TEST_CASE("samples that are not the policy's own show no KL", "[run]") {
  BigramPolicy policy(1), reference(2);
  for (const SamplingOptions& sampling :
       {SamplingOptions{.temperature = 0}, SamplingOptions{.temperature = 0.7},
        SamplingOptions{.top_k = 2}, SamplingOptions{.top_p = 0.9}}) {
    const auto draw = table_of(2, sampling).draw(0, policy, &reference, false, alone());
    CHECK_FALSE(draw.kl);
    CHECK(draw.lines.size() == 2);
    CHECK_FALSE(draw.lines[0].contains("kl"));
    CHECK_FALSE(draw.lines[0].contains("reference"));
  }
  CHECK(table_of(0, {}).draw(0, policy, &reference, true, alone()).lines.empty());
}

TEST_CASE("a prompt is sampled once, however many rows have it", "[run]") {
  BigramPolicy policy(1);
  auto rows = pairs();
  rows.insert(rows.begin(), rows.front());
  const EpochRows source = source_of(rows);
  const SampleTable table(source, {}, {.prompts = 9, .tokens = 1});
  CHECK(table.draw(0, policy, nullptr, true, alone()).lines.size() == pairs().size());
}

/// Remembers the largest batch that it was given.
class WatchedPolicy final : public Policy {
 public:
  explicit WatchedPolicy(std::uint64_t seed) : inner_(seed) {}
  PolicyOutput forward(const TokenBatch& batch) override {
    most = std::max(most, batch.sequences());
    return inner_.forward(batch);
  }
  std::int64_t vocab_size() const override { return inner_.vocab_size(); }
  std::vector<NamedParameter> named_parameters() const override {
    return inner_.named_parameters();
  }

  std::int64_t most = 0;

 private:
  BigramPolicy inner_;
};

TEST_CASE("many prompts are sampled in parts, with the same result", "[run]") {
  WatchedPolicy policy(1), reference(2);
  std::vector<TokenRow> rows;
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t i = 0; i < 40; ++i) {
    prompts.push_back({i / 16, i / 4 % 4, i % 4});
    rows.push_back({.prompt = prompts.back(), .chosen = {1}, .rejected = {2}});
  }
  const SamplingOptions sampling{.max_new_tokens = 5, .eos_id = 4, .seed = 7};
  const EpochRows source = source_of(rows);
  const SampleTable table(source, sampling, {.prompts = 40, .tokens = 5});
  const auto draw = table.draw(0, policy, &reference, true, alone());
  CHECK(policy.most <= 16);
  CHECK(reference.most <= 16);
  const auto of_policy = sample(policy, prompts, sampling);
  const auto of_reference = sample(reference, prompts, sampling);
  REQUIRE(draw.lines.size() == prompts.size());
  double kl = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const detail::Json& line = draw.lines[i];
    CHECK(line["index"] == i);
    CHECK(line["prompt"] == ByteTokenizer().decode(prompts[i]));
    CHECK(line["policy"] == ByteTokenizer().decode(of_policy[i]));
    CHECK(line["reference"] == ByteTokenizer().decode(of_reference[i]));
    kl += line["kl"].get<double>() / 40;
  }
  CHECK(*draw.kl == Approx(kl).epsilon(1e-12));
}

TEST_CASE("env.json says where a run ran", "[run]") {
  const auto environment = detail::environment();
  CHECK(environment["processors"].get<int>() > 0);
  CHECK(environment["memory_gib"].get<double>() > 0);
  CHECK(fs::path(environment["folder"].get<std::string>()) == fs::current_path());
#ifdef __linux__
  CHECK(environment["command"][0].get<std::string>().find("prefopt_tests") != std::string::npos);
  CHECK(environment["system"].get<std::string>().find("Linux ") != std::string::npos);
#endif
  const std::string time = environment["started"];
  CHECK(time.size() == std::string("2026-01-31T23:59:59Z").size());
  CHECK((time[10] == 'T' && time.back() == 'Z'));
}

}  // namespace
}  // namespace prefopt
