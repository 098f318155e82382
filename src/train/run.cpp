// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/run.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "core/json.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/model/moving_reference.h"
#include "prefopt/model/reference.h"
#include "prefopt/version.h"
#include "train/run_folder.h"
#include "train/token_range.h"

namespace prefopt {

using detail::Json;
using detail::RunFolder;

void ModelOptions::fields(FieldVisitor& v) {
  v.text({"path",
          "Hugging Face folder or GGUF file; empty: fresh weights of the shape `decoder`",
          {"model_name_or_path"}},
         path);
  v.text({"dtype", "float32, float64, bfloat16, float16, or keep for the file's", {"torch_dtype"}},
         dtype);
  v.text({"tokenizer",
          "byte, a tokenizer.json, a folder that holds one or a GGUF file; empty: the model's own, "
          "else byte"},
         tokenizer);
  v.group({"decoder", "Shape of a fresh model"}, decoder);
  v.flag({"use_lora",
          "Train a low-rank adapter and freeze the model, which is then the reference",
          {"use_peft"}},
         use_lora);
  v.group({"lora", "The adapter, where use_lora is true"}, lora);
  v.text({"adapter", "PEFT folder of an adapter to train on; empty: a fresh one"}, adapter);
}

void ReferenceOptions::fields(FieldVisitor& v) {
  v.choice({"kind", "A frozen model, or its log-probs from a cache on disk"}, kind,
           {"frozen", "cached"});
  v.text({"path", "Hugging Face folder; empty: the policy as it was before training"}, path);
  v.text({"dtype", "What the weights are kept in, as model.dtype; empty: the policy's"}, dtype);
  v.text({"cache_dir", "Folder of the cache; empty: `reference-cache` in the run folder"},
         cache_dir);
  v.flag({"moving", "Whether the reference moves with the policy", {"sync_ref_model"}}, moving);
  v.group({"update", "How it moves, where moving is true"}, update);
}

void LoopOptions::fields(FieldVisitor& v) {
  v.integer({"steps", "Optimizer steps; 0: `epochs` decides", {"max_steps"}}, steps,
            Range::between(0, 1e9));
  v.real({"epochs", "Passes over the training rows, where `steps` is 0", {"num_train_epochs"}},
         epochs, Range{.min = 0, .max = 1e6, .min_open = true});
  v.integer({"batch_size",
             "Pairs an optimizer step; the last one of an epoch is filled up from the "
             "next epoch"},
            batch_size, Range::between(1, 1e6));
  v.integer({"micro_batch_size", "Pairs at a time, without effect on results; 0: the whole step"},
            micro_batch_size, Range::at_least(0));
  v.integer({"micro_batch_tokens",
             "Tokens at a time, without effect on results, at least one pair; 0: no limit"},
            micro_batch_tokens, Range::at_least(0));
  v.integer(
      {"head_budget_mib",
       "Memory in MiB that the output head may take for logits that wait for the backward pass, "
       "without effect on results"},
      head_budget_mib, Range::between(1, 1e9));
  v.choice({"checkpointing",
            "What layers compute again in the backward pass, without effect on results: nothing "
            "that costs, gate and up of the feed-forward part, or all"},
           checkpointing, {"auto", "none", "selective", "full"});
  v.integer(
      {"activation_budget_mib",
       "Memory in MiB that the layers of a micro-batch may keep, where checkpointing is auto"},
      activation_budget_mib, Range::between(1, 1e9));
  v.integer({"eval_every",
             "Steps between evaluations; 0: only before the first and after the last",
             {"eval_steps"}},
            eval_every, Range::at_least(0));
  v.integer({"log_every", "Steps between lines of metrics.jsonl", {"logging_steps"}}, log_every,
            Range::at_least(1));
  v.integer({"seed", "Seed of fresh weights and of the order of rows"}, seed, Range::at_least(0));
  v.integer({"threads", "CPU threads; 0: LibTorch's default"}, threads, Range::between(0, 4096));
  v.flag({"shuffle", "A new order of the rows each epoch"}, shuffle);
}

void RunOptions::fields(FieldVisitor& v) {
  v.text({"output_dir", "Run folder, made by the run"}, output_dir);
  v.json({"loss", "The loss with its options: {\"type\": …}"}, loss);
  v.group({"model", "The policy"}, model);
  v.group({"reference", "The reference, for losses that need one"}, reference);
  v.group({"data", "Rows"}, data);
  v.group({"optimizer", "AdamW and its learning rate"}, optimizer);
  v.group({"train", "Steps, batches, evaluations"}, train);
  v.group({"sampling", "Fresh samples, for losses that draw them"}, sampling);
}

namespace {

/// Which pair stands at a position of the endless stream of epochs. A pure function of seed and
/// position: the generators and distributions used are the same on every platform.
class PairOrder {
 public:
  PairOrder(std::int64_t pairs, std::int64_t seed, bool shuffle)
      : order_(static_cast<std::size_t>(pairs)), seed_(seed), shuffle_(shuffle) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  std::size_t at(std::int64_t position) {
    const auto pairs = std::ssize(order_);
    if (shuffle_ && position / pairs != epoch_) permute(position / pairs);
    return order_[static_cast<std::size_t>(position % pairs)];
  }

