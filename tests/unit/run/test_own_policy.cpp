// SPDX-License-Identifier: Apache-2.0
// Runs on a model and on rows of a program's own.

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <filesystem>

#include "prefopt/files/safetensors.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/module_policy.h"
#include "prefopt/run/run.h"
#include "prefopt/train/epoch_rows.h"
#include "support/bigram_policy.h"
#include "support/checkpoint_parts.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

constexpr std::int64_t kOwnVocab = 11;
constexpr std::int64_t kOwnWidth = 8;

/// Attention with uniform weights over the past, then a tanh.
class AverageModel : public torch::nn::Cloneable<AverageModel> {
 public:
  AverageModel() { reset(); }

  void reset() override {
    embedding = register_module("embedding", torch::nn::Embedding(kOwnVocab, kOwnWidth));
    mix = register_module("mix", torch::nn::Linear(kOwnWidth, kOwnWidth));
  }

  at::Tensor states(const at::Tensor& ids) {
    const at::Tensor x = embedding(ids);
    const at::Tensor counts = at::arange(1, ids.size(1) + 1, at::kFloat).unsqueeze(-1);
    return at::tanh(mix(x.cumsum(1) / counts)) + x;
  }
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& /*mask*/) {
    return at::matmul(states(ids), embedding->weight.t());
  }

 protected:
  torch::nn::Embedding embedding = nullptr;
  torch::nn::Linear mix = nullptr;
};

/// The same, which leaves the output head to the library.
class OpenModel : public torch::nn::Cloneable<OpenModel> {
 public:
  OpenModel() { reset(); }

  void reset() override { inner = register_module("inner", std::make_shared<AverageModel>()); }
  at::Tensor hidden(const at::Tensor& ids, const at::Tensor& /*mask*/) {
    return inner->states(ids);
  }
  at::Tensor head_weight() const { return inner->named_parameters()["embedding.weight"]; }

 private:
  std::shared_ptr<AverageModel> inner;
};

template <class Model>
std::shared_ptr<ModulePolicy<Model>> own_policy(std::uint64_t seed = 3) {
  at::manual_seed(seed);
  return std::make_shared<ModulePolicy<Model>>(std::make_shared<Model>(), kOwnVocab);
}

std::vector<TokenRow> own_rows() {
  std::vector<TokenRow> rows;
  for (std::int64_t i = 0; i < 6; ++i) {
    rows.push_back({.prompt = {1, i}, .chosen = {2, i + 1, 3}, .rejected = {i + 4, 5}});
  }
  return rows;
}

std::shared_ptr<EpochRows> own_source(std::int64_t seed = 0) {
  auto rows = own_rows();
  return std::make_shared<EpochRows>(EpochData{.rows = rows, .held_out = {rows[0], rows[3]}},
                                     EpochOptions{.batch_size = 3, .seed = seed});
}

RunOptions own_options(const std::string& folder) {
  RunOptions options;
  options.output_dir = folder;
  options.optimizer = {.learning_rate = 1e-2, .schedule = Schedule::kConstant};
  options.batch.steps = 6;
  options.batch.rows = 3;
  options.batch.micro_rows = 2;
  options.evaluate.every = 2;
  options.checkpoint.every = 2;
  options.sampling.max_new_tokens = 3;
  return options;
}

/// A whole run in `folder`, or as much of it as `steps` says.
template <class Model>
RunResult own_run(const std::string& folder, const std::string& resume = {},
                  std::int64_t steps = 1000) {
  const auto policy = own_policy<Model>();
  RunEvents events;
  std::int64_t taken = 0;
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) { ++taken; };
  events.should_stop = [&] { return taken >= steps; };
  return run(policy, make_frozen_reference(policy->frozen_copy()), own_source(),
             own_options(folder), events, resume);
}

void check_same_files(const std::string& folder, const std::string& other) {
  for (const char* name : {"model.safetensors", "training_state.safetensors"}) {
    CAPTURE(name);
    CHECK(read_text(folder + "/checkpoints/last/" + name) ==
          read_text(other + "/checkpoints/last/" + name));
  }
}

