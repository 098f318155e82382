// SPDX-License-Identifier: Apache-2.0

// ZeRO-3: slices of weights, which are whole while they are read.

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "decoder/model_shape.h"
#include "dist/gathering_ranks.h"
#include "math/sliced_weight.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/policy/moving_reference.h"
#include "run/plan/memory_plan.h"
#include "support/errors.h"
#include "support/forwarding_ranks.h"
#include "support/rank_jobs.h"
#include "support/reward_models.h"
#include "support/temp_dir.h"

namespace prefopt::over_ranks {
namespace {

ThreadRanks slicing(int size) { return ThreadRanks(size, {.sharding = Sharding::kWeights}); }

std::vector<std::string> losses_on_pairs() {
  std::vector<std::string> all;
  for (const std::string& name : registered_losses()) {
    if (!make_loss(named(name)).requirements().of_rewards) all.push_back(name);
  }
  return all;
}

/// Matrices of queries, keys and values in one, as of gate and up; head apart from the embedding.
std::shared_ptr<Decoder> fused_decoder() {
  DecoderOptions options = tiny_decoder();
  options.family = "phi3";
  options.tie_word_embeddings = false;
  at::manual_seed(4);
  auto policy = std::make_shared<Decoder>(options);
  policy->to(torch::kDouble);
  return policy;
}

Job with_frozen(const std::shared_ptr<Decoder>& policy, const std::string& loss) {
  return pair_job(policy, make_frozen_reference(policy->frozen_copy()), named(loss));
}

TEST_CASE("ranks: slices of weights change no result", "[train]") {
  const auto checkpointing = GENERATE(Checkpointing::kNone, Checkpointing::kFull);
  for (const int size : {2, 3, 4}) {
    CAPTURE(size);
    const auto make_job = [&] {
      const auto policy = decoder(torch::kDouble);
      policy->set_checkpointing(checkpointing);
      return with_frozen(policy, "dpo");
    };
    check_against_one_process(slicing(size), size, make_job, steady(), 1e-12, 3);
  }
}

TEST_CASE("ranks: every loss trains in slices of weights", "[train]") {
  const ThreadRanks ranks = slicing(2);
  for (const std::string& loss : losses_on_pairs()) {
    CAPTURE(loss);
    check_against_one_process(
        ranks, 2, [&] { return pair_job(torch::kDouble, named(loss)); }, steady(), 1e-12, 1);
  }
}

TEST_CASE("ranks: fused matrices, adapters and references in slices of weights", "[train]") {
  const int size = 3;
  const ThreadRanks ranks = slicing(size);
  TempDir folder;
  int caches = 0;
  const MovingReferenceOptions soft{.alpha = 0.3, .update_steps = 1};
  const MovingReferenceOptions bema{.rule = MovingRule::kBema, .update_steps = 1};
  const std::map<std::string, std::function<Job()>> jobs = {
      {"fused", [] { return with_frozen(fused_decoder(), "dpo"); }},
      {"lora", [] { return pair_job(torch::kDouble, named("dpo"), Adapter::kLora); }},
      {"the base of an adapter",
       [] {
         at::manual_seed(3);
         auto policy = std::make_shared<Decoder>(tiny_decoder());
         policy->to(torch::kDouble);
         policy->add_adapter({.r = 2, .target_modules = {"q_proj", "v_proj"}});
         return pair_job(policy, make_frozen_reference(policy->without_adapter()), named("dpo"));
       }},
      {"moving", [&] { return with_moving(Adapter::kNone, soft); }},
      {"moving average", [&] { return with_moving(Adapter::kNone, bema); }},
      {"moving lora", [&] { return with_moving(Adapter::kLora, soft); }},
      {"cached", [&] { return with_cached(folder.file(std::to_string(caches++))); }}};
  for (const auto& [name, make_job] : jobs) {
    CAPTURE(name);
    check_against_one_process(ranks, size, make_job, steady(), 1e-12, 2);
  }
}

TEST_CASE("ranks: reward models and value heads in slices of weights", "[train]") {
  const ThreadRanks ranks = slicing(2);
  check_against_one_process(
      ranks, 2,
      [] {
        return pair_job(RewardModel::load(kRewardModels + "llama", "float64"), nullptr,
                        named("reward_bt"));
      },
      steady(), 1e-12, 2, [](int) { return reward_rows(); });
}

/// Ranks that look, each time something is sent, how many bytes of whole weights there are.
class WeighingWeights final : public ForwardingRanks {
 public:
  using ForwardingRanks::ForwardingRanks;
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override {
    look();
    return ForwardingRanks::begin_sum_scatter(own, all);
  }
  at::Tensor gather(const at::Tensor& own) override {
    look();
    return ForwardingRanks::gather(own);
  }
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const at::Tensor& weight : weights) sum += weight.storage().nbytes();
    return sum;
  }

