"""One episode, every way to end it. The policy is a parrot: it says what the world last told it to say."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from envs import (
    Env,
    EnvCrashed,
    Episode,
    Facts,
    JudgeFailed,
    JudgeTimedOut,
    Message,
    Outcome,
    Split,
    Step,
    Task,
)
from envs.sandboxes import SandboxLost
from policy.chat import Chat
from policy.engines import EngineLost
from policy.engines.scripted import LOGPROB, ScriptedEngine
from policy.tiny import TURN_END, train_tokenizer
from rl.rollout import Limits, play, play_group, task_of, unplayed
from rl.trajectory import Group, Member

CHAT = Chat(train_tokenizer(["say right wrong more mumble user assistant tool teacher"] * 4, 330))
LIMITS = Limits(context=200, turn_tokens=20, turns=3, timeout_s=60.0)
JUDGES = {"outcome": {"weight": 1.0}}


class Lesson:
    """A world that tells the policy, word by word of the task's script, what to say: `right` and `wrong` end the
    attempt with that result, `mumble` is refused, anything else goes on. `fails`: what a method's first calls raise.
    """

    name = "lesson"
    max_turns = 3

    def __init__(self, fails: Mapping[str, Sequence[Exception]] | None = None) -> None:
        self.fails = {method: list(errors) for method, errors in (fails or {}).items()}
        self.opened = self.closed = 0

    def fail(self, method: str) -> None:
        if self.fails.get(method):
            raise self.fails[method].pop(0)

    def task(self, split: Split, index: int) -> Task:
        return lesson("right")

    def open(self, task: Task) -> Env:
        self.fail("open")
        self.opened += 1
        return Attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        return []

    async def close(self) -> None:
        return None


class Attempt:
    def __init__(self, world: Lesson, task: Task) -> None:
        self.world, self.script, self.said = world, list(task.given["script"]), ""

    async def start(self) -> Sequence[Message]:
        self.world.fail("start")
        return [{"role": "user", "content": f"say {self.script.pop(0)}"}]

    async def step(self, action: str) -> Step:
        self.world.fail("step")
        self.said = action
        if action == "mumble":
            return Step(done=True, invalid=True)
        if action in ("right", "wrong"):
            return Step(done=True)
        heard = {"role": "tool", "name": "teacher", "content": f"say {self.script.pop(0)}"}
        return Step(messages=(heard,), seconds=1.0 if action == "slow" else 0.0)

    async def measure(self) -> Facts:
        self.world.fail("measure")
        return {"solved": self.said == "right", "said": self.said}

    async def close(self) -> None:
        self.world.closed += 1
        self.world.fail("close")


def lesson(*script: str) -> Task:
    return Task(world="lesson", key="-".join(script), family="lesson", level=0, messages=(), given={"script": script})


def parrot(prompt: list[int]) -> list[int]:
    """Letter by letter, as the tokenizer would never spell it, and an end mark."""
    text = CHAT.tokenizer.decode(prompt).rpartition("say ")[2].partition(TURN_END)[0]
    return [token for letter in text for token in CHAT.encode(letter)] + CHAT.stop_ids


def once(
    *script: str,
    limits: Limits = LIMITS,
    reply: Callable[[list[int]], Sequence[int]] = parrot,
    fails: Mapping[str, Sequence[Exception]] | None = None,
) -> Member:
    """One attempt, in a world that must be closed as often as it was opened."""
    world = Lesson(fails)
    member = asyncio.run(play(world, lesson(*script), ScriptedEngine(reply), CHAT, limits, JUDGES))
    assert world.closed == world.opened
    check(member)
    return member


def check(member: Member) -> None:
    """What holds of every attempt, however it ended."""
    trajectory, episode = member.trajectory, member.episode
    assert len(trajectory.ids) == len(trajectory.mask) == len(trajectory.logprobs) == len(trajectory.versions)
    for ours, logprob, version in zip(trajectory.mask, trajectory.logprobs, trajectory.versions, strict=True):
        assert (logprob, version) == ((LOGPROB, 0) if ours else (0.0, -1))
    assert (member.score is not None) is episode.outcome.valid, "a score where the policy earned its ending, else none"
    assert bool(episode.error) is not episode.outcome.valid
    assert episode.turns == sum(message["role"] == "assistant" for message in episode.messages)


def score(member: Member) -> float:
    assert member.score is not None
    return member.score.value


@pytest.mark.parametrize(
    ("script", "outcome", "turns"),
    [
        (("right",), Outcome.SOLVED, 1),
        (("more", "more", "right"), Outcome.SOLVED, 3),
        (("wrong",), Outcome.FAILED, 1),
        (("more", "more", "more", "right"), Outcome.TURNS_SPENT, 3),
        (("more", "mumble"), Outcome.INVALID_ACTION, 2),
    ],
)
def test_endings_of_the_policys_doing(script: tuple[str, ...], outcome: Outcome, turns: int) -> None:
    member = once(*script)
    assert (member.episode.outcome, member.episode.turns) == (outcome, turns)
    assert score(member) == (outcome is Outcome.SOLVED) and member.valid
    assert member.episode.facts["solved"] is (outcome is Outcome.SOLVED)


def test_a_turn_that_is_cut_spends_the_tokens() -> None:
    member = once("right", limits=replace(LIMITS, turn_tokens=4))
    assert member.episode.outcome is Outcome.TOKENS_SPENT and member.trajectory.spoken == 4
    assert member.episode.messages[-1] == {"role": "assistant", "content": "righ"}
    assert member.valid and score(member) == 0.0


def test_a_turn_is_cut_where_the_context_ends() -> None:
    opening = len(CHAT.opening([{"role": "user", "content": "say right"}]))
    member = once("right", limits=replace(LIMITS, context=opening + 3))
    assert member.episode.outcome is Outcome.TOKENS_SPENT
    assert (member.trajectory.spoken, len(member.trajectory)) == (3, opening + 3)


@pytest.mark.parametrize("context", range(30, 60))
def test_a_trajectory_never_outgrows_the_context(context: int) -> None:
    """What the world says at last may not fit; a longer trajectory would not fit into the learner's row either."""
    member = once("more", f"longer {'1' * 30}", "right", limits=replace(LIMITS, context=context))
    assert member.episode.outcome is Outcome.TOKENS_SPENT if context < 55 else member.valid
    assert len(member.trajectory) <= context


