"""`rl interference`: do the worlds of a joint run pull the same way? From the run folder; an engine only if asked for.

The newest stored attempts, as many tokens of each world and none older than the run's bound on staleness (the loss
weighs by ratios, which mean little from far off), give one gradient a world: that of the run's own loss, per sampled
token. Reported are its norm, the cosine between worlds, and to first order what a step down one world's loss does to
another's: a step of length 1 changes the loss of b by -<g_a, g_b> / |g_a|. That is a first derivative, without the
optimiser's scaling; `--effect N` measures the effect on held-out success itself, in an engine (rl/effect.py).

Gradients of few attempts are noisy, and noise pulls a cosine towards 0. So each world's attempts are also split in two
halves, by lease: their cosine tells how much of such a gradient is the world's and how much is chance.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from envs import Episode, Outcome, Task
from rewards import Score
from rl import algorithms, config, effect
from rl.batch import pack
from rl.store import Run
from rl.trajectory import Member, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = [
    "purpose",
    "lease",
    "member",
    "version",
    "world",
    "advantage",
    "turn_advantages",
    "score",
    "ids",
    "mask",
    "logprobs",
    "versions",
]


def facts(
    folder: Path,
    *,
    tokens: int | None = None,
    step: int | None = None,
    effect_steps: int = 0,
    tasks: int | None = None,
    play: effect.Play | None = None,
) -> dict[str, Any]:
    """The report in figures. `tokens` sampled ones of each world, by default a batch's. Raises ValueError.

    Where there are `effect_steps`, also what they do to `tasks` held-out tasks of each world, by default the run's;
    `play` plays them, by default in an engine.
    """
    if not (folder / "ledger.db").is_file():
        raise ValueError(f"there is no run at {folder}; expected a folder with a ledger.db")
    run = Run(folder)
    settings = config.load(folder / "config.yaml")
    checkpoint = run.latest() if step is None else run.checkpoint(step)
    if checkpoint is None or not checkpoint.is_dir():
        there = ", ".join(sorted(path.name for path in run.checkpoints.glob("[0-9]*"))) or "none"
        raise ValueError(f"{folder} has no checkpoint{'' if step is None else f' of step {step}'}; available: {there}")
    version = int(checkpoint.name)
    bound = 1 if settings.train.sync else settings.train.max_staleness
    admitted = range(version - bound, version + 1)
    attempts = stored(run, admitted, tokens or settings.learner.batch_tokens, list(settings.worlds))
    if not attempts:
        raise ValueError(
            f"{folder} has no stored attempts with an advantage from steps {admitted[0]} to {version}; expected some"
        )
    gradient = Gradient(checkpoint, settings)
    halves = {world: [gradient(half) for half in _halves(members)] for world, members in sorted(attempts.items())}
    measured: dict[str, Any] = {}
    if effect_steps:
        settings.eval.tasks = tasks or settings.eval.tasks
        members = {world: [m for own in leases.values() for m in own] for world, leases in sorted(attempts.items())}
        changes = effect.measured(checkpoint, settings, members, effect_steps, play or effect.in_engine(settings))
        measured = {"measured": {"steps": effect_steps, "samples": settings.eval.samples, "after": changes}}
    return {
        "step": version,
        "worlds": {
            world: {
                "groups": len(attempts[world]),
                "attempts": sum(len(members) for members in attempts[world].values()),
                "tokens": sum(count for count, _ in own),
                "norm": _norm(_mean(own)),
                "self_cosine": _cosine(own[0][1], own[1][1]) if len(own) > 1 else None,
                "heldout": _heldout(run, world),
            }
            for world, own in halves.items()
        },
        **_pairs({world: _mean(own) for world, own in halves.items()}),
        **measured,
    }


def stored(run: Run, admitted: range, tokens: int, worlds: Sequence[str]) -> dict[str, dict[int, list[Member]]]:
    """By world and lease: the newest attempts with an advantage, in whole groups, `admitted` at such versions."""
    found: dict[str, dict[int, dict[int, Member]]] = defaultdict(lambda: defaultdict(dict))
    for shard in sorted(run.episodes.glob("*.parquet"), reverse=True):
        if all(_sampled(found[world].values()) >= 2 * tokens for world in worlds):
            break
        for row in pq.read_table(shard, columns=COLUMNS).to_pylist():
            if row["purpose"] == "train" and row["version"] in admitted and (member := _member(row)).teaches:
                found[row["world"]][row["lease"]][row["member"]] = member
    chosen: dict[str, dict[int, list[Member]]] = {}
    for world, leases in ((world, found[world]) for world in worlds if found[world]):
        own: dict[int, list[Member]] = {}
        for lease in sorted(leases, reverse=True):
            if sum(m.trajectory.spoken for members in own.values() for m in members) < tokens:
                own[lease] = list(leases[lease].values())
        chosen[world] = own
    return chosen


class Gradient:
    """The gradient of the run's loss at a checkpoint, per sampled token, as one flat vector on the CPU."""

    def __init__(self, checkpoint: Path, settings: config.RunConfig) -> None:
        from transformers.utils import logging

        from policy.model import load

        logging.disable_progress_bar()
        self.model = load(checkpoint, attention=settings.learner.attention)
        self.row_tokens = settings.learner.row_tokens
        self.algorithm = algorithms.load(settings.algorithm.name, **settings.algorithm.args)

    def __call__(self, members: Sequence[Member]) -> tuple[int, Tensor]:
        """Sampled tokens, and the gradient of these members' loss divided by their number."""
        import torch

        from policy.model import token_logprobs

        self.model.zero_grad()
        count = sum(member.trajectory.spoken for member in members)
        for micro in pack(members, self.row_tokens).split(rows=1):
            logprob_BT, entropy_BT = token_logprobs(self.model, micro.ids_BT, micro.position_BT, micro.mask_BT)
            loss, _ = self.algorithm.loss(
                logprob_BT,
                micro.behaviour_BT,
                micro.advantage_BT,
                micro.mask_BT,
                entropy_BT,
                micro.document_BT,
                denominator=count,
            )
            loss.backward()
        parts = [p.grad.flatten().float() for p in self.model.parameters() if p.grad is not None]
        return count, torch.cat(parts)


