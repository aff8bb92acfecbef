"""Curricula: what holds at which version, and that what would not hold is said before anything runs."""

from pathlib import Path

import pytest

from rl import stages
from rl.config import ConfigError, RunConfig, load, plain, save

CURRICULUM = """
worlds:
  math: {args: {python_tool: false}}
  code: {weight: 3}
rewards: {outcome: {}, length: {soft_tokens: 100, hard_tokens: 300}}
filters: {overlong: {mode: track}}
train: {steps: 30}
stages:
  - until_step: 11
    worlds: {math: {weight: 9, args: {levels: [0]}, difficulty: {low: 0.1}}, code: {weight: 0}}
    rewards: {length: {soft_tokens: {from: 50, to: 100}, weight: {from: 1, to: 0}}}
  - until_step: 20
    filters: {overlong: {mode: enforce}, gibberish: {vocabulary: 100, rare_from: 80}}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(text: str = CURRICULUM, *overrides: str) -> RunConfig:
    Path("x.yaml").write_text(text)
    return load("x.yaml", overrides)


def test_each_version_has_its_stage() -> None:
    config = loaded()
    assert [stages.number(config, version) for version in (0, 10, 11, 19, 20, 500)] == [0, 0, 1, 1, 2, 2]
    first, second, rest = (stages.at(config, version) for version in (0, 11, 20))
    assert first.worlds["math"].args == {"python_tool": False, "levels": [0]}
    assert (first.worlds["math"].difficulty.low, first.worlds["math"].difficulty.least) == (0.1, 8)
    assert second.worlds == rest.worlds == config.worlds
    assert (first.filters, rest.filters) == (config.filters, config.filters)
    assert second.filters == {"overlong": {"mode": "enforce"}, "gibberish": {"vocabulary": 100, "rare_from": 80}}
    assert stages.targets(config, 5) == {"math": 1.0}
    assert stages.targets(config, 11) == {"math": 0.25, "code": 0.75}
    assert (first.train, first.learner) == (config.train, config.learner)


def test_numbers_move_in_a_line_over_their_stage() -> None:
    config = loaded()
    at = [stages.at(config, version).rewards["length"] for version in (0, 5, 10, 11)]
    assert [found["soft_tokens"] for found in at] == [50, 75, 100, 100]
    assert [found.get("weight") for found in at] == [1.0, 0.5, 0.0, None]
    assert all(found["hard_tokens"] == 300 for found in at)


def test_a_last_stage_without_an_end_lasts_to_the_end() -> None:
    config = loaded(CURRICULUM.replace("until_step: 20", "until_step: 0"))
    assert stages.at(config, 10**6).filters["overlong"] == {"mode": "enforce"}


def test_without_stages_the_file_holds() -> None:
    config = loaded("worlds: {math: {}}\n")
    assert stages.at(config, 7) is config and stages.targets(config, 7) == {"math": 1.0}


def test_a_curriculum_comes_back_as_it_was_saved(place: Path) -> None:
    config = loaded()
    save(config, place / "saved.yaml")
    assert plain(load(place / "saved.yaml")) == plain(config)


BAD = {
    "an end in the middle": (
        ("until_step: 11", "until_step: 0"),
        "stages[0] lasts to the end; expected until_step in every stage but the last",
    ),
    "backwards": (("until_step: 20", "until_step: 11"), "got stages[1].until_step=11; expected more than 11"),
    "never": (("steps: 30", "steps: 11"), "stages[1] begins after step 11 and has no effect; train.steps=11"),
    "unknown key": (("until_step: 20", "until: 20"), "unknown key stages[1].until; did you mean stages[1].until_step?"),
    "unknown world": (
        ("code: {weight: 0}", "swe: {weight: 0}"),
        "stages[0].worlds has swe, not among the run's worlds; available: math, code",
    ),
    "unknown key of a world": (
        ("code: {weight: 0}", "code: {wieght: 0}"),
        "unknown key stages[0].worlds.code.wieght; available: weight, args, difficulty",
    ),
    "nothing played": (
        ("weight: 9", "weight: 0"),
        "stages[0]: every world has weight 0; expected at least one above",
    ),
    "no weight": (("weight: 9", "weight: lots"), "stages[0]: got weight='lots' for a world; expected a number"),
    "world argument": (("levels: [0]", "levels: [9]"), "stages[0]: world math: got levels [9]; available: 0, 1, 2"),
    "unknown world argument": (
        ("levels: [0]", "levls: [0]"),
        "stages[0]: unknown key worlds.math.args.levls; did you mean levels?",
    ),
    "difficulty": (
        ("low: 0.1", "low: 2"),
        "stages[0]: got worlds.math.difficulty low=2, high=1.0, keep=0.1; "
        "expected 0 <= low <= high <= 1 and 0 <= keep < 1",
    ),
    "unknown key of the difficulty": (
        ("low: 0.1", "lowest: 0.1"),
        "stages[0]: unknown key difficulty.lowest; available: low, high, by, least, window, keep",
    ),
    "filter": (
        ("mode: enforce", "mode: enforced"),
        "stages[1]: filters.overlong: got mode='enforced'; available: track, enforce",
    ),
    "unknown filter": (
        ("gibberish:", "giberish:"),
        "stages[1]: there is no filter 'giberish'; available: gibberish, overlong, repetition",
    ),
    "unknown filter argument": (
        ("rare_from", "rare_form"),
        "stages[1]: unknown key filters.gibberish.rare_form; did you mean rare_from?",
    ),
    "the end of a ramp": (
        ("to: 100", "to: 900"),
        "stages[0]: rewards.length: got soft_tokens=900, hard_tokens=300; expected numbers, 0 <= soft < hard",
    ),
    "no ramp": (("to: 100", "to: many"), "stages[0]: got a ramp from 50 to 'many'; expected two numbers"),
    "a ramp outside a stage": (
        ("soft_tokens: 100,", "soft_tokens: {from: 1, to: 2},"),
        "rewards.length: got soft_tokens={'from': 1, 'to': 2}, hard_tokens=300; expected numbers, 0 <= soft < hard",
    ),
    "stages as keys": (("stages:\n", "stages: {a: 1}\nx:\n"), None),
    "inert difficulty": (
        ("code: {weight: 3}", "code: {difficulty: {keep: 0.5}}"),
        "worlds.code.difficulty has no effect without low above 0 or high below 1",
    ),
    "by": (
        ("code: {weight: 3}", "code: {difficulty: {low: 0.5, by: level}}"),
        "got worlds.code.difficulty.by=level; available: task, family",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_clear_sentence(case: str) -> None:
    change, sentence = BAD[case]
    assert CURRICULUM.count(change[0]) == 1, "the case changes what it means to"
    with pytest.raises(ConfigError) as raised:
        loaded(CURRICULUM.replace(*change))
    assert sentence is None or str(raised.value) == sentence
    assert "\n" not in str(raised.value)