def test_an_opening_beyond_the_context_is_never_trained_on() -> None:
    member = once("right", limits=replace(LIMITS, context=3))
    assert member.episode.outcome is Outcome.ENV_CRASHED and not member.valid
    assert "policy.context=3 leaves no answer" in member.episode.error


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("start", "say right", "as messages"),
        ("start", [{"role": "user", "content": None}], "content is None"),
        ("step", None, "step answered with None"),
        ("step", Step(messages=({"role": "tool", "content": b"x"},)), "JSON cannot hold"),  # type: ignore[dict-item]
        ("step", Step(seconds=None), "seconds=None"),  # type: ignore[arg-type]
        ("measure", {}, "solved='nothing'"),
        ("measure", {"solved": 0.3}, "solved=0.3"),
        ("measure", {"solved": True, "seen": {1}}, "JSON cannot hold"),
    ],
)
def test_an_answer_that_is_none_of_the_contract_is_the_worlds_failure(
    monkeypatch: pytest.MonkeyPatch, method: str, answer: object, said: str
) -> None:
    """A run could not store it, or would take it for something else: 0.3 for solved."""

    async def answered(*_: object) -> object:
        return answer

    monkeypatch.setattr(Attempt, method, answered)
    member = once("right")
    assert member.episode.outcome is Outcome.ENV_CRASHED and said in member.episode.error, member.episode.error


def test_half_a_character_that_a_world_repeats_ends_nothing() -> None:
    member = once("more\ud800", "right")
    assert member.episode.outcome is Outcome.SOLVED, member.episode.error


def test_actions_that_run_too_long_spend_their_time() -> None:
    member = once("slow", "right", limits=replace(LIMITS, timeout_s=0.5))
    assert (member.episode.outcome, member.episode.turns) == (Outcome.TIME_SPENT, 1)


def test_a_slow_machine_spends_nobodys_time() -> None:
    def late(prompt: list[int]) -> list[int]:
        time.sleep(0.02)
        return parrot(prompt)

    member = once("more", "right", limits=replace(LIMITS, timeout_s=0.01), reply=late)
    assert member.episode.outcome is Outcome.SOLVED and sum(member.episode.seconds.values()) > 0.01