TEST_CASE("a run trains a module with resume, report and samples", "[run]") {
  const TempDir folder;
  const RunResult straight = own_run<OpenModel>(folder.file("straight"));
  CHECK(straight.steps == 6);
  CHECK(metric(straight.last_evaluation, "rewards/margins") >
        metric(straight.first_evaluation, "rewards/margins"));
  CHECK(fs::exists(folder.file("straight/report.html")));
  // Without a tokenizer, texts are ids.
  const auto samples = read_lines(folder.file("straight/samples.jsonl"));
  REQUIRE_FALSE(samples.empty());
  CHECK(samples.front().at("prompt") == "1 0");

  const RunResult stopped = own_run<OpenModel>(folder.file("broken"), {}, 3);
  CHECK(stopped.stopped);
  CHECK(stopped.steps == 3);
  const RunResult resumed = own_run<OpenModel>(folder.file("broken"), "auto");
  CHECK(resumed.steps == 6);
  check_same_files(folder.file("broken"), folder.file("straight"));
  CHECK(untimed(folder.file("broken")) == untimed(folder.file("straight")));
}

TEST_CASE("a module's output head is the library's to multiply by", "[run]") {
  const TempDir folder;
  const auto open = own_run<OpenModel>(folder.file("open"));
  const auto closed = own_run<AverageModel>(folder.file("closed"));
  for (const char* name : {"loss", "rewards/margins", "logps/chosen", "entropy"}) {
    CAPTURE(name);
    CHECK(metric(open.last_step, name) == Approx(metric(closed.last_step, name)).epsilon(1e-4));
  }
}

TEST_CASE("the same weights saved and loaded are the same policy", "[run]") {
  const TempDir folder;
  const auto saved = own_policy<OpenModel>(3);
  const auto loaded = own_policy<OpenModel>(4);
  REQUIRE(content_hash(*saved) != content_hash(*loaded));
  saved->save(folder.file("model"));
  loaded->load_weights(folder.file("model"));
  CHECK(content_hash(*saved) == content_hash(*loaded));
  CHECK_THROWS_TEXT(own_policy<AverageModel>()->load_weights(folder.file("model")), CheckpointError,
                    folder.file("model/model.safetensors") +
                        ": expected weight 'embedding.weight' as the run's model has it, got none");
}

/// Rows that follow from all that came before: each step's answer is the last one's length.
class GrowingRows final : public RowSource {
 public:
  StepRows next(Policy& /*policy*/) override {
    StepRows step;
    for (std::int64_t i = 0; i < 3; ++i) {
      const auto count = static_cast<std::size_t>(1 + (length_ + i) % 4);
      step.rows.push_back({.prompt = {1},
                           .chosen = std::vector<std::int64_t>(count, 2),
                           .rejected = {3, static_cast<std::int64_t>(sum_.item<double>()) % 10}});
    }
    step.metrics = {{"length", static_cast<double>(length_)}};
    return step;
  }
  void finish_step() override {
    length_ += 1;
    sum_.add_(static_cast<double>(length_));
  }
  void visit_state(StateVisitor& visitor) override {
    visitor.integer("length", length_);
    visitor.tensor("sum", sum_);
  }
  std::string fingerprint() const override { return "growing"; }

 private:
  std::int64_t length_ = 0;
  at::Tensor sum_ = at::zeros({}, at::kDouble);
};

RunResult growing_run(const std::string& folder, const std::string& resume,
                      std::int64_t steps = 1000, std::shared_ptr<RowSource> source = nullptr) {
  const auto policy = own_policy<AverageModel>();
  RunEvents events;
  std::int64_t taken = 0;
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) { ++taken; };
  events.should_stop = [&] { return taken >= steps; };
  if (!source) source = std::make_shared<GrowingRows>();
  return run(policy, make_frozen_reference(policy->frozen_copy()), source, own_options(folder),
             events, resume);
}

