"""When a world is paused, when a lost group is played again, when a dead process is started again, when all stops."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs import Episode, Outcome, Task
from rewards import Score
from rl import firewall
from rl.firewall import ActorDied, Firewall, MachineryDown, Restarts, post_mortem, room_on
from rl.supervise import Hung, Seat, Supervisor
from rl.trajectory import Group, Member, Trajectory


def group(world: str, *outcomes: Outcome, lease: int = 0) -> Group:
    members = []
    for outcome in outcomes:
        trajectory = Trajectory()
        trajectory.hear([1])
        trajectory.speak([5], [-1.0], [0])
        task = Task(world=world, key="k", family="f", level=0, messages=())
        error = "" if outcome.valid else "the daemon is gone"
        episode = Episode(task=task, messages=[], outcome=outcome, error=error)
        members.append(Member(trajectory, episode, Score(0.0) if outcome.valid else None))
    return Group(lease, world, 0, members)


GOOD, BAD = [Outcome.FAILED] * 8, [Outcome.SANDBOX_LOST] * 8


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_world_that_fails_too_often_is_paused_named_and_probed_while_the_others_go_on() -> None:
    clock = Clock()
    wall = Firewall(["code", "math"], clock)
    assert wall.arrived(group("code", *BAD)) is None, "too few attempts to judge"
    news = wall.arrived(group("code", *BAD))
    assert news is not None and "world code is paused for 5 s" in news and "the daemon is gone" in news
    assert wall.open(["code", "math"]) == ["math"] and wall.paused() == {"code": "the daemon is gone"}
    assert wall.arrived(group("code", *GOOD)) is None, "what was in flight tells nothing new"
    clock.now = 5.0
    assert wall.open(["code", "math"]) == ["code", "math"]
    wall.leased("code", 0)
    assert wall.open(["code", "math"]) == ["math"], "one probe at a time"
    assert wall.arrived(group("code", *BAD, lease=9)) is None, "nor does what is lost of it, while the probe is out"
    assert wall.open(["code", "math"]) == ["math"]
    news = wall.arrived(group("code", *BAD))
    assert news is not None and "paused for 10 s" in news and "failed probe 1" in news
    clock.now = 14.9
    assert wall.open(["code", "math"]) == ["math"]
    clock.now = 15.0
    wall.leased("code", 0)
    assert wall.arrived(group("code", *GOOD)) == "world code works again and goes on"
    assert wall.open(["code", "math"]) == ["code", "math"] and not wall.paused()


def test_a_tenth_of_failures_pauses_nothing() -> None:
    wall = Firewall(["code"])
    for number in range(200):
        assert wall.arrived(group("code", *GOOD[1:], BAD[0] if number % 5 else GOOD[0])) is None
    assert wall.open(["code"]) == ["code"]


def test_an_engine_that_dies_is_not_the_worlds_fault_but_has_a_bound() -> None:
    wall = Firewall(["code"])
    with pytest.raises(MachineryDown, match="32 groups in a row"):
        for _ in range(firewall.LOST_IN_A_ROW):
            assert wall.arrived(group("code", *[Outcome.ENGINE_LOST] * 8)) is None
            assert not wall.paused()


def test_the_run_stops_where_every_world_is_down_and_names_the_causes() -> None:
    clock = Clock()
    wall = Firewall(["code", "math"], clock)

    def fail(world: str) -> None:
        wall.leased(world, 0)
        wall.arrived(group(world, *BAD, *BAD))
        clock.now += 1000.0

    for _ in range(20):
        fail("code")
    assert wall.open(["code", "math"]) == ["code", "math"], "one world alone may be down for ever"
    for _ in range(firewall.PROBES):
        fail("math")
    with pytest.raises(MachineryDown, match=r"every world is down.*code: the daemon is gone; math: the daemon"):
        fail("math")


def test_a_run_whose_stage_plays_other_worlds_stops_where_these_are_down() -> None:
    clock = Clock()
    wall = Firewall(["math"], clock)
    assert wall.arrived(group("math", *GOOD)) is None
    with pytest.raises(MachineryDown, match="every world is down"):
        for _ in range(firewall.PROBES + 1):
            assert wall.open(["code"]) == ["code"]
            wall.leased("code", 0)
            wall.arrived(group("code", *BAD, *BAD))
            clock.now += 1000.0


def test_a_lost_group_is_played_again_a_few_times_and_for_free_while_its_world_is_paused() -> None:
    wall = Firewall(["code"])
    lost = group("code", *BAD[:2], lease=7)
    assert [wall.again(lost) for _ in range(3)] == [True, True, False]
    assert not wall.again(group("code", *GOOD, *BAD))
    for _ in range(2):
        wall.arrived(group("code", *BAD))
    assert [wall.again(group("code", *BAD, lease=8)) for _ in range(5)] == [True] * 5


def test_restarts_are_bounded_within_a_window() -> None:
    clock = Clock()
    restarts = Restarts(most=2, window_s=100.0, clock=clock)
    assert [restarts.note("a"), restarts.note("a"), restarts.note("a"), restarts.note("b")] == [True, True, False, True]
    clock.now = 101.0
    assert restarts.note("a")


@pytest.mark.parametrize("write", [lambda file: file.write(b"x" * 100_000), lambda file: file.flush()])
def test_a_full_disk_ends_in_one_sentence(tmp_path: Path, write: Callable[[Any], Any]) -> None:
    said = r"the disk of .* is full .*--resume"
    with pytest.raises(MachineryDown, match=said), room_on(tmp_path / "run"), Path("/dev/full").open("wb") as full:
        full.write(b"x")
        write(full)


def test_other_errors_pass_the_check_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room_on(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(MachineryDown, match=r"^a world says: No space left on device$"), room_on(tmp_path):
        raise MachineryDown("a world says: No space left on device")


def test_the_page_on_a_dead_process_has_its_last_lines_and_what_to_do(tmp_path: Path) -> None:
    log = tmp_path / "rollout-0.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    page = post_mortem("rollout-0", "died", log)
    assert page.startswith("rollout-0 died") and "line 99" in page and "line 50" not in page and "--resume" in page
    assert "not to be read" in post_mortem("rollout-0", "died", tmp_path / "none.log")


# -- processes that die, here plain objects --------------------------------------------------------------------------


class Gone(Exception):
    pass


class Remote:
    """What is called as `actor.method.remote(...)`."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.remote = call


