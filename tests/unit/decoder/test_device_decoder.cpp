// SPDX-License-Identifier: Apache-2.0

// Decoders on a device whose memory the host cannot touch (support/pretend_device.h), against the
// CPU.

#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "decoder/segment_attention.h"
#include "decoder/tree_attention.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/child.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/logps_oracle.h"
#include "support/pretend_device.h"
#include "support/temp_dir.h"

namespace prefopt::test_device_decoder {
namespace {

using namespace testing_support;
using detail::AttentionOperator;
using detail::SegmentPlan;
using Blocks = std::vector<AttentionBlock>;
using Tokens = std::vector<std::int64_t>;

// --- attention --------------------------------------------------------------------------------

struct Heads {
  std::int64_t query, kv, dim;
};

struct Inputs {
  at::Tensor query, key, value, cotangent;

  Inputs to(at::TensorOptions options) const {
    return {query.to(options), key.to(options), value.to(options), cotangent.to(options)};
  }
};

constexpr double kScale = 0.4;

/// Two groups of a prompt with branches, a sequence alone, and a prompt whose first rows are not
/// wanted, as in the last layer of a stream.
Blocks stream_blocks() {
  return {{.query = 0, .key = 0, .length = 5},
          {.query = 5, .key = 5, .length = 3, .prefix = 0, .prefix_length = 5},
          {.query = 8, .key = 8, .length = 4, .prefix = 0, .prefix_length = 5},
          {.query = 12, .key = 12, .length = 6},
          {.query = 18, .key = 20, .length = 2, .prefix = 18, .prefix_length = 2},
          {.query = 20, .key = 22, .length = 1, .prefix = 18, .prefix_length = 4},
          {.query = 21, .key = 23, .length = 7, .prefix = 18, .prefix_length = 4}};
}
constexpr std::int64_t kQueries = 28, kKeys = 30;

Inputs random_inputs(Heads heads) {
  return {random_normal({kQueries, heads.query, heads.dim}, at::kDouble, 1),
          random_normal({kKeys, heads.kv, heads.dim}, at::kDouble, 2),
          random_normal({kKeys, heads.kv, heads.dim}, at::kDouble, 3),
          random_normal({kQueries, heads.query, heads.dim}, at::kDouble, 4)};
}

struct Everything {
  AttentionResult result;
  AttentionGradients gradients;
};

Everything by_segments(const Inputs& in, const AttentionLimits& limits) {
  const auto plan = SegmentPlan::make(stream_blocks(), kQueries, kKeys, in.query.device());
  const auto result = detail::segment_attention(in.query, in.key, in.value, plan, kScale, limits);
  return {result, detail::segment_attention_backward(in.cotangent, in.query, in.key, in.value,
                                                     result, plan, kScale, limits)};
}

Everything by_kernels(const Inputs& in, const AttentionLimits& limits) {
  const auto result = tree_attention(in.query, in.key, in.value, stream_blocks(), kScale, limits);
  return {result, tree_attention_backward(in.cotangent, in.query, in.key, in.value, result,
                                          stream_blocks(), kScale, limits)};
}

void check_close(const Everything& got, const Everything& expected, double most) {
  const auto check = [&](const char* name, const at::Tensor& a, const at::Tensor& b) {
    const double error = relative_error(a.cpu().to(at::kDouble), b.to(at::kDouble));
    INFO(name << ", relative error " << error);
    CHECK(a.sizes() == b.sizes());
    CHECK(error <= most);
  };
  check("output", got.result.output, expected.result.output);
  check("logsumexp", got.result.logsumexp, expected.result.logsumexp);
  check("query", got.gradients.query, expected.gradients.query);
  check("key", got.gradients.key, expected.gradients.key);
  check("value", got.gradients.value, expected.gradients.value);
}

// --- decoders ---------------------------------------------------------------------------------

const std::string kFamilies = PREFOPT_TEST_DATA_DIR "/families/";

const nlohmann::json& recorded() {
  static const auto all = nlohmann::json::parse(bytes_of(kFamilies + "expected.json"));
  return all;
}

std::vector<TokenRow> family_rows() {
  std::vector<TokenRow> rows;
  for (const auto& row : recorded()["rows"]) {
    rows.push_back({.prompt = row["prompt"].get<Tokens>(),
                    .chosen = row["chosen"].get<Tokens>(),
                    .rejected = row["rejected"].get<Tokens>()});
  }
  // Completions that begin alike, and one prompt twice.
  rows.push_back({.prompt = rows[0].prompt, .chosen = {5, 6, 7}, .rejected = {5, 6, 8, 9}});
  return rows;
}

std::shared_ptr<Decoder> copy_on(const Decoder& decoder, at::Device device) {
  auto copy = decoder.frozen_decoder();
  copy->to(device);
  copy->set_requires_grad(true);
  return copy;
}

struct Scored {
  at::Tensor logps, token_logps;
  std::vector<std::pair<std::string, at::Tensor>> gradients;
};

/// Log-probs of all sequences, and gradients under a fixed cotangent, on the CPU.
Scored score(Decoder& decoder, const TokenBatch& batch) {
  for (const auto& [name, value] : decoder.named_parameters()) value.mutable_grad().reset();
  const SequenceLogps result = sequence_logps(decoder, batch.to(decoder.device()));
  const at::Tensor cotangent = random_normal(result.logps.sizes().vec(), at::kDouble, 11);
  (result.logps * cotangent.to(decoder.device())).sum().backward();
  Scored scored{result.logps.detach().cpu(), result.token_logps.detach().cpu(), {}};
  for (const auto& [name, value] : decoder.named_parameters()) {
    const at::Tensor& grad = value.grad();
    scored.gradients.emplace_back(name, grad.defined() ? grad.cpu() : at::Tensor());
  }
  return scored;
}

void check_equal(const Scored& got, const Scored& expected, double most) {
  CHECK(relative_error(got.logps, expected.logps) <= most);
  CHECK(relative_error(got.token_logps, expected.token_logps) <= most);
  REQUIRE(got.gradients.size() == expected.gradients.size());
  for (std::size_t i = 0; i < got.gradients.size(); ++i) {
    INFO(expected.gradients[i].first);
    const auto &a = got.gradients[i].second, &b = expected.gradients[i].second;
    REQUIRE(a.defined() == b.defined());
    if (b.defined() && b.abs().max().item<double>() > 0) CHECK(relative_error(a, b) <= most);
  }
}

std::shared_ptr<Decoder> with_random_adapter(const Decoder& decoder) {
  auto adapted = decoder.frozen_decoder();
  torch::manual_seed(2);
  adapted->add_adapter({.r = 2, .lora_alpha = 3, .target_modules = {"q_proj", "v_proj", "o_proj"}});
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : adapted->named_parameters()) {
    if (value.requires_grad()) value.normal_(0, 0.3);
  }
  return adapted;
}

}  // namespace

