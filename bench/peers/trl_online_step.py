# SPDX-License-Identifier: Apache-2.0
"""Times iterations of TRL's OnlineDPOTrainer, one JSON line each as bench_online prints them.

    python trl_online_step.py MODEL_DIR PROMPTS.json [--iterations 4] [--checkpointing]

PROMPTS is a list of token lists; compare_online.py makes it. Float32, two completions of each
prompt at temperature 1 without an end token, rated by the length of their text.
"""
import argparse
import json
import os
import resource
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model")
parser.add_argument("prompts")
parser.add_argument("--iterations", type=int, default=4)
parser.add_argument("--prompts-a-step", type=int, default=4)
parser.add_argument("--tokens", type=int, default=64, help="new tokens of each completion")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
args = parser.parse_args()
torch.set_num_threads(args.threads)


class Sampled(OnlineDPOTrainer):
    """Knows how long the last completions took."""

    sampling = 0.0

    def _generate(self, *given):
        start = time.perf_counter()
        drawn = super()._generate(*given)
        self.sampling = time.perf_counter() - start
        return drawn


class Timer(TrainerCallback):
    start = 0.0

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, _, state, *__, **___):
        seconds = time.perf_counter() - self.start
        line = {
            "step": state.global_step,
            "seconds": seconds,
            "sampling": trainer.sampling,
            "training": seconds - trainer.sampling,
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(json.dumps(line), flush=True)


def lengths(prompts, completions, **_):
    return [float(len(completion.encode())) for completion in completions]


with open(args.prompts) as file:
    prompts = json.load(file)[: args.iterations * args.prompts_a_step]
tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
model.generation_config.eos_token_id = None  # equal work in every run
config = OnlineDPOConfig(
    output_dir="trl-out",
    per_device_train_batch_size=args.prompts_a_step,
    max_new_tokens=args.tokens,
    max_steps=args.iterations,
    temperature=1.0,
    beta=0.1,
    learning_rate=1e-6,
    gradient_checkpointing=args.checkpointing,
    use_cpu=True,
    bf16=False,
    report_to=[],
    save_strategy="no",
    logging_steps=1,
    disable_tqdm=True,
)
trainer = Sampled(
    model=model,
    args=config,
    train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(ids) for ids in prompts]}),
    processing_class=tokenizer,
    reward_funcs=lengths,
)
trainer.add_callback(Timer())
trainer.train()
