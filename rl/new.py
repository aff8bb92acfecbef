"""`rl new env NAME`: a world in one file with its test, that works before it is changed."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

import envs
from envs import find

ONE_TURN = '''\
"""NAME, so far sums of two numbers: change what is asked, how it is graded, and what is right and wrong."""

import random
from typing import Any

from envs.define import world


@world
class World:
    def task(self, rng: random.Random, most: int = 30) -> dict[str, Any]:
        a, b = rng.randint(0, most), rng.randint(0, most)
        return {"prompt": f"What is {a} + {b}? Answer with the number alone.", "gold": str(a + b)}

    def grade(self, answer: str, gold: str) -> bool:
        return answer.strip() == gold

    def right(self, gold: str) -> str:
        return gold

    def wrong(self, gold: str, rng: random.Random) -> str:
        return str(int(gold) + rng.choice((-2, -1, 1, 2)))
'''

WITH_TOOLS = '''\
"""NAME, so far a robot to bring to its goal. Every public method without a role of its own is a tool."""

import random
from typing import Any, Literal

from envs.define import world
from envs.tools import BadCall, Call

WAYS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}


@world(max_turns=4)
class World:
    def task(self, rng: random.Random, far: int = 20) -> dict[str, Any]:
        legs = [
            (rng.choice(("east", "west")), rng.randint(1, far)),
            (rng.choice(("north", "south")), rng.randint(1, far)),
        ]
        (way, steps), (then, more) = legs
        return {"prompt": f"The goal is {steps} to the {way} and {more} to the {then} of the robot.", "legs": legs}

    def start(self) -> None:
        self.x = self.y = 0

    def move(self, way: Literal["north", "east", "south", "west"], steps: int) -> str:
        """Move the robot.

        Args:
            way: where to
            steps: how far
        """
        if steps < 1:
            raise BadCall(f"got {steps} steps; expected 1 or more")
        self.x, self.y = self.x + steps * WAYS[way][0], self.y + steps * WAYS[way][1]
        return f"at {self.x},{self.y}"

    def grade(self, legs: list[tuple[str, int]]) -> bool:
        goal = [sum(steps * WAYS[way][axis] for way, steps in legs) for axis in (0, 1)]
        return [self.x, self.y] == goal

    def right(self, legs: list[tuple[str, int]]) -> list[str | Call]:
        return [*(Call("move", {"way": way, "steps": steps}) for way, steps in legs), "done"]

    def wrong(self, legs: list[tuple[str, int]], rng: random.Random) -> list[str | Call]:
        said = self.right(legs)
        del said[rng.randrange(len(legs))]
        return said
'''

TEST = '''\
"""NAME: what is right is solved, what is wrong is not, and no task is in both splits."""

import asyncio
import random

import pytest

import envs

WORLD = envs.load(REF).World


@pytest.mark.parametrize("err", [False, True])
def test_right_is_solved_and_wrong_is_not(err: bool) -> None:
    world = WORLD(None)

    async def solved(index: int) -> bool:
        task = world.task("train", index)
        demonstration = world.demonstrate(task, random.Random(index), err=err)
        env = world.open(task)
        heard = list(await env.start())
        for action in [message["content"] for message in demonstration if message["role"] == "assistant"]:
            step = await env.step(action)
            assert not step.invalid
            heard += [{"role": "assistant", "content": action}, *step.messages]
        facts = await env.measure()
        await env.close()
        assert heard == demonstration
        return bool(facts["solved"])

    for index in range(50):
        assert asyncio.run(solved(index)) is not err


def test_splits_never_meet() -> None:
    world = WORLD(None)
    train, held_out = ({world.task(split, index).key for index in range(200)} for split in ("train", "heldout"))
    assert not train & held_out
'''


def environment(name: str, *, tools: bool) -> str:
    """Write the world and its test; what to type next. Raises ValueError for a name that cannot be, or is taken."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
        raise ValueError(f"got the name {name!r}; expected small letters, digits and _, as in `rl new env chess`")
    if keyword.iskeyword(name):
        raise ValueError(f"got the name {name!r}, which is a keyword of Python; expected another name")
    checkout = Path("envs", "__init__.py").is_file() and Path("envs").resolve() == find.HERE.resolve()
    if checkout:
        world, test, ref = Path("envs", f"{name}.py"), Path("tests", "envs", f"test_{name}.py"), f'"{name}"'
        taken = importlib.util.find_spec(f"envs.{name}") is not None or name in envs.available()
        there = f"envs has {name} already; worlds: {', '.join(envs.available())}"
    else:
        world, test = Path(f"{name}.py"), Path(f"test_{name}.py")
        ref = f'str(Path(__file__).with_name("{world}"))'
        taken = not world.exists() and importlib.util.find_spec(name) is not None
        there = f"there is a module {name!r} already, which a file of that name would hide; expected another name"
    for path in (world, test):
        if path.exists():
            raise ValueError(f"there is a file {path} already; expected another name")
    if taken:
        raise ValueError(there)
    test.parent.mkdir(parents=True, exist_ok=True)
    world.write_text((WITH_TOOLS if tools else ONE_TURN).replace("NAME", name.capitalize(), 1))
    text = TEST.replace("NAME", name.capitalize(), 1).replace("REF", ref)
    test.write_text(text if checkout else text.replace("import random\n", "import random\nfrom pathlib import Path\n"))
    return "\n".join([f"wrote {world} and {test}; next:", *(f"  {line}" for line in _next(name, test, checkout))])


def _next(name: str, test: Path, checkout: bool) -> list[str]:
    if checkout:
        train = [f"rl train configs/quickstart.yaml name={name} 'worlds={{{name}: {{}}}}'"]
    else:
        config = f"{{name: {name}, worlds: {{{name}: {{world: ./{name}.py}}}}}}"
        train = [f"echo '{config}' > {name}.yaml", f"rl train {name}.yaml"]
    check = f"rl check {name if checkout else f'./{name}.py'}"
    return [f"python -m pytest {test}", check, *train, f"rl report runs/{name}"]