@pytest.mark.parametrize("method", ["open", "start", "step", "measure"])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (SandboxLost("the container is gone"), Outcome.SANDBOX_LOST),
        (EnvCrashed("no such file"), Outcome.ENV_CRASHED),
        (JudgeFailed("no verdict"), Outcome.JUDGE_FAILED),
        (JudgeTimedOut("no answer in 10 s"), Outcome.JUDGE_TIMED_OUT),
    ],
)
def test_endings_of_the_machinerys_doing_have_no_score(method: str, error: Exception, outcome: Outcome) -> None:
    member = once("right", fails={method: [error]})
    assert member.episode.outcome is outcome and not member.valid
    assert member.episode.error == f"{type(error).__name__}: {error}"
    assert member.episode.facts == {"solved": False}


@pytest.mark.parametrize("method", ["open", "start", "step", "measure"])
@pytest.mark.parametrize(
    "error",
    [KeyError("answer"), TimeoutError("slow"), AssertionError("no"), SystemExit(3), asyncio.CancelledError("x")],
)
def test_whatever_a_worlds_own_code_raises_is_its_crash(method: str, error: Exception) -> None:
    member = once("right", fails={method: [error]})
    assert member.episode.outcome is Outcome.ENV_CRASHED
    assert member.episode.error == f"EnvCrashed: {type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [SandboxLost("gone"), OSError("gone")])
def test_a_failed_hand_back_does_not_spoil_the_episode(error: Exception) -> None:
    world = Lesson({"close": [error]})
    member = asyncio.run(play(world, lesson("right"), ScriptedEngine(parrot), CHAT, LIMITS, JUDGES))
    assert member.episode.outcome is Outcome.SOLVED and score(member) == 1.0
    assert member.episode.error.startswith("on close: ") and member.episode.error.endswith("gone")


def test_a_world_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Attempt):
        async def measure(self) -> Facts:
            await asyncio.Event().wait()
            raise AssertionError

    class World(Lesson):
        def open(self, task: Task) -> Env:
            return Endless(self, task)

    monkeypatch.setattr("rl.rollout.WORLD_TIMEOUT_S", 0.05)
    member = asyncio.run(play(World(), lesson("right"), ScriptedEngine(parrot), CHAT, LIMITS, JUDGES))
    assert member.episode.outcome is Outcome.ENV_CRASHED
    assert member.episode.error == "EnvCrashed: a call into the world did not end within 0.05 s"


@pytest.mark.parametrize("settings", [{"no_such_argument": 1}, {"weight": float("nan")}, {"weight": float("inf")}])
def test_a_reward_that_fails_is_no_reward(settings: dict[str, float]) -> None:
    judges = {"outcome": settings}
    member = asyncio.run(play(Lesson(), lesson("right"), ScriptedEngine(parrot), CHAT, LIMITS, judges))
    assert member.episode.outcome is Outcome.JUDGE_FAILED and member.score is None and not member.valid
    assert "outcome" in member.episode.error or "no_such_argument" in member.episode.error


def test_an_engine_that_dies_takes_the_attempt_with_it() -> None:
    def dies_in_the_second_turn(prompt: list[int]) -> list[int]:
        if "say right" in CHAT.decode(prompt):
            raise EngineLost("out of memory")
        return parrot(prompt)

    member = once("more", "right", reply=dies_in_the_second_turn)
    assert (member.episode.outcome, member.episode.turns) == (Outcome.ENGINE_LOST, 1)
    assert member.episode.error == "EngineLost: out of memory" and not member.valid


def test_our_own_mistakes_are_not_hidden_and_the_attempt_is_closed() -> None:
    def broken(prompt: list[int]) -> list[int]:
        raise ZeroDivisionError

    world = Lesson()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(play(world, lesson("right"), ScriptedEngine(broken), CHAT, LIMITS, JUDGES))
    assert world.opened == world.closed == 1


def test_cancelling_is_no_crash_of_the_world() -> None:
    class Endless(Attempt):
        async def step(self, action: str) -> Step:
            await asyncio.sleep(60)
            return Step(done=True)

    class World(Lesson):
        def open(self, task: Task) -> Env:
            self.opened += 1
            return Endless(self, task)

    async def scene(world: World) -> None:
        playing = asyncio.create_task(play(world, lesson("right"), ScriptedEngine(parrot), CHAT, LIMITS, JUDGES))
        await asyncio.sleep(0.01)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        assert world.opened == world.closed == 1

    asyncio.run(scene(World()))


