// SPDX-License-Identifier: Apache-2.0
// Reward and value models on weights in blocks, against the same weights in float32.

#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/block_tensor.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/decoder/value_head.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf_writer.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_reward_in_blocks {
namespace {

using namespace testing_support;

constexpr std::int64_t kHidden = 256;

std::string gguf_file(const TempDir& dir, const std::string& type) {
  at::manual_seed(3);
  const Decoder model({.hidden_size = kHidden,
                       .intermediate_size = 288,
                       .num_hidden_layers = 2,
                       .num_attention_heads = 4,
                       .num_key_value_heads = 2,
                       .head_dim = 16,
                       .tie_word_embeddings = false,
                       .initializer_range = 0.1});
  export_gguf(model, dir.file(type + ".gguf"), {.type = type});
  return dir.file(type + ".gguf");
}

const std::vector<TokenSequence>& sequences() {
  static const std::vector<std::vector<std::int64_t>> ids{{5, 9, 11, 40}, {7, 8, 2}, {6, 250}, {3}};
  static const std::vector<TokenSequence> all{{.prompt = ids[0], .completion = ids[1]},
                                              {.prompt = ids[0], .completion = ids[3]},
                                              {.prompt = ids[2], .completion = ids[1]}};
  return all;
}

void add_adapter(RewardModel& model) {
  at::manual_seed(11);
  model.add_adapter({.r = 2});
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : model.named_parameters()) {
    if (value.requires_grad()) value.add_(at::randn(value.sizes()), 0.02);
  }
}

/// Rewards, values of tokens, and the gradients of their sum.
std::vector<at::Tensor> results_of(RewardPolicy& model) {
  std::vector<at::Tensor> results{model.rewards(sequences()),
                                  model.token_values(make_batch(sequences()))};
  (results[0].sum() + results[1].sum()).backward();
  for (const auto& [name, value] : model.named_parameters()) {
    if (value.requires_grad()) results.push_back(value.grad().clone());
  }
  return results;
}

void check_same_bits(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected) {
  REQUIRE(got.size() == expected.size());
  REQUIRE(expected.size() > 2);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(at::equal(got[i], expected[i]));
}

std::int64_t count_of_blocks(const Policy& model) {
  std::int64_t count = 0;
  for (const auto& [name, value] : model.named_parameters()) {
    count += kernels::blocks_of(value) != nullptr ? 1 : 0;
  }
  return count;
}

std::shared_ptr<RewardModel> fresh_on(const std::string& path, const std::string& kept) {
  at::manual_seed(5);
  return RewardModel::load(path, kept, ScoreHead::kFreshIfNone);
}

std::string thrown_by_load(const std::string& path, const std::string& kept) {
  try {
    RewardModel::load(path, kept);
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing";
}

/// Writes the file of a reward model: the model of another file, its matrices in Q8_0, a score head
/// and what `change` adds.
std::string with_score(const std::string& from, const std::string& to, const at::Tensor& score,
                       const std::function<void(GgufWriter&)>& change) {
  const GgufFile file = GgufFile::open(from);
  GgufWriter writer;
  for (const std::string& key : file.keys()) writer.copy(file, key);
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name == "output.weight") continue;
    writer.tensor(tensor.name, file.tensor(tensor.name), tensor.shape.size() > 1 ? "Q8_0" : "F32");
  }
  writer.tensor("cls.output.weight", score, "Q8_0");
  change(writer);
  writer.write(to);
  return to;
}

}  // namespace

TEST_CASE("reward model: on a file's blocks it is that on their values", "[decoder]") {
  const TempDir dir;
  for (const std::string type : {"Q8_0", "Q4_0", "Q4_K"}) {
    CAPTURE(type);
    const std::string path = gguf_file(dir, type);
    const auto blocks = fresh_on(path, "quantized"), wide = fresh_on(path, "float32");
    CHECK(count_of_blocks(*blocks) == 2 * 7 + 1);
    CHECK(count_of_blocks(*wide) == 0);
    for (const auto& model : {blocks, wide}) add_adapter(*model);
    check_same_bits(results_of(*blocks), results_of(*wide));
    CHECK(at::equal(blocks->frozen_model()->rewards(sequences()), wide->rewards(sequences())));
    // The adapter and the score head come back on either.
    blocks->save(dir.file(type));
    CHECK(at::equal(RewardModel::load(dir.file(type), "quantized")->rewards(sequences()),
                    wide->rewards(sequences())));
    CHECK(at::equal(RewardModel::load(dir.file(type))->rewards(sequences()),
                    wide->rewards(sequences())));
  }
}

