"""Which world is next: shares of trained tokens on target, no favour for the short, the same choice after a resume."""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import e, exp, sqrt
from statistics import fmean, quantiles

import pytest

from rl.config import RunConfig, WorldConfig
from rl.mix import LEAST_USEFUL, Mix, Row
from rl.stages import StageConfig

LENGTH = {"short": 300.0, "middle": 1000.0, "long": 3000.0}
"""Median tokens of a group: 10 times apart."""
WEIGHTS = {"short": 1.0, "middle": 2.0, "long": 1.0}
TARGETS = {"short": 0.25, "middle": 0.5, "long": 0.25}


def settings(weights: dict[str, float] = WEIGHTS, stages: list[StageConfig] | None = None) -> RunConfig:
    return RunConfig(worlds={name: WorldConfig(weight=w) for name, w in weights.items()}, stages=stages or [])


def row(lease: int, world: str, tokens: int, *, flat: bool = False, version: int = 0, trained: bool = False) -> Row:
    """What one lease brought. Only what the mix reads matters here."""
    return Row(
        lease=lease,
        world=world,
        version=version,
        trained=trained,
        useful=0 if flat else tokens,
        sampled=tokens,
        key="k",
        family="f",
        level=0,
        tried=8,
        solved=0 if flat else 4,
    )


class Simulation:
    """Groups in flight with log-normal lengths and latencies; a group takes the longer, the longer its episodes are."""

    def __init__(self, config: RunConfig, *, flat: dict[str, float] | None = None, seed: int = 0) -> None:
        self.mix, self.flat, self.rng = Mix(config), flat or {}, random.Random(seed)
        self.flying: list[tuple[float, int, Row]] = []
        self.now, self.granted = 0.0, 0
        self.rows: list[Row] = []
        self.drawn: dict[str, list[int]] = defaultdict(list)

    def run(self, leases: int, in_flight: int = 64, version: int = 0) -> None:
        """Grant so many leases; what is in flight at the end has not come back, as when a run ends."""
        first = self.granted
        for lease in range(first, first + leases):
            while len(self.flying) >= in_flight:
                self.land()
            world = self.mix.next(version)
            self.mix.admit(lease, world, version)
            tokens = round(LENGTH[world] * self.rng.lognormvariate(0.0, 1.0))
            self.drawn[world].append(tokens)
            flat = self.rng.random() < self.flat.get(world, 0.0)
            latency = tokens * self.rng.lognormvariate(0.0, 0.5)
            self.granted += 1
            back = row(lease, world, tokens, flat=flat, version=version)
            heapq.heappush(self.flying, (self.now + latency, lease, back))

    def land(self) -> None:
        """The next group comes back."""
        self.now, _, back = heapq.heappop(self.flying)
        self.mix.arrive(back)
        self.rows.append(back)

    def shares(self) -> dict[str, float]:
        tokens: Counter[str] = Counter()
        for back in self.rows:
            tokens[back.world] += back.useful
        return {world: count / tokens.total() for world, count in tokens.items()}

    def sampled(self) -> dict[str, float]:
        tokens: Counter[str] = Counter()
        for back in self.rows:
            tokens[back.world] += back.sampled
        return {world: count / tokens.total() for world, count in tokens.items()}


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_trained_tokens_are_on_target_though_lengths_and_latencies_differ(seed: int) -> None:
    simulation = Simulation(settings(), seed=seed)
    simulation.run(3000)
    assert simulation.shares() == pytest.approx(TARGETS, abs=0.03)
    assert len(simulation.drawn["short"]) > 5 * len(simulation.drawn["long"]), "counted in prompts they are far apart"


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_held_where_many_groups_of_a_world_are_flat(seed: int) -> None:
    simulation = Simulation(settings(), flat={"middle": 0.6, "long": 0.3}, seed=seed)
    simulation.run(3000)
    assert simulation.shares() == pytest.approx(TARGETS, abs=0.03)


def test_short_episodes_have_no_advantage() -> None:
    """The lengths that came back are those of all leases ever granted, but for the few in flight."""
    simulation = Simulation(settings(), seed=1)
    simulation.run(6000)
    for world, drawn in simulation.drawn.items():
        came = [back.useful for back in simulation.rows if back.world == world]
        compared = [a / b for a, b in zip(quantiles(came), quantiles(drawn), strict=True)]
        assert compared == pytest.approx([1] * 3, abs=0.05), world
        expected = LENGTH[world] * exp(0.5)
        assert fmean(drawn) / expected == pytest.approx(1, abs=4 * sqrt((e - 1) / len(drawn))), world
    while simulation.flying:
        simulation.land()
    for world, drawn in simulation.drawn.items():
        assert sorted(drawn) == sorted(back.useful for back in simulation.rows if back.world == world)


