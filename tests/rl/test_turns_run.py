"""A short run whose rewards pay by turn, without sandboxes: what is stored is enough to do all of it again."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

import rewards
from envs import Split, Task
from policy.chat import Chat
from policy.engines.drawn import DrawnEngine
from rl import algorithms, config, train
from rl.learner import Learner, Settings
from rl.live import Page
from rl.local import Local
from rl.store import Run
from rl.trajectory import Group
from tests.rl.driven import prepare
from tests.rl.test_rollout import Lesson

CONFIG = """
worlds: {math: {args: {python_tool: false}}}
policy: {model: MODEL, context: 120, turn_tokens: 12}
learner: {batch_tokens: 110, row_tokens: 120}
rollout: {group_size: 4}
train: {steps: 3, groups: 3, selftest: false, sync: true}
eval: {tasks: 2}
rewards:
  outcome: {normalise: true}
  turn_cost: {weight: 0.1}
  form: {reward: format, weight: 0, pattern: right}
  potential: {weight: 0.5, of: format, args: {pattern: say, role: tool, where: any}, gamma: 0.9}
algorithm: {name: turns, args: {gamma: 0.9}}
"""


class Numbered(Lesson):
    """Lessons of up to three turns: `right` or `wrong` ends one."""

    name = "math"

    def task(self, split: Split, index: int) -> Task:
        script = ("more",) * 4
        return Task(world="math", key=f"{split}/{index}", family="f", level=0, messages=(), given={"script": script})


def played(folder: Path) -> tuple[config.RunConfig, Run, list[Group]]:
    prepare(folder)
    torch.set_num_threads(1)
    (folder / "run.yaml").write_text(CONFIG.replace("MODEL", str(folder / "model")))
    settings = config.load(folder / "run.yaml", [f"runs={folder}"])
    model, run = str(settings.policy.model), Run.create(settings.folder)
    chat = Chat.load(model)
    engine = DrawnEngine([chat.encode(text) + chat.stop_ids[:1] for text in ("right", "wrong", "more")])
    knobs = Settings(
        model=model,
        lr=1e-2,
        loss_denominator=settings.learner.batch_tokens,
        row_tokens=settings.learner.row_tokens,
        algorithm=settings.algorithm.name,
        algorithm_args=settings.algorithm.args,
        device="cpu",
    )
    local = Local(settings, {"math": Numbered()}, engine, chat, Learner(knobs))
    with (folder / "out").open("w") as out:
        asyncio.run(train.drive(settings, run, Page(settings, Console(file=out)), model, local))
    leases = [lease for (lease,) in run.db.execute("select distinct lease from episode where purpose = 'train'")]
    return settings, run, [run.attempts.group("train", lease) for lease in leases]


def test_what_a_run_stores_is_scored_and_credited_again_to_the_same_end(tmp_path: Path) -> None:
    settings, run, groups = played(tmp_path)
    assert len(run.rows("metrics.jsonl")) == 3 and len(groups) >= 3
    algorithm = algorithms.load(settings.algorithm.name, **settings.algorithm.args)
    for group in groups:
        kept = [(m.score, m.advantage, m.turn_advantages) for m in group.members]
        scores = rewards.score_group([m.episode for m in group.members], settings.rewards)
        group.members = [
            replace(m, score=score, advantage=0.0, turn_advantages=())
            for m, score in zip(group.members, scores, strict=True)
        ]
        algorithm.advantages(group)
        assert [(m.score, m.advantage, m.turn_advantages) for m in group.members] == kept
        for member in group.members:
            assert member.score is not None and len(member.score.turns) == member.episode.turns
            assert math.isclose(math.fsum(member.score.turns), member.score.value, abs_tol=1e-12)
    members = [m for group in groups for m in group.members]
    assert any(len(set(m.turn_advantages)) > 1 for m in members), "turns of one attempt differ"
    parts = run.rows("metrics.jsonl")[0]["worlds"]["math"]["parts"]
    assert (
        set(parts) == {"outcome", "turn_cost", "form", "potential"} and -2 <= parts["turn_cost"] <= 0 <= parts["form"]
    )
