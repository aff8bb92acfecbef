"""Worlds out of one small class: what is handed in, what a grader may say, tools, splits, state, what is refused."""

import asyncio
import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import EnvCrashed, Facts, Step, sandboxes
from envs.define import world
from envs.define.attempt import RESULT_CHARS
from envs.tools import BadCall, Call

IMAGE = "touchstone-sandbox:bookworm"


@world
class Sums:
    def task(self, rng, most=30):
        a, b = rng.randint(0, most), rng.randint(0, most)
        return {"prompt": f"{a}+{b}", "gold": a + b, "family": "sum", "level": most // 10}

    def grade(self, answer, gold):
        return answer.strip() == str(gold)

    def right(self, gold):
        return str(gold)

    def wrong(self, gold, rng):
        return str(gold + rng.choice((-1, 1)))


@world(max_turns=3)
class Box:
    """A box to put things in."""

    def tasks(self):
        return [{"prompt": f"Put in {n} things.", "key": f"box/{n}", "count": n} for n in range(40)]

    def start(self, count):
        self.wanted, self.things = count, []

    async def put(self, thing: str, times: int = 1) -> list:
        """Put something in."""
        await asyncio.sleep(0)
        if thing == "air":
            raise BadCall("air is nothing")
        self.things += [thing] * times
        return self.things

    def seal(self) -> str:
        """Close the box."""
        self.done = True
        return "closed"

    def grade(self, messages, rng, task):
        return {
            "solved": len(self.things) == self.wanted,
            "things": self.things,
            "said": len(messages),
            "r": rng.random(),
        }

    def right(self, count):
        yield Call("put", {"thing": "pen", "times": count})
        yield {"role": "tool", "name": "put", "content": str(["pen"] * count)}
        yield Call("seal")


async def played(place: Any, task: envs.Task, *actions: str) -> tuple[list[Step], Facts]:
    env = place.open(task)
    await env.start()
    steps = [await env.step(action) for action in actions]
    facts = await env.measure()
    await env.close()
    return steps, facts


def play(place: Any, task: envs.Task, *actions: str) -> tuple[list[Step], Facts]:
    return asyncio.run(played(place, task, *actions))


def test_one_turn() -> None:
    place = Sums(None, seed=1, most=50)
    task = place.task("train", 3)
    assert (task.world, task.family, task.level, place.max_turns) == ("test_define", "sum", 5, 1)
    assert task.hidden == {"gold": eval(task.messages[0]["content"])}
    steps, facts = play(place, task, f" {task.hidden['gold']} ")
    assert steps == [Step(done=True)] and facts == {"solved": True}
    assert play(place, task, "")[1] == {"solved": False}
    assert place.demonstrate(task, random.Random(0), err=False)[-1]["content"] == str(task.hidden["gold"])
    assert place.demonstrate(task, random.Random(0), err=True)[-1]["content"] != str(task.hidden["gold"])


def test_streams_repeat_depend_on_the_seed_and_never_meet() -> None:
    one, same, other = Sums(None, seed=1), Sums(None, seed=1), Sums(None, seed=2)
    train = [one.task("train", i).key for i in range(300)]
    assert train == [same.task("train", i).key for i in range(300)] != [other.task("train", i).key for i in range(300)]
    held_out = [one.task("heldout", i).key for i in range(300)]
    assert held_out == [other.task("heldout", i).key for i in range(300)]
    assert not {*train} & {*held_out} and len({*held_out}) > 100
    assert one.size("train") is None


def test_given_tasks_come_again_in_rounds_and_never_meet() -> None:
    place, other = Box(None, seed=1), Box(None, seed=2)
    sizes = {split: place.size(split) for split in ("train", "heldout")}
    keys = {split: [place.task(split, i).key for i in range(2 * size)] for split, size in sizes.items()}  # type: ignore[arg-type]
    assert sum(sizes.values()) == 40 == len({*keys["train"]} | {*keys["heldout"]})
    for split, size in sizes.items():
        assert len({*keys[split][:size]}) == len({*keys[split][size:]}) == size
    size = sizes["train"]
    assert keys["train"][:size] != keys["train"][size:] and keys["heldout"][: sizes["heldout"]] * 2 == keys["heldout"]
    assert keys["train"] != [other.task("train", i).key for i in range(2 * size)]


def put(thing: str, times: Any) -> str:
    return f'<tool_call>{{"name": "put", "arguments": {{"thing": "{thing}", "times": {times}}}}}</tool_call>'


def test_tools_are_called_their_errors_told_and_state_is_an_attempts_own() -> None:
    place = Box(None)
    task = place.task("train", 0)
    assert task.messages[0]["role"] == "system" and '"name":"put"' in task.messages[0]["content"]
    steps, facts = play(place, task, put("pen", 2), put("air", 1), put("pen", '"x"'), "that was it")
    assert [step.messages[0] for step in steps[:3]] == [
        {"role": "tool", "name": "put", "content": '["pen", "pen"]'},
        {"role": "tool", "name": "put", "content": "air is nothing"},
        {"role": "tool", "name": "put", "content": 'put: times: got "x"; expected a whole number'},
    ]
    assert steps[3] == Step(done=True)
    assert facts["things"] == ["pen", "pen"] and facts["said"] == 2 + 4 + 3
    assert (facts["tool_calls"], facts["tool_errors"]) == (2, 2)
    again = play(place, task, put("cup", 1), "<tool: seal>\n\n</tool>")
    assert again[0][1] == Step(done=True) and again[1]["things"] == ["cup"] and again[1]["r"] == facts["r"]
    assert not play(place, task, put("cup", 1))[0][0].done, "the attempt before it was"


def test_what_an_attempt_does_to_its_task_no_other_sees() -> None:
    class Author:
        def task(self, rng):
            return {"prompt": str(rng.random()), "left": ["a", "b"]}

        def start(self, task):
            task.hidden["left"].append("c")

        def grade(self, left):
            return {"solved": True, "last": left.pop(), "left": len(left)}

        def right(self, left):
            return left.pop()

    place = world(Author)(None)
    task = place.task("train", 0)
    for _ in range(2):
        assert play(place, task, "")[1] == {"solved": True, "last": "c", "left": 2}
        assert place.demonstrate(task, random.Random(0), err=False)[-1]["content"] == "b"
    assert task == place.task("train", 0)


@pytest.mark.parametrize("action", ["<tool: put>\nx", "<tool: burn>\nx\n</tool>", "<tool_call>{</tool_call>"])
def test_what_is_no_call_ends_the_attempt(action: str) -> None:
    place = Box(None)
    assert play(place, place.task("train", 0), action)[0] == [Step(done=True, invalid=True)]


def test_where_it_is_strict_wrong_arguments_end_the_attempt() -> None:
    place = world(max_turns=2, strict=True)(Box.author)(None)
    for action in (put("pen", '"x"'), put("air", 1)):
        assert play(place, place.task("train", 0), action)[0] == [Step(done=True, invalid=True)]


def test_a_demonstration_says_what_tools_that_wait_would_answer() -> None:
    place = Box(None)
    task = place.task("train", 0)
    said = place.demonstrate(task, random.Random(0), err=False)
    assert [m["role"] for m in said] == ["system", "user", "assistant", "tool", "assistant"]
    assert said[-1]["content"] == "<tool: seal>\n\n</tool>"
    with pytest.raises(ValueError, match="world test_define has no `wrong`, so there is no wrong demonstration"):
        place.demonstrate(task, random.Random(0), err=True)


def graded(verdict: Any) -> Any:
    @world
    class World:
        def task(self, rng):
            return {"prompt": str(rng.random())}

        def grade(self):
            return verdict

    return World(None)


@pytest.mark.parametrize(
    ("verdict", "facts"),
    [
        (True, {"solved": True}),
        (0.5, {"solved": False, "reward": 0.5}),
        (1, {"solved": True, "reward": 1.0}),
        ({"solved": True, "parts": [1]}, {"solved": True, "parts": [1]}),
        ({"reward": 1.5, "x": 2}, {"solved": True, "reward": 1.5, "x": 2}),
    ],
)
def test_what_a_grader_may_say(verdict: Any, facts: Facts) -> None:
    place = graded(verdict)
    assert play(place, place.task("train", 0), "")[1] == facts


@pytest.mark.parametrize("verdict", [None, "yes", float("nan"), {}, {"solved": 1}, {"solved": None, "reward": 1}])
def test_what_is_no_verdict_is_nobodys_zero(verdict: Any) -> None:
    place = graded(verdict)
    with pytest.raises(TypeError, match=r"grade answered with .*; expected True, False, a number, or a dict of facts"):
        play(place, place.task("train", 0), "")


def asking(**methods: Any) -> Any:
    """A world of these methods beside a plain `task` and `grade`."""
    plain = {"task": lambda self, rng: {"prompt": str(rng.random()), "gold": 1}, "grade": lambda self: True}
    return world(type("World", (), {**plain, **methods, "__module__": "x"}))


def no_hint(self, x):
    """Do."""


REFUSED = {
    "an unknown name": (
        {"grade": lambda self, answr, gold: True},
        "world x: grade asks for 'answr'; available: answer, messages, clean_sandbox, sandbox, task, rng, gold",
    ),
    "what comes too late": (
        {"right": lambda self, sandbox: ""},
        "world x: right asks for 'sandbox'; available: task, rng",
    ),
    "no prompt": (
        {"task": lambda self: {"gold": 1}},
        "world x: got the task {'gold': 1}; expected a dict with `prompt`",
    ),
    "a name that is taken": (
        {"task": lambda self, rng: {"prompt": str(rng.random()), "answer": 1}},
        "world x: a task cannot have a field called 'answer', which is given otherwise; expected another name",
    ),
    "one task": ({"task": lambda self: {"prompt": "2+2"}}, "world x: 1000 draws gave no task for "),
    "no grader": ({"grade": None}, "world x has no `grade`"),
    "a tool without hints": ({"go": no_hint}, "tool no_hint: its parameter 'x' has no type hint"),
    "two defaults": (
        {"grade": lambda self, most=1: True, "right": lambda self, most=2: ""},
        "world x: two methods have different defaults for 'most'",
    ),
    "two sandboxes": (
        {"grade": lambda self, sandbox, clean_sandbox: True},
        "world x: grade asks for `sandbox` and `clean_sandbox`, and attempts that each hold one and want another would",
    ),
    "tasks and task": (
        {"tasks": lambda self: []},
        "world x: expected either `task`, one problem, or `tasks`, all there",
    ),
    "an async task": ({"right": played}, "world x: `right` is async; expected a plain method"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_played(name: str) -> None:
    methods, said = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        asking(**methods)(None)
    assert str(refused.value).startswith(said)


def test_too_few_tasks_are_refused() -> None:
    few = type("World", (), {"tasks": lambda self: [{"prompt": "a"}], "grade": lambda self: True, "__module__": "x"})
    with pytest.raises(ValueError, match=r"world x: none of its 1 tasks is for (train|heldout)"):
        world(few)(None)


def test_a_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="got an unexpected argument 'mots'; available: most"):
        Sums(None, mots=3)


def test_a_result_that_is_no_json_is_the_worlds_failure_and_a_long_one_is_cut() -> None:
    def get(self, size: int) -> Any:
        """Get."""
        return "x" * size if size else {1, 2}

    place = asking(get=get)(None)
    task = place.task("train", 0)
    with pytest.raises(EnvCrashed, match=r"tool get answered with '\{1, 2\}', which is no JSON"):
        play(place, task, "<tool: get>\n0\n</tool>")
    said = play(place, task, f"<tool: get>\n{RESULT_CHARS + 7}\n</tool>")[0][0].messages[0]["content"]
    assert said == "x" * RESULT_CHARS + "… (7 characters left out)"


def test_a_tools_own_default_is_not_filled_from_the_task() -> None:
    def look(self, gold: int = 0) -> int:
        """Look."""
        return gold

    place = asking(look=look)(None)
    steps, _ = play(place, place.task("train", 0), '<tool_call>{"name": "look"}</tool_call>')
    assert steps[0].messages[0]["content"] == "0"


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=getattr(pytest.mark, n)) for n in ("docker", "bubblewrap")]
)
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    found = sandboxes.load(request.param)
    try:
        found.preflight(IMAGE)
    except sandboxes.SandboxUnavailable as problem:
        pytest.skip(str(problem))
    yield found


