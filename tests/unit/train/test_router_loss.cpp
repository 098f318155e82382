// SPDX-License-Identifier: Apache-2.0

// The loss that balances routed experts: the same as transformers', however a step is cut.

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/train/trainer.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"
#include "support/thread_ranks.h"
#include "train/metrics.h"

namespace prefopt {
namespace {

using namespace testing_support;
using nlohmann::json;
using Tokens = std::vector<std::int64_t>;
using Gradients = std::map<std::string, at::Tensor>;

const std::string kFamilies = PREFOPT_TEST_DATA_DIR "/families/";

std::vector<TokenRow> rows_of_families() {
  std::vector<TokenRow> rows;
  const json recorded = json::parse(bytes_of(kFamilies + "expected.json"));
  for (const json& row : recorded["rows"]) {
    rows.push_back({.prompt = row["prompt"].get<Tokens>(),
                    .chosen = row["chosen"].get<Tokens>(),
                    .rejected = row["rejected"].get<Tokens>()});
  }
  return rows;
}

/// A folder with a model whose config asks for the loss with a coefficient of 1, or does not.
std::string asking_folder(const TempDir& dir, const std::string& name, json changes, bool asks) {
  json config = json::parse(bytes_of(kFamilies + name + "/config.json"));
  changes["output_router_logits"] = asks;
  if (!changes.contains("router_aux_loss_coef")) changes["router_aux_loss_coef"] = 1.0;
  config.update(changes);
  put(dir.file("config.json"), config.dump());
  std::filesystem::copy_file(kFamilies + name + "/model.safetensors",
                             dir.file("model.safetensors"));
  return dir.path();
}

std::shared_ptr<Decoder> routed(const std::string& name, const json& changes = json::object(),
                                bool asks = true) {
  const TempDir dir;
  return Decoder::load(asking_folder(dir, name, changes, asks), "float64");
}

struct Step {
  Metrics metrics;
  Gradients gradients;
};

struct Cut {
  std::int64_t micro_batch_size = 0;
  std::shared_ptr<Ranks> ranks = {};
};

Trainer trainer_of(const std::shared_ptr<Decoder>& policy, const std::string& loss,
                   const Cut& cut = {}) {
  return Trainer(policy, make_frozen_reference(policy->frozen_copy()),
                 make_loss(json{{"type", loss}}.dump()),
                 {.optimizer = {.max_grad_norm = 0, .schedule = Schedule::kConstant},
                  .micro_batch_size = cut.micro_batch_size,
                  .ranks = cut.ranks});
}

Step step_of(const std::shared_ptr<Decoder>& policy, const std::string& loss, const Cut& cut = {},
             const std::vector<TokenRow>& rows = rows_of_families()) {
  Trainer trainer = trainer_of(policy, loss, cut);
  Step step{.metrics = trainer.accumulate_gradients(rows), .gradients = {}};
  for (const auto& [name, value] : policy->named_parameters()) {
    step.gradients[name] = value.grad().defined() ? value.grad().clone() : at::zeros_like(value);
  }
  return step;
}

/// The part of a gradient that the routers' loss adds.
Gradients added_gradients(const std::string& name, const json& changes, const std::string& loss) {
  Gradients with = step_of(routed(name, changes), loss).gradients;
  const Gradients without = step_of(routed(name, changes, /*asks=*/false), loss).gradients;
  for (auto& [weight, gradient] : with) gradient = gradient - without.at(weight);
  return with;
}

double worst(const Gradients& a, const Gradients& b) {
  double most = 0;
  for (const auto& [name, value] : a) {
    most = std::max(most, (value - b.at(name)).abs().max().item<double>());
  }
  return most;
}

std::string name_here(std::string name) {
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{".block_sparse_moe.", ".mlp."},
                                                        {".w1.", ".gate_proj."},
                                                        {".w2.", ".down_proj."},
                                                        {".w3.", ".up_proj."}}) {
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  }
  return name;
}

/// Norm, first, middle and last entry.
std::vector<double> numbers_of(const at::Tensor& gradient) {
  const at::Tensor flat = gradient.flatten();
  const std::int64_t size = flat.size(0);
  return {flat.norm().item<double>(), flat[0].item<double>(), flat[size / 2].item<double>(),
          flat[size - 1].item<double>()};
}

}  // namespace

TEST_CASE("router loss: value and gradients of transformers", "[train]") {
  const json recorded = json::parse(bytes_of(kFamilies + "router.json"));
  for (const auto& [name, variants] : recorded["models"].items()) {
    for (const json& variant : variants) {
      INFO(name << " " << variant["changes"].dump());
      const Step step = step_of(routed(name, variant["changes"]), "dpo");
      const double value = metric(step.metrics, "aux_loss");
      CHECK(std::abs(value - variant["aux_loss"].get<double>()) < 1e-9);
      // The policy is its own reference, so DPO's part is log 2.
      CHECK(std::abs(metric(step.metrics, "loss") - std::log(2) - value) < 1e-12);
      const Gradients added = added_gradients(name, variant["changes"], "dpo");
      for (const auto& [weight, expected] : variant["gradients"].items()) {
        INFO(weight);
        const auto numbers = numbers_of(added.at(name_here(weight)));
        for (std::size_t i = 0; i < numbers.size(); ++i) {
          CHECK(std::abs(numbers[i] - expected[i].get<double>()) < 1e-8);
        }
      }
    }
  }
}

