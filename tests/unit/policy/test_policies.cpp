// SPDX-License-Identifier: Apache-2.0

// The interface of every policy, and the adapters for models that were written elsewhere.

#include <torch/csrc/jit/api/module.h>
#include <torch/version.h>

#include <fstream>

#include "policy/parameters.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/module_policy.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/script_policy.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_policies {
namespace {

using testing_support::TempDir;

/// Logits are the mean of the rows that the tokens so far pick: causal, with one parameter.
struct MeanModel : torch::nn::Cloneable<MeanModel> {
  explicit MeanModel(std::int64_t vocab_size) : vocab_size_(vocab_size) { reset(); }
  void reset() override {
    weight = register_parameter("weight", at::randn({vocab_size_, vocab_size_}));
  }
  at::Tensor forward(const at::Tensor& input_ids, const at::Tensor&) {
    const at::Tensor counts = at::arange(1, input_ids.size(1) + 1).unsqueeze(1);
    return at::embedding(weight, input_ids).cumsum(1) / counts;
  }

  at::Tensor weight;

 private:
  std::int64_t vocab_size_;
};

/// Logits that dropout makes random in training.
struct DropoutModel : torch::nn::Cloneable<DropoutModel> {
  DropoutModel() { reset(); }
  void reset() override { weight = register_parameter("weight", at::ones({7})); }
  at::Tensor forward(const at::Tensor& input_ids, const at::Tensor&) {
    const at::Tensor ones = at::ones({input_ids.size(0), input_ids.size(1), 7}) * weight;
    return at::dropout(ones, 0.5, is_training());
  }
  at::Tensor weight;
};

/// A module that LibTorch cannot copy.
struct UniqueModel : torch::nn::Module {
  at::Tensor forward(const at::Tensor& input_ids, const at::Tensor&) {
    return at::zeros({input_ids.size(0), input_ids.size(1), 7});
  }
};

std::shared_ptr<ModulePolicy<MeanModel>> module_policy(std::int64_t vocab_size = 7) {
  torch::manual_seed(3);
  return std::make_shared<ModulePolicy<MeanModel>>(std::make_shared<MeanModel>(vocab_size),
                                                   vocab_size);
}

/// The same in TorchScript.
std::string saved_script(const TempDir& dir, const std::string& body,
                         const std::string& name = "model.pt") {
  torch::manual_seed(3);
  torch::jit::Module module("MeanModel");
  module.register_parameter("weight", at::randn({7, 7}).requires_grad_(true),
                            /*is_buffer=*/false);
  module.define(body);
  module.save(dir.file(name));
  return dir.file(name);
}

constexpr const char* kMeanScript = R"(
def forward(self, input_ids, attention_mask):
    counts = torch.arange(1, input_ids.size(1) + 1).unsqueeze(1)
    return torch.cumsum(torch.embedding(self.weight, input_ids), 1) / counts
)";

TokenBatch small_batch() {
  const std::vector<std::int64_t> prompt_a{1, 2}, completion_a{3, 4}, prompt_b{5}, completion_b{6};
  return make_batch({{prompt_a, completion_a}, {prompt_b, completion_b}});
}

/// Nothing but what is abstract.
class BarePolicy final : public Policy {
 public:
  PolicyOutput forward(const TokenBatch& batch) override {
    return {.hidden = {},
            .logits = at::zeros({batch.input_ids.size(0), batch.input_ids.size(1), 7})};
  }
  std::int64_t vocab_size() const override { return 7; }
  std::vector<NamedParameter> named_parameters() const override { return {}; }
};

TEST_CASE("policies of equal weights are one model, if their config describes them", "[policy]") {
  at::manual_seed(4);
  Decoder decoder({.vocab_size = 16,
                   .hidden_size = 8,
                   .intermediate_size = 8,
                   .num_hidden_layers = 1,
                   .num_attention_heads = 2,
                   .num_key_value_heads = 1});
  const auto copy = decoder.frozen_decoder();
  CHECK(detail::have_equal_weights(decoder, *copy));
  const auto wide = decoder.frozen_decoder();
  wide->to(at::kDouble);
  CHECK_FALSE(detail::have_equal_weights(decoder, *wide));
  {
    const at::NoGradGuard no_grad;
    copy->named_parameters().back().value.view(-1)[0].add_(1e-3);
  }
  CHECK_FALSE(detail::have_equal_weights(decoder, *copy));
  CHECK_FALSE(detail::have_equal_weights(BarePolicy(), BarePolicy()));
}

TEST_CASE("a module drops nothing out, neither in training nor as a reference", "[policy]") {
  const auto module = std::make_shared<DropoutModel>();
  REQUIRE(module->is_training());
  ModulePolicy<DropoutModel> policy(module, 7);
  const std::vector<std::int64_t> prompt{1}, completion{2, 3};
  const TokenBatch batch = make_batch({{prompt, completion}});
  CHECK(at::equal(policy.forward(batch).logits, at::ones({1, 3, 7})));
  CHECK(at::equal(policy.frozen_copy()->forward(batch).logits, at::ones({1, 3, 7})));
  module->train();
  CHECK_THROWS_TEXT(policy.forward(batch), ConfigError,
                    "module policy: expected a module in evaluation mode, got one in training "
                    "mode; dropout would make each pass another policy");
}

