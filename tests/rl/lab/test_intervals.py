"""Statistics over seeds, on known answers: identical shapings are not called different, planted effects are found."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from rl.lab import curves, intervals, tables
from rl.lab.curves import Curve, HeldOut

SEEDS = 5
Noise = Callable[[np.random.Generator, int], np.ndarray]


def held_out(true: float, *, proxy: float | None = None, n: int = 384) -> HeldOut:
    deviation = math.sqrt(true * (1 - true))
    return HeldOut(
        n=n,
        worlds={"math": true, "code": true},
        proxy=true if proxy is None else proxy,
        true_deviation=deviation,
        proxy_deviation=deviation,
    )


def curve(
    true: list[float], *, proxy: list[float] | None = None, seed: int = 0, start: float = 0.5, n: int = 384
) -> Curve:
    """A cell that ends on held-out tasks where it ended in training."""
    proxy = true if proxy is None else proxy
    return Curve(
        seed=seed,
        steps=list(range(1, len(true) + 1)),
        tokens=[100 * step for step in range(1, len(true) + 1)],
        seconds=[10.0 * step for step in range(1, len(true) + 1)],
        true=true,
        proxy=proxy,
        before=held_out(start, n=n),
        after=held_out(true[-1], proxy=proxy[-1], n=n),
    )


def called_different(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """What the lab says of two shapings that ended so, one value a seed."""
    shapings = {name: [curve([float(end)]) for end in ends] for name, ends in (("a", theirs), ("b", ours))}
    found = curves.figures(shapings, "a")
    return bool(found["shapings"]["b"]["against"]["final"]["different"])


def binomial(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.binomial(192, 0.8, count) / 192


def unlike(rng: np.random.Generator, count: int) -> np.ndarray:
    """Runs differ more than their measurements do."""
    return np.clip(0.8 + 0.05 * rng.normal(size=count), 0, 1)


def collapsing(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.2, 0.05, unlike(rng, count))


@pytest.mark.parametrize("noise", [binomial, unlike, collapsing])
@pytest.mark.parametrize("seed", range(3))
def test_identical_shapings_are_not_called_different(noise: Noise, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert sum(called_different(noise(rng, SEEDS), noise(rng, SEEDS)) for _ in range(100)) <= 5


def test_a_bootstrap_alone_would_break_that_promise() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        around = intervals.bootstrap_iqm([[d] for d in unlike(rng, SEEDS) - unlike(rng, SEEDS)])
        assert around.low is not None and around.high is not None
        wrong += not around.low <= 0 <= around.high
    assert wrong > 5


def test_a_planted_effect_is_found() -> None:
    rng = np.random.default_rng(0)
    assert sum(called_different(unlike(rng, SEEDS) - 0.25, unlike(rng, SEEDS)) for _ in range(100)) >= 95
    hard = np.array([0.1, -0.2, 0.2, 0.0, -0.1])  # tasks of some seeds are harder: pairs do not care
    assert called_different(0.6 + hard + 0.01 * rng.normal(size=SEEDS), 0.7 + hard)


def test_fewer_than_five_seeds_never_tell_shapings_apart() -> None:
    assert not called_different(np.full(4, 0.1), np.full(4, 0.9))
    assert called_different(np.full(5, 0.1), np.full(5, 0.9))


def test_six_identical_shapings_of_three_seeds_are_not_called_different() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        of = {str(n): [curve([end / 8], n=8) for end in rng.binomial(8, 0.9, 3)] for n in range(6)}
        found = curves.figures(of, "0")["shapings"]
        wrong += any(row["against"]["final"]["different"] for name, row in found.items() if name != "0")
    assert wrong <= 2


def test_equal_differences_within_the_error_of_the_measurements_are_not_certain() -> None:
    of = {"a": [curve([0.5], n=16)] * SEEDS, "b": [curve([9 / 16], n=16)] * SEEDS}
    against = curves.figures(of, "a")["shapings"]["b"]["against"]
    assert against["final"]["p"] > 0.4 and not against["final"]["different"]
    assert intervals.paired([9 / 16] * SEEDS, [0.5] * SEEDS).p == 0.0, "as a measurement without error would be"
    assert held_out(1.0, n=16).variance > 0


def test_only_the_mean_end_is_tested_and_it_is_what_is_shown() -> None:
    of = {"a": [curve([0.5])] * SEEDS, "b": [curve([0.9])] * SEEDS}
    found = curves.figures(of, "a")
    area = found["shapings"]["b"]["against"]["area"]
    assert area["difference"] == pytest.approx(0.2) and area["low"] is not None and area["different"] is None
    shapings, speed = tables.tables(found)[:2]
    assert shapings.rows[1][shapings.columns.index("end")] == pytest.approx(0.9)
    assert "trained tokens" in speed.columns and speed.rows[1][1] == SEEDS
    skewed = curve([0.9])
    skewed.after.worlds = {"a": 0.8, "b": 0.8, "c": 0.8, "d": 0.0}
    of["b"] = [skewed] * SEEDS
    final = curves.figures(of, "a")["shapings"]["b"]["final"]
    assert final["mean"] == pytest.approx(0.6) and final["iqm"] == pytest.approx(0.8)


def test_a_world_that_is_lost_is_named_though_the_mean_over_worlds_holds() -> None:
    cells = [curve([0.5, 0.5], proxy=[0.5, 0.9 + seed / 100], seed=seed) for seed in range(SEEDS)]
    for cell in cells:
        cell.after.worlds = {"math": 0.1, "code": 0.9}
    found = curves.figures({"a": [curve([0.5, 0.5])] * SEEDS, "b": cells}, "a")
    assert found["shapings"]["b"]["lost_worlds"] == {"math": [0, 1, 2, 3, 4]}
    assert [(w.name, w.about) for w in tables.warnings(found)] == [("reward-hacked", "b"), ("world-lost", "b")]
    cells[0].after.worlds = {"math": 0.26, "code": 0.74}
    assert curves.lost(cells[0]) == [] and curves.lost(cells[1]) == ["math"]


def test_many_shapings_are_compared_together() -> None:
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        of = {str(n): [curve([float(end)]) for end in unlike(rng, SEEDS)] for n in range(7)}
        found = curves.figures(of, "0")["shapings"]
        wrong += any(row["against"]["final"]["different"] for name, row in found.items() if name != "0")
    assert wrong <= 5


def test_student_is_that_of_the_tables() -> None:
    known = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042}
    for freedom, quantile in known.items():
        assert intervals.student_quantile(0.95, freedom) == pytest.approx(quantile, abs=6e-4)
    around = intervals.mean_interval([1.0, 2.0, 3.0])
    assert (around.mean, around.low) == pytest.approx((2.0, 2 - 4.303 / math.sqrt(3)), abs=1e-3)


def test_sign_flips_of_five_pairs_end_at_one_in_sixteen() -> None:
    assert intervals.sign_flip([0.1, 0.2, 0.3, 0.4, 0.5]) == 1 / 16
    assert intervals.sign_flip([0.1, -0.1]) == 1.0
    assert intervals.sign_flip([1.0] * 20) < 0.01


def test_the_middle_half_is_what_counts() -> None:
    assert intervals.iqm([0, 0, 1, 2, 3, 4, 9, 99]) == 2.5
    assert intervals.iqm([7, 1, 2, 3, -100]) == 2.0
    one = intervals.bootstrap_iqm([[0.5, 0.7, 0.9, 0.1]])
    assert (one.low, one.high) == (None, None) and one.mean == pytest.approx(0.6)
    rng = np.random.default_rng(0)
    around = intervals.bootstrap_iqm(rng.normal(0.5, 0.1, (5, 3)).tolist())
    assert around.low is not None and around.high is not None
    assert 0.3 < around.low < around.mean < around.high < 0.7


def test_a_seed_is_drawn_with_all_its_worlds() -> None:
    seeds = [0.2, 0.4, 0.6, 0.8]
    joint = intervals.bootstrap_iqm([[seed] * 3 for seed in seeds])
    alone = intervals.bootstrap_iqm([[seed] for seed in seeds])
    assert joint.low is not None and joint.high is not None and alone.low is not None and alone.high is not None
    assert joint.high - joint.low == pytest.approx(alone.high - alone.low, abs=0.1)


def test_area_and_steps_to_a_threshold() -> None:
    straight = curve([0.6, 0.7, 0.8, 0.9])
    assert curves.area(straight, 4) == pytest.approx(0.7)
    assert curves.area(straight, 8) == pytest.approx((0.7 * 4 + 0.9 * 4) / 8), "it stays where it ended"
    found = curves.figures({"a": [straight, curve([0.9] * 4), curve([0.5] * 4)]}, "a", threshold=0.75)
    assert found["shapings"]["a"]["to_threshold"] == {
        "reached": 2,
        "of": 3,
        "steps": 4,
        "trained_tokens": 400,
        "seconds": 40.0,
    }
    found = curves.figures({"a": [straight, curve([0.5] * 4), curve([0.5] * 4)]}, "a", threshold=0.75)
    assert found["shapings"]["a"]["to_threshold"]["steps"] is None


def test_collapse_is_below_its_start_or_half_of_its_best() -> None:
    assert not curves.collapsed(curve([0.6, 0.7, 0.8]))
    assert not curves.collapsed(curve([0.5, 0.5, 0.47])), "by chance"
    assert curves.collapsed(curve([0.5, 0.4, 0.3]))
    assert curves.collapsed(curve([0.9, 0.9, 0.9, 0.6, 0.5, 0.44], start=0.4))


def test_a_proxy_that_is_the_truth_never_parts_from_it() -> None:
    rng = np.random.default_rng(0)
    true = [[0.5 + 0.04 * step + 0.02 * float(rng.normal()) for step in range(8)] for _ in range(SEEDS)]
    scaled = [curve(row, proxy=[3 * height - 1 for height in row], seed=n) for n, row in enumerate(true)]
    for cell in scaled:
        cell.before.proxy, cell.before.proxy_deviation = 3 * 0.5 - 1, 3 * cell.before.true_deviation
        cell.after.proxy = 3 * cell.after.true - 1
    found = curves.figures({"a": scaled}, "a")["shapings"]["a"]
    assert found["gap"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert found["parted_step"] is None


def test_the_step_where_a_proxy_parts_from_the_truth() -> None:
    rng = np.random.default_rng(0)
    cells = []
    for seed in range(SEEDS):
        noise = [0.004 * float(draw) for draw in rng.normal(size=12)]
        proxy = [0.5 + 0.04 * step + noise[step] for step in range(12)]
        true = [height if step < 5 else 0.7 - 0.05 * (step - 5) for step, height in enumerate(proxy)]
        cells.append(curve(true, proxy=proxy, seed=seed))
    found = curves.figures({"a": cells}, "a")["shapings"]["a"]
    assert found["parted_step"] in (6, 7), "counted from 1; the curves are smoothed over three steps"
    assert found["gap"]["low"] > 0.5
    assert curves.parted(cells[:2]) is None, "two seeds do not tell"


def test_one_seed_that_parts_is_not_all_that_part() -> None:
    alone = curve([0.5, 0.4, 0.3, 0.2], proxy=[0.6, 0.7, 0.8, 0.9])
    found = curves.figures(
        {"a": [alone, *(curve([0.6, 0.7, 0.8, 0.9], proxy=[0.6, 0.7, 0.8, 0.88]) for _ in range(4))]}, "a"
    )
    assert found["shapings"]["a"]["gap"]["mean"] > 0.1 and found["shapings"]["a"]["parted_step"] is None


def test_a_proxy_without_spread_has_no_gap() -> None:
    cell = curve([0.6, 0.7])
    cell.before.proxy_deviation = 0.0
    found = curves.figures({"a": [cell]}, "a")["shapings"]["a"]
    assert found["gap"] is None and found["parted_step"] is None