TEST_CASE("a row source of a program's own is resumed with its state", "[run]") {
  const TempDir folder;
  const RunResult straight = growing_run(folder.file("straight"), {});
  CHECK(metric(straight.last_step, "length") == 5);
  growing_run(folder.file("broken"), {}, 3);
  growing_run(folder.file("broken"), "auto");
  check_same_files(folder.file("broken"), folder.file("straight"));
  CHECK(untimed(folder.file("broken")) == untimed(folder.file("straight")));
  // Rows without an end have no epochs.
  CHECK_FALSE(untimed(folder.file("straight")).front().contains("epoch"));
}

TEST_CASE("a run is resumed with its own rows, model and reference only", "[run]") {
  const TempDir folder;
  const std::string name = folder.file("run");
  const auto refusal = [&](std::shared_ptr<Policy> policy, std::shared_ptr<Policy> reference,
                           std::shared_ptr<RowSource> source) {
    try {
      run(policy, make_frozen_reference(reference), source, own_options(name), {}, "auto");
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("nothing thrown");
  };
  growing_run(name, {}, 3);
  const auto same = [] { return own_policy<AverageModel>(); };
  const auto rows = [] { return std::make_shared<GrowingRows>(); };
  const auto names = [](const std::string& text, const std::string& key) {
    return text.find("other " + key) != std::string::npos;
  };
  CHECK(names(refusal(same(), same()->frozen_copy(), own_source()), "rows to train on"));
  CHECK(names(refusal(own_policy<AverageModel>(4), same()->frozen_copy(), rows()),
              "weights of the model"));
  CHECK(names(refusal(same(), own_policy<AverageModel>(4)->frozen_copy(), rows()),
              "weights of the reference"));
}

TEST_CASE("rows without an end need a number of steps", "[run]") {
  const TempDir folder;
  auto options = own_options(folder.file("run"));
  options.batch.steps = 0;
  const auto policy = own_policy<AverageModel>();
  CHECK_THROWS_TEXT(
      run(policy, make_frozen_reference(policy->frozen_copy()), std::make_shared<GrowingRows>(),
          options),
      ConfigError,
      "batch.steps: expected a number of steps, got 0; the rows have no end that epochs count");
}

/// A source whose number has the name of a run's.
class RudeRows final : public RowSource {
 public:
  StepRows next(Policy& /*policy*/) override { return {.rows = own_rows()}; }
  void finish_step() override { ++step_; }
  void visit_state(StateVisitor& visitor) override { visitor.integer("step", step_); }

 private:
  std::int64_t step_ = 0;
};

TEST_CASE("what a program gives twice is refused", "[run]") {
  const TempDir folder;
  auto options = own_options(folder.file("run"));
  options.model.path = "model";
  const auto policy = own_policy<AverageModel>();
  const auto reference = make_frozen_reference(policy->frozen_copy());
  CHECK_THROWS_AS(run(policy, reference, own_source(), options), ConfigError);
  CHECK_THROWS_TEXT(run(nullptr, reference, own_source(), own_options(folder.file("run"))),
                    ConfigError, "run: expected a policy and a row source, got null");
  CHECK_THROWS_TEXT(
      run(policy, reference, std::make_shared<RudeRows>(), own_options(folder.file("rude"))), Error,
      "row source: expected names that a run does not have for its own state, got 'step'");
}

/// Rows whose numbers or metrics are not those of a step.
class WrongRows final : public RowSource {
 public:
  explicit WrongRows(bool of_numbers) : of_numbers_(of_numbers) {}

  StepRows next(Policy& /*policy*/) override {
    StepRows step{.rows = own_rows()};
    if (of_numbers_) {
      step.numbers = {1};
    } else {
      step.metrics = {{"loss", 0}};
    }
    return step;
  }
  void finish_step() override {}
  void visit_state(StateVisitor& /*visitor*/) override {}

 private:
  bool of_numbers_;
};

TEST_CASE("rows that a run would tell wrongly of are refused", "[run]") {
  const TempDir folder;
  const auto policy = own_policy<AverageModel>();
  const auto reference = make_frozen_reference(policy->frozen_copy());
  const auto options = [&](const char* name) { return own_options(folder.file(name)); };
  CHECK_THROWS_TEXT(run(policy, reference, std::make_shared<WrongRows>(true), options("numbers")),
                    ConfigError, "row source: expected as many numbers as rows, got 1 and 6");
  CHECK_THROWS_TEXT(run(policy, reference, std::make_shared<WrongRows>(false), options("metrics")),
                    ConfigError,
                    "row source: expected metrics that a step does not have itself, got 'loss'");
  auto other = options("rows");
  other.batch.rows = 2;
  CHECK_THROWS_TEXT(run(policy, reference, own_source(), other), ConfigError,
                    "batch.rows: expected the rows that a step of the source has, 3, got 2");
  other = options("idle");
  other.batch.shuffle = false;
  CHECK_THROWS_TEXT(run(policy, reference, own_source(), other), ConfigError,
                    "batch.shuffle: expected its default where a program gives policy and rows, "
                    "which it would not reach, got another value");
  other = options("samples");
  other.loss = R"({"type": "hypo"})";
  CHECK_THROWS_TEXT(run(policy, reference, own_source(), other), ConfigError,
                    "sampling.eos_id: expected the model's end token for samples of 'hypo', got "
                    "none; a program that gives the policy says it");
}

TEST_CASE("a policy that cannot be saved is refused before the first step", "[run]") {
  const TempDir folder;
  const auto policy = std::make_shared<BigramPolicy>(1);
  bool has_stepped = false;
  RunEvents events;
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) { has_stepped = true; };
  auto source = std::make_shared<EpochRows>(
      EpochData{.rows = {{.prompt = {1}, .chosen = {2, 4}, .rejected = {3}}}},
      EpochOptions{.batch_size = 3});
  CHECK_THROWS_AS(run(policy, make_frozen_reference(policy->frozen_copy()), source,
                      own_options(folder.file("run")), events),
                  CheckpointError);
  CHECK_FALSE(has_stepped);
  CHECK_FALSE(fs::exists(folder.file("run.trial")));
}

