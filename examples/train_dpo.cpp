// SPDX-License-Identifier: Apache-2.0

// Offline DPO with a hand-written training loop:
//   train_dpo MODEL_DIR PAIRS.jsonl OUT_DIR [STEPS]
// Without arguments it makes a tiny model and a file of pairs and trains on those.

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

using namespace prefopt;

namespace {

int run(int argc, char** argv) {
  std::string tokenizer_name = "byte";
  const std::string out = argc > 3 ? argv[3] : "train_dpo-out";
  const std::int64_t steps = argc > 4 ? std::atoll(argv[4]) : 20;

  std::shared_ptr<Decoder> policy;
  DataOptions data;
  if (argc > 2) {
    policy = Decoder::load(argv[1]);
    tokenizer_name = tokenizer_of_model(argv[1]);
    data.train = argv[2];
  } else {
    policy = std::make_shared<Decoder>(DecoderOptions{.hidden_size = 64,
                                                      .intermediate_size = 128,
                                                      .num_hidden_layers = 2,
                                                      .num_attention_heads = 4,
                                                      .num_key_value_heads = 2});
    data.train = out + "-pairs.jsonl";
    ControlledTask({.seed = 1}).write_preferences(data.train, 256);
  }
  const Dataset dataset = load_dataset(data.train, *make_tokenizer(tokenizer_name), data);
  fmt::print("{} pairs\n{}", dataset.pairs.size(), dataset.report.summary());

  // The reference is the policy as it is now; it shares nothing with the one that trains.
  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()), DpoLoss({.beta = 0.1}),
                  {.optimizer = {.learning_rate = 5e-4}, .total_steps = steps});

  constexpr std::size_t kBatch = 16;
  std::size_t next = 0;
  for (std::int64_t step = 1; step <= steps; ++step) {
    std::vector<TokenRow> batch;
    while (batch.size() < std::min(kBatch, dataset.pairs.size())) {
      batch.push_back(dataset.pairs[next++ % dataset.pairs.size()]);
    }
    const Metrics metrics = trainer.step(batch);
    fmt::print("step {:3}  loss {:.4f}  margin {:+.4f}  accuracy {:.2f}\n", step,
               metric(metrics, "loss"), metric(metrics, "rewards/margins"),
               metric(metrics, "rewards/accuracies"));
  }
  policy->save(out);
  write_files(tokenizer_files(tokenizer_name), out);  // so that the folder can be used on its own
  fmt::print("saved to {}\n", out);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