TEST_CASE("pretend device: whoever reads its memory on the host dies", "[decoder][device]") {
  const at::Tensor there = at::ones({3}, at::kFloat).to(pretend_device());
  const auto end_of = [](const std::function<void()>& work) {
    const pid_t child = start_child([&] {
      std::signal(SIGSEGV, SIG_DFL);
      work();
    });
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return status;
  };
  const int read = end_of([&] {
    volatile float sum = 0;
    sum = sum + *there.const_data_ptr<float>();
  });
  CHECK(WIFSIGNALED(read));
  CHECK(WTERMSIG(read) == SIGSEGV);
  const int written = end_of([&] { *there.mutable_data_ptr<float>() = 1; });
  CHECK(WIFSIGNALED(written));
  // The same child with an operator in the place of the read.
  const int copied = end_of([&] { (void)there.cpu(); });
  CHECK(WIFEXITED(copied));
  CHECK(WEXITSTATUS(copied) == 0);
}

TEST_CASE("pretend device: operators refuse tensors of another device", "[decoder][device]") {
  const at::Tensor there = at::ones({3, 2}).to(pretend_device());
  CHECK_THROWS_AS(there.index_copy_(0, at::zeros({1}, at::kLong), at::ones({1, 2})), c10::Error);
  CHECK(there.sum().item<float>() == 6);
  const auto waits = take_waits();
  CHECK(std::count(waits.begin(), waits.end(), "a single number") >= 1);
}

TEST_CASE("the CPU's kernels refuse tensors of a device", "[decoder][device]") {
  const at::Tensor rows = at::zeros({4, 2, 8}).to(pretend_device());
  CHECK_THROWS_TEXT(tree_attention(rows, rows, rows, {{.length = 4}}, 1), DeviceError,
                    "tree_attention: expected query on the CPU, got pretend:0");
}

TEST_CASE("segment attention: equals the CPU's kernels in values and gradients",
          "[decoder][device]") {
  const auto heads = GENERATE(Heads{4, 2, 8}, Heads{3, 1, 10});
  const auto limits = GENERATE(AttentionLimits{}, AttentionLimits{.window = 3},
                               AttentionLimits{.window = 7, .softcap = 2},
                               AttentionLimits{.softcap = 1.5}, AttentionLimits{.window = 1000});
  const at::Device device = GENERATE(at::Device(at::kCPU), pretend_device());
  INFO(heads.query << " heads, " << heads.kv << ", window " << limits.window << ", softcap "
                   << limits.softcap << ", " << device.str());
  const Inputs in = random_inputs(heads);
  const Everything expected = by_kernels(in, limits);
  check_close(by_segments(in.to(device), limits), expected, 1e-12);
  check_close(by_segments(in.to(at::TensorOptions(at::kFloat).device(device)), limits), expected,
              1e-5);
  check_close(by_segments(in.to(at::TensorOptions(at::kBFloat16).device(device)), limits), expected,
              5e-2);
}