class Actor:
    def __init__(self, *, dead: bool = False) -> None:
        self.dead, self.asked = dead, 0
        self.ping = Remote(self.answer)

    async def answer(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        if self.dead:
            raise Gone("killed by signal 9")
        return "here"


class Scene:
    """A supervisor of one seat, whose next occupants are given."""

    def __init__(self, tmp_path: Path, *following: Actor) -> None:
        self.following, self.killed, self.taken, self.said = list(following), 0, 0, list[str]()
        (tmp_path / "rollout-0.log").write_text("out of memory\n")
        self.supervisor = Supervisor(
            gone=(Gone,), kill=self.kill, ready=self.ready, taken=self.took, log=lambda name: tmp_path / f"{name}.log"
        )
        self.supervisor.say = self.said.append
        self.seat = Seat("rollout-0", Actor(dead=True))

    def kill(self, actor: Actor) -> None:
        self.killed += 1

    async def ready(self, seat: Seat) -> Actor:
        await asyncio.sleep(0.01)
        if not self.following:
            raise Gone("does not even start")
        return self.following.pop(0)

    async def took(self, seat: Seat) -> None:
        self.taken += 1

    async def ask(self) -> Any:
        return await self.supervisor.ask(self.seat, lambda actor: actor.answer(), 30.0)


def test_a_dead_process_is_started_again_once_and_everybody_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path, Actor())
        assert await asyncio.gather(*(scene.ask() for _ in range(10))) == ["here"] * 10
        assert (scene.killed, scene.taken) == (1, 1)
        assert scene.said == ["rollout-0 died (killed by signal 9); it is started again"]

    asyncio.run(main())


def test_a_process_that_cannot_be_had_again_ends_every_wait_in_one_page(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path, Actor(dead=True))
        elsewhere = asyncio.create_task(scene.supervisor.answer(asyncio.Event().wait(), "learner", 60.0))
        with pytest.raises(ActorDied, match=r"(?s)rollout-0 died .*started again 3 times in vain.*out of memory.*--re"):
            await scene.ask()
        with pytest.raises(ActorDied):
            await asyncio.wait_for(elsewhere, 30)

    asyncio.run(main())


def test_a_death_that_nobody_waits_for_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.supervise.PING_EVERY_S", 0.01)

    async def main() -> None:
        scene = Scene(tmp_path, Actor())
        scene.supervisor.watch(scene.seat)
        async with asyncio.timeout(30):
            while not scene.taken:
                await asyncio.sleep(0.01)
        await scene.supervisor.close()
        assert not scene.seat.actor.dead

    asyncio.run(main())


def test_a_hang_is_a_death(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path, Actor())
        with pytest.raises(Hung, match=r"learner gave no answer within 0.01 s"):
            await scene.supervisor.answer(asyncio.Event().wait(), "learner", 0.01)
        hanging = scene.seat.actor

        async def call(actor: Actor) -> Any:
            return await (asyncio.Event().wait() if actor is hanging else actor.answer())

        assert await scene.supervisor.ask(scene.seat, call, 0.05) == "here"
        assert "rollout-0 hung" in scene.said[0]

    asyncio.run(main())