 private:
  void permute(std::int64_t epoch) {
    epoch_ = epoch;
    std::iota(order_.begin(), order_.end(), 0);
    std::seed_seq seeds{seed_ & 0xffffffff, seed_ >> 32, epoch & 0xffffffff, epoch >> 32};
    std::mt19937_64 rng(seeds);
    for (auto left = order_.size(); left > 1; --left) {
      std::swap(order_[left - 1], order_[below(left, rng)]);
    }
  }

  static std::size_t below(std::uint64_t bound, std::mt19937_64& rng) {
    const auto end = std::numeric_limits<std::uint64_t>::max() / bound * bound;
    auto x = rng();
    while (x >= end) x = rng();
    return x % bound;
  }

  std::vector<std::size_t> order_;
  std::int64_t seed_;
  bool shuffle_;
  std::int64_t epoch_ = -1;
};

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct Rows {
  std::vector<TokenPair> train;
  std::vector<TokenPair> eval;
};

using Note = std::function<void(const std::string&)>;

std::vector<TokenPair> load_pairs(std::string_view option, const std::string& path,
                                  const Tokenizer& tokenizer, const DataOptions& options,
                                  const RowNeeds& needs, const Note& note) {
  auto [pairs, report] = load_dataset(path, tokenizer, options, needs);
  note(fmt::format("{}: {} of {} rows of {} are used", option, report.rows_kept, report.rows_read,
                   path));
  if (!report.cache_note.empty()) note(fmt::format("{}: {}", option, report.cache_note));
  const auto summary = report.summary();
  for (std::size_t begin = 0; begin < summary.size();) {
    const auto end = std::min(summary.find('\n', begin), summary.size());
    note(fmt::format("{}: {}", option, summary.substr(begin, end - begin)));
    begin = end + 1;
  }
  return std::move(pairs);
}

Rows load_rows(const DataOptions& options, const Tokenizer& tokenizer, const RowNeeds& needs,
               const Note& note) {
  if (options.train.empty()) throw ConfigError("data.train: expected a file, got ''");
  auto pairs = load_pairs("data.train", options.train, tokenizer, options, needs, note);
  if (!options.eval.empty()) {
    return {std::move(pairs),
            load_pairs("data.eval", options.eval, tokenizer, options, needs, note)};
  }
  auto [train, held_out] = split_dataset(std::move(pairs), options.eval_fraction);
  if (!held_out.empty()) {
    note(fmt::format("data.train: the last {} rows are held out, {} train", held_out.size(),
                     train.size()));
  }
  return {std::move(train), std::move(held_out)};
}

void add_adapter(const ModelOptions& options, Decoder& policy) {
  if (!options.adapter.empty()) {
    policy.load_adapter(options.adapter);
  } else if (options.use_lora) {
    policy.add_adapter(options.lora);
  }
}

std::shared_ptr<Decoder> make_policy(ModelOptions& options, const Tokenizer& tokenizer,
                                     const Note& note) {
  std::shared_ptr<Decoder> policy;
  if (options.path.empty()) {
    auto& shape = options.decoder;
    if (shape.vocab_size < tokenizer.vocab_size()) {
      throw ConfigError(
          fmt::format("model.decoder.vocab_size: expected at least the {} tokens of "
                      "the tokenizer '{}', got {}",
                      tokenizer.vocab_size(), tokenizer.name(), shape.vocab_size));
    }
    if (shape.bos_token_id < 0) shape.bos_token_id = tokenizer.bos_id();
    if (shape.eos_token_id < 0) shape.eos_token_id = tokenizer.eos_id();
    if (shape.pad_token_id < 0) shape.pad_token_id = tokenizer.pad_id();
    if (options.dtype == "keep") options.dtype = "float32";
    const auto dtype = parse_dtype(options.dtype);
    policy = std::make_shared<Decoder>(shape);
    policy->to(dtype);
  } else {
    policy = Decoder::load(options.path, options.dtype);
    options.decoder = policy->options();
  }
  add_adapter(options, *policy);
  if (!options.path.empty() && !policy->adapter()) {
    // Writing to pages that are mapped from a file copies them one by one, in the first step.
    policy = policy->frozen_decoder();
    policy->set_requires_grad(true);
  }
  std::int64_t size = 0;
  std::int64_t trained = 0;
  for (const auto& [name, value] : policy->named_parameters()) {
    size += value.numel();
    if (value.requires_grad()) trained += value.numel();
  }
  note(fmt::format("model: {} parameters, {}{}", size,
                   options.path.empty() ? "fresh weights" : "from " + options.path,
                   trained == size ? "" : fmt::format(", {} of them trained", trained)));
  return policy;
}

/// Decides what `auto` means for micro-batches of at most `rows` tokens.
void set_checkpointing(LoopOptions& options, std::int64_t rows, Decoder& policy, const Note& note) {
  constexpr std::array kLevels{Checkpointing::kNone, Checkpointing::kSelective,
                               Checkpointing::kFull};
  constexpr std::array kChoices{CheckpointingChoice::kNone, CheckpointingChoice::kSelective,
                                CheckpointingChoice::kFull};
  const auto mib = [&](Checkpointing level) {
    return static_cast<double>(policy.activation_bytes(rows, level)) / (1 << 20);
  };
  std::size_t level = 0;
  if (options.checkpointing == CheckpointingChoice::kAutomatic) {
    const auto budget = static_cast<double>(options.activation_budget_mib);
    while (level + 1 < kLevels.size() && mib(kLevels[level]) > budget) ++level;
  } else {
    while (kChoices[level] != options.checkpointing) ++level;
  }
  options.checkpointing = kChoices[level];
  policy.set_checkpointing(kLevels[level]);
  constexpr std::array<std::string_view, 3> kNames{"none", "selective", "full"};
  note(fmt::format("checkpointing: {}, up to {:.0f} MiB kept for {} tokens", kNames[level],
                   mib(kLevels[level]), rows));
}

/// Tokens of the largest micro-batch that the rows can make.
std::int64_t most_tokens(const std::vector<TokenPair>& pairs, const LoopOptions& options) {
  std::vector<std::int64_t> sizes;
  for (const auto& pair : pairs) sizes.push_back(detail::tokens_of(pair));
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  const auto micro = options.micro_batch_size > 0 ? options.micro_batch_size : options.batch_size;
  const auto count = std::min(std::ssize(sizes), micro);
  const std::int64_t largest = sizes.front();
  const std::int64_t all = std::accumulate(sizes.begin(), sizes.begin() + count, std::int64_t{0});
  return options.micro_batch_tokens > 0
             ? std::min(all, std::max(largest, options.micro_batch_tokens))
             : all;
}

void check_reference(const ReferenceOptions& options) {
  if (options.moving && options.kind == ReferenceKind::kCached) {
    throw ConfigError(
        "reference: expected kind 'frozen' where moving is true, got 'cached'; a cache holds "
        "log-probs of one model");
  }
}

/// The policy as it is now.
std::shared_ptr<Decoder> present_policy(const ReferenceOptions& options, const ModelOptions& model,
                                        const Decoder& policy) {
  if (options.moving) return policy.merged_decoder();
  // A fresh adapter changes nothing yet, so the model without it needs no memory of its own.
  const bool is_fresh_adapter = policy.adapter() && model.adapter.empty();
  return is_fresh_adapter && options.dtype.empty() ? policy.without_adapter()
                                                   : policy.frozen_decoder();
}

std::shared_ptr<Reference> make_reference(const ReferenceOptions& options,
                                          const ModelOptions& model, const Decoder& policy,
                                          CacheLevel level) {
  const auto dtype = options.dtype.empty() ? model.dtype : options.dtype;
  std::shared_ptr<Policy> frozen;
  if (options.path.empty()) {
    const auto copy = present_policy(options, model, policy);
    if (!options.dtype.empty()) copy->to(parse_dtype(options.dtype));
    frozen = copy;
  } else {
    frozen = Decoder::load(options.path, dtype);
    if (frozen->vocab_size() != policy.vocab_size()) {
      throw ConfigError(
          fmt::format("reference.path: expected a model with the policy's vocabulary "
                      "of {} tokens, got {} with {}",
                      policy.vocab_size(), options.path, frozen->vocab_size()));
    }
  }
  if (options.moving) {
    return std::make_shared<MovingReference>(std::move(frozen), policy, options.update);
  }
  if (options.kind == ReferenceKind::kFrozen) return make_frozen_reference(std::move(frozen));
  return std::make_shared<CachedReference>(std::move(frozen), options.cache_dir, level);
}

Json environment() {
#if defined(__clang__)
  constexpr auto kCompiler = "clang " __clang_version__;
#else
  constexpr auto kCompiler = "gcc " __VERSION__;
#endif
  return {
      {"prefopt", PREFOPT_VERSION_STRING},
      {"libtorch", TORCH_VERSION},
      {"threads", at::get_num_threads()},
      {"cpu_capability", at::get_cpu_capability()},
      {"compiler", kCompiler},
  };
}

std::int64_t count_steps(const LoopOptions& options, std::int64_t pairs) {
  if (options.steps > 0) return options.steps;
  const double steps =
      options.epochs * static_cast<double>(pairs) / static_cast<double>(options.batch_size);
  return std::max<std::int64_t>(1, std::llround(std::ceil(steps - 1e-9)));
}

std::optional<double> find_metric(const Metrics& metrics, std::string_view name) {
  for (const auto& [known, value] : metrics) {
    if (known == name) return value;
  }
  return std::nullopt;
}

/// The loop of one run, once everything is loaded.
class Run {
 public:
  Run(const LoopOptions& options, Rows rows, Trainer& trainer, RunFolder& folder,
      const RunEvents& events, const Note& note)
      : options_(options),
        rows_(std::move(rows)),
        total_(count_steps(options, std::ssize(rows_.train))),
        order_(std::ssize(rows_.train), options.seed, options.shuffle),
        trainer_(trainer),
        folder_(folder),
        events_(events),
        note_(note) {}