TEST_CASE("segment attention: flash and plain operators are two ways to the same",
          "[decoder][device]") {
  const bool is_causal = GENERATE(true, false);
  const Inputs in = random_inputs({4, 2, 8});
  const auto list = detail::SequenceList::make(
      {{0, 5, 0, 5, 0}, {5, 1, 5, 1, 0}, {6, 22, 6, 22, 0}}, is_causal, at::kCPU);
  const at::Tensor key = in.key.narrow(0, 0, kQueries), value = in.value.narrow(0, 0, kQueries);
  const auto both = [&](AttentionOperator by) {
    AttentionResult whole = detail::attend_sequences(by, in.query, key, value, list, kScale, {});
    // As if there were other keys: a larger sum, and another output.
    const AttentionResult part = whole;
    whole.logsumexp = whole.logsumexp + 0.7;
    whole.output = whole.output * 0.6;
    return Everything{part, detail::attend_sequences_backward(by, in.cotangent, in.query, key,
                                                              value, whole, list, kScale, {})};
  };
  check_close(both(AttentionOperator::kFlashCpu), both(AttentionOperator::kPlain), 1e-12);
}

TEST_CASE("device decoder: log-probs and gradients of all families are the CPU's",
          "[decoder][device]") {
  std::vector<std::string> names;
  for (const auto& item : recorded()["models"].items()) names.push_back(item.key());
  REQUIRE(names.size() >= 10);
  const TokenBatch batch = make_pair_batch(family_rows());
  for (const std::string& name : names) {
    INFO(name);
    const auto wide = Decoder::load(kFamilies + name, "float64");
    check_equal(score(*copy_on(*wide, pretend_device()), batch), score(*wide, batch), 1e-11);
  }
}

TEST_CASE("device decoder: precisions, adapters and checkpointing", "[decoder][device]") {
  const TokenBatch batch = make_pair_batch(family_rows());
  const std::string path = kFamilies + GENERATE("llama", "gemma2");
  INFO(path);

  SECTION("float32") {
    const auto decoder = Decoder::load(path, "float32");
    check_equal(score(*copy_on(*decoder, pretend_device()), batch), score(*decoder, batch), 2e-5);
  }
  SECTION("an adapter") {
    const auto here = with_random_adapter(*Decoder::load(path, "float64"));
    const auto there = with_random_adapter(*Decoder::load(path, "float64"));
    there->to(pretend_device());
    check_equal(score(*there, batch), score(*here, batch), 1e-11);
  }
  SECTION("an adapter is the same whatever the device that it was drawn for") {
    const auto draw = [&](at::Device device) {
      auto decoder = Decoder::load(path, "float32");
      decoder->to(device);
      torch::manual_seed(9);
      decoder->add_adapter({.r = 2});
      decoder->to(at::kCPU);
      return content_hash(*decoder);
    };
    CHECK(draw(pretend_device()) == draw(at::kCPU));
  }
  SECTION("checkpointing changes no bit") {
    const auto decoder = copy_on(*Decoder::load(path, "float32"), pretend_device());
    const Scored kept = score(*decoder, batch);
    for (const auto level : {Checkpointing::kSelective, Checkpointing::kFull}) {
      decoder->set_checkpointing(level);
      const Scored again = score(*decoder, batch);
      CHECK(again.logps.equal(kept.logps));
      for (std::size_t i = 0; i < kept.gradients.size(); ++i) {
        INFO(kept.gradients[i].first);
        CHECK(again.gradients[i].second.equal(kept.gradients[i].second));
      }
    }
  }
  SECTION("bfloat16: activations too, near float32's") {
    const auto narrow = Decoder::load(path, "bfloat16");
    const auto wide = narrow->frozen_decoder();
    wide->to(at::kFloat);
    const at::NoGradGuard no_grad;
    const auto there = copy_on(*narrow, pretend_device());
    const auto got = sequence_logps(*there, batch.to(pretend_device())).token_logps;
    const auto expected = sequence_logps(*wide, batch).token_logps;
    CHECK(got.scalar_type() == at::kFloat);
    // As far off as LibTorch's own operators on the padded batch, which round as often.
    TokenBatch padded = batch;
    padded.packed.reset();
    const auto error = [&](const at::Tensor& logps) {
      return (logps.cpu() - expected).norm().item<double>();
    };
    CHECK(error(got) < 1.5 * error(sequence_logps(*narrow, padded).token_logps));
    CHECK(error(got) > 0);
    // Two bytes a number that is kept, where the CPU takes four.
    CHECK(2 * there->activation_bytes(10, Checkpointing::kFull) ==
          narrow->activation_bytes(10, Checkpointing::kFull));
  }
}