TEST_CASE("a module that cannot be copied is refused", "[policy]") {
  const ModulePolicy<UniqueModel> policy(std::make_shared<UniqueModel>(), 7);
  CHECK_THROWS_TEXT(policy.frozen_copy(), ConfigError,
                    "module policy: expected a module that derives from torch::nn::Cloneable, got "
                    "one that cannot be copied");
}

}  // namespace

TEST_CASE("policy: what a policy does not have is said", "[policy]") {
  BarePolicy policy;
  CHECK(policy.device() == at::Device(at::kCPU));
  CHECK_FALSE(policy.head().weight.defined());
  CHECK_THROWS_TEXT(
      policy.frozen_copy(), ConfigError,
      "policy: expected a policy that can be copied as reference, got one without frozen_copy");
  CHECK_THROWS_TEXT(
      policy.save("run/final"), CheckpointError,
      "run/final: expected a policy with its own format, got one that cannot be saved");
}

TEST_CASE("policy: the default session gives what whole forwards give", "[policy]") {
  const auto policy = module_policy();
  const at::Tensor weight = policy->named_parameters().front().value.detach();
  const auto session = policy->start_decoding({{1, 2, 3}, {4}});
  const at::Tensor first = session->prefill();
  CHECK_FALSE(first.requires_grad());
  CHECK(at::allclose(first[0], (weight[1] + weight[2] + weight[3]) / 3));
  CHECK(at::allclose(first[1], weight[4]));
  const at::Tensor second = session->append(at::tensor({5, 6}, at::kLong));
  CHECK(at::allclose(second[0], (weight[1] + weight[2] + weight[3] + weight[5]) / 4));
  CHECK(at::allclose(second[1], (weight[4] + weight[6]) / 2));
}

TEST_CASE("policy: sessions refuse what they cannot decode", "[policy]") {
  const auto policy = module_policy();
  CHECK_THROWS_TEXT(policy->start_decoding({}), ShapeError,
                    "start_decoding: expected at least one prompt, got none");
  CHECK_THROWS_TEXT(policy->start_decoding({{1}, {2, 7}}), DataError,
                    "start_decoding: expected token ids in [0, 7), got 7 in prompt 1");
  CHECK_THROWS_TEXT(policy->start_decoding({{-1}}), DataError,
                    "start_decoding: expected token ids in [0, 7), got -1 in prompt 0");
  const auto session = policy->start_decoding({{1}, {2}});
  session->prefill();
  CHECK_THROWS_TEXT(session->append(at::zeros({3}, at::kLong)), ShapeError,
                    "append: expected tokens [2], got [3]");
  CHECK_THROWS_TEXT(session->append(at::zeros({2})), DtypeError,
                    "append: expected int64 tokens, got Float");
  CHECK_THROWS_TEXT(session->append(at::tensor({0, 9}, at::kLong)), DataError,
                    "append: expected token ids in [0, 7), got 9");
}

TEST_CASE("policy: content_hash covers config, names, shapes, dtypes and bytes", "[policy]") {
  const auto policy = module_policy();
  const std::string hash = content_hash(*policy);
  CHECK(hash.size() == 40);
  CHECK(content_hash(*module_policy()) == hash);
  CHECK(content_hash(*policy->frozen_copy()) == hash);
  CHECK(content_hash(*module_policy(6)) != hash);
  {
    const at::NoGradGuard no_grad;
    policy->named_parameters().front().value[6][6] += 1e-3;
  }
  CHECK(content_hash(*policy) != hash);

  const DecoderOptions options{.vocab_size = 5,
                               .hidden_size = 8,
                               .intermediate_size = 8,
                               .num_hidden_layers = 1,
                               .num_attention_heads = 2,
                               .num_key_value_heads = 2};
  DecoderOptions other_base = options;
  other_base.rope_theta = 5000;
  torch::manual_seed(1);
  Decoder decoder(options);
  torch::manual_seed(1);
  CHECK(content_hash(Decoder(other_base)) != content_hash(decoder));
  const std::string in_float32 = content_hash(decoder);
  decoder.to(at::kDouble);
  CHECK(content_hash(decoder) != in_float32);
}

