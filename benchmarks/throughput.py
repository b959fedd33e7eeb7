"""Training speed and start-up of `capaft train` against `transformers.Trainer` with PEFT's LoRA, side by side.

Both train all-MiniLM-L6-v2 on the embedded demo's data: LoRA on query and value, rank 8, the classifier trained
directly, batches of 32, float32, AdamW, the same examples, cut to the same length. Each round runs every contestant in
turn, each in a fresh process; the result is the median over rounds of the ratio within a round.

    python benchmarks/throughput.py --rounds 3 --json benchmarks/results/throughput-cpu.json

Contestants: `capaft`, as users run it; `trainer`, as users run it (batches as they are drawn); and `trainer-grouped`,
whose sampler puts texts of similar length together, as capaft does by default.

Start-up is the time from the start of the process to the end of the first optimizer step, against a bare script that
imports the same libraries, loads the same model and data, and does one step. The bare script's head starts at random,
as capaft's does under `--head-init seeded`. By default training begins with the head alone, on the frozen base. For
that, two times are reported: to the end of the head's first batch, and to the end of the adapter's first step, the
latter both with a head fitted in the run and with one kept by an earlier run on the same data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANK, BATCH, LENGTH, RATE = 8, 32, 128, 2e-3
SPEEDS = ("capaft", "trainer", "trainer-grouped")
STARTS = ("seeded", "fitted", "fitted, kept by an earlier run", "fitted, first batch of the head")


def capaft_arguments(steps: int, output: str, head: str = "seeded") -> list[str]:
    return [
        *("train", "--method", "lora", "--rank", str(RANK), "--target-modules", "qv", "--lr", str(RATE)),
        *("--max-steps", str(steps), "--batch-size", str(BATCH), "--max-length", str(LENGTH), "--no-baseline"),
        *("--head-init", head, "--max-eval-examples", "8", "--output", output, "--overwrite", "--json"),
    ]


def speed_of_capaft(steps: int) -> float:
    """Examples per second over the steps, without the evaluation at the end."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "capaft", *capaft_arguments(steps, f"{directory}/run")]
        subprocess.run(command, check=True, capture_output=True)
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return float([r for r in records if "loss" in r][-1]["examples_per_second"])


def speed_of_trainer(steps: int, grouped: bool) -> float:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    model, tokenizer, rows = load()
    model = get_peft_model(
        model,
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([example.pop("labels") for example in examples])
        return {**tokenizer.pad(examples, return_tensors="pt"), "labels": labels}

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
        started = time.perf_counter()
        trainer.train()
        return steps * BATCH / (time.perf_counter() - started)


def load() -> tuple:
    """The demo's model, tokenizer and tokenised training rows, as a script without capaft's loop would load them."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from capaft.data.demo import PACKAGES, demo_examples
    from capaft.model.demo import demo_model

    torch.manual_seed(0)
    directory = demo_model()
    rows = demo_examples()["train"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=len(PACKAGES))
    encoded = tokenizer(rows["text"][:], truncation=True, max_length=LENGTH)
    examples = [
        {"input_ids": ids, "token_type_ids": types, "labels": label}
        for ids, types, label in zip(encoded["input_ids"], encoded["token_type_ids"], rows["label"][:], strict=True)
    ]
    return model, tokenizer, examples


def start_of_capaft(start: str) -> None:
    """Run until the end of the first step, or of the head's first batch, then exit."""
    head, _, variant = start.partition(", ")
    cache = "--head-cache" if variant.startswith("kept") else "--no-head-cache"
    if variant.startswith("first batch"):
        leave_after_the_first_forward()
    else:
        leave_after_the_first_step()
    from capaft.commands.app import app

    with tempfile.TemporaryDirectory() as directory:
        app([*capaft_arguments(2, f"{directory}/run", head), cache])


def start_of_bare_script() -> None:
    leave_after_the_first_step()
    # Imported as in a run of capaft.
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import torch

    model, tokenizer, examples = load()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("query" in name or "value" in name or "classifier" in name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    batch = examples[:BATCH]
    labels = torch.tensor([example.pop("labels") for example in batch])
    model(**tokenizer.pad(batch, return_tensors="pt"), labels=labels).loss.backward()
    optimizer.step()


def leave_after_the_first_step() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: os._exit(0))


def leave_after_the_first_forward() -> None:
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    def leave(module: nn.Module, *_: object) -> None:
        if type(module).__name__.endswith("ForSequenceClassification"):
            os._exit(0)

    register_module_forward_hook(leave)


def child(role: str, steps: int) -> float:
    """Run one contestant in a fresh process: its examples per second, or its seconds to the first step."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--child", role, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1]) if role.startswith("speed") else time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    options = parser.parse_args()
    roles = {
        "speed capaft": lambda: speed_of_capaft(options.steps),
        "speed trainer": lambda: speed_of_trainer(options.steps, grouped=False),
        "speed trainer-grouped": lambda: speed_of_trainer(options.steps, grouped=True),
        **{f"start capaft, {start}": lambda start=start: start_of_capaft(start) for start in STARTS},
        "start bare": start_of_bare_script,
    }
    if options.child:
        print(roles[options.child]())
        return
    cache = tempfile.TemporaryDirectory()
    os.environ["HF_ASSETS_CACHE"] = cache.name
    child("start capaft, fitted, kept by an earlier run", options.steps)  # The earlier run.
    rounds = []
    for number in range(options.rounds):
        rounds.append({role: child(role, options.steps) for role in roles})
        print(number + 1, {role: round(value, 2) for role, value in rounds[-1].items()}, file=sys.stderr)
    ratios = {
        f"capaft / {other}": statistics.median(times["speed capaft"] / times[f"speed {other}"] for times in rounds)
        for other in SPEEDS[1:]
    }
    for start in STARTS:
        ratio = statistics.median(times[f"start capaft, {start}"] / times["start bare"] for times in rounds)
        ratios[f"start-up capaft / bare, head {start}"] = ratio
    print(json.dumps(ratios, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