TEST_CASE("device decoder: a float32 gradient of bfloat16 weights is added up",
          "[decoder][device]") {
  const auto decoder = copy_on(*Decoder::load(kFamilies + "llama", "bfloat16"), pretend_device());
  const TokenBatch batch = make_pair_batch(family_rows()).to(pretend_device());
  for (const auto& [name, value] : decoder->named_parameters()) {
    value.mutable_grad() = at::zeros(value.sizes(), value.options().dtype(at::kFloat));
  }
  sequence_logps(*decoder, batch).logps.sum().backward();
  for (const auto& [name, value] : decoder->named_parameters()) {
    INFO(name);
    const at::Tensor grad = value.grad().cpu();
    CHECK(grad.scalar_type() == at::kFloat);
    CHECK_FALSE(grad.equal(grad.to(at::kBFloat16).to(at::kFloat)));
  }
}

TEST_CASE("device decoder: greedy decoding gives the CPU's tokens", "[decoder][device]") {
  const std::vector<Tokens> prompts = {{1, 2, 3}, {4}, {1, 2, 3}, {9, 8, 7, 6, 5, 4, 3, 2, 1}};
  const std::string name = GENERATE("llama", "gemma2", "mixtral", "phi3");
  INFO(name);
  // Enough for the cache to grow.
  SamplingOptions options{
      .max_new_tokens = name == "llama" ? 70 : 14, .temperature = 0, .eos_id = 7};
  const auto decoder = Decoder::load(kFamilies + name, "float64");
  const auto there = copy_on(*decoder, pretend_device());
  const Samples expected = sample_with_logps(*decoder, prompts, options);
  const Samples got = sample_with_logps(*there, prompts, options);
  CHECK(got.completions == expected.completions);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    for (std::size_t t = 0; t < expected.token_logps[i].size(); ++t) {
      REQUIRE(got.token_logps[i][t] == Approx(expected.token_logps[i][t]).margin(1e-10));
    }
  }
  // Some end early, so that others are kept alone.
  options = {.max_new_tokens = 12, .eos_id = 2, .seed = 3, .extra_eos_ids = {1, 3, 5, 8, 11}};
  CHECK(sample(*there, prompts, options) == sample(*decoder, prompts, options));
}

TEST_CASE("device decoder: a session refuses what the CPU's refuses", "[decoder][device]") {
  const auto there = copy_on(*Decoder::load(kFamilies + "llama", "float32"), pretend_device());
  const auto session = there->start_decoding({{1, 2}, {3}});
  const at::Tensor one = at::zeros({1}, at::kLong);
  CHECK_THROWS_TEXT(session->append(one), ConfigError,
                    "append: expected prefill to be called first, got append");
  session->prefill();
  CHECK_THROWS_TEXT(session->append(one), ShapeError, "append: expected tokens [2], got [1]");
  CHECK_THROWS_TEXT(session->keep({2}), DataError,
                    "keep: expected ascending places in [0, 2), got 2");
}

TEST_CASE("device decoder: saving and loading weights cross devices", "[decoder][device]") {
  const auto here = Decoder::load(kFamilies + "llama", "float32");
  const auto there = copy_on(*here, pretend_device());
  CHECK(there->device() == pretend_device());
  CHECK(content_hash(*there) == content_hash(*here));
  const TempDir dir;
  there->save(dir.path());
  CHECK(content_hash(*Decoder::load(dir.path())) == content_hash(*here));
  {
    const at::NoGradGuard no_grad;
    for (const auto& [name, value] : there->named_parameters()) value.add_(1);
  }
  there->load_weights(dir.path());
  CHECK(there->device() == pretend_device());
  CHECK(content_hash(*there) == content_hash(*here));
}

TEST_CASE("device reward model: rewards and values are the CPU's", "[decoder][device]") {
  torch::manual_seed(4);
  RewardModel here({.vocab_size = 13,
                    .hidden_size = 12,
                    .intermediate_size = 10,
                    .num_hidden_layers = 2,
                    .num_attention_heads = 2,
                    .num_key_value_heads = 1,
                    .initializer_range = 0.4});
  here.to(at::kDouble);
  const auto there = here.frozen_model();
  there->to(pretend_device());
  const Tokens a = {1, 2, 3}, b = {4, 5}, c = {6};
  const std::vector<TokenSequence> texts = {{a, b}, {a, c}, {c, a}};
  const at::NoGradGuard no_grad;
  CHECK(relative_error(there->rewards(texts).cpu(), here.rewards(texts)) < 1e-12);
  const TokenBatch batch = make_batch(texts);
  CHECK(relative_error(there->token_values(batch.to(pretend_device())).cpu(),
                       here.token_values(batch)) < 1e-12);
}

}  // namespace prefopt::test_device_decoder