/// Two names for one parameter, and a table that is no parameter.
class TiedModel : public torch::nn::Cloneable<TiedModel> {
 public:
  TiedModel() { reset(); }
  void reset() override {
    weight = register_parameter("weight", at::ones({kOwnVocab, kOwnVocab}));
    again = register_parameter("again", weight);
    table = register_buffer("table", at::zeros({kOwnVocab}));
  }
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& /*mask*/) {
    return at::embedding(again, ids) + table;
  }
  at::Tensor weight, again, table;
};

TEST_CASE("a parameter with two names is stepped once", "[run]") {
  const auto module = std::make_shared<TiedModel>();
  auto policy = std::make_shared<ModulePolicy<TiedModel>>(module, kOwnVocab);
  Trainer trainer(
      policy, nullptr, make_loss(R"({"type": "sft"})"),
      {.optimizer = {.learning_rate = 0.5, .max_grad_norm = 0, .schedule = Schedule::kConstant}});
  trainer.step(own_rows());
  // The first AdamW step is the learning rate against the sign of the gradient.
  const at::Tensor moved = (module->weight.detach() - 1).abs();
  CHECK(moved.max().item<double>() == Approx(0.5).epsilon(1e-4));
}

TEST_CASE("buffers are part of a module", "[run]") {
  const TempDir folder;
  const auto module = std::make_shared<TiedModel>();
  const ModulePolicy<TiedModel> policy(module, kOwnVocab, "tied");
  const std::string before = content_hash(policy);
  module->table.add_(1);
  CHECK(content_hash(policy) != before);
  policy.save(folder.file("model"));
  const auto saved = read_safetensors(folder.file("model/model.safetensors")).tensors;
  CHECK(std::any_of(saved.begin(), saved.end(),
                    [](const auto& item) { return item.first == "table"; }));
}

TEST_CASE("a policy that cannot read its weights cannot be resumed", "[run]") {
  const TempDir folder;
  CHECK_THROWS_TEXT(std::make_shared<BigramPolicy>(kOwnVocab)->load_weights(folder.file("model")),
                    ConfigError,
                    folder.file("model") +
                        ": expected a policy that reads its weights, got one without load_weights");
}

}  // namespace
}  // namespace prefopt
