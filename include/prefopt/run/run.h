// SPDX-License-Identifier: Apache-2.0
#pragma once

// A training run from files to a run folder: config.json, metrics.jsonl, checkpoints,
// samples.jsonl, TensorBoard's events, report.html.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/export.h"
#include "prefopt/online/online_options.h"
#include "prefopt/options.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/train/row_source.h"
#include "prefopt/train/trainer.h"

namespace prefopt {

struct ModelOptions {
  std::string path = {};  ///< Hugging Face folder or GGUF file; empty: fresh weights of `decoder`
  std::string dtype = "float32";  ///< or "keep"
  /// Of the weights under an adapter: "float32", "bfloat16", or "quantized", a GGUF file's blocks
  /// as they are; "auto" is quantized where the file has blocks and dtype does not say otherwise.
  std::string base = "auto";
  /// The blocks that float weights under an adapter become when they are loaded: "q8_0" or "q4_k";
  /// empty: they stay as they are.
  std::string quantize = {};
  std::string device = "cpu";  ///< of parse_device; that of all models of the run
  std::string tokenizer = {};  ///< of make_tokenizer; empty: the model's own, "byte" if fresh
  DecoderOptions decoder = {};
  bool use_lora = false;  ///< train an adapter; the reference is then the model without it
  LoraOptions lora = {};
  std::string adapter = {};  ///< folder of an adapter to train on, in place of `lora`

  PREFOPT_API void fields(FieldVisitor& v);
};

enum class ReferenceKind { kFrozen, kCached };

/// How the reference follows the policy.
enum class ReferenceRule {
  kFixed,
  kLast,        ///< the policy at the start of each round
  kEma,         ///< the moving average of the policy's weights, after each step
  kCombined,    ///< initial_weight log π_0 + (1 - initial_weight) log π_t (INPO, 2407.00617)
  kRandomPast,  ///< in each round a random one of the policies at starts of rounds (SePPO)
};

struct ReferenceOptions {
  ReferenceKind kind = ReferenceKind::kFrozen;
  ReferenceRule rule = ReferenceRule::kFixed;
  double decay = 0.999;         ///< of kEma
  double initial_weight = 0.5;  ///< of kCombined: the paper's τ/η
  std::int64_t keep = 8;        ///< of kRandomPast: policies to draw from
  std::string path = {};       ///< Hugging Face folder; empty: the policy as it was before training
  std::string adapter = {};    ///< folder of an adapter on `path`, or else on the policy's model
  std::string dtype = {};      ///< empty: the policy's
  std::string cache_dir = {};  ///< empty: `reference-cache` in the run folder
  bool moving = false;         ///< not with a cache
  MovingReferenceOptions update = {};

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Automatic: as little is computed again as `activation_budget_mib` allows.
enum class CheckpointingChoice { kAutomatic, kNone, kSelective, kFull };

struct BatchOptions {
  std::int64_t steps = 0;  ///< 0: `epochs` decides
  double epochs = 1;
  /// Rows an optimizer step. The last step of an epoch is filled up from the next epoch's order.
  std::int64_t rows = 16;
  std::int64_t micro_rows = 0;    ///< rows at a time; 0: the whole step at once
  std::int64_t micro_tokens = 0;  ///< tokens at a time; 0: no limit
  bool shuffle = true;

  PREFOPT_API void fields(FieldVisitor& v);
};

struct EvaluateOptions {
  std::int64_t every = 0;  ///< steps; 0: only before the first and after the last step
  std::int64_t log_every = 1;
  std::string best_metric = "eval_loss";  ///< less is better of `…loss` and `…kl`, else more
  std::int64_t patience = 0;  ///< evaluations without a new best that end training; 0: none do
  std::int64_t sample_prompts = 4;  ///< held-out prompts completed at each evaluation; 0: none
  std::int64_t sample_tokens = 64;  ///< limit of such a completion

  PREFOPT_API void fields(FieldVisitor& v);
};

struct CheckpointOptions {
  std::int64_t every = 0;      ///< steps; 0: only the best and after the last step
  std::int64_t keep_last = 2;  ///< newest checkpoints that stay; 0: all
  std::int64_t keep_best = 1;  ///< best checkpoints that stay as well

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Digits that products of float32 matrices may keep, as torch.set_float32_matmul_precision has it.
enum class MatmulPrecision { kHighest, kHigh, kMedium };

/// How the machine is used, without effect on results but for rounding.
struct MachineOptions {
  std::int64_t threads = 0;  ///< 0: LibTorch's default
  std::int64_t head_budget_mib = 1024;
  CheckpointingChoice checkpointing = CheckpointingChoice::kAutomatic;
  std::int64_t activation_budget_mib = 4096;
  /// Of the process, by its plan: chooses checkpointing, micro-batches and the head's budget within
  /// what the options above and `batch` leave open; 0: no limit.
  std::int64_t memory_budget_mib = 0;
  /// Folder for the file that layers keep their inputs in where all else is computed again; empty:
  /// memory. The file has no name and is gone with the process.
  std::string activation_folder = {};
  /// For keys, values and logits of prompts that a model on the CPU completes again before it
  /// changes (prefopt/decoder/prompt_cache.h); 0: none. A policy changes with each step, so this
  /// pays where a frozen model samples each round, or several sources complete one prompt.
  std::int64_t prompt_cache_mib = 0;
  /// Highest: float32. High: 16 bits of each factor on a CPU with a tile unit, TF32 on a GPU.
  /// Medium: bfloat16 factors. Sums are float32. Other processors know float32 alone.
  MatmulPrecision matmul_precision = MatmulPrecision::kHighest;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The layers below the score head of a value model.
enum class ValueBody { kOwn, kPolicy };

/// The value model of an objective with values.
struct ValueModelOptions {
  /// Folder of a reward model or a language model; empty: model.path with a fresh score head.
  std::string path = {};
  ValueBody body = ValueBody::kOwn;
  bool use_lora = false;
  OptimizerOptions optimizer = {};
  std::int64_t pretrain_steps = 0;  ///< first steps, which train the values alone

