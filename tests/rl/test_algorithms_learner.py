"""Every algorithm through the learner's step: rows of any length, and what the loss is divided by."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.algorithms import available, load
from rl.learner import Learner, Settings
from tests.policy.test_model import small_cwm
from tests.rl.test_batch import some_members


@pytest.mark.parametrize("name", available())
def test_a_step_is_the_same_in_rows_of_any_length(name: str, tmp_path: Path) -> None:
    """A constant of the run scales the loss; the batch's own count of tokens or members does not know of it."""
    path = small_cwm(tmp_path / "m", layers=2)
    short = Settings(model=str(path), lr=1e-3, loss_denominator=64.0, row_tokens=64, device="cpu", algorithm=name)
    members = some_members()
    first = Learner(short).step(members)
    assert first["grad_norm"] > 1e-6
    constant = load(name).per == "run"
    for settings, batch, factor in (
        (replace(short, row_tokens=1024), members, 1),
        (replace(short, loss_denominator=128.0), members, 0.5 if constant else 1),
        (short, members * 2, 2 if constant else 1),
    ):
        again = Learner(settings).step(batch)
        for key in ("loss", "grad_norm"):
            assert again[key] == pytest.approx(factor * first[key], rel=1e-4), key
        for key in ("ratio", "kl", "clip_low", "clip_high", "truncated", "entropy"):
            assert again[key] == pytest.approx(first[key], rel=1e-4), key
