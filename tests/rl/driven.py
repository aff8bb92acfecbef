"""A whole run in a process that can be killed: real loops, ledger and learner; an engine that guesses by seed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from envs.math import World
from policy.chat import Chat
from policy.engines.drawn import DrawnEngine
from policy.tiny import make_model, train_tokenizer
from rl import config, train
from rl.config import RunConfig
from rl.learner import Learner, Settings
from rl.live import Page
from rl.local import Local
from rl.store import Run
from rl.trajectory import Group

CONFIG = """
worlds: {math: {args: {python_tool: false, tasks: BITS}}}
policy: {model: MODEL, context: 120, turn_tokens: 12}
learner: {batch_tokens: 110, row_tokens: 120}
rollout: {group_size: 3}
train: {steps: 9, groups: 3, checkpoint_every: 3, selftest: false}
eval: {tasks: 3}
"""
ANSWERS = (0, 1)


@dataclass(frozen=True)
class Kill:
    """The process kills itself with SIGKILL at the `line`th line that it runs of these functions of a file."""

    file: str
    functions: tuple[str, ...]
    line: int


def prepare(folder: Path) -> None:
    """A tiny random model with a tokenizer, tasks that half of the guesses solve, and a configuration."""
    torch.manual_seed(0)
    bits = [{"problem": f"Guess bit number {number}.", "answer": str(number % 2)} for number in range(60)]
    (folder / "bits.jsonl").write_text("".join(json.dumps(bit) + "\n" for bit in bits))
    texts = ["Guess bit number 3. user assistant \\boxed{7}"] * 4
    tokenizer = train_tokenizer(texts, 330)
    model = make_model(tokenizer, hidden=16, layers=2, heads=2, kv_heads=1, mlp=32, context=128)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "run.yaml").write_text(
        CONFIG.replace("MODEL", str(folder / "model")).replace("BITS", str(folder / "bits.jsonl"))
    )


class Told(Local):
    """Says in a file which leases it played to the end, and which it trained on at which version."""

    log: Path

    def tell(self, *words: Any) -> None:
        with self.log.open("a") as out:
            out.write(json.dumps(words) + "\n")

    async def play(self, *args: Any) -> Group:  # type: ignore[override]
        group = await super().play(*args)
        if args[1] == "train":
            self.tell("played", group.lease)
        return group

    async def step(self, groups: Sequence[Group]) -> dict[str, float]:
        version = self.learner.version
        learnt = await super().step(groups)
        self.tell("learnt", version + 1, [group.lease for group in groups])
        return learnt


def drive(folder: Path, name: str, overrides: Sequence[str], kill: Kill | None) -> None:
    """Begin a run, or go on with it, to its end."""
    torch.set_num_threads(1)
    if kill is not None:
        _arm(kill)
    settings = config.load(folder / "run.yaml", [f"runs={folder}", f"name={name}", *overrides])
    run = (Run.reopen if settings.folder.exists() else Run.create)(settings.folder)
    with (folder / f"{name}.out").open("a") as out:
        page = Page(settings, Console(file=out))
        asyncio.run(train.drive(settings, run, page, str(settings.policy.model), cluster(settings, folder, name)))
        run.close()


def cluster(settings: RunConfig, folder: Path, name: str) -> Told:
    model = str(settings.policy.model)
    chat = Chat.load(model)
    engine = DrawnEngine([chat.encode(f"\\boxed{{{answer}}}") + chat.stop_ids[:1] for answer in ANSWERS])
    learner = Learner(
        Settings(
            model=model,
            lr=1e-2,
            loss_denominator=settings.learner.batch_tokens,
            row_tokens=settings.learner.row_tokens,
            device="cpu",
            threads=1,
        )
    )
    world = World(None, seed=0, **settings.worlds["math"].args)  # type: ignore[arg-type]
    local = Told(settings, {"math": world}, engine, chat, learner)
    local.log = folder / f"{name}.log"
    return local


def _arm(kill: Kill) -> None:
    left = kill.line

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        return line if code.co_name in kill.functions and code.co_filename.endswith(kill.file) else None

    threading.settrace(call)
    sys.settrace(call)