def test_what_a_lease_brings_is_not_judged_by_what_finishes_first() -> None:
    """A world's long groups are still in flight when its short ones are back: a mean over those would be too small."""
    mix = Mix(settings({"both": 1.0, "other": 1.0}))
    for lease in range(20):
        mix.admit(lease, "both", 0)
    for lease in range(10):
        mix.arrive(row(lease, "both", 1000))
    for lease in range(11, 20):
        mix.arrive(row(lease, "both", 10))
    assert mix._a_lease("both") == 1000, "lease 10 is in flight: those after it wait for it to be counted"
    mix.arrive(row(10, "both", 1910))
    assert mix._a_lease("both") == pytest.approx((10 * 1000 + 1910 + 90) / 20)


def test_a_world_that_teaches_nothing_does_not_take_the_run() -> None:
    simulation = Simulation(settings({"short": 1.0, "middle": 1.0}), flat={"short": 1.0})
    simulation.run(4000)
    sampled = simulation.sampled()
    assert simulation.shares()["middle"] == 1.0
    assert sampled["short"] / sampled["middle"] == pytest.approx(1 / LEAST_USEFUL, rel=0.05)


def test_a_world_that_dies_late_does_not_stop_the_others() -> None:
    """What it taught before is not held against them: they go on at their rate beside a world that teaches nothing."""
    simulation = Simulation(settings({"short": 1.0, "middle": 1.0}))
    simulation.run(6000)
    simulation.flat["short"] = 1.0
    simulation.run(1000)  # those in flight, and a window
    began = len(simulation.rows)
    simulation.run(4000)
    sampled = {"short": 0, "middle": 0}
    for back in simulation.rows[began:]:
        sampled[back.world] += back.sampled
    assert sampled["short"] < 2 / LEAST_USEFUL * sampled["middle"]


def permuted(rows: list[Row], rng: random.Random) -> list[Row]:
    return rng.sample(rows, len(rows))


def same(rows: list[Row], rng: random.Random) -> list[Row]:
    return rows


@pytest.mark.parametrize("order", [same, permuted])
def test_the_ledgers_rows_bring_it_back_to_where_it_was(order: Callable[..., list[Row]]) -> None:
    """Killed between two waves of lockstep: the choices that follow are those of the run that was not."""
    rng = random.Random(3)
    mix, rows, lease = Mix(settings()), [], 0
    for _ in range(5):
        wave = []
        for _ in range(16):
            world = mix.next(0)
            mix.admit(lease, world, 0)
            wave.append(row(lease, world, rng.randint(10, 5000), flat=rng.random() < 0.3))
            lease += 1
        for back in permuted(wave, rng):
            mix.arrive(back)
        rows += wave
    again = Mix(settings(), order(rows, rng))
    for later in range(lease, lease + 64):
        world = mix.next(0)
        assert again.next(0) == world
        mix.admit(later, world, 0)
        again.admit(later, world, 0)


def test_a_stage_has_its_own_targets_and_its_own_account() -> None:
    first = StageConfig(until_step=10, worlds={"long": {"weight": 0.0}, "short": {"weight": 6.0}})
    simulation = Simulation(settings(stages=[first]), seed=2)
    simulation.run(1500, version=9)
    assert simulation.shares() == pytest.approx({"short": 0.75, "middle": 0.25}, abs=0.03)
    simulation.rows = []
    simulation.run(3000, version=10)
    assert simulation.shares() == pytest.approx(TARGETS, abs=0.03), "nothing of stage 0 is made up for"


def test_a_world_that_is_paused_is_not_chosen() -> None:
    mix = Mix(settings({"a": 1.0, "b": 1.0}))
    assert mix.next(0) == "a" and mix.next(0, without={"a"}) == "b"
    with pytest.raises(ValueError, match="got no world to play: a, b paused"):
        mix.next(0, without=("a", "b"))


def test_reported_shares_are_those_of_what_was_trained_on() -> None:
    rows = [row(0, "short", 30, trained=True), row(1, "long", 90, trained=True), row(2, "long", 500)]
    assert Mix(settings(), rows).shares(0) == {
        "short": {"target": 0.25, "share": 0.25},
        "middle": {"target": 0.5, "share": 0.0},
        "long": {"target": 0.25, "share": 0.75},
    }
    assert Mix(settings(), [replace(rows[0], version=5)]).shares(0)["short"]["share"] == 1.0