  std::vector<at::Tensor> weights;  ///< of the policy and its reference
  std::size_t most = 0;

 private:
  void look() { most = std::max(most, bytes()); }
};

TEST_CASE("ranks: a layer at a time is whole, and the rest is slices", "[train]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  const auto checkpointing = GENERATE(Checkpointing::kNone, Checkpointing::kFull);
  const int size = 2;
  const DecoderOptions shape{.vocab_size = 31,
                             .hidden_size = 32,
                             .intermediate_size = 90,
                             .num_hidden_layers = 6,
                             .num_attention_heads = 2,
                             .num_key_value_heads = 1};
  const auto make = [&] {
    at::manual_seed(5);
    auto policy = std::make_shared<Decoder>(shape);
    policy->to(dtype);
    policy->set_checkpointing(checkpointing);
    return policy;
  };
  const std::vector<std::shared_ptr<Decoder>> policies{make(), make()};
  // Of queries and outputs, keys and values, gate, up and down, and two norms.
  const std::size_t numbers = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 90 * 32 + 2 * 32;
  struct Result {
    std::size_t most = 0, at_rest = 0, slices = 0, all = 0;
  };
  const auto results = slicing(size).results<Result>([&](const RanksPtr& one) {
    const auto weighing = std::make_shared<WeighingWeights>(one);
    const auto& policy = policies[static_cast<std::size_t>(one->rank())];
    const auto reference = policy->frozen_decoder();
    for (const auto& model : {policy, reference}) {
      for (const auto& [name, value] : model->named_parameters()) {
        weighing->weights.push_back(value);
      }
    }
    TrainerOptions options = steady();
    options.ranks = std::make_shared<detail::GatheringRanks>(weighing);
    Trainer trainer(policy, make_frozen_reference(reference), make_loss(named("dpo")), options);
    trainer.step(uneven_rows(0));
    trainer.evaluate(uneven_rows(1));
    Result result{.most = weighing->most, .at_rest = weighing->bytes()};
    for (const at::Tensor& weight : weighing->weights) {
      result.all += weight.nbytes();
      result.slices += detail::slice_in(weight).nbytes();
    }
    return result;
  });
  detail::MemoryPlan plan;
  detail::PlanAssumptions machine;
  machine.ranks = size;
  machine.sharding = Sharding::kWeights;
  const detail::ModelShape counted(shape, dtype);
  add_model_parts(detail::model_bytes(counted, {}), machine, plan);
  const std::int64_t frozen = detail::frozen_bytes(counted, machine);
  for (const Result& result : results) {
    CHECK(result.most == numbers * c10::elementSize(dtype));
    // A share, what is whole at a time, and the pieces that it comes in.
    CHECK(plan.parts.front().bytes == frozen + 2 * static_cast<std::int64_t>(result.most));
    CHECK(2 * frozen == static_cast<std::int64_t>(result.slices));
    CHECK(result.at_rest == 0);
    CHECK(result.slices == result.all / 2);  // all weights are even
  }
}

using State = std::vector<std::pair<std::string, at::Tensor>>;