  void train(RunResult& result) {
    result.first_evaluation = evaluate();
    result.last_evaluation = result.first_evaluation;
    double tokens_logged = 0;
    double step_seconds = 0;
    for (std::int64_t step = 1; step <= total_; ++step) {
      const Stopwatch watch;
      result.last_step = trainer_.step(next_batch());
      step_seconds += watch.seconds();
      if (events_.step) events_.step(step, total_, result.last_step);
      if (step % options_.log_every == 0 || step == total_) {
        auto line = metrics_line(result.last_step, "");
        const double tokens = metric(result.last_step, "num_tokens");
        line["tokens_per_second"] = (tokens - tokens_logged) / step_seconds;
        line["seconds"] = clock_.seconds();
        folder_.append_metrics(line);
        tokens_logged = tokens;
        step_seconds = 0;
        if (rows_.eval.empty()) watch_displacement(result.last_step);
      }
      const bool due = options_.eval_every > 0 && step % options_.eval_every == 0;
      if (due || step == total_) result.last_evaluation = evaluate();
    }
  }

 private:
  std::vector<TokenPair> next_batch() {
    std::vector<TokenPair> batch;
    const auto first = trainer_.steps_done() * options_.batch_size;
    for (auto position = first; position < first + options_.batch_size; ++position) {
      batch.push_back(rows_.train[order_.at(position)]);
    }
    return batch;
  }