def test_sandboxes_are_lent_when_asked_for_and_handed_back(backend: Any) -> None:
    class Author:
        def task(self, rng):
            return {"prompt": f"Make a file {rng.random()}."}

        async def bash(self, command: str, sandbox) -> str:
            """Run a command."""
            return (await sandbox.exec(command)).stdout.decode()

        async def grade(self, sandbox):
            there = (await sandbox.exec("ls")).stdout.decode()
            return {"solved": there == "note\n", "there": there}

    class Apart(Author):
        async def grade(self, clean_sandbox):
            there = (await clean_sandbox.exec("ls")).stdout.decode()
            return {"solved": there == "", "there": there}

    async def run() -> None:
        pool = backend.Pool(run="test-define", size=1, image=IMAGE, memory_mb=512)
        try:
            place, apart = world(Author)(pool), world(Apart)(pool)
            task = place.task("train", 0)
            for grading in (place, apart):  # there is one sandbox, so that one which is kept is waited for in vain
                steps, facts = await asyncio.wait_for(
                    played(grading, task, "<tool: bash>\necho hi; sleep 0.05; touch note\n</tool>", "made"), 30
                )
                assert steps[0].messages[0]["content"] == "hi\n" and steps[0].seconds >= 0.05
                assert facts["solved"], facts
            assert (await played(place, task, "nothing"))[1]["there"] == ""
            with pytest.raises(ValueError, match="works in a sandbox; expected what it says as messages"):
                world(type("Right", (Author,), {"right": lambda self: [Call("bash", {"command": "ls"})]}))(
                    pool
                ).demonstrate(task, random.Random(0), err=False)
        finally:
            await pool.close()

    asyncio.run(run())


def test_the_grader_in_the_docs_takes_whatever_is_printed(backend: Any) -> None:
    page = (Path(__file__).parents[2] / "docs/environments.md").read_text()
    found = re.search(r"    async def grade\(self, answer, gold, sandbox\):\n(?: {8}.*\n)+", page)
    assert found
    told: dict[str, Any] = {}
    exec(textwrap.dedent(found[0]), told)

    async def run() -> None:
        pool = backend.Pool(run="test-define-docs", size=1, image=IMAGE, memory_mb=512)
        try:
            place = asking(task=lambda self, rng: {"prompt": str(rng.random()), "gold": "7\n"}, grade=told["grade"])(
                pool
            )
            task = place.task("train", 0)
            answers = {"print(3 + 4)": True, "print(8)": False, "import os; os.write(1, b'\\xff')": False, "": False}
            for answer, solved in answers.items():
                assert (await played(place, task, answer))[1] == {"solved": solved}
        finally:
            await pool.close()

    asyncio.run(run())