TEST_CASE("ranks: a state continues in slices of weights and out of them", "[train]") {
  struct Leg {
    int size;
    Sharding sharding;
  };
  const std::vector<Leg> legs = {{2, Sharding::kWeights},
                                 {1, Sharding::kNone},
                                 {3, Sharding::kWeights},
                                 {2, Sharding::kOptimizer}};
  const auto make_job = [] {
    return with_moving(Adapter::kNone, {.alpha = 0.3, .update_steps = 1});
  };
  const Outcome unbroken = train(make_job(), nullptr, steady(), static_cast<int>(legs.size()));
  TempDir folder;
  std::string last;
  State state;
  for (std::size_t leg = 0; leg < legs.size(); ++leg) {
    std::vector<Job> jobs;
    for (int r = 0; r < legs[leg].size; ++r) jobs.push_back(make_job());
    const std::string next = folder.file("leg" + std::to_string(leg));
    const ThreadRanks ranks(legs[leg].size, {.sharding = legs[leg].sharding});
    const auto states = ranks.results<State>([&](const RanksPtr& one) {
      TrainerOptions options = steady();
      options.ranks = one;
      const auto trainer = jobs[static_cast<std::size_t>(one->rank())].make_trainer(options);
      if (leg > 0) {
        trainer->load_policy(last);
        trainer->load_state(state);
      }
      trainer->step(uneven_rows(static_cast<int>(leg)));
      trainer->save_policy(next);
      State copies;
      for (const auto& [name, value] : trainer->gather_state()) {
        copies.emplace_back(name, value.clone());
      }
      return copies;
    });
    state = states.front();
    last = next;
  }
  const auto saved = Decoder::load(last)->named_parameters();
  REQUIRE(saved.size() == unbroken.weights.size());
  for (std::size_t i = 0; i < saved.size(); ++i) {
    CHECK(difference(unbroken.weights[i], saved[i].value) <= 1e-12);
  }
}

TEST_CASE("ranks: bfloat16 weights in slices train and are saved as in slices of state",
          "[train]") {
  const auto masters = GENERATE(Masters::kFloat32, Masters::kStochastic);
  TempDir folder;
  const auto trained = [&](Sharding sharding, const std::string& name) {
    const std::vector<Job> jobs{pair_job(torch::kBFloat16, named("dpo")),
                                pair_job(torch::kBFloat16, named("dpo"))};
    const ThreadRanks ranks(2, {.sharding = sharding});
    ranks.run([&](const RanksPtr& one) {
      TrainerOptions options = steady();
      options.optimizer.masters = masters;
      options.ranks = one;
      const auto trainer = jobs[static_cast<std::size_t>(one->rank())].make_trainer(options);
      trainer->step(uneven_rows(0));
      trainer->step(uneven_rows(1));
      trainer->save_policy(folder.file(name));
    });
    return Decoder::load(folder.file(name))->named_parameters();
  };
  const auto whole = trained(Sharding::kGradients, "whole");
  const auto sliced = trained(Sharding::kWeights, "sliced");
  for (std::size_t i = 0; i < whole.size(); ++i) {
    // The same sums in the same order.
    CHECK(sliced[i].value.scalar_type() == whole[i].value.scalar_type());
    CHECK(sliced[i].value.equal(whole[i].value));
  }
}

/// A decoder that fails on its rank in a forward pass, while others need its slices.
class FailingDecoder final : public Policy {
 public:
  FailingDecoder() : inner_(decoder(torch::kDouble)) {}
  PolicyOutput forward(const TokenBatch& batch) override { return inner_->forward(batch); }
  bool packs() const override { return true; }
  at::Tensor forward_packed(const PackedTokens& tokens) override {
    if (fail) fail();
    const at::Tensor states = inner_->forward_packed(tokens);
    return poisoned ? states * std::numeric_limits<double>::quiet_NaN() : states;
  }
  OutputHead head() const override { return inner_->head(); }
  std::int64_t vocab_size() const override { return inner_->vocab_size(); }
  std::vector<NamedParameter> named_parameters() const override {
    return inner_->named_parameters();
  }
  void keep_slices(const RanksPtr& ranks) override { inner_->keep_slices(ranks); }

  std::function<void()> fail = {};
  bool poisoned = false;

 private:
  std::shared_ptr<Decoder> inner_;
};

