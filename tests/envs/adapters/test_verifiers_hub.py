"""Environments written for the real package `verifiers`, v0 and v1, each as its author would ship it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hub_packages import BOXED, GAME, GROUPS, RUNTIME, SHARED, SHOP, SINGLE, TASKSET, TOOLS, TURNS
from replayed import gold, replay

from envs import EnvCrashed, JudgeFailed
from envs.adapters import verifiers_hub

verifiers = pytest.importorskip("verifiers")
T = TypeVar("T")
classic = pytest.mark.skipif(not hasattr(verifiers, "Rubric"), reason="this release of verifiers has no v0")


def go(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 300)

    return asyncio.run(bounded())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def made(source: str, **args: Any) -> verifiers_hub.World:
        name = f"hub_{len(list(tmp_path.iterdir()))}_{os.getpid()}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return verifiers_hub.World(None, environment=name, **args)  # type: ignore[arg-type]

    return made


@pytest.fixture
def served(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `make`, where a server that the package starts finds the environment too; none may be left."""
    pytest.importorskip("verifiers.v1")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    yield make
    assert not left(tmp_path)


def servers(folder: Path) -> list[str]:
    """Command lines of processes that serve a module of a folder."""
    names = [path.stem for path in folder.glob("hub_*.py")]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            found += [" ".join(words)] if set(words) & set(names) else []
    return found