TEST_CASE("module policy: trains, copies and samples", "[policy]") {
  const auto policy = module_policy();
  const auto copy = policy->frozen_copy();
  const TokenBatch batch = small_batch();
  const SequenceLogps live = sequence_logps(*policy, batch);
  CHECK(at::equal(sequence_logps(*copy, batch).logps, live.logps));
  CHECK_FALSE(sequence_logps(*copy, batch).logps.requires_grad());

  live.logps.sum().backward();
  const at::Tensor weight = policy->named_parameters().front().value;
  REQUIRE(weight.grad().defined());
  CHECK(weight.grad().abs().sum().item<float>() > 0);
  {
    const at::NoGradGuard no_grad;
    weight.add_(weight.grad(), 0.1);
  }
  CHECK(sequence_logps(*policy, batch).logps.sum().item<double>() >
        live.logps.sum().item<double>());
  CHECK(at::equal(sequence_logps(*copy, batch).logps, live.logps));
  CHECK(sample(*policy, {{1}, {2, 3}}, {.max_new_tokens = 4}).front().size() == 4);
}

TEST_CASE("script policy: gives the logits of the same torch::nn module", "[policy]") {
  const TempDir dir;
  const auto policy = ScriptPolicy::load(saved_script(dir, kMeanScript), 7);
  const TokenBatch batch = small_batch();
  const SequenceLogps live = sequence_logps(*policy, batch);
  CHECK(at::equal(live.logps, sequence_logps(*module_policy(), batch).logps));
  CHECK(policy->vocab_size() == 7);
  REQUIRE(policy->named_parameters().size() == 1);
  CHECK(policy->named_parameters().front().name == "weight");
  CHECK(policy->device() == at::Device(at::kCPU));

  live.logps.sum().backward();
  CHECK(policy->named_parameters().front().value.grad().abs().sum().item<float>() > 0);
  CHECK(sample(*policy, {{1}, {2, 3}}, {.max_new_tokens = 4, .seed = 9}) ==
        sample(*module_policy(), {{1}, {2, 3}}, {.max_new_tokens = 4, .seed = 9}));
}

TEST_CASE("script policy: copies share nothing, files come back", "[policy]") {
  const TempDir dir;
  const auto policy = ScriptPolicy::load(saved_script(dir, kMeanScript), 7);
  const TokenBatch batch = small_batch();
  const at::Tensor before = sequence_logps(*policy, batch).logps.detach();
  const auto copy = policy->frozen_copy();
  {
    const at::NoGradGuard no_grad;
    policy->named_parameters().front().value.mul_(2);
  }
  CHECK(at::equal(sequence_logps(*copy, batch).logps, before));
  CHECK_FALSE(copy->named_parameters().front().value.requires_grad());
  const at::Tensor after = sequence_logps(*policy, batch).logps;
  CHECK_FALSE(at::equal(after, before));

  policy->save(dir.file("again.pt"));
  CHECK(
      at::equal(sequence_logps(*ScriptPolicy::load(dir.file("again.pt"), 7), batch).logps, after));
}

TEST_CASE("script policy: files and results that do not fit are refused", "[policy]") {
  const TempDir dir;
  CHECK_THROWS_TEXT(
      ScriptPolicy::load(dir.file("none.pt"), 7), CheckpointError,
      dir.file("none.pt") + ": expected a readable file, got No such file or directory");
  std::ofstream(dir.file("text.pt")) << "not a zip file";
  CHECK_THROWS_AS(ScriptPolicy::load(dir.file("text.pt"), 7), CheckpointError);
  const std::string good = saved_script(dir, kMeanScript);
  CHECK_THROWS_TEXT(ScriptPolicy::load(good, 0), ConfigError,
                    "script policy: expected a vocab_size of at least 1, got 0");
  const std::string one_argument =
      saved_script(dir, "def forward(self, input_ids):\n    return input_ids\n", "one.pt");
  CHECK_THROWS_TEXT(ScriptPolicy::load(one_argument, 7), CheckpointError,
                    one_argument +
                        ": expected a module with forward(input_ids, attention_mask), "
                        "got another signature");

  const TokenBatch batch = small_batch();
  CHECK_THROWS_TEXT(ScriptPolicy::load(good, 8)->forward(batch), ShapeError,
                    "script policy: expected logits [2, 4, 8], got [2, 4, 7]");
  const auto tuple =
      ScriptPolicy::load(saved_script(dir,
                                      "def forward(self, input_ids, attention_mask):\n"
                                      "    return (input_ids, attention_mask)\n",
                                      "tuple.pt"),
                         7);
  CHECK_THROWS_TEXT(tuple->forward(batch), ShapeError,
                    "script policy: expected logits [S, T, vocab], got Tuple");
  const auto failing =
      ScriptPolicy::load(saved_script(dir,
                                      "def forward(self, input_ids, attention_mask):\n"
                                      "    return torch.mm(self.weight, attention_mask.float())\n",
                                      "fails.pt"),
                         7);
  // Later versions of LibTorch say `mm` in front of the reason.
  const std::string operation = TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 15 ? "mm: " : "";
  CHECK_THROWS_TEXT(failing->forward(batch), Error,
                    "script policy: expected forward to run, got: RuntimeError: " + operation +
                        "mat1 and mat2 shapes cannot be multiplied (7x7 and 2x4)");
}

}  // namespace prefopt::test_policies