  Metrics evaluate() {
    if (rows_.eval.empty()) return {};
    auto metrics = trainer_.evaluate(rows_.eval);
    if (events_.evaluation) events_.evaluation(trainer_.steps_done(), metrics);
    auto line = metrics_line(metrics, "eval_");
    line["seconds"] = clock_.seconds();
    folder_.append_metrics(line);
    watch_displacement(metrics);
    return metrics;
  }

  Json metrics_line(const Metrics& metrics, std::string_view prefix) const {
    const auto seen = static_cast<double>(trainer_.steps_done() * options_.batch_size);
    Json line = {{"step", trainer_.steps_done()},
                 {"epoch", seen / static_cast<double>(rows_.train.size())}};
    for (const auto& [name, value] : metrics) line[fmt::format("{}{}", prefix, name)] = value;
    return line;
  }

  /// Says once that the likelihood of chosen completions fell. The share of the reference's value
  /// keeps the rounding of a cached reference from counting as a fall.
  void watch_displacement(const Metrics& metrics) {
    const auto chosen = find_metric(metrics, "logps/chosen");
    const auto before = find_metric(metrics, "logps/ref_chosen");
    if (displacement_noted_ || !chosen || !before) return;
    if (!(*chosen < *before - 1e-5 * std::abs(*before))) return;
    displacement_noted_ = true;
    note_(
        fmt::format("chosen log-probs fell below the reference's (likelihood displacement): {:.2f} "
                    "against {:.2f} nats at step {}; an SFT term (rpo) holds them up",
                    *chosen, *before, trainer_.steps_done()));
  }

