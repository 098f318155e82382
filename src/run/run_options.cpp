// SPDX-License-Identifier: Apache-2.0
#include "prefopt/run/run.h"

namespace prefopt {

void ModelOptions::fields(FieldVisitor& v) {
  v.text({"path",
          "Hugging Face folder or GGUF file; empty: fresh weights of the shape `decoder`",
          {"model_name_or_path"}},
         path);
  v.text({"dtype", "float32, float64, bfloat16, float16, or keep for the file's", {"torch_dtype"}},
         dtype);
  // Texts from before this option lack it.
  if (!v.writes() || base != "auto") {
    v.text(
        {"base",
         "The weights under an adapter: float32, bfloat16, or quantized for a GGUF file's blocks; "
         "auto: quantized where a file has blocks and dtype is float32 or keep, else dtype"},
        base);
  }
  // Texts from before this option lack it, and are the same without it.
  if (!v.writes() || !quantize.empty()) {
    v.text({"quantize",
            "q8_0 or q4_k: what the weights under an adapter become when a float model is loaded; "
            "empty: they stay as they are"},
           quantize);
  }
  if (!v.writes() || device != ModelOptions().device) {
    v.text({"device", "cpu, cuda, cuda:1, …, or auto for a CUDA device where there is one"},
           device);
  }
  v.text({"tokenizer",
          "byte, a tokenizer.json, a folder that holds one or a GGUF file; empty: the adapter's or "
          "the model's own, byte for a fresh one"},
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
  const bool is_fixed = rule == ReferenceRule::kFixed;
  if (!v.writes() || !is_fixed) {
    v.choice({"rule",
              "How it follows the policy: not, as at the start of each round, as a moving average, "
              "as a weighted sum of log-probs with the first, or as a random past one"},
             rule, {"fixed", "last", "ema", "combined", "random_past"});
    v.real({"decay", "Decay of the moving average, where rule is ema"}, decay,
           Range::half_open(0, 1));
    v.real({"initial_weight", "Weight of the policy before training, where rule is combined"},
           initial_weight, Range::between(0, 1));
    v.integer({"keep", "Past policies to draw from, where rule is random_past"}, keep,
              Range::between(1, 1000));
  }
  v.text({"path", "Hugging Face folder; empty: the policy as it was before training"}, path);
  // Texts from before this option lack it, and are the same without it.
  if (!v.writes() || !adapter.empty()) {
    v.text({"adapter", "PEFT folder of an adapter on `path`, or else on the policy's model"},
           adapter);
  }
  v.text({"dtype", "What the weights are kept in, as model.dtype; empty: the policy's"}, dtype);
  v.text({"cache_dir", "Folder of the cache; empty: `reference-cache` in the run folder"},
         cache_dir);
  v.flag({"moving", "Whether the reference moves with the policy", {"sync_ref_model"}}, moving);
  v.group({"update", "How it moves, where moving is true"}, update);
}

// An alias with a dot is a former place of the option, from the top of the config.

void BatchOptions::fields(FieldVisitor& v) {
  v.integer({"steps",
             "Optimizer steps; 0: `epochs` decides",
             {"max_steps", "train.steps", "train.max_steps"}},
            steps, Range::between(0, 1e9));
  v.real({"epochs",
          "Passes over the training rows, where `steps` is 0",
          {"num_train_epochs", "train.epochs", "train.num_train_epochs"}},
         epochs, Range{.min = 0, .max = 1e6, .min_open = true});
  v.integer({"rows",
             "Rows an optimizer step; the last one of an epoch is filled up from the next epoch",
             {"train.batch_size"}},
            rows, Range::between(1, 1e6));
  v.integer({"micro_rows",
             "Rows at a time, without effect on results; 0: the whole step",
             {"train.micro_batch_size"}},
            micro_rows, Range::at_least(0));
  v.integer({"micro_tokens",
             "Tokens at a time, without effect on results, at least one row; 0: no limit",
             {"train.micro_batch_tokens"}},
            micro_tokens, Range::at_least(0));
  v.flag({"shuffle", "A new order of the rows each epoch", {"train.shuffle"}}, shuffle);
}

void EvaluateOptions::fields(FieldVisitor& v) {
  v.integer({"every",
             "Steps between evaluations; 0: only before the first and after the last",
             {"eval_steps", "train.eval_every", "train.eval_steps"}},
            every, Range::at_least(0));
  v.integer({"log_every",
             "Steps between lines of metrics.jsonl, which are means over them",
             {"logging_steps", "train.log_every", "train.logging_steps"}},
            log_every, Range::at_least(1));
  v.text({"best_metric",
          "Metric that finds the best: less of one that ends in loss or kl, more of any other",
          {"metric_for_best_model", "train.best_metric", "train.metric_for_best_model"}},
         best_metric);
  v.integer({"patience",
             "Evaluations without a new best that end training; 0: none do",
             {"early_stopping_patience", "train.patience", "train.early_stopping_patience"}},
            patience, Range::at_least(0));
  v.integer({"sample_prompts",
             "Held-out prompts that the policy completes at each evaluation, for samples.jsonl and "
             "the report, as `sampling` says; 0: none",
             {"train.sample_prompts"}},
            sample_prompts, Range::between(0, 1e4));
  v.integer({"sample_tokens", "Tokens of such a completion at most", {"train.sample_tokens"}},
            sample_tokens, Range::between(1, 1e6));
}

void CheckpointOptions::fields(FieldVisitor& v) {
  v.integer({"every",
             "Steps between checkpoints; 0: only the best and after the last step",
             {"save_steps", "train.save_every", "train.save_steps"}},
            every, Range::at_least(0));
  v.integer({"keep_last",
             "Newest checkpoints that stay; 0: all",
             {"save_total_limit", "train.keep_last", "train.save_total_limit"}},
            keep_last, Range::at_least(0));
  v.integer({"keep_best", "Best evaluated checkpoints that stay as well", {"train.keep_best"}},
            keep_best, Range::at_least(0));
}

void MachineOptions::fields(FieldVisitor& v) {
  v.integer({"threads", "CPU threads; 0: LibTorch's default", {"train.threads"}}, threads,
            Range::between(0, 4096));
  v.integer(
      {"head_budget_mib",
       "Memory in MiB that the output head may take for logits that wait for the backward pass, "
       "without effect on results",
       {"train.head_budget_mib"}},
      head_budget_mib, Range::between(1, 1e9));
  v.choice({"checkpointing",
            "Activations that layers recompute in the backward pass, without effect on results: "
            "none, gate and up of the feed-forward part, or all",
            {"train.checkpointing"}},
           checkpointing, {"auto", "none", "selective", "full"});
  v.integer({"activation_budget_mib",
             "Memory in MiB that the layers of a micro-batch may keep, where checkpointing is auto",
             {"train.activation_budget_mib"}},
            activation_budget_mib, Range::between(1, 1e9));
  // Texts from before these options lack them, and are the same without them.
  if (!v.writes() || memory_budget_mib != 0) {
    v.integer({"memory_budget_mib",
               "Memory in MiB that the process may take by its plan, without effect on results: "
               "chooses checkpointing, micro-batches and the head's budget; 0: no limit",
               {"train.memory_budget_mib"}},
              memory_budget_mib, Range::between(0, 1e9));
  }
  if (!v.writes() || !activation_folder.empty()) {
    v.text({"activation_folder",
            "Folder for the file that layers keep their inputs in where checkpointing is full; "
            "empty: memory"},
           activation_folder);
  }
  if (!v.writes() || prompt_cache_mib != 0) {
    v.integer({"prompt_cache_mib",
               "Memory in MiB for prompts that a model completes again before it changes, without "
               "effect on results; 0: none",
               {"train.prompt_cache_mib"}},
              prompt_cache_mib, Range::between(0, 1e9));
  }
  if (!v.writes() || matmul_precision != MatmulPrecision::kHighest) {
    v.choice({"matmul_precision",
              "Digits that products of float32 matrices keep, as in "
              "torch.set_float32_matmul_precision; less than highest is for tile units and GPUs",
              {"train.matmul_precision"}},
             matmul_precision, {"highest", "high", "medium"});
  }
}

void ValueModelOptions::fields(FieldVisitor& v) {
  v.text({"path",
          "Folder of a reward model or a language model; empty: the policy's, with a fresh head"},
         path);
  v.choice({"body", "Layers below its head: its own, or the policy's, which it then trains too"},
           body, {"own", "policy"});
  v.flag({"use_lora", "Train a low-rank adapter of the value model's layers, shaped as model.lora"},
         use_lora);
  v.group({"optimizer", "Its optimizer and learning rate"}, optimizer);
  v.integer({"pretrain_steps", "First steps, which train the values alone"}, pretrain_steps,
            Range::between(0, 1e9));
}

void RunOptions::fields(FieldVisitor& v) {
  v.text({"output_dir", "Run folder, made by the run"}, output_dir);
  v.json({"loss", "The loss with its options: {\"type\": …}"}, loss);
  v.group({"model", "The policy"}, model);
  v.group({"reference", "The reference, for losses that need one"}, reference);
  v.group({"data", "Rows"}, data);
  if (!v.writes() || online.is_online()) {
    v.group({"online", "Rows that the policy writes, in place of those of `data`"}, online);
  }
  v.group({"batch", "Steps and the rows of each"}, batch);
  v.group({"optimizer", "The optimizer and its learning rate"}, optimizer);
  v.group({"evaluate", "Evaluations, metrics, samples and early stopping"}, evaluate);
  v.group({"checkpoint", "When checkpoints are saved, and which stay"}, checkpoint);
  v.group({"sampling",
           "Fresh samples, for losses that draw them; without end tokens: those of the model, the "
           "tokenizer and the chat format"},
          sampling);
  // Texts from before this group lack it, and are the same without it.
  if (!v.writes() || options_to_json(value) != options_to_json(ValueModelOptions())) {
    v.group({"value", "The value model, for objectives with values"}, value);
  }
  v.group({"machine", "Threads and memory, without effect on results but for rounding"}, machine);
  // The same.
  if (!v.writes() || options_to_json(distributed) != options_to_json(RanksOptions())) {
    v.group({"distributed", "Several processes that train together, where a launcher starts them"},
            distributed);
  }
  v.integer({"seed", "Seed of fresh weights, of the order of rows and of samples", {"train.seed"}},
            seed, Range::at_least(0));
}

}  // namespace prefopt