TEST_CASE("ranks: trouble on one ends all that gather weights, and the next step goes well",
          "[train]") {
  const std::string loss = GENERATE("dpo", "aot");
  const bool lacks_memory = GENERATE(false, true);
  struct Result {
    std::exception_ptr first;
    double loss = 0;
  };
  std::vector<std::shared_ptr<FailingDecoder>> policies;
  for (int r = 0; r < 3; ++r) policies.push_back(std::make_shared<FailingDecoder>());
  const auto results = slicing(3).results<Result>([&](const RanksPtr& one) {
    const auto& policy = policies[static_cast<std::size_t>(one->rank())];
    TrainerOptions options = steady();
    options.ranks = one;
    const auto reference = make_frozen_reference(decoder(torch::kDouble)->frozen_copy());
    Trainer trainer(policy, reference, make_loss(named(loss)), options);
    if (one->rank() == 1) {
      policy->fail = [&] {
        if (lacks_memory) throw std::bad_alloc();
        throw DataError("a broken row");
      };
    }
    Result result;
    try {
      trainer.step(uneven_rows(0));
    } catch (...) {
      result.first = std::current_exception();
    }
    policy->fail = nullptr;
    result.loss = metric(trainer.step(uneven_rows(0)), "loss");
    return result;
  });
  for (const Result& result : results) {
    if (lacks_memory) {
      CHECK(thrown_text<Error>(result.first)
                .starts_with("rank 1: step 1: expected memory for 7 pairs in micro-batches of up "
                             "to 2 pairs"));
    } else {
      CHECK(thrown_text<DataError>(result.first) == "rank 1: a broken row");
    }
    CHECK(result.loss == results.front().loss);
  }
}

TEST_CASE("ranks: a step that is not finite is described by the first rank alone, in slices",
          "[train]") {
  struct Result {
    std::vector<NonFiniteStep> reports;
    std::exception_ptr last;
  };
  std::vector<std::shared_ptr<FailingDecoder>> policies;
  for (int r = 0; r < 2; ++r) policies.push_back(std::make_shared<FailingDecoder>());
  const auto results = slicing(2).results<Result>([&](const RanksPtr& one) {
    const auto& policy = policies[static_cast<std::size_t>(one->rank())];
    policy->poisoned = one->rank() == 1;
    Result result;
    TrainerOptions options = steady();
    options.ranks = one;
    options.on_non_finite = [&](const NonFiniteStep& step) { result.reports.push_back(step); };
    Trainer trainer(policy, nullptr, make_loss(named("sft")), options);
    try {
      for (int step = 0; step < 3; ++step) trainer.step(uneven_rows(step));
    } catch (...) {
      result.last = std::current_exception();
    }
    return result;
  });
  CHECK(results[0].reports.size() == 3);
  CHECK(results[1].reports.empty());
  for (const Result& result : results) {
    CHECK(thrown_text<NonFiniteError>(result.last).starts_with("step 3: expected a finite "));
  }
}

/// A matrix [5, 3] of this number, which two ranks cut into 8 and 7.
at::Tensor matrix_of(double number) { return torch::full({5, 3}, number, torch::kDouble); }

