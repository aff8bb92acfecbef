"""Every warning of a shaping, on a case that it must catch and on an honest one that it must not."""

from pathlib import Path

import numpy as np
import pytest

from envs import Outcome
from rewards import Score
from rl.lab import measures, scoring
from rl.lab.shapings import Shaping, load
from tests.rl.lab.stores import RIGHT, WRONG, Said, shaping, write
from tests.rl.lab.test_score import OUTCOME, scored

TURNS = [Said(solved=True, turns=1), Said(solved=True, turns=3), Said(turns=2), Said(turns=3, text="word")]
REFUSED = Said(outcome=Outcome.INVALID_ACTION)
POTENTIAL = "potential: {of: format, args: {pattern: word, where: any}}"


def names(run: Path, folder: Path, **texts: str) -> dict[str, set[str]]:
    document = scored(run, folder, **texts)
    return {name: {warned.name for warned in document.warnings if warned.about == name} for name in texts}


def test_a_potential_that_telescopes_is_named_and_not_under_credit_by_turn(tmp_path: Path) -> None:
    turns = "\nalgorithm: {name: turns}"
    told = names(
        write(tmp_path, [TURNS] * 10),
        tmp_path,
        planted=f"rewards: {{outcome: {{}}, {POTENTIAL}}}",
        credited=f"rewards: {{outcome: {{}}, {POTENTIAL}}}{turns}",
        cost="rewards: {outcome: {}, turn_cost: {weight: 0.1}}",
        discounted="rewards: {outcome: {}, potential: {of: format, args: {pattern: word, where: any}, gamma: 0.9}}",
    )
    assert told["planted"] == {"telescoping-potential"}
    assert told["credited"] == told["cost"] == told["discounted"] == set()


def test_a_cost_of_turns_that_all_take_alike_is_a_dead_weight_and_no_potential(tmp_path: Path) -> None:
    told = names(
        write(tmp_path, [[Said(solved=True, turns=2), Said(turns=2)]] * 10),
        tmp_path,
        cost="rewards: {outcome: {}, turn_cost: {weight: 0.1}}",
    )
    assert told["cost"] == {"dead-weight"}


def test_a_weight_that_never_matters_is_named_and_a_metric_or_one_that_does_is_not(tmp_path: Path) -> None:
    told = names(
        write(tmp_path, [[RIGHT, WRONG, WRONG]] * 9 + [[RIGHT, REFUSED, WRONG]]),
        tmp_path,
        planted="rewards: {outcome: {}, length: {soft_tokens: 900, hard_tokens: 999}}",
        metric="rewards: {outcome: {}, length: {soft_tokens: 900, hard_tokens: 999, weight: 0}}",
        matters="rewards: {outcome: {}, tool_format: {weight: 0.1}}",
        gate="rewards: {outcome: {}, form: {reward: format, pattern: boxed, gate: true}}",
        closed="rewards: {outcome: {}, form: {reward: format, pattern: zzz, gate: true}}",
    )
    assert told["planted"] == told["gate"] == {"dead-weight"}
    assert told["metric"] == told["matters"] == set()
    assert "no-signal" in told["closed"]


def test_parts_that_duplicate_each_other_are_named_and_others_are_not(tmp_path: Path) -> None:
    groups = [[Said(solved=n % 3 == 0, tokens=n * n + 4) for n in range(6)] for _ in range(10)]
    length = "{soft_tokens: 0, hard_tokens: 99, only_solved: false}"
    told = names(
        write(tmp_path, groups),
        tmp_path,
        planted="rewards: {outcome: {}, again: {reward: outcome, weight: 0.3}}",
        against=f"rewards: {{outcome: {{}}, length: {length}, rest: {{reward: length, weight: -0.5, "
        "soft_tokens: 0, hard_tokens: 99, only_solved: false}}",
        honest=f"rewards: {{outcome: {{}}, length: {length}}}",
    )
    assert told["planted"] == told["against"] == {"duplicate-parts"}
    assert told["honest"] == set()