def test_the_trajectory_is_what_the_engine_saw_and_said() -> None:
    turns: list[tuple[list[int], list[int]]] = []

    def reply(prompt: list[int]) -> list[int]:
        turns.append((prompt, parrot(prompt)))
        return turns[-1][1]

    member = once("more", "more", "right", reply=reply)
    trajectory = member.trajectory
    assert len(turns) == 3
    for prompt, said in turns:
        start, end = len(prompt), len(prompt) + len(said)
        assert trajectory.ids[:start] == prompt and trajectory.ids[start:end] == said
        assert all(trajectory.mask[start:end]) and not trajectory.mask[start - 1]
    assert len(trajectory) == end and trajectory.spoken == sum(len(said) for _, said in turns)
    assert turns[0][1][:-1] != CHAT.encode("more"), "the spelling is not the tokenizer's, and it stayed"
    written = CHAT.tokenizer.apply_chat_template(member.episode.messages, tokenize=False)
    assert CHAT.tokenizer.decode(trajectory.ids) == written


def test_tokens_carry_the_version_that_sampled_them() -> None:
    engine: ScriptedEngine

    def reply(prompt: list[int]) -> list[int]:
        engine.version += 1
        return parrot(prompt)

    engine = ScriptedEngine(reply)
    member = asyncio.run(play(Lesson(), lesson("more", "right"), engine, CHAT, LIMITS, JUDGES))
    versions = [version for version in member.trajectory.versions if version >= 0]
    assert versions == [1] * len("more.") + [2] * len("right.")
    assert (member.trajectory.oldest, member.trajectory.newest) == (1, 2)


def group(fails: Mapping[str, Sequence[Exception]], replace_lost: int = 1, size: int = 4) -> list[Member]:
    playing = play_group(
        Lesson(fails), lesson("right"), size, ScriptedEngine(parrot), CHAT, LIMITS, JUDGES, replace_lost
    )
    members = asyncio.run(playing)
    for member in members:
        check(member)
    return members


def test_a_lost_member_is_replaced_once() -> None:
    members = group({"step": [SandboxLost("gone")]})
    assert sorted(m.episode.outcome for m in members) == [Outcome.SANDBOX_LOST] + [Outcome.SOLVED] * 4
    assert len(Group(0, "lesson", 0, members).valid) == 4


def test_a_member_lost_twice_stays_lost_and_out_of_the_valid() -> None:
    members = group({"measure": [JudgeFailed("no")] * 5})
    made = Group(0, "lesson", 0, members)
    assert made.outcomes() == {Outcome.JUDGE_FAILED: 5, Outcome.SOLVED: 3}
    assert [m.episode.outcome for m in made.valid] == [Outcome.SOLVED] * 3


def test_no_replacement_where_none_is_allowed() -> None:
    members = group({"start": [OSError("gone")] * 2}, replace_lost=0)
    assert len(members) == 4 and len(Group(0, "lesson", 0, members).valid) == 2


def test_what_the_policy_earned_is_never_played_again() -> None:
    playing = play_group(Lesson(), lesson("mumble"), 3, ScriptedEngine(parrot), CHAT, LIMITS, JUDGES, 5)
    episodes: list[Episode] = [member.episode for member in asyncio.run(playing)]
    assert [episode.outcome for episode in episodes] == [Outcome.INVALID_ACTION] * 3


def test_an_attempt_without_end_is_cancelled_recorded_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Attempt):
        async def step(self, action: str) -> Step:
            await asyncio.Event().wait()
            raise AssertionError

    class World(Lesson):
        def open(self, task: Task) -> Env:
            self.opened += 1
            return (Endless if self.opened == 1 else Attempt)(self, task)

    monkeypatch.setattr("rl.rollout.EPISODE_TIMEOUT_S", 2.0)
    world = World()
    playing = play_group(world, lesson("right"), 1, ScriptedEngine(parrot), CHAT, LIMITS, JUDGES, 1)
    first, second = asyncio.run(playing)
    assert (first.episode.outcome, second.episode.outcome) == (Outcome.CANCELLED, Outcome.SOLVED)
    assert not first.valid and first.score is None and "no end within 2 s, of which env 2." in first.episode.error
    assert world.opened == world.closed == 2
    check(first)