TEST_CASE("router loss: a prompt counts once for each completion, whoever shares it", "[train]") {
  const TokenRow pair = rows_of_families()[1];
  const TokenRow chosen{.prompt = pair.prompt, .chosen = pair.chosen, .rejected = {}};
  const TokenRow rejected{.prompt = pair.prompt, .chosen = pair.rejected, .rejected = {}};
  const auto policy = routed("mixtral");
  const double apart = metric(step_of(policy, "sft", {}, {chosen, rejected}).metrics, "aux_loss");
  const double together = metric(step_of(policy, "dpo", {}, {pair}).metrics, "aux_loss");
  CHECK(std::abs(apart - together) < 1e-12);
  // Tokens that do not count in the objective are routed, too.
  TokenRow masked = chosen;
  masked.chosen_mask.assign(masked.chosen.size(), 0);
  masked.chosen_mask.front() = 1;
  CHECK(metric(step_of(policy, "sft", {}, {masked, rejected}).metrics, "aux_loss") == apart);
}

TEST_CASE("router loss: the cut of a step changes nothing", "[train]") {
  for (const char* loss : {"dpo", "kto_pair", "aot"}) {
    for (const char* name : {"mixtral", "qwen3_moe"}) {
      INFO(loss << " " << name);
      const Step whole = step_of(routed(name), loss);
      for (const std::int64_t size : {1, 2}) {
        const Step parts = step_of(routed(name), loss, {.micro_batch_size = size});
        CHECK(worst(whole.gradients, parts.gradients) < 1e-12);
        for (const char* metric_name : {"loss", "aux_loss"}) {
          CHECK(std::abs(metric(whole.metrics, metric_name) - metric(parts.metrics, metric_name)) <
                1e-12);
        }
      }
    }
  }
}

TEST_CASE("router loss: ranks change nothing", "[train]") {
  // More ranks than rows: one has no part.
  for (const int size : {2, 4}) {
    const ThreadRanks ranks(size);
    for (const char* loss : {"dpo", "aot"}) {
      INFO(size << " " << loss);
      const Step one = step_of(routed("mixtral"), loss);
      const auto all = ranks.results<Step>([&](const std::shared_ptr<Ranks>& own) {
        return step_of(routed("mixtral"), loss, {.micro_batch_size = 1, .ranks = own});
      });
      for (const Step& step : all) {
        CHECK(worst(one.gradients, step.gradients) < 1e-12);
        CHECK(std::abs(metric(one.metrics, "aux_loss") - metric(step.metrics, "aux_loss")) < 1e-12);
      }
    }
  }
}

TEST_CASE("router loss: finite differences, and an evaluation gives the value", "[train]") {
  for (const char* name : {"mixtral", "qwen3_moe"}) {
    INFO(name);
    const auto policy = routed(name);
    const Gradients added = added_gradients(name, json::object(), "sft");
    Trainer trainer = trainer_of(policy, "sft", {.micro_batch_size = 2});
    const auto moved_by = [&](double by) {
      const at::NoGradGuard no_grad;
      for (const auto& [weight, value] : policy->named_parameters()) {
        value.add_(added.at(weight) * by);
      }
      return metric(trainer.evaluate(rows_of_families()), "aux_loss");
    };
    constexpr double kStep = 1e-5;
    const double low = moved_by(-kStep), high = moved_by(2 * kStep);
    double squares = 0;
    for (const auto& item : added) squares += item.second.square().sum().item<double>();
    REQUIRE(squares > 1e-4);
    CHECK(std::abs((high - low) / (2 * kStep) - squares) < 1e-7 * squares);
    const double here = moved_by(-kStep);
    CHECK(std::abs(here - metric(step_of(policy, "sft").metrics, "aux_loss")) < 1e-12);
  }
}

TEST_CASE("router loss: without it, models are what they were", "[train]") {
  const json zero = {{"router_aux_loss_coef", 0.0}};
  const Metrics silent = step_of(Decoder::load(kFamilies + "mixtral", "float64"), "dpo").metrics;
  CHECK(step_of(routed("mixtral", json::object(), /*asks=*/false), "dpo").metrics == silent);
  CHECK(step_of(routed("mixtral", zero), "dpo").metrics == silent);
  // Nor are their hashes others.
  const TempDir dir;
  CHECK(content_hash(*Decoder::load(
            asking_folder(dir, "mixtral", {{"router_aux_loss_coef", 0.001}}, false), "float64")) ==
        content_hash(*Decoder::load(kFamilies + "mixtral", "float64")));
}

TEST_CASE("router loss: losses that do not add it say so", "[train]") {
  const auto refusal = [](const std::string& loss, const std::string& model) {
    return loss + ": expected output_router_logits false in the config of its " + model +
           ", got true; the loss of routers is added to losses of pairs, labelled rows and "
           "demonstrations alone";
  };
  const TempDir dir;
  const std::string folder = asking_folder(dir, "mixtral", json::object(), true);
  std::shared_ptr<Policy> rewards = RewardModel::load(folder, "float64", ScoreHead::kFreshIfNone);
  CHECK_THROWS_TEXT(Trainer(rewards, nullptr, make_loss(json{{"type", "reward_bt"}}.dump()), {}),
                    ConfigError, refusal("reward_bt", "model"));
  const TokenObjective objective = make_token_objective(R"({"type": "grpo"})");
  CHECK_THROWS_TEXT(Trainer(routed("mixtral"), nullptr, objective, {}), ConfigError,
                    refusal(objective.name(), "model"));
}

}  // namespace prefopt
