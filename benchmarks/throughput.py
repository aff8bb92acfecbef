"""Tokens per second end to end, against TRL's own synchronous GRPOTrainer: same machine, model, tasks and group size.

    python -m benchmarks.throughput [--json] [--steps 12]

Mathematics alone, one turn, no tool, float32, twice: answers with their working, whose lengths differ by a factor of
ten as those of a reasoning policy do (`ratio`), and bare answers of seven tokens, the worst case for anything
asynchronous (`ratio_bare`). A token is a token of a played episode, prompt included; the clock runs from the end of the
second step to the end of the last, so that neither side pays for its start. Both sample at temperature 1, in groups of
8, and take one optimiser step on each batch of about the same number of episodes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import envs
from rl import config, warmstart
from rl.live import Page
from rl.store import Run

GROUP = 8
EPISODES = 128
"""Of one step of TRL's; ours takes the tokens that as many episodes sample."""
SKIP = 2
CONFIG = """
name: {kind}
worlds: {{math: {{args: {{families: {families}, levels: [0, 1, 2], python_tool: false}}}}}}
policy: {{turn_tokens: {turn_tokens}, context: {context}}}
warmstart: {{steps: {warm}, row_tokens: {row_tokens}}}
learner: {{lr: 2e-4, batch_tokens: {batch_tokens}}}
engine: {{max_sequences: 192, args: {{block_size: 32}}}}
train: {{steps: {steps}, groups: 24, checkpoint_every: 1000}}
eval: {{tasks: 8}}
"""
KINDS = {
    "worked": {
        "families": "[chain]",
        "turn_tokens": 160,
        "context": 288,
        "batch_tokens": 6000,
        "warm": 600,
        "row_tokens": 288,
    },
    "bare": {
        "families": "[arithmetic, compare, word]",
        "turn_tokens": 32,
        "context": 128,
        "batch_tokens": 700,
        "warm": 900,
        "row_tokens": 208,
    },
}


def settings_for(kind: str, folder: Path, steps: int) -> config.RunConfig:
    path = folder / f"{kind}.yaml"
    path.write_text(CONFIG.format(kind=kind, steps=steps, **KINDS[kind]))
    return config.load(path, [f"runs={folder}", "warmstart.cache=.cache/warmstart"])


def ours(settings: config.RunConfig) -> dict[str, float]:
    from rl.train import train

    train(settings, resume=False)
    rows = Run(settings.folder).rows("metrics.jsonl")[SKIP:]
    seconds = sum(row["wall_s"] for row in rows)
    played = sum(row["played_tokens_per_s"] * row["wall_s"] for row in rows)
    episodes = sum(seen["attempts"] for row in rows for seen in row["worlds"].values())
    return {
        "tokens_per_s": played / seconds,
        "episodes_per_s": episodes / seconds,
        "seconds_per_step": seconds / len(rows),
    }


def trl(settings: config.RunConfig, model: Path, steps: int) -> dict[str, float]:
    """TRL's trainer on the same stream of tasks; its reward is the same verdict, taken in its own process."""
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")  # which it does not use here
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from envs.math.problems import last_boxed

    torch.set_num_threads(2)
    world = envs.load("math").World(None, seed=settings.seed, **settings.worlds["math"].args)
    tasks = [world.task("train", i) for i in range(steps * EPISODES // GROUP)]
    marks: list[tuple[float, float]] = []
    counts = {"tokens": 0.0}

    def solved(prompts: Any, completions: Any, completion_ids: Any, answer: list[str], **_: Any) -> list[float]:
        render = trainer.processing_class.apply_chat_template
        rendered = render(list(prompts), tokenize=True, add_generation_prompt=True)
        ids = rendered["input_ids"] if not isinstance(rendered, list) else rendered
        counts["tokens"] += sum(map(len, ids)) + sum(map(len, completion_ids))
        texts = [completion[0]["content"] for completion in completions]
        return [float(last_boxed(text) == gold) for text, gold in zip(texts, answer, strict=True)]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append((time.monotonic(), counts["tokens"]))

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=str(model),
            reward_funcs=solved,
            train_dataset=Dataset.from_list(
                [{"prompt": list(t.messages), "answer": t.hidden["answer"]} for t in tasks]
            ),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=EPISODES,
                num_generations=GROUP,
                max_completion_length=settings.policy.turn_tokens,
                learning_rate=settings.learner.lr,
                loss_type="dr_grpo",
                beta=0.0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.train()
    (began, before), (ended, after) = marks[SKIP - 1], marks[-1]
    steps_taken = len(marks) - SKIP
    return {
        "tokens_per_s": (after - before) / (ended - began),
        "episodes_per_s": steps_taken * EPISODES / (ended - began),
        "seconds_per_step": (ended - began) / steps_taken,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kind", choices=KINDS, help="only this kind of answer")
    args = parser.parse_args()
    if args.steps <= SKIP:
        parser.error(f"got --steps {args.steps}; expected more than {SKIP}")
    found: dict[str, Any] = {}
    for kind in KINDS if args.kind is None else [args.kind]:
        with tempfile.TemporaryDirectory(prefix="touchstone-bench-") as folder, contextlib.redirect_stdout(sys.stderr):
            settings = settings_for(kind, Path(folder), args.steps)
            with Page(settings) as page:
                model, _ = warmstart.ensure(settings, page)
            peer = trl(settings, model, args.steps)
            us = ours(settings)
        name = "ratio" if kind == "worked" else f"ratio_{kind}"
        found |= {name: us["tokens_per_s"] / peer["tokens_per_s"], kind: {"touchstone": us, "trl": peer}}
    if args.json:
        print(json.dumps(found))
        return 0
    for kind in KINDS.keys() & found.keys():
        for name, figures in found[kind].items():
            print(f"{kind:<8}{name:<12}" + "  ".join(f"{value:8.1f} {key}" for key, value in figures.items()))
    print("  ".join(f"{name} {value:.2f}" for name, value in found.items() if name.startswith("ratio")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