TEST_CASE("ranks: each gathers what it needs, in any order, and serves while it waits", "[train]") {
  const ThreadRanks ranks(3, {.sharding = Sharding::kWeights, .bucket_mib = 1});
  struct Result {
    std::vector<double> read;
    double sum = 0;
  };
  const auto results = ranks.results<Result>([](const RanksPtr& one) {
    const auto gatherer = std::dynamic_pointer_cast<detail::WeightGatherer>(one);
    std::vector<at::Tensor> weights;
    // The last one is longer than a piece.
    weights.push_back(matrix_of(1));
    weights.push_back(matrix_of(2));
    weights.push_back(torch::arange(500'000, torch::kDouble));
    for (const at::Tensor& weight : weights) detail::WeightUnit::slice({weight}, gatherer);
    Result result;
    const auto read = [&](std::size_t i) {
      const detail::HeldWeights held(weights[i]);
      result.read.push_back(weights[i].sum().item<double>());
    };
    const at::Tensor own = torch::ones({1}, torch::kDouble);
    if (one->rank() == 0) {
      for (const std::size_t i : {0, 1, 2, 0}) read(i);
      one->sum({own});
    } else if (one->rank() == 1) {
      read(1);
      one->sum({own});
      read(2);
    } else {
      one->sum({own});
    }
    one->barrier();
    result.sum = own.item<double>();
    return result;
  });
  const double all = 500'000.0 * 499'999 / 2;
  CHECK(results[0].read == std::vector<double>{15, 30, all, 15});
  CHECK(results[1].read == std::vector<double>{30, all});
  CHECK(results[2].read.empty());
  for (const Result& result : results) CHECK(result.sum == 3);
}

/// A rank that asks for the first unit, whatever this one wants.
class AskingRanks final : public ForwardingRanks {
 public:
  AskingRanks() : ForwardingRanks(one_process()) {}
  at::Tensor gather(const at::Tensor& own) override { return torch::zeros_like(own).unsqueeze(0); }
};

TEST_CASE("ranks: a model that a rank no longer has is said by it", "[train]") {
  const auto ranks = std::make_shared<detail::GatheringRanks>(std::make_shared<AskingRanks>());
  detail::WeightUnit::slice({matrix_of(1)}, ranks);
  CHECK_THROWS_TEXT(
      ranks->barrier(), Error,
      "ranks: expected all of them to have the same models, got one that has ended here");
}

TEST_CASE("ranks: models that are not cut into slices are refused by name", "[train]") {
  const auto refused = [](const std::function<std::shared_ptr<Policy>()>& make) {
    const std::vector<std::shared_ptr<Policy>> policies{make(), make()};
    std::string text;
    for (const auto& one : slicing(2).troubles([&](const RanksPtr& ranks) {
           policies[static_cast<std::size_t>(ranks->rank())]->keep_slices(ranks);
         })) {
      text = thrown_text<ConfigError>(one);
    }
    return text;
  };
  CHECK(refused([] { return std::make_shared<BigramPolicy>(9); }) ==
        "distributed.sharding: expected none, optimizer or gradients for a policy that is no "
        "Decoder, got weights; nothing gathers its weights where they are read");
  CHECK(refused([] {
          const auto policy = std::make_shared<Decoder>(tiny_decoder());
          policy->add_adapter({.r = 2, .use_dora = true});
          return policy;
        }) ==
        "distributed.sharding: expected an adapter of low-rank products of linear maps for slices "
        "of weights, got use_dora on 'model.layers.0.self_attn.q_proj', which makes a whole "
        "matrix");
  CHECK(refused([] {
          const auto policy = std::make_shared<Decoder>(tiny_decoder());
          policy->add_adapter({.r = 2, .target_modules = {"embed_tokens"}});
          return policy;
        }) ==
        "distributed.sharding: expected an adapter of low-rank products of linear maps for slices "
        "of weights, got one of 'model.embed_tokens', which makes a whole matrix");
  TempDir folder;
  DecoderOptions wide = tiny_decoder();
  wide.hidden_size = wide.intermediate_size = 32;
  Decoder(wide).save(folder.path());
  CHECK(refused([&] { return Decoder::load(folder.path(), "q8_0"); }) ==
        "distributed.sharding: expected numbers of a floating dtype for slices of weights, got "
        "'model.embed_tokens.weight' in Q8_0 blocks; load the model in a dtype (model.base, "
        "reference.dtype)");
  CHECK(refused([] {
          DecoderOptions options = tiny_decoder();
          options.family = "mixtral";
          options.family_fields = R"({"num_local_experts": 3, "num_experts_per_tok": 2})";
          return std::make_shared<Decoder>(options);
        }) ==
        "distributed.sharding: expected layers without experts for slices of weights, got "
        "'model.layers.0.mlp.experts.0.gate_proj.weight'; autograd would keep whole experts until "
        "the backward pass");
  Decoder alone(tiny_decoder());
  CHECK_THROWS_TEXT(
      alone.keep_slices(one_process({.sharding = Sharding::kWeights})), ConfigError,
      "distributed.sharding: expected ranks of join_ranks with sharding weights, got others");
}

}  // namespace
}  // namespace prefopt::over_ranks
