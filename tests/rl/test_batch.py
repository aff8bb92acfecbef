"""Packing: what goes in comes out, and how it is packed changes neither loss nor gradient."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from envs import Episode, Outcome, Task
from policy.model import load, token_logprobs
from rewards import Score
from rl.algorithms import load as load_algorithm
from rl.batch import Batch, pack
from rl.trajectory import Member, Trajectory
from tests.policy.test_model import small_cwm


def member(
    spoken: Sequence[Sequence[int]],
    *,
    heard: Sequence[int] = (1, 5, 6),
    logprobs: Sequence[float] | None = None,
    score: float | None = 1.0,
    outcome: Outcome = Outcome.SOLVED,
    advantage: float = 0.0,
) -> Member:
    """One attempt: before each turn of the policy the world says `heard`."""
    trajectory = Trajectory()
    left = list(logprobs) if logprobs is not None else [-1.0] * sum(map(len, spoken))
    for turn in spoken:
        trajectory.hear(heard)
        trajectory.speak(turn, left[: len(turn)], [0] * len(turn))
        left = left[len(turn) :]
    task = Task(world="w", key="k", family="f", level=0, messages=())
    episode = Episode(task=task, messages=[], outcome=outcome)
    return Member(trajectory, episode, None if score is None else Score(score), advantage)


def some_members(count: int = 12, seed: int = 0) -> list[Member]:
    """Members of one or two turns of 1 to 20 tokens, with advantages and behaviour a little off the policy's."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        turns = [
            torch.randint(3, 97, (int(torch.randint(1, 20, (1,), generator=g)),), generator=g).tolist()
            for _ in range(int(torch.randint(1, 3, (1,), generator=g)))
        ]
        logprobs = (-4.6 + torch.randn(sum(map(len, turns)), generator=g)).tolist()
        out.append(member(turns, logprobs=logprobs, advantage=float(torch.randn(1, generator=g))))
    return out


def test_round_trip_and_invariants() -> None:
    members = some_members(30)
    batch = pack(members, 64)
    assert batch.ids_BT.shape[1] <= 64
    assert batch.tokens == sum(len(m.trajectory) for m in members)
    for i, m in enumerate(members):
        here_BT = batch.document_BT == i
        assert here_BT.any(dim=1).sum() == 1, "a trajectory lies in one row"
        assert batch.ids_BT[here_BT].tolist() == m.trajectory.ids
        assert batch.mask_BT[here_BT].tolist() == m.trajectory.mask
        assert batch.behaviour_BT[here_BT].tolist() == pytest.approx(m.trajectory.logprobs)
        assert batch.position_BT[here_BT].tolist() == list(range(len(m.trajectory)))
        assert batch.advantage_BT[here_BT].tolist() == pytest.approx([m.advantage] * len(m.trajectory))
    padding_BT = batch.document_BT < 0
    assert not batch.mask_BT[padding_BT].any()
    before_BT = torch.nn.functional.pad(padding_BT, (1, 0))[:, :-1]
    assert (batch.position_BT[padding_BT & ~before_BT] == 0).all(), "padding is a document of its own"


def test_micro_batches_hold_every_token_once_and_no_needless_padding() -> None:
    batch = pack(some_members(30), 64)
    micros = list(batch.split(rows=1))
    assert len(micros) == batch.ids_BT.shape[0]
    assert sum(m.tokens for m in micros) == sum(m.ids_BT.numel() for m in micros) == batch.tokens


def test_first_fit_decreasing_fills_rows() -> None:
    lengths = (5, 7, 3, 2, 6, 4)
    batch = pack([member([[9] * (n - 1)], heard=(1,)) for n in lengths], 9)
    rows = [sorted(set(row.tolist()) - {-1}) for row in batch.document_BT]
    assert rows == [[1, 3], [2, 4], [0, 5]], "7+2, 6+3, 5+4: three full rows"


def loss_and_gradient(
    path: Path, micros: Sequence[Batch], attention: str
) -> tuple[float, dict[str, float], torch.Tensor]:
    """Sum of the micro-batches' losses and metrics, and the accumulated gradient as one vector."""
    model, grpo = load(path, attention=attention), load_algorithm("grpo")
    total = 0.0
    sums: dict[str, float] = {}
    for micro in micros:
        logprob_BT, entropy_BT = token_logprobs(model, micro.ids_BT, micro.position_BT, micro.mask_BT)
        loss, part = grpo.loss(
            logprob_BT,
            micro.behaviour_BT,
            micro.advantage_BT,
            micro.mask_BT,
            entropy_BT,
            micro.document_BT,
            denominator=100.0,
        )
        loss.backward()
        total += float(loss.detach())
        sums = {k: sums.get(k, 0.0) + float(v) for k, v in part.items()}
    return total, sums, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("attention", ["documents", "sdpa"])
def test_packing_micro_batches_and_order_change_nothing(attention: str, tmp_path: Path) -> None:
    path = small_cwm(tmp_path / "m")
    members = some_members()
    loss, sums, gradient = loss_and_gradient(path, [pack([m], 64) for m in members], "sdpa")
    assert 0 < sums["clip_low"] + sums["clip_high"] < sums["tokens"], "the clip is at work in this test"
    ways = {
        "one long row": [pack(members, 4096)],
        "short rows at once": [pack(members, 64)],
        "short rows two at a time": list(pack(members, 64).split(rows=2)),
        "one row at a time, reversed members": list(pack(members[::-1], 80).split(rows=1)),
    }
    for name, micros in ways.items():
        other_loss, other_sums, other_gradient = loss_and_gradient(path, micros, attention)
        assert other_loss == pytest.approx(loss, abs=1e-5), name
        assert other_sums == pytest.approx(sums, rel=1e-4), name
        torch.testing.assert_close(other_gradient, gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_pack_refuses_what_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="got a trajectory of 13 tokens; expected at most 12"):
        pack([member([[9] * 10])], 12)
    with pytest.raises(ValueError, match="got no members"):
        pack([], 12)
    with pytest.raises(ValueError, match="ended as sandbox_lost"):
        pack([member([[9]], outcome=Outcome.SANDBOX_LOST, score=None)], 12)
    with pytest.raises(ValueError, match="first token was sampled"):
        pack([member([[9]], heard=())], 12)
    with pytest.raises(ValueError, match="expected finite"):
        pack([member([[9]], logprobs=[float("-inf")])], 12)
    with pytest.raises(ValueError, match="expected finite"):
        pack([member([[9]], advantage=float("nan"))], 12)