  PREFOPT_API void fields(FieldVisitor& v);
};

struct RunOptions {
  std::string output_dir = "run";
  std::string loss = R"({"type": "dpo"})";
  ModelOptions model = {};
  ReferenceOptions reference = {};
  DataOptions data = {};
  BatchOptions batch = {};
  OptimizerOptions optimizer = {};
  EvaluateOptions evaluate = {};
  CheckpointOptions checkpoint = {};
  OnlineOptions online = {};      ///< rows that the policy writes, in place of those of `data`
  SamplingOptions sampling = {};  ///< without end tokens: those of end_tokens()
  ValueModelOptions value = {};
  MachineOptions machine = {};
  RanksOptions distributed = {};  ///< of join_ranks
  std::int64_t seed = 0;          ///< of fresh weights, of the order of rows and of samples

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Events that a caller may watch; the library itself never prints. Of several ranks rank 0 has all
/// notes, and each the other events.
struct RunEvents {
  std::function<void(const std::string& line)> note = {};  ///< set-up facts, dropped rows, warnings
  std::function<void(std::int64_t step, std::int64_t total, const Metrics&)> step = {};
  std::function<void(std::int64_t step, const Metrics&)> evaluation = {};
  /// Of a policy that writes its own rows: "sampling" or "rating", and the prompts done.
  std::function<void(std::string_view phase, std::int64_t done, std::int64_t total)> phase = {};
  /// Asked before each step; true saves and ends the run, which can be resumed.
  std::function<bool()> should_stop = {};
};

struct RunResult {
  std::shared_ptr<Policy> policy;
  std::string checkpoint;  ///< folder of the last checkpoint; empty: stopped before the first step
  std::int64_t steps = 0;  ///< done, with those before a resume
  bool stopped = false;    ///< `should_stop` ended it before its last step
  Metrics last_step;
  Metrics first_evaluation;  ///< empty without held-out rows
  Metrics last_evaluation;
  double seconds = 0;
};

/// Refuses an `output_dir` that holds a run already, or files that a run would write over
/// (ConfigError). Everything is loaded and checked, and the first evaluation made, before the first
/// file is written. A `best_metric` that evaluations do not have is refused (ConfigError) before
/// the first step; that evaluation is saved as step 0, which a run with another name can resume.
/// Sets LibTorch's thread count and default generator. One line of metrics.jsonl is the mean of the
/// steps since the last line, weighted by the tokens or rows that a metric is over, or one
/// evaluation (keys `eval_…`); values that are not finite are null. A step without an update leaves
/// what it was in `nonfinite/step-N`; lines count those steps as `skipped` and average the others.
///
/// `checkpoints/step-N` holds the model or the adapter with its tokenizer and chat format
/// (tokenizer_files), and all other state; a crash at any moment
/// leaves `checkpoints/last` on a whole one, and `checkpoints/best` is the best evaluated one.
/// Where a std::exception ends the run, steps that were done are saved before it is thrown on.
///
/// `resume`: "auto" continues from the newest whole checkpoint in `output_dir`, or starts where
/// there is none and the folder is new, empty or of a run with these options; a run folder or a
/// checkpoint continues from there, in a new `output_dir` if that is another one. With the same
/// threads and micro-batches the rest of the run is to the last bit what it would have been without
/// the break. Throws ConfigError with a list of all that differs for another model, data, loss or
/// optimizer, CheckpointError where no checkpoint is whole.
///
/// `ranks`, of join_ranks with `options.distributed`, train one policy together; null: this process
/// alone. All of them call this with the same options, but for paths, whose contents have to be the
/// same (ConfigError that names rank and file), and threads. `batch.rows` is of all ranks, which
/// get a part of each step. Rank 0 writes `output_dir`; all read a checkpoint that is resumed from,
/// which may be of another number of ranks. `should_stop` on one rank stops all at the same step.
/// An error of one rank is thrown by all, by the others as "rank 1: …"; where a rank has ended, the
/// others throw LostRankError and rank 0 saves the steps that were done.
PREFOPT_API RunResult run_training(const RunOptions& options, const RunEvents& events = {},
                                   const std::string& resume = {},
                                   const std::shared_ptr<Ranks>& ranks = {});

/// The same for a policy, a reference (null for losses that need none) and rows of the caller's
/// own, with all of the run's folder, resume, report and samples. `options` must leave the groups
/// model, reference and data at their defaults (ConfigError). A resumed run needs a policy with
/// `save` and `load_weights`, which is tried at the start, and a source that gives the rows of the
/// saved state; policy and reference must begin with the same weights as the first time, so a model
/// with random weights needs its own seed. End tokens are those of `options.sampling` alone: a loss
/// that draws samples is refused without one. `options.batch.rows` must be the rows of a step
/// of a source with epochs, and options that only files reach must have their defaults. Of several
/// ranks each has a policy of the same weights and a source that gives the same rows: all rows of a
/// step.
PREFOPT_API RunResult run(const std::shared_ptr<Policy>& policy,
                          const std::shared_ptr<Reference>& reference,
                          const std::shared_ptr<RowSource>& source, const RunOptions& options,
                          const RunEvents& events = {}, const std::string& resume = {},
                          const std::shared_ptr<Ranks>& ranks = {});

}  // namespace prefopt