TEST_CASE("reward model: quantized on load, but for its score head", "[decoder]") {
  const TempDir dir;
  at::manual_seed(6);
  RewardModel({.hidden_size = 64, .intermediate_size = 96, .num_hidden_layers = 1})
      .save(dir.file("model"));
  const auto wide = RewardModel::load(dir.file("model"));
  const auto blocks = RewardModel::load(dir.file("model"), "q8_0");
  CHECK(count_of_blocks(*blocks) == 7 + 1);
  CHECK(at::equal(blocks->named_parameters().back().value, wide->named_parameters().back().value));
  const at::Tensor expected = wide->rewards(sequences());
  const at::Tensor error = (blocks->rewards(sequences()) - expected).abs().max();
  CHECK(error.item<double>() > 0);
  CHECK(error.item<double>() < 0.05 * expected.abs().max().item<double>());
}

TEST_CASE("reward model: a GGUF file with a score head", "[decoder]") {
  const TempDir dir;
  const std::string from = gguf_file(dir, "F32");
  at::manual_seed(9);
  const at::Tensor score = at::randn({1, kHidden});
  const auto write = [&](const std::string& name, const at::Tensor& head, std::int64_t pooling) {
    return with_score(from, dir.file(name), head, [&](GgufWriter& file) {
      file.integer("llama.pooling_type", pooling);
      file.texts("llama.classifier.output_labels", {"reward"});
    });
  };
  const std::string path = write("reward.gguf", score, 4);
  CHECK(is_reward_model(path));
  CHECK_FALSE(is_reward_model(from));
  const auto blocks = RewardModel::load(path, "quantized"), wide = RewardModel::load(path);
  CHECK_FALSE(blocks->has_fresh_head());
  // Q8_0 keeps a number within 1/254 of its block's largest.
  CHECK((blocks->named_parameters().back().value - score).abs().max().item<double>() < 0.02);
  CHECK(count_of_blocks(*blocks) == 2 * 7 + 1);
  CHECK(at::equal(blocks->rewards(sequences()), wide->rewards(sequences())));

  CHECK_THROWS_TEXT(Decoder::load(path), CheckpointError,
                    path +
                        ": expected a language model, got a reward model, with the tensor "
                        "'score.weight'; prefopt score and prefopt eval read it, and the loss "
                        "reward_bt trains it");
  CHECK(thrown_by_load(write("classes.gguf", at::randn({2, kHidden}), 4), "quantized") ==
        dir.file("classes.gguf") +
            ": tensor 'score.weight': expected shape [1, 256], got [2, 256]");
  CHECK(thrown_by_load(write("first.gguf", score, 2), "keep") ==
        dir.file("first.gguf") +
            ": expected llama.pooling_type 4 with a tensor 'cls.output.weight', got 2");
  CHECK(thrown_by_load(from, "keep") ==
        from +
            ": expected a reward model, with the tensor 'score.weight', got none of that name; "
            "prefopt train with the loss reward_bt makes one of a language model");
}

TEST_CASE("value and reward models share the policy's blocks", "[decoder]") {
  const TempDir dir;
  const std::string path = gguf_file(dir, "Q4_0");
  const auto adapter = fresh_on(path, "quantized");
  add_adapter(*adapter);
  adapter->save(dir.file("reward"));

  const auto policy = Decoder::load(path, "quantized");
  policy->add_adapter({.r = 2});
  at::manual_seed(5);
  const auto value = RewardModel::on(*policy);
  CHECK(value->has_fresh_head());
  add_adapter(*value);
  const ValueHead head(policy);
  const auto tokenizer = ByteTokenizer();
  const auto reward = load_reward_model(dir.file("reward"), tokenizer, "quantized", policy.get());
  const auto kept = load_reward_model(dir.file("reward"), tokenizer, "keep", policy.get());
  for (const auto& model : {value, reward, kept}) {
    CHECK(kernels::blocks_of(model->named_parameters()[1].value) ==
          kernels::blocks_of(policy->named_parameters()[1].value));
    CHECK(at::equal(model->rewards(sequences()), adapter->rewards(sequences())));
  }
#ifdef __linux__
  std::ifstream maps("/proc/self/maps");
  std::int64_t mappings = 0;
  for (std::string line; std::getline(maps, line);) mappings += line.ends_with(path) ? 1 : 0;
  CHECK(mappings == 2);  // that of `adapter`, and one for all others
#endif

  // Blocks that were made on load are other numbers than those that the adapter was trained on.
  at::manual_seed(6);
  const DecoderOptions shape{.hidden_size = 64, .intermediate_size = 96, .num_hidden_layers = 1};
  Decoder(shape).save(dir.file("folder"));
  const auto on_folder = fresh_on(dir.file("folder"), "float32");
  add_adapter(*on_folder);
  on_folder->save(dir.file("on-folder"));
  const auto made = Decoder::load(dir.file("folder"), "q8_0");
  made->add_adapter({.r = 2});
  for (const std::string dtype : {"keep", "float32"}) {
    CHECK_FALSE(RewardModel::is_on(dir.file("on-folder"), dtype, *made));
    CHECK(at::equal(load_reward_model(dir.file("on-folder"), tokenizer, dtype, made.get())
                        ->rewards(sequences()),
                    on_folder->rewards(sequences())));
  }
}

}  // namespace prefopt::test_reward_in_blocks