def show(
    folder: Path, *, tokens: int | None, step: int | None, as_json: bool, effect_steps: int, tasks: int | None
) -> int:
    found = facts(folder, tokens=tokens, step=step, effect_steps=effect_steps, tasks=tasks)
    if as_json:
        print(json.dumps(found))
        return 0
    console, worlds = Console(), found["worlds"]
    table = Table(title=f"Gradients of {folder.name} at step {found['step']}; cosine with", title_justify="left")
    for column in ("world", "tokens", "norm", *worlds, "held-out"):
        table.add_column(column, justify="left" if column == "world" else "right")
    for world, row in worlds.items():
        own = "" if row["self_cosine"] is None else f"({row['self_cosine']:+.2f})"
        cosines = [own if other == world else f"{cosine:+.2f}" for other, cosine in found["cosine"][world].items()]
        change = " to ".join(f"{value:.2f}" for value in row["heldout"])
        table.add_row(world, f"{row['tokens']:,}", f"{row['norm']:.2g}", *cosines, change)
    console.print(table)
    console.print(
        "In brackets: two halves of the same world. Where that is near 0, noise hides the others; take more --tokens."
    )
    for a, effects in found["effect"].items():
        told = ", ".join(f"{b} {change:+.2g}" for b, change in effects.items())
        console.print(f"A step of length 1 down the loss of {a}, to first order: {told}")
    if "measured" in found:
        tell_effect(console, found["measured"])
    return 0


def tell_effect(console: Console, found: Mapping[str, Any]) -> None:
    """A row for each world that was trained on alone, a column for each whose held-out tasks were played."""
    first, *_ = found["after"].values()
    table = Table(
        title=f"Change of held-out success after {found['steps']} steps on one world alone, 95 % interval",
        title_justify="left",
    )
    table.add_column("steps on")
    for world, row in first.items():
        table.add_column(f"{world} ({row['before']:.2f}, n {row['n']})", justify="right")
    for trained, changes in found["after"].items():
        cells = [f"{row['change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in changes.values()]
        table.add_row(trained, *cells)
    console.print(table)
    count = sum(len(changes) for changes in found["after"].values())
    console.print(
        f"Of {count} such intervals about {0.05 * count:.1f} leave out a true 0 by chance. "
        "The row without a step shows whether the machine repeats itself."
    )


def _pairs(gradients: Mapping[str, Tensor]) -> dict[str, Any]:
    """Cosine between worlds, and the change of b's loss by a step of length 1 down a's (b's own where they are one)."""
    cosine = {a: {b: _cosine(own, other) for b, other in gradients.items()} for a, own in gradients.items()}
    first_order = {a: {b: -cosine[a][b] * _norm(other) for b, other in gradients.items()} for a in gradients}
    return {"cosine": cosine, "effect": first_order}


def _halves(leases: Mapping[int, Sequence[Member]]) -> list[list[Member]]:
    """Every other group; one half where there is only one group."""
    halves = [[m for lease in list(leases)[start::2] for m in leases[lease]] for start in (0, 1)]
    return [half for half in halves if half]


def _mean(halves: Sequence[tuple[int, Tensor]]) -> Tensor:
    total = sum(count for count, _ in halves)
    return sum((gradient * (count / total) for count, gradient in halves[1:]), halves[0][1] * (halves[0][0] / total))


def _norm(gradient: Tensor) -> float:
    return float(gradient.norm())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / max(1e-30, _norm(a) * _norm(b))


def _heldout(run: Run, world: str) -> list[float]:
    """Held-out success of the world at each measurement of the run."""
    return [row["worlds"][world]["pass@1"] for row in run.rows("evals.jsonl") if world in row["worlds"]]


def _sampled(groups: Any) -> int:
    return sum(member.trajectory.spoken for members in groups for member in members.values())


def _member(row: Mapping[str, Any]) -> Member:
    """An attempt with what the loss needs, and no more, as it was stored."""
    trajectory = Trajectory(ids=row["ids"], mask=row["mask"], logprobs=row["logprobs"], versions=row["versions"])
    task = Task(world=row["world"], key="", family="", level=0, messages=())
    episode = Episode(task=task, messages=[], outcome=Outcome.FAILED)
    return Member(trajectory, episode, Score(row["score"]), row["advantage"], tuple(row["turn_advantages"] or ()))
