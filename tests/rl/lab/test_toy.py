"""The toy: potentials keep the best actions, a planted bonus is caught, identical shapings stay the same."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rl import algorithms
from rl.lab import document, process, tabular, toy


def test_the_command_holds_what_is_asked_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    toy.arguments(parser)
    assert toy.run(parser.parse_args(["--json", "--out", str(tmp_path)])) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["potential_kept_optimum"] is True and figures["planted_bonus_caught"] is True
    assert figures["identical_called_different"] <= 5 and figures["repetitions"] == 100
    assert document.load(tmp_path).figures == figures
    exact = figures["exact"]
    assert exact["processes"] == 100 and exact["planted"] == exact["planted_caught"] >= 90
    assert exact["potential_changed"] == exact["harmless_called"] == 0 < exact["open_end_changed"]
    assert figures["harmful_called_different"] >= 95
    assert figures["telescoped"]["grpo"] < 1e-9 < 0.1 < figures["telescoped"]["turns"]
    study = figures["study"]["shapings"]
    assert study["bonus"]["proxy"]["end"] > 1 > 0.1 > study["bonus"]["final"]["iqm"], (
        "paid for poking, not for arriving"
    )
    assert study["outcome"]["final"]["iqm"] > 0.9
    warned = {(warning.name, warning.about) for warning in document.load(tmp_path).warnings}
    assert ("reward-hacked", "bonus") in warned
    assert not any(about != "bonus" for name, about in warned if name == "reward-hacked")


def test_best_actions_by_hand() -> None:
    world = process.walk(length=1, turns=2, bonus=0.4)
    back, on, poke = 0, 1, 2
    outcome = toy.SHAPINGS["outcome"][0]
    best = process.optimal(world, outcome)
    assert best[()] == {back, on, poke}, "the last turn is enough"
    assert best[(on, 1),] == {on, poke} and best[(poke, 0),] == {on}
    hacked = process.optimal(world, toy.SHAPINGS["bonus"][0])
    assert hacked[()] == {on, poke} and hacked[(on, 1),] == {poke} and hacked[(poke, 0),] == {on}
    assert process.regret(world, outcome, ((back, 0),)) == {back: 1.0, on: 0.0, poke: 1.0}


def test_chances_are_weighed() -> None:
    world = process.drawn(np.random.default_rng(3), states=2, actions=2, turns=1)
    sure = np.array([[[0.0, 1.0], [0.5, 0.5]]] * 2)
    world = replace(world, chance_SAS=sure, paid_SA=np.zeros((2, 2)), goal=1)
    assert process.optimal(world, {"outcome": {}}) == {(): frozenset({0})}
    assert process.regret(world, {"outcome": {}}) == {0: 0.0, 1: 0.5}


def test_training_moves_towards_what_is_paid() -> None:
    cells = tabular.curves(process.walk(), {"outcome": {}}, algorithms.load("grpo"), runs=4, seed=0, steps=30)
    assert [cell.before.true for cell in cells] == pytest.approx([6 / 81] * 4), "by counting paths"
    assert sum(cell.after.true for cell in cells) / 4 > 0.8
    again = tabular.curves(process.walk(), {"outcome": {}}, algorithms.load("grpo"), runs=4, seed=0, steps=30)
    assert again == cells
