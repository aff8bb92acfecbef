"""Between the machinery and learning: which world may be played, which lost group is played again, and when to stop.

    firewall = Firewall(["math", "code"])
    firewall.open(["math", "code"])    # those that may be played now; a paused one only as a probe
    firewall.leased("math", lease)
    news = firewall.arrived(group)     # one sentence where a world was paused or goes on; raises MachineryDown
    firewall.again(group)              # a group without a valid member: is its lease to be played again?

A world that loses at least half of its latest attempts is paused; each pause is twice as long as the last, and after
it one group is played to see. The run stops where every world is down, or where groups are lost one after another and
no world is to blame.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from envs import MachineryError, Outcome
from rl.trajectory import Group

WINDOW = 64
"""Latest attempts of a world that its rate of failure is taken over."""
FEWEST = 16
"""Attempts before a rate means anything."""
TOO_MANY = 0.5
"""Share of lost attempts at which a world is paused."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
PROBES = 4
"""Pauses in a row after which a world is down."""
TRIES = 3
"""How often one lease is played before it is given up as lost; what a paused world loses does not count."""
LOST_IN_A_ROW = 32
"""Groups of worlds that are not paused, each without one valid member, before the run stops."""
NOT_THE_WORLDS = (Outcome.ENGINE_LOST, Outcome.CANCELLED)
RESTARTS = 3
RESTART_WINDOW_S = 600.0
TAIL_LINES = 20
NO_ROOM = ("no space left on device", "disk is full", "disk quota exceeded")


class MachineryDown(RuntimeError):
    """Playing on would teach nothing. The message is what a person needs to act."""


class ActorDied(MachineryDown):
    """A process of the run died and was not started again."""


class LearnerDied(MachineryDown):
    """The learner's process is gone, and with it all since the last checkpoint."""


@dataclass(slots=True)
class _World:
    lost: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    pauses: int = 0
    """In a row; 0 where the world is open."""
    ends: float = 0.0
    probe: int | None = None
    """The lease that is played to see."""
    cause: str = ""


class Firewall:
    """Belongs to the driver. `clock` gives seconds."""

    def __init__(self, worlds: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._worlds: dict[str, _World] = {name: _World() for name in worlds}
        self._now = list(self._worlds)
        """The worlds that are played at this stage of the run."""
        self._tries: Counter[int] = Counter()
        self._lost_in_a_row = 0

    def allows(self, world: str) -> bool:
        """Whether a group of this world may be leased now."""
        state = self._worlds.get(world)
        return state is None or not state.pauses or (state.probe is None and self._clock() >= state.ends)

    def open(self, worlds: Iterable[str]) -> list[str]:
        """Those of the worlds that are played now for which it does."""
        self._now = list(worlds)
        return [world for world in self._now if self.allows(world)]

    def paused(self) -> dict[str, str]:
        """Why, by paused world."""
        return {world: state.cause for world, state in self._worlds.items() if state.pauses}

    def leased(self, world: str, lease: int) -> None:
        state = self._worlds.setdefault(world, _World())
        if state.pauses and state.probe is None:
            state.probe = lease

    def arrived(self, group: Group) -> str | None:
        """Count what became of a group. One sentence where its world is paused by it, or goes on. May raise."""
        state = self._worlds.setdefault(group.world, _World())
        blamed = [m.episode for m in group.members if m.episode.outcome not in NOT_THE_WORLDS]
        lost = [not episode.outcome.valid for episode in blamed]
        for episode in blamed:
            if not episode.outcome.valid:
                state.cause = episode.error
        if not state.pauses:
            self._count(group)
            state.lost.extend(lost)
            if len(state.lost) >= FEWEST and sum(state.lost) >= TOO_MANY * len(state.lost):
                return self._pause(group.world, state)
        elif state.probe == group.lease:
            state.probe = None
            if not blamed:  # the engine's, so it says nothing of the world
                return None
            if sum(lost) < TOO_MANY * len(lost):
                self._worlds[group.world] = _World()
                return f"world {group.world} works again and goes on"
            return self._pause(group.world, state)
        return None  # else it was in flight when its world was paused, and says nothing new

    def _count(self, group: Group) -> None:
        self._lost_in_a_row = 0 if _tried(group) else self._lost_in_a_row + 1
        if self._lost_in_a_row >= LOST_IN_A_ROW:
            raise MachineryDown(
                f"{LOST_IN_A_ROW} groups in a row were lost to the machinery, "
                f"the last with: {group.members[-1].episode.error}"
            )

    def _pause(self, name: str, state: _World) -> str:
        pause_s = min(FIRST_PAUSE_S * 2**state.pauses, LONGEST_PAUSE_S)
        state.pauses += 1
        state.ends = self._clock() + pause_s
        rate = f"{sum(state.lost)} of its last {len(state.lost)} attempts"
        state.lost.clear()
        if all(self._worlds.setdefault(world, _World()).pauses > PROBES for world in self._now):
            causes = "; ".join(f"{world}: {cause}" for world, cause in self.paused().items())
            raise MachineryDown(f"every world is down, after {PROBES} probes of each; the last causes: {causes}")
        what = f"lost {rate}" if state.pauses == 1 else f"failed probe {state.pauses - 1}"
        return f"world {name} is paused for {pause_s:g} s: it {what} to the machinery, the last with: {state.cause}"

    def again(self, group: Group) -> bool:
        """Whether the lease of a group without valid members is to be played again."""
        if _tried(group):
            return False
        if group.world not in self.paused():
            self._tries[group.lease] += 1
        return self._tries[group.lease] < TRIES


def _tried(group: Group) -> bool:
    """Whether the policy ended any attempt, if only because its prompt left no room for a turn."""
    return any(member.episode.outcome.valid for member in group.members)


class Restarts:
    """How often processes were started again: at most `most` times each within `window_s`."""

    def __init__(
        self, most: int = RESTARTS, window_s: float = RESTART_WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.window_s, self._clock = most, window_s, clock
        self._at: dict[str, list[float]] = defaultdict(list)

    def note(self, name: str) -> bool:
        """Count a death. False where there were too many to start the process again."""
        now = self._clock()
        self._at[name] = [at for at in self._at[name] if now - at < self.window_s] + [now]
        return len(self._at[name]) <= self.most


@contextmanager
def room_on(folder: Path) -> Iterator[None]:
    """Around all that writes to a run's folder: a full disk ends in one sentence."""
    try:
        yield
    except (MachineryDown, MachineryError):
        raise
    except Exception as error:  # OSError, sqlite3's, pyarrow's, safetensors' or Ray's copy of one from another process
        said = str(error).lower()
        if not any(words in said for words in NO_ROOM):
            raise
        raise MachineryDown(
            f"the disk of {folder} is full ({shutil.disk_usage(folder.parent).free >> 20} MB free): make room there, "
            "then go on with the same command and --resume; what the folder held until then is whole"
        ) from error


def post_mortem(name: str, happened: str, log: Path) -> str:
    """The one page on a dead process: which, its last log lines, what to do."""
    return (
        f"{name} {happened}.\n"
        f"The last lines of {log}:\n{_tail(log)}\n"
        "What to do: repair what these lines name (no line on the cause mostly means that the system killed it, for "
        "memory: `dmesg | tail` says so; then lower what it holds or take a larger machine), "
        "and go on from the last checkpoint with the same command and --resume."
    )


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError as error:
        return f"    (not to be read: {error.strerror})"
    return "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