def left(folder: Path) -> list[str]:
    """Those that do not end: before 0.4 they are told to, and not waited for."""
    until = time.monotonic() + 60
    while (found := servers(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def a_task(world: verifiers_hub.World, answer: str | None = None) -> Any:
    sizes = {"train": world.size("train"), "heldout": world.size("heldout")}
    tasks = (world.task(split, n) for split, size in sizes.items() for n in range(size))  # type: ignore[arg-type]
    return next(task for task in tasks if answer is None or task.hidden["answer"] == answer)


@classic
def test_one_answer_is_scored_by_the_packages_own_rubric(make: Any) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    world = make(SINGLE, gold="<answer>{answer}</answer>", args={"n": 30}, solved_at=1.2)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    task = a_task(world)
    assert world.size("train") + world.size("heldout") == 30 and world.max_turns == 1
    assert task.messages[0]["role"] == "system" and "Reverse" in task.messages[1]["content"]
    played = go(replay(world, task, gold(world, task)))
    assert played.solved and played.facts["reward"] == pytest.approx(1.2)
    assert played.facts["parts"] == {"right": 1.0, "brief": 1.0, "num_turns": 1.0}
    wrong = go(replay(world, task, gold(world, task, err=True)))
    assert not wrong.solved and wrong.facts["reward"] == pytest.approx(0.2)
    silent = make(SINGLE)
    with pytest.raises(ValueError, match="no `gold` says"):
        gold(silent, a_task(silent))


@classic
def test_a_reward_that_raises_is_no_zero(make: Any) -> None:
    world = make(SINGLE, gold="<answer>{answer}</answer>", args={"broken": True})
    task = a_task(world)
    with pytest.raises(JudgeFailed, match="right raised RuntimeError: the judge is out"):
        go(replay(world, task, gold(world, task)))


@classic
def test_tools_are_called_in_both_syntaxes_and_splits_do_not_meet(make: Any) -> None:
    world = make(TOOLS)
    assert world.max_turns == 4 and world.size("heldout") == 8 and world.size("train") == 12
    task = a_task(world, "12")
    assert '"look_up"' in task.messages[0]["content"] and task.messages[0]["role"] == "system"
    again = '<tool_call>{"name": "look_up", "arguments": {"item": "gold"}}</tool_call>'
    played = go(replay(world, task, ["<tool: look_up>\npen\n</tool>", again, "They cost 12."]))
    assert played.heard[0] == task.messages[0]["content"] and played.heard[2] == "3" and "gold" in played.heard[3]
    assert played.solved and played.facts["parts"]["look_up_calls"] == 2
    assert not go(replay(world, task, ["They cost 13."])).solved
    assert go(replay(world, task, ["<tool: nosuchtool>\nx\n</tool>"])).invalid


@classic
def test_an_environment_that_answers_keeps_its_state_and_its_errors(make: Any) -> None:
    world = make(TURNS)
    task = a_task(world, "7")

    async def both() -> Any:
        return await asyncio.gather(*(replay(world, task, ["3", "9", "7"]) for _ in range(2)))

    for played in go(both()):
        assert played.heard[1:] == ["higher", "lower"] and played.solved
    missed = go(replay(world, task, ["1", "2", "3", "4", "5"]))
    assert not missed.solved and missed.facts["turns"] == 5
    with pytest.raises(EnvCrashed, match="the box is gone"):
        go(replay(world, task, ["crash"]))
    assert not go(replay(world, task, ["1"])).solved, "left early"


@classic
def test_a_prompt_is_on_one_side_of_the_split(make: Any) -> None:
    named = SINGLE.replace(
        'f"Reverse w{i}", "answer": f"{i}w"', 'f"Reverse w{i % 20}", "answer": "w", "info": {"id": i}'
    )
    world = make(named, args={"n": 60})
    train, held = (
        [world.task(s, i).messages[-1]["content"] for i in range(world.size(s))] for s in ("train", "heldout")
    )
    assert train and held and not set(train) & set(held) and len(train) + len(held) == 60
    apart = make(
        TOOLS.replace("str(3 * i)} for i in range(2, 22)]", "str(i)} for i in range(2, 17)]").replace(
            "Dataset.from_list(rows[12:])", 'Dataset.from_list([{**row, "answer": "0"} for row in rows[:4]])'
        )
    )
    assert apart.size("train") == 11 and apart.size("heldout") == 4


@classic
def test_rewards_of_whole_groups_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="rewards of whole groups"):
        make(GROUPS)


@pytest.mark.skipif(hasattr(verifiers, "Rubric"), reason="this release of verifiers has v0")
def test_v0_without_v0_says_which_release_has_it(make: Any) -> None:
    with pytest.raises(ValueError, match=r"verifiers==0\.3\.1"):
        make("def load_environment(): ...\n")


def test_a_taskset_is_answered_once_and_graded_by_its_rewards(make: Any) -> None:
    pytest.importorskip("verifiers.v1")
    world = make(TASKSET, gold="{answer}")
    task = a_task(world, "13")
    assert task.messages[0] == {"role": "system", "content": "Only the number."} and world.max_turns == 1
    played = go(replay(world, task, gold(world, task)))
    assert played.solved and played.facts["parts"] == {"right": 1.0, "length": 2.0}
    assert not go(replay(world, task, gold(world, task, err=True))).solved
    with pytest.raises(JudgeFailed, match="unlucky"):
        go(replay(world, task, ["crash"]))
    with pytest.raises(ValueError, match="a runtime for right"):
        make(RUNTIME)


def test_tools_of_a_task_are_served_to_each_attempt_alone(served: Any, tmp_path: Path) -> None:
    world = served(SHOP, gold="{answer}")
    assert not left(tmp_path), "the tools were listed"
    task = a_task(world, "806")
    assert '"shop_price"' in task.messages[0]["content"] and world.max_turns == 20
    price, take = "<tool: shop_price>\nitem3\n</tool>", "<tool: shop_take>\n%s\n</tool>"
    right = [price, price, "<tool: shop_price>\nnone\n</tool>", take % '{"item": "pen", "count": "x"}', "806"]
    many = ['<tool_call>{"name": "shop_take", "arguments": {"item": "pen", "count": 6}}</tool_call>', "806"]

    async def all_at_once() -> list[Any]:
        attempts = [right, many, [take % '{"item": "ink", "count": 2}', *gold(world, task, err=True)]]
        attempts.append(["<tool: nosuchtool>\nx\n</tool>", "806"])
        try:
            return await asyncio.gather(*(replay(world, task, actions) for actions in attempts))
        finally:
            await world.close()

    played, stopped, wrong, unknown = go(all_at_once())
    assert played.heard[0] == task.messages[0]["content"] and played.heard[1] == task.messages[1]["content"]
    assert played.heard[2:4] == ["403, call 1 about item3", "403, call 2 about item3"]
    assert "none" in played.heard[4] and "rror" in played.heard[4] and "count" in played.heard[5]
    assert played.solved and played.facts["parts"] == {"right": 1.0, "basket": 0.0} and played.facts["turns"] == 5
    assert wrong.heard[2] == "ink, ink" and not wrong.solved and wrong.facts["parts"]["basket"] == 2
    assert not stopped.solved and stopped.facts["parts"]["basket"] == 6 and len(stopped.heard) == 2, (
        "stopped by the task"
    )
    assert unknown.invalid
    for one in (stopped, wrong, unknown):
        assert not any("806" in text or "403" in text for text in one.heard), "what is hidden was shown"


def test_a_server_of_tools_that_dies_is_the_machinerys_failure(served: Any, tmp_path: Path) -> None:
    world = served(SHOP)
    with pytest.raises(EnvCrashed, match="the environment raised"):
        go(replay(world, a_task(world), ["<tool: shop_die>\n</tool>", "1"]))

    async def given_up() -> list[str]:
        env = world.open(a_task(world))
        await env.start()
        running = servers(tmp_path)
        await env.close()
        await env.close()
        return running

    assert not left(tmp_path)
    assert len(go(given_up())) == 1, "and an attempt that is left gives up its server"


def test_tools_of_a_taskset_are_served_once_and_keep_attempts_apart(served: Any, tmp_path: Path) -> None:
    world = served(SHARED)
    task = a_task(world)
    say = "<tool: say>\n%s\n</tool>"

    async def both() -> list[Any]:
        try:
            played = [replay(world, task, [say % word, say % word, "said"]) for word in ("one", "two")]
            found = [*await asyncio.gather(*played), servers(tmp_path)]
        finally:
            await world.close()
        return [*found, left(tmp_path)]

    one, two, running, after = go(both())
    assert one.heard[3].endswith("one one") and two.heard[3].endswith("two two") and one.solved and two.solved
    assert {one.heard[2].split()[0]} == {two.heard[2].split()[0]} and len(running) == 1 and not after
    assert not go(replay(world, task, [say % "x", "said"])).solved, "another loop has a server of its own"


def test_a_package_with_an_environment_of_its_own_takes_turns(make: Any) -> None:
    pytest.importorskip("verifiers.v1")
    world = make(GAME, solved_at=1.5)
    task = a_task(world, "7")
    assert world.max_turns == 20 and [message["role"] for message in task.messages] == ["system", "user"]

    async def both() -> Any:
        attempts = [["3", "9", "7"], ["1", "2", "3", "7"], ["seven"]]
        return await asyncio.gather(*(replay(world, task, one) for one in attempts), return_exceptions=True)

    found, late, unread = go(both())
    assert found.heard == ["A number.", "Guess (7).", "higher", "lower"] and found.solved
    assert found.facts["parts"] == {"brief": 1.0, "found": 1.0} and found.facts["reward"] == 1.5
    assert not late.solved and late.facts["parts"] == {"brief": 0.0, "found": 1.0}
    assert isinstance(unread, EnvCrashed) and "seven" in str(unread)
    two = "player: vf.AgentConfig = vf.AgentConfig()"
    with pytest.raises(ValueError, match="asks for the harness 'null'; expected one without"):
        make(GAME.replace(two, 'player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"})'))
    with pytest.raises(ValueError, match="has the agents player, rival; expected one"):
        make(GAME.replace(two, f"{two}\n    {two.replace('player', 'rival')}"))


def test_what_needs_the_packages_own_container_is_refused_by_name(make: Any) -> None:
    pytest.importorskip("verifiers.v1")
    for wish, source in BOXED.items():
        with pytest.raises(ValueError, match=rf"asks for [^;]*{re.escape(wish)}[,;]"):
            make(source)


def test_what_is_not_installed_or_makes_no_sense_is_said(make: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a text with \{answer\}"):
        make(TASKSET, gold={"answer": None})
    with pytest.raises(ValueError, match="not a module 'no_such_environment'"):
        verifiers_hub.World(None, environment="someone/no-such-environment")  # type: ignore[arg-type]