class Points(Lesson):
    """Each attempt, in the order of their opening, is measured to have so many points, or something that is none."""

    def __init__(self, *points: object) -> None:
        super().__init__()
        self.points = points

    def open(self, task: Task) -> Env:
        self.opened += 1
        return Measured(self, task, self.points[self.opened - 1])


class Measured(Attempt):
    def __init__(self, world: Lesson, task: Task, points: object) -> None:
        super().__init__(world, task)
        self.points = points

    async def measure(self) -> Facts:
        if isinstance(self.points, Exception):
            raise self.points
        return {**await super().measure(), "points": self.points}


def scored(world: Points, size: int, replace_lost: int) -> list[Member]:
    judges = {"fact": {"name": "points", "normalise": True}}
    playing = play_group(world, lesson("right"), size, ScriptedEngine(parrot), CHAT, LIMITS, judges, replace_lost)
    return sorted(asyncio.run(playing), key=lambda m: str(m.episode.facts.get("points")))


def test_a_group_is_scored_together_and_without_what_was_lost() -> None:
    """Points 1 and 3 have mean 2 and deviation sqrt 2; what the machinery lost is in neither."""
    members = scored(Points(1, SandboxLost("gone"), 3), 3, replace_lost=0)
    assert [m.score and m.score.value for m in members] == pytest.approx([-0.70706, 0.70706, None], abs=1e-5)
    assert members[2].episode.outcome is Outcome.SANDBOX_LOST
    for member in members:
        check(member)


def test_on_whom_a_reward_fails_is_played_again_and_is_in_no_groups_mean() -> None:
    world = Points(1, "many", 5, 3)
    members = scored(world, 3, replace_lost=1)
    assert [m.score and m.score.value for m in members] == pytest.approx([-0.99995, 0.0, 0.99995, None], abs=1e-5)
    assert [m.episode.outcome for m in members] == [Outcome.SOLVED] * 3 + [Outcome.JUDGE_FAILED]
    assert members[3].episode.error == "JudgeFailed: reward fact: ValueError: could not convert string to float: 'many'"
    assert world.opened == world.closed == 4


def test_rewards_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def endless(*given: object) -> list[object]:
        asked.wait(30)
        return []

    monkeypatch.setattr("rl.rollout.rewards.score_group", endless)
    monkeypatch.setattr("rl.rollout.WORLD_TIMEOUT_S", 2.0)

    async def scene() -> Member:
        member = await play(Lesson(), lesson("right"), ScriptedEngine(parrot), CHAT, LIMITS, JUDGES)
        asked.set()
        return member

    member = asyncio.run(scene())
    assert (member.episode.outcome, member.score) == (Outcome.JUDGE_TIMED_OUT, None)
    assert member.episode.error == "JudgeTimedOut: rewards did not end within 2 s"


def test_where_one_member_meets_our_own_mistake_none_plays_on_unseen() -> None:
    class Slow(Attempt):
        async def start(self) -> Sequence[Message]:
            if self.world.closed == 0 and self.world.opened > 1:
                await asyncio.Event().wait()
            return await super().start()

    class World(Lesson):
        def open(self, task: Task) -> Env:
            self.opened += 1
            return Slow(self, task)

    def broken(prompt: list[int]) -> list[int]:
        raise ZeroDivisionError

    world = World()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(play_group(world, lesson("right"), 3, ScriptedEngine(broken), CHAT, LIMITS, JUDGES, 1))
    assert world.opened == world.closed == 3


def test_a_task_that_cannot_be_made_is_a_lost_group_and_not_the_end() -> None:
    class World(Lesson):
        def task(self, split: Split, index: int) -> Task:
            raise KeyError("row 17 has no answer")

    with pytest.raises(EnvCrashed) as caught:
        task_of(World(), "train", 17)
    (member,) = unplayed("lesson", "train", 17, caught.value)
    assert member.episode.outcome is Outcome.ENV_CRASHED and not member.valid
    assert "task 17 of train could not be made: KeyError: 'row 17 has no answer'" in member.episode.error