  const LoopOptions& options_;
  Rows rows_;
  std::int64_t total_;
  PairOrder order_;
  Trainer& trainer_;
  RunFolder& folder_;
  const RunEvents& events_;
  const Note& note_;
  Stopwatch clock_;
  bool displacement_noted_ = false;
};

}  // namespace

RunResult run_training(const RunOptions& given, const RunEvents& events) {
  const Stopwatch watch;
  const Note note = events.note ? events.note : [](const std::string&) {};

  auto options = checked(given, "run");
  check_reference(options.reference);
  const auto loss = make_loss(options.loss);
  options.loss = loss.config();
  const auto needs = loss.requirements();
  RunFolder folder(options.output_dir);
  if (options.train.threads > 0) at::set_num_threads(static_cast<int>(options.train.threads));
  at::manual_seed(static_cast<std::uint64_t>(options.train.seed));

  if (options.model.tokenizer.empty()) {
    options.model.tokenizer = tokenizer_of_model(options.model.path);
  }
  const auto tokenizer = make_tokenizer(options.model.tokenizer);
  auto rows = load_rows(options.data, *tokenizer, row_needs(needs), note);
  const auto policy = make_policy(options.model, *tokenizer, note);
  detail::check_token_range(rows.train, policy->vocab_size(), "data.train");
  detail::check_token_range(rows.eval, policy->vocab_size(), "data.eval");
  if (options.sampling.eos_id < 0) {
    const auto model_eos = policy->options().eos_token_id;
    options.sampling.eos_id = model_eos >= 0 ? model_eos : tokenizer->eos_id();
  }
  if (options.reference.cache_dir.empty()) {
    options.reference.cache_dir = folder.file("reference-cache");
  }

  std::shared_ptr<Reference> reference;
  if (needs.reference || needs.sample_source == SampleSource::kReference) {
    reference = make_reference(options.reference, options.model, *policy,
                               needs.head_logps ? CacheLevel::kToken : CacheLevel::kSequence);
  }
  const auto total_steps = count_steps(options.train, std::ssize(rows.train));
  const auto micro = options.train.micro_batch_size;
  set_checkpointing(options.train, most_tokens(rows.train, options.train), *policy, note);
  Trainer trainer(policy, reference, loss,
                  {.optimizer = options.optimizer,
                   .total_steps = total_steps,
                   // An evaluation is cut as well, or it would take more memory than a step.
                   .micro_batch_size = micro > 0 ? micro : options.train.batch_size,
                   .micro_batch_tokens = options.train.micro_batch_tokens,
                   .head_budget_bytes = options.train.head_budget_mib << 20,
                   .sampling = options.sampling});
  folder.start(detail::parse_json<ConfigError>(options_to_json(options), "run"), environment());

  RunResult result;
  result.policy = policy;
  Run(options.train, std::move(rows), trainer, folder, events, note).train(result);
  if (auto* cache = dynamic_cast<CachedReference*>(reference.get())) cache->flush();
  result.checkpoint = folder.save(*policy, trainer.loss_state(), trainer.steps_done());
  result.seconds = watch.seconds();
  return result;
}

}  // namespace prefopt
