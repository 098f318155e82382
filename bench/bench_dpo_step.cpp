// SPDX-License-Identifier: Apache-2.0

// Whole DPO steps of a real model (targets S1, S2, S4): from text to updated weights. One JSON line
// a step, as bench/peers/trl_dpo_step.py prints them for TRL.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/logps/token_logps.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double peak_rss_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

struct Arguments {
  std::string model, data, tokenizer, dtype = "float32";
  std::string reference = "frozen";
  std::string cache_dir;
  std::string loss = R"({"type": "dpo"})";
  std::int64_t steps = 5, pairs = 4, micro = 0, threads = 2, head_mib = 64, lora_rank = 0;
  std::int64_t micro_tokens = 0;
  std::string checkpointing = "none", matmul_precision = "highest";
  bool profile = false;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  CLI::App app{"Times DPO steps of a Llama-family model"};
  app.add_option("model", a.model, "Hugging Face folder or GGUF file")->required();
  app.add_option("data", a.data, "JSONL or JSONL.gz rows")->required();
  app.add_option("--tokenizer", a.tokenizer, "of text rows; default: the model's own");
  app.add_option("--dtype", a.dtype, "of the weights, or quantized: blocks of a GGUF file");
  app.add_option("--loss", a.loss);
  app.add_option("--steps", a.steps);
  app.add_option("--pairs", a.pairs, "pairs an optimizer step");
  app.add_option("--micro", a.micro, "pairs a micro-batch; 0: the whole step at once");
  app.add_option("--micro-tokens", a.micro_tokens, "tokens a micro-batch; 0: no limit");
  app.add_option("--threads", a.threads);
  app.add_option("--matmul-precision", a.matmul_precision, "as machine.matmul_precision")
      ->check(CLI::IsMember({"highest", "high", "medium"}));
  app.add_option("--head-mib", a.head_mib);
  app.add_option("--lora", a.lora_rank, "rank of an adapter; 0: all weights are trained");
  app.add_option("--reference", a.reference)->check(CLI::IsMember({"frozen", "cached"}));
  app.add_option("--cache-dir", a.cache_dir);
  app.add_flag("--profile", a.profile, "where the time of a step goes, instead of steps");
  app.add_option("--checkpointing", a.checkpointing)
      ->check(CLI::IsMember({"none", "selective", "full"}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return a;
}

/// Floating-point operations of one step by the cost model of docs/benchmarks.md.
struct Work {
  double body = 0;       ///< one pass of the rows through the linear maps of all layers
  double attention = 0;  ///< scores and values of all visible pairs, one pass
  double head = 0;       ///< one product of the scored rows with the vocabulary

  Work(const DecoderOptions& o, const PackedTokens& tokens) {
    const auto number = [](std::int64_t n) { return static_cast<double>(n); };
    const double queries = number(o.num_attention_heads * o.head_dim);
    const double keys = number(o.num_key_value_heads * o.head_dim);
    const double hidden = number(o.hidden_size);
    const double maps = hidden * (2 * queries + 2 * keys + 3 * number(o.intermediate_size));
    const double layers = number(o.num_hidden_layers);
    body = 2 * maps * layers * number(tokens.input_ids.size(0));
    head = 2 * hidden * number(o.vocab_size) * number(tokens.rows.size(0));
    double seen = 0;
    for (const PackedGroup& group : tokens.groups) {
      const double shared = number(group.shared);
      seen += shared * (shared + 1) / 2;
      for (const std::int64_t length : group.branches) {
        seen += number(length) * (shared + (number(length) + 1) / 2);
      }
    }
    attention = 4 * queries * layers * seen;
  }
};

class Profile {
 public:
  void add(const std::string& stage, double flops, const std::function<void()>& run) {
    const auto start = Clock::now();
    run();
    Stage& sum = stages_[stage];
    sum.seconds += seconds_since(start);
    sum.flops += flops;
  }

  void print() const {
    double total = 0;
    for (const auto& [name, stage] : stages_) total += stage.seconds;
    fmt::print("{:<24} {:>9} {:>7} {:>9} {:>9}\n", "stage", "seconds", "share", "TFLOP", "GFLOP/s");
    for (const auto& [name, stage] : stages_) {
      fmt::print("{:<24} {:>9.3f} {:>6.1f}% {:>9.3f} {:>9.1f}\n", name, stage.seconds,
                 100 * stage.seconds / total, stage.flops / 1e12,
                 stage.flops / stage.seconds / 1e9);
    }
  }

 private:
  struct Stage {
    double seconds = 0, flops = 0;
  };
  std::map<std::string, Stage> stages_;
};

/// The parts of the steps, one after the other; the first step warms up and does not count.
void run_profile(const Arguments& a, const std::vector<TokenRow>& rows, Decoder& policy,
                 Reference& reference) {
  Profile profile;
  for (std::int64_t step = 0; step < a.steps; ++step) {
    Profile scratch;
    Profile& into = step == 0 ? scratch : profile;
    const auto first = rows.begin() + step * a.pairs;
    TokenBatch batch;
    into.add("1 batch", 0, [&] { batch = make_pair_batch({first, first + a.pairs}); });
    const Work work(policy.options(), *batch.packed);
    into.add("2 reference", work.body + work.attention + work.head,
             [&] { reference.sequence_logps(batch); });
    at::Tensor hidden;
    into.add("3 layers forward", work.body + work.attention,
             [&] { hidden = policy.forward_packed(*batch.packed); });
    const at::Tensor leaf = hidden.detach().requires_grad_(hidden.requires_grad());
    TokenLogps logps;
    LinearTokenLogpsOptions options;
    options.by_products = {.entropy = true, .mean_logit = true, .is_top1 = true};
    options.budget_bytes = a.head_mib << 20;
    into.add("4 head forward", work.head, [&] {
      logps = linear_token_logps(leaf, policy.head().weight, batch.packed->targets, options);
    });
    into.add("5 head backward", 2 * work.head, [&] { logps.logps.sum().backward(); });
    into.add("6 layers backward", 2 * work.body + 2.5 * work.attention,
             [&] { hidden.backward(leaf.grad()); });
    for (const auto& parameter : policy.named_parameters()) parameter.value.mutable_grad().reset();
  }
  profile.print();
}

void run(const Arguments& a, Clock::time_point start) {
  at::set_num_threads(static_cast<int>(a.threads));
  at::globalContext().setFloat32MatmulPrecision(a.matmul_precision);
  const auto tokenizer =
      make_tokenizer(a.tokenizer.empty() ? tokenizer_of_model(a.model) : a.tokenizer);
  DataOptions data;
  data.max_rows = a.steps * a.pairs;
  data.identical = RowAction::kKeep;
  data.max_prompt_length = 0;
  const auto rows = load_dataset(a.data, *tokenizer, data).pairs;
  auto policy = Decoder::load(a.model, a.dtype);
  std::shared_ptr<Policy> base;
  if (a.lora_rank > 0) {
    policy->add_adapter({.r = a.lora_rank, .lora_alpha = 2.0 * static_cast<double>(a.lora_rank)});
    base = policy->without_adapter();
  } else {
    // The reference stays where it is mapped; trained weights get their own memory.
    const auto trained = policy->frozen_decoder();
    policy->set_requires_grad(false);
    trained->set_requires_grad(true);
    base = std::exchange(policy, trained);
  }
  policy->set_checkpointing(a.checkpointing == "full"        ? Checkpointing::kFull
                            : a.checkpointing == "selective" ? Checkpointing::kSelective
                                                             : Checkpointing::kNone);
  std::shared_ptr<Reference> reference;
  if (a.reference == "cached") {
    auto cached = std::make_shared<CachedReference>(base, a.cache_dir);
    for (std::size_t first = 0; first < rows.size(); first += 4) {
      const std::size_t last = std::min(rows.size(), first + 4);
      cached->sequence_logps(make_pair_batch({rows.begin() + static_cast<std::ptrdiff_t>(first),
                                              rows.begin() + static_cast<std::ptrdiff_t>(last)}));
    }
    reference = cached;
  } else {
    reference = make_frozen_reference(base);
  }
  base.reset();
  if (a.profile) return run_profile(a, rows, *policy, *reference);
  TrainerOptions options;
  options.optimizer.learning_rate = 1e-6;
  options.total_steps = a.steps;
  options.micro_batch_size = a.micro;
  options.micro_batch_tokens = a.micro_tokens;
  options.head_budget_bytes = a.head_mib << 20;
  Trainer trainer(policy, reference, make_loss(a.loss), options);
  fmt::print("{}\n", nlohmann::json{{"ready_seconds", seconds_since(start)}}.dump());
  std::fflush(stdout);
  for (std::int64_t step = 0; step < a.steps; ++step) {
    const auto first = rows.begin() + step * a.pairs;
    const auto before = Clock::now();
    const Metrics metrics = trainer.step({first, first + a.pairs});
    fmt::print("{}\n", nlohmann::json{{"step", step + 1},
                                      {"seconds", seconds_since(before)},
                                      {"peak_rss_gib", peak_rss_gib()},
                                      {"loss", metric(metrics, "loss")},
                                      {"grad_norm", metric(metrics, "grad_norm")}}
                           .dump());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  // LibTorch's libraries were loaded before this: a second that the shell sees and we do not.
  const auto start = std::chrono::steady_clock::now();
  try {
    // Large buffers come and go with each step: the heap keeps them instead of giving them back.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    prefopt::bench::run(prefopt::bench::parse(argc, argv), start);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_dpo_step: {}\n", error.what());
    return 1;
  }
}
