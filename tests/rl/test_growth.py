"""What the controller does for one group does not grow with the number in flight: work is counted, no time is taken."""

import asyncio
import selectors
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from envs.delayed import World
from policy.chat import Chat
from policy.engines.scripted import ScriptedEngine
from rl import config
from rl.live import Page
from rl.local import Local
from rl.store import Run
from rl.train import Training
from tests.rl.test_rollout import CHAT

CONFIG = """
worlds:
  delayed: {{args: {{median_s: {median_s}, sigma: 0.5, args: {{families: [arithmetic], python_tool: false}}}}}}
engine: {{name: scripted}}
rollout: {{group_size: 2}}
train: {{groups: {groups}}}
"""
RATE = 20.0
"""Groups a second, about."""


class _Jump(selectors.DefaultSelector):
    """Nobody waits: where nothing is ready, the clock jumps to what is due next."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.now += 0.0 if ready or timeout is None else max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, call: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = self.create_future()
        done.set_result(call(*args))
        return done


class _Counted:
    """Bytecodes that ran here within `with`."""

    count = 0

    def __enter__(self) -> "_Counted":
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self.trace


async def work(folder: Path, groups: int, chat: Chat) -> float:
    """Bytecodes for each group that came back, of driver and rollouts together, while `groups` are in flight."""
    (folder / "run.yaml").write_text(CONFIG.format(median_s=groups / RATE / 1.5, groups=groups))
    settings = config.load(folder / "run.yaml", [f"runs={folder}", f"name=of-{groups}"])
    run = Run.create(settings.folder)
    place = World(None, seed=0, **settings.worlds["delayed"].args)  # type: ignore[arg-type]
    engine = ScriptedEngine(lambda prompt: chat.stop_ids[:1])
    local = Local(settings, {"delayed": place}, engine, chat, None)  # type: ignore[arg-type]
    with (folder / "out").open("w") as out:
        training = Training(settings, run, local, Page(settings, Console(file=out)))
        feeding = asyncio.create_task(training.feed())
        while len(training.window.groups) < 2 * groups:
            await asyncio.sleep(0.1)
        before = len(training.window.groups)
        with _Counted() as counted:
            while len(training.window.groups) < before + 40:
                await asyncio.sleep(0.1)
        came = len(training.window.groups) - before
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    run.close()
    return counted.count / came


def test_a_group_costs_no_more_work_where_32_times_as_many_are_in_flight(tmp_path: Path) -> None:
    of: dict[int, float] = {}
    for groups in (8, 256):
        with asyncio.Runner(loop_factory=_Loop) as runner:
            of[groups] = runner.run(work(tmp_path, groups, CHAT))
    assert of[256] <= 1.05 * of[8], f"bytecodes for each group, by groups in flight: {of}"