def test_a_bonus_that_division_makes_full_size_is_named_only_where_there_is_division(tmp_path: Path) -> None:
    groups = [[RIGHT, WRONG, RIGHT, WRONG]] * 10 + [[WRONG, WRONG, REFUSED, WRONG]] * 5
    bonus = "rewards: {outcome: {}, tool_format: {weight: 0.05}}"
    told = names(
        write(tmp_path, groups),
        tmp_path,
        planted=f"{bonus}\nalgorithm: {{name: dapo}}",
        undivided=f"{bonus}\nalgorithm: {{name: dr_grpo}}",
        large="rewards: {outcome: {}, tool_format: {weight: 1}}\nalgorithm: {name: dapo}",
        plain=f"{OUTCOME}\nalgorithm: {{name: dapo}}",
    )
    assert told["planted"] == {"bonus-blown-up"}
    assert told["undivided"] == told["large"] == told["plain"] == set()


def test_a_shaping_that_pays_wrong_attempts_more_or_scores_only_some_is_named(tmp_path: Path) -> None:
    measured = Said(solved=True, facts={"luck": 1.0})
    told = names(
        write(tmp_path, [[measured, RIGHT, Said(text="please"), WRONG]] * 10),
        tmp_path,
        planted="rewards: {outcome: {}, format: {pattern: please, weight: 1.5}}",
        some="rewards: {fact: {name: luck}}",
        honest=OUTCOME,
    )
    assert told["planted"] == {"wrong-beats-right"}
    assert "unscorable" in told["some"] and told["honest"] == set()


# -- the measures by themselves ---------------------------------------------------------------------------------------


def test_what_parts_add_sums_to_the_score_with_gates_thresholds_and_normalised_parts(tmp_path: Path) -> None:
    text = (
        "rewards: {outcome: {}, length: {soft_tokens: 0, hard_tokens: 50, weight: 0.5, only_solved: false}, "
        "short: {reward: length, soft_tokens: 0, hard_tokens: 50, only_solved: false, normalise: true, weight: 0.3}, "
        "brief: {reward: length, soft_tokens: 0, hard_tokens: 50, only_solved: false, threshold: -0.5}, "
        "form: {reward: format, pattern: boxed, gate: true}, seen: {reward: tool_format, weight: 0}}"
    )
    groups = [[Said(solved=n % 2 == 0, tokens=5 * n + 3, text="\\boxed{1}" if n % 3 else "no") for n in range(6)]] * 3
    write(tmp_path, groups)
    chosen = load([shaping(tmp_path, "x", text)])
    from rl.lab.stored import Stored

    found = [found for found, _ in scoring.run(Stored(tmp_path / "run").chunks(), chosen, tmp_path / "p", 1)]
    _, shaped = scoring.columns(found, chosen)
    own = shaped["x"]
    assert np.allclose(sum(own.parts.values()), own.score_N) and len(own.parts) == 6
    assert np.any(own.parts["form"] != 0) and np.any(own.parts["short"] < 0)
    shares = measures.shares(np.repeat(np.arange(3), 6), own)
    assert sum(share for share in shares.values() if share is not None) == pytest.approx(1)


def test_gates_take_away_one_after_another() -> None:
    chosen = Shaping("x", {"a": {"weight": 2.0}, "g": {"gate": True}, "h": {"gate": True}})
    score = Score(0.25, {"a": 0.5, "g": 0.5, "h": 0.5})
    assert next(scoring.added([score], chosen)) == {"a": 1.0, "g": -0.5, "h": -0.25}


def test_ranks_and_correlations_are_those_of_the_textbook() -> None:
    assert measures.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])
    assert measures.pearson(a, b) == pytest.approx(0.6)
    assert measures.pearson(a, np.full(4, 0.1)) is None
    group = np.array([0, 0, 1, 1, 1])
    ranks = measures.ranks_in_groups(group, np.array([1.0, 2.0, 5.0, np.nan, 5.0]))
    assert ranks[:3].tolist() == [2, 1, 1.5] and np.isnan(ranks[3]) and ranks[4] == 1.5
