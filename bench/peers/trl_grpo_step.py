# SPDX-License-Identifier: Apache-2.0
"""Times updates of TRL's GRPOTrainer on given rollouts, one JSON line each as bench_grpo_step prints
them.

    python trl_grpo_step.py MODEL_DIR ROLLOUTS.jsonl [--beta 0.04] [--no-checkpointing] [--micro 1]
        [--draw]

A line of ROLLOUTS is the group of one update, {"prompt", "completions", "rewards"} in tokens;
compare_grpo.py makes it. Nothing is drawn: the group takes the place of what TRL would generate. All
else is TRL's: advantages by its formula, its loss (dapo), reference log-probs by its own function
within the time of the update. Float32; gradient checkpointing is on, as by TRL's default. With --draw
the completions are drawn within that time, by the model's `generate` as TRL calls it, each as long as
the longest that is given.
"""
import argparse
import json
import os
import resource
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model")
parser.add_argument("rollouts")
parser.add_argument("--beta", type=float, default=0.0)
parser.add_argument("--no-checkpointing", action="store_true", help="no gradient checkpointing")
parser.add_argument("--micro", type=int, default=0, help="completions a micro-batch; 0: the group")
parser.add_argument("--draw", action="store_true", help="draw the completions")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)


class GivenRollouts(GRPOTrainer):
    """Trains on groups of the file, one after the other."""

    groups = iter(())
    drawing = 0.0  # seconds

    def draw(self, prompts, tokens):
        """No end token before the last one: all completions have as many tokens."""
        with torch.no_grad():
            sequences = self.model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=self.generation_config,
                min_new_tokens=tokens,
            )
        return sequences[:, prompts.size(1) :].tolist()

    def _generate_and_score_completions(self, _):
        group = next(self.groups)
        completions, rewards = group["completions"], torch.tensor(group["rewards"])
        prompts = torch.tensor([group["prompt"]] * len(completions))
        start = time.perf_counter()
        if args.draw:
            completions = self.draw(prompts, max(map(len, completions)))
        self.drawing = time.perf_counter() - start
        lengths = [len(completion) for completion in completions]
        ids = torch.full((len(completions), max(lengths)), self.processing_class.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, completion in enumerate(completions):
            ids[row, : len(completion)] = torch.tensor(completion)
            mask[row, : len(completion)] = 1
        output = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": ids,
            "completion_mask": mask,
            "advantages": (rewards - rewards.mean()) / (rewards.std() + 1e-4),
            "num_items_in_batch": mask.sum(),
        }
        if self.beta:
            with torch.no_grad():
                output["ref_per_token_logps"], *_ = self._get_per_token_logps_and_entropies(
                    self.ref_model,
                    torch.cat([prompts, ids], dim=1),
                    torch.cat([output["prompt_mask"], mask], dim=1),
                    ids.size(1),
                    batch_size=self.args.per_device_train_batch_size,
                )
        return output


class Timer(TrainerCallback):
    start = seconds = 0.0

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.start

    def on_log(self, _, state, __, logs=None, **___):
        if "loss" not in logs:
            return
        line = {
            "step": state.global_step,
            "seconds": self.seconds,
            "drawing": trainer.drawing,
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "loss": float(logs["loss"]),
            "grad_norm": float(logs["grad_norm"]),
        }
        print(json.dumps(line), flush=True)


with open(args.rollouts, encoding="utf-8") as file:
    groups = [json.loads(line) for line in file]
completions = len(groups[0]["completions"])
micro = args.micro or completions
tokenizer = AutoTokenizer.from_pretrained(args.model)
tokenizer.pad_token = tokenizer.eos_token
config = GRPOConfig(
    output_dir="trl-out",
    per_device_train_batch_size=micro,
    gradient_accumulation_steps=completions // micro,
    num_generations=completions,
    max_completion_length=max(len(c) for group in groups for c in group["completions"]),
    loss_type="dapo",
    beta=args.beta,
    max_steps=len(groups),
    learning_rate=1e-6,
    lr_scheduler_type="constant",
    gradient_checkpointing=not args.no_checkpointing,
    use_cpu=True,
    bf16=False,
    report_to=[],
    save_strategy="no",
    logging_steps=1,
    disable_tqdm=True,
)
trainer = GivenRollouts(
    model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
    args=config,
    train_dataset=Dataset.from_dict({"prompt": ["x"] * (len(groups) * completions)}),
    processing_class=tokenizer,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
)
trainer.groups = iter(groups)
trainer.add_callback(Timer())
trainer.train()
