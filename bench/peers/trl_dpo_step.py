# SPDX-License-Identifier: Apache-2.0
"""Times TRL's DPOTrainer, one JSON line a step as bench_dpo_step prints them.

    python trl_dpo_step.py MODEL_DIR ROWS.jsonl [--micro 1] [--precompute] [--steps 5]
                           [--lora 16] [--dtype bfloat16]

ROWS holds {prompt, chosen, rejected}; compare_step.py makes it. No gradient checkpointing, rows in
the order of the file. With --lora the weights have an adapter of PEFT on all linear maps, and the
reference is the adapter off; with bfloat16 the trainer computes in it as well.
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
from trl import DPOConfig, DPOTrainer

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model")
parser.add_argument("rows")
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--pairs", type=int, default=4, help="pairs an optimizer step")
parser.add_argument("--micro", type=int, default=0, help="pairs a micro-batch; 0: the whole step")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--lora", type=int, default=0, help="rank of an adapter; 0: all weights")
parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
parser.add_argument("--precompute", action="store_true", help="reference log-probs beforehand")
args = parser.parse_args()
torch.set_num_threads(args.threads)


def say(**values):
    print(json.dumps(values), flush=True)


class Timer(TrainerCallback):
    seconds = None

    def on_step_begin(self, _, state, *__, **___):
        if state.global_step == 0:
            say(ready_seconds=time.process_time())
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.start

    def on_log(self, _, state, __, logs=None, **___):
        if "loss" not in logs:
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        say(
            step=state.global_step,
            seconds=self.seconds,
            peak_rss_gib=peak,
            loss=float(logs["loss"]),
            grad_norm=float(logs["grad_norm"]),
        )


class InOrder(DPOTrainer):
    def _get_train_sampler(self, *_, **__):
        return torch.utils.data.SequentialSampler(self.train_dataset)


with open(args.rows) as file:
    rows = [json.loads(line) for line in file][: args.steps * args.pairs]
micro = args.micro or args.pairs
config = DPOConfig(
    output_dir="trl-out",
    per_device_train_batch_size=micro,
    gradient_accumulation_steps=args.pairs // micro,
    max_steps=args.steps,
    learning_rate=1e-6,
    logging_steps=1,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    bf16=args.dtype == "bfloat16",
    gradient_checkpointing=False,
    max_length=1024,
    precompute_ref_log_probs=args.precompute,
    disable_tqdm=True,
)
adapter = None
if args.lora > 0:
    from peft import LoraConfig

    adapter = LoraConfig(
        r=args.lora, lora_alpha=2 * args.lora, target_modules="all-linear", task_type="CAUSAL_LM"
    )
trainer = InOrder(
    model=AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)),
    args=config,
    peft_config=adapter,
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(args.model),
)
trainer.add_callback(Timer())
trainer.train()
