"""The siblings of GRPO by hand, and what must hold for every algorithm: also for one that is added tomorrow."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from envs import Outcome
from rl.algorithms import Algorithm, available, denominator, load
from rl.batch import Batch, pack
from rl.surrogate import CORRECTIONS
from rl.trajectory import Group, Member, Trajectory
from tests.rl.test_batch import member

TOKEN_LEVEL = ("cispo", "dapo", "dr_grpo", "grpo", "turns")
CORRECTED: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"correction": name, "correction_cap": 1.05}) for name in CORRECTIONS[1:]
]
EVERY: list[tuple[str, dict[str, Any]]] = (
    [(name, {}) for name in available()] + CORRECTED + [("gspo", {"clip_low": 0.1, "clip_high": 0.1})]
)
every = pytest.mark.parametrize(
    ("name", "knobs"), EVERY, ids=[f"{n} {' '.join(map(str, k.values()))}" for n, k in EVERY]
)


def attempts(*scored: tuple[float, int]) -> Group:
    members = [member([[9] * tokens], score=score) for score, tokens in scored]
    return Group(lease=0, world="w", version=0, members=members)


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "grpo": [0.8, -0.2, -0.2],
        "dr_grpo": [0.666667, -0.333333, -0.333333],
        "turns": [0.666667, -0.333333, -0.333333],
        "rloo": [1.0, -0.5, -0.5],
        "dapo": [1.154501, -0.577250, -0.577250],
        "gspo": [1.154501, -0.577250, -0.577250],
        "cispo": [1.154501, -0.577250, -0.577250],
    }.items(),
)
def test_advantages_by_hand(name: str, expected: list[float]) -> None:
    """Scores 1, 0, 0 at 2, 3, 5 tokens. Mean 1/3, over tokens 0.2; the deviation is sqrt(1/3) = 0.577350, plus 1e-4."""
    group = attempts((1, 2), (0, 3), (0, 5))
    load(name).advantages(group)
    assert [m.advantage for m in group.members] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "knobs", "divisor", "loss", "gradient", "counts"),
    [
        # Terms 0.5, 0.6 (clipped at 1.2), 0.25 and -0.8 (clipped at 0.8), -1.5.
        ("dr_grpo", {}, 10, 0.095, [-0.05, 0, -0.025, 0, 0.15], (1, 1, 0)),
        # The second is clipped at 1.28: 0.64.
        ("dapo", {}, 5, 0.182, [-0.1, 0, -0.05, 0, 0.3], (1, 1, 0)),
        # Weights 1, 1.25 (cut), 0.5 and 0.5, 1.25 (cut), times A, times logprobs
        # -1, -1.594535, -1.193147 and -3.693147, -1.094535: -0.5 - 0.996584 - 0.298287 + 1.846574 + 1.368169.
        ("cispo", {"ratio_max": 1.25}, 5, -0.283974, [-0.1, -0.125, -0.05, 0.1, 0.25], (0, 0, 2)),
        # Geometric means 0.75^(1/3) = 0.908560, not clipped as A > 0, and 0.75^(1/2), clipped at 0.9997 as A < 0.
        ("gspo", {}, 2, 0.272710, [-0.075713, -0.075713, -0.075713, 0, 0], (2, 0, 0)),
        # Products 0.75: 0.375, not clipped as A > 0, and -0.8, clipped.
        ("rloo", {}, 2, 0.2125, [-0.1875, -0.1875, -0.1875, 0, 0], (2, 0, 0)),
        # Weights 1, 1.25, 0.5 and 0.5, 1.25, times A: 0.5 + 0.625 + 0.25 - 0.5 - 1.25 = -0.375.
        ("grpo", ("token_truncate", 1.25), 10, 0.0375, [-0.05, -0.0625, -0.025, 0.05, 0.125], (0, 0, 2)),
        ("grpo", ("token_mask", 1.25), 10, -0.025, [-0.05, 0, -0.025, 0.05, 0], (0, 0, 2)),
        # Products 0.75, within the cap and above it.
        ("grpo", ("sequence_truncate", 2.0), 10, 0.0375, [-0.0375, -0.0375, -0.0375, 0.075, 0.075], (0, 0, 0)),
        ("grpo", ("sequence_truncate", 0.7), 10, 0.035, [-0.035, -0.035, -0.035, 0.07, 0.07], (0, 0, 5)),
        ("grpo", ("sequence_mask", 0.7), 10, 0.0, [0, 0, 0, 0, 0], (0, 0, 5)),
        # 0.908560 is above the cap, 0.866025 is not.
        ("grpo", ("geometric_truncate", 0.9), 10, 0.038205, [-0.045, -0.045, -0.045, 0.0866025, 0.0866025], (0, 0, 3)),
        ("grpo", ("geometric_mask", 0.9), 10, 0.173205, [0, 0, 0, 0.0866025, 0.0866025], (0, 0, 3)),
        ("rloo", ("token_truncate", 1.25), 2, 0.1875, [-0.25, -0.3125, -0.125, 0.25, 0.625], (0, 0, 2)),
        ("dapo", ("token_truncate", 1.25), 5, 0.075, [-0.1, -0.125, -0.05, 0.1, 0.25], (0, 0, 2)),
        ("dr_grpo", ("token_mask", 1.25), 10, -0.025, [-0.05, 0, -0.025, 0.05, 0], (0, 0, 2)),
        # As dr_grpo, with clip_high at 0.25: the second is clipped at 0.625.
        ("turns", {}, 10, 0.0925, [-0.05, 0, -0.025, 0, 0.15], (1, 1, 0)),
        ("turns", ("token_mask", 1.25), 10, -0.025, [-0.05, 0, -0.025, 0.05, 0], (0, 0, 2)),
    ],
)
def test_loss_gradient_and_counts_by_hand(
    name: str,
    knobs: dict[str, float] | tuple[str, float],
    divisor: float,
    loss: float,
    gradient: list[float],
    counts: tuple[int, int, int],
) -> None:
    """Two documents: ratios 1, 1.5, 0.5 at A = 0.5; 9 (not sampled), 0.5, 1.5 at A = -1."""
    args = knobs if isinstance(knobs, dict) else {"correction": knobs[0], "correction_cap": knobs[1]}
    behaviour_BT = torch.tensor([[-1.0, -2.0, -0.5], [0.0, -3.0, -1.5]])
    ratio_BT = torch.tensor([[1.0, 1.5, 0.5], [9.0, 0.5, 1.5]])
    logprob_BT = (behaviour_BT + ratio_BT.log()).requires_grad_()
    mask_BT = torch.tensor([[True, True, True], [False, True, True]])
    got, sums = load(name, **args).loss(
        logprob_BT,
        behaviour_BT,
        torch.tensor([[0.5] * 3, [-1.0] * 3]),
        mask_BT,
        torch.ones(2, 3),
        torch.tensor([[4, 4, 4], [2, 2, 2]]),
        denominator=divisor,
    )
    got.backward()
    assert got.item() == pytest.approx(loss, abs=2e-6)
    assert logprob_BT.grad is not None
    torch.testing.assert_close(logprob_BT.grad[mask_BT], torch.tensor(gradient, dtype=torch.float32), atol=1e-6, rtol=0)
    assert tuple(int(sums[key]) for key in ("clip_low", "clip_high", "truncated")) == counts


def test_the_knobs_start_where_their_papers_do() -> None:
    got = {name: asdict(load(name).config) for name in available()}  # type: ignore[attr-defined]
    off = {"correction": "none", "correction_cap": 2.0}
    assert got == {
        "grpo": {"clip_low": 0.2, "clip_high": 0.25, **off},
        "dr_grpo": {"clip_low": 0.2, "clip_high": 0.2, **off},
        "turns": {"gamma": 1.0, "baseline": "turn", "clip_low": 0.2, "clip_high": 0.25, **off},
        "dapo": {"clip_low": 0.2, "clip_high": 0.28, **off},
        "rloo": {"clip_low": 0.2, "clip_high": 0.2, **off},
        "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
        "cispo": {"ratio_max": 5.0},
    }


def test_what_a_loss_is_divided_by() -> None:
    members = attempts((1, 2), (0, 3), (0, 5)).members
    got = {name: denominator(load(name), members, 64.0) for name in available()}
    assert got == {"grpo": 64, "dr_grpo": 64, "turns": 64, "dapo": 10, "cispo": 10, "gspo": 3, "rloo": 3}


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("grpo", {"correction": "token"}, "no correction 'token'; available: none, token_truncate, .*geometric_mask"),
        ("dapo", {"correction_cap": 3.0}, "correction_cap would have no effect where correction is 'none'"),
        (
            "rloo",
            {"correction": "token_mask", "clip_low": 0.1, "clip_high": 0.1},
            "clip_low and clip_high would have no effect where correction is 'token_mask'",
        ),
        ("grpo", {"correction": "token_mask", "correction_cap": 0.0}, "got correction_cap 0.0; expected a positive"),
        ("gspo", {"clip_high": 0.0}, "got clip_high 0.0; expected a positive"),
        ("cispo", {"ratio_max": -1.0}, "got ratio_max -1.0; expected a positive"),
    ],
)
def test_knobs_that_are_wrong_or_would_do_nothing_are_refused(name: str, knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(name, **knobs)


def test_a_product_beyond_all_measure_stays_finite() -> None:
    """3,000 tokens, each e times as likely as when it was sampled: the product is no float32."""
    logprob_BT = torch.full((1, 3000), -1.0, requires_grad=True)
    ones_BT = torch.ones(1, 3000)
    for name, knobs in (("rloo", {}), ("grpo", {"correction": "sequence_truncate"})):
        loss, _ = load(name, **knobs).loss(
            logprob_BT, -2 * ones_BT, -ones_BT, ones_BT.bool(), ones_BT, ones_BT.long(), denominator=1.0
        )
        loss.backward()
        assert logprob_BT.grad is not None and logprob_BT.grad.isfinite().all() and loss.isfinite()


# -- advantages, for every algorithm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", available())
def test_advantages_of_a_group_sum_to_zero(name: str, seed: int) -> None:
    """Over tokens with grpo's length-weighted mean; over members with the others, whose sum over tokens is not zero."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, generator=g).tolist()
    lengths = torch.randint(1, 400, (8,), generator=g).tolist()
    group = attempts(*zip(scores, lengths, strict=True))
    load(name).advantages(group)
    over_members = sum(m.advantage for m in group.members)
    over_tokens = sum(m.advantage * m.trajectory.spoken for m in group.members)
    zero, other = (over_tokens, over_members) if name == "grpo" else (over_members, over_tokens)
    assert zero == pytest.approx(0, abs=1e-9)
    assert abs(other) > 1e-3


@pytest.mark.parametrize("name", available())
def test_invalid_members_are_neither_read_nor_written(name: str) -> None:
    lost = member([[9] * 7], score=None, outcome=Outcome.SANDBOX_LOST, advantage=0.125)
    scored_though_lost = member([[9] * 7], score=5.0, outcome=Outcome.ENGINE_LOST, advantage=0.125)
    silent = member([], score=5.0, advantage=0.125)
    with_them, without = (attempts((1, 2), (0, 6), (0.5, 3)) for _ in range(2))
    with_them.members[1:1] = [lost, scored_though_lost, silent]
    for group in (with_them, without):
        load(name).advantages(group)
    assert [m.advantage for m in with_them.valid] == [m.advantage for m in without.members]
    assert {m.advantage for m in (lost, scored_though_lost, silent)} == {0.125}


@pytest.mark.parametrize("scores", [(0.1, 0.1, 0.1), (0.7,), (), (0.0, 0.1 + 0.6 - 0.7, 0.0)])
@pytest.mark.parametrize("name", available())
def test_a_group_that_teaches_nothing_has_exact_zeros(name: str, scores: tuple[float, ...]) -> None:
    group = attempts(*zip(scores, (3, 7, 11), strict=False))
    load(name).advantages(group)
    assert all(m.advantage == 0.0 for m in group.members)


# -- loss and gradient, for every algorithm ---------------------------------------------------------------------------


def some_members(seed: int, count: int = 12) -> list[Member]:
    """Two to three turns each; behaviour and advantages at random."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        turns = [
            [9] * int(n) for n in torch.randint(1, 15, (int(torch.randint(2, 4, (1,), generator=g)),), generator=g)
        ]
        logprobs = (-1.5 - torch.rand(sum(map(len, turns)), generator=g)).tolist()
        out.append(member(turns, logprobs=logprobs, advantage=float(torch.randn(1, generator=g))))
    return out


def policy_now(members: Sequence[Member], spread: float, seed: int = 0) -> list[Tensor]:
    """By member, log-probabilities of all its tokens under the policy now: `spread` away from those at sampling."""
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.tensor(m.trajectory.logprobs) + spread * torch.randn(len(m.trajectory), generator=g)).requires_grad_()
        for m in members
    ]


def accumulated(
    algorithm: Algorithm, now: Sequence[Tensor], micros: Sequence[Batch], divisor: float
) -> tuple[float, dict[str, float], Tensor]:
    """Losses and metrics of the micro-batches, summed, and the gradient at every token of every member."""
    for tensor in now:
        tensor.grad = None
    loss, sums = 0.0, dict[str, float]()
    for micro in micros:
        logprob_BT = torch.zeros(micro.ids_BT.shape, requires_grad=True)
        for document in set(micro.document_BT.flatten().tolist()) - {-1}:
            logprob_BT = logprob_BT.masked_scatter(micro.document_BT == document, now[document])
        part, counts = algorithm.loss(
            logprob_BT,
            micro.behaviour_BT,
            micro.advantage_BT,
            micro.mask_BT,
            torch.ones_like(micro.behaviour_BT),
            micro.document_BT,
            denominator=divisor,
        )
        part.backward()
        loss += part.item()
        sums = {key: sums.get(key, 0.0) + float(value) for key, value in counts.items()}
    return loss, sums, torch.cat([tensor.grad if tensor.grad is not None else 0 * tensor.detach() for tensor in now])


@pytest.mark.parametrize("seed", range(3))
@every
def test_packing_micro_batches_and_ranks_change_nothing(name: str, knobs: dict[str, Any], seed: int) -> None:
    algorithm, members = load(name, **knobs), some_members(seed)
    now, divisor = policy_now(members, 0.3), denominator(load(name), members, 100.0)
    whole = pack(members, 4096)
    assert whole.ids_BT.shape[0] == 1
    loss, sums, gradient = accumulated(algorithm, now, [whole], divisor)
    assert sums["clip_low"] + sums["clip_high"] + sums["truncated"] > 0 or name == "cispo", "the bounds are at work"
    rows = list(pack(members, 64).split(rows=1))
    empty = replace(
        rows[0], mask_BT=torch.zeros_like(rows[0].mask_BT), document_BT=torch.full_like(rows[0].document_BT, -1)
    )
    alone = [replace(pack([m], 64), document_BT=torch.full((1, len(m.trajectory)), i)) for i, m in enumerate(members)]
    ways = {
        "one row at a time": [rows],
        "two rows at a time": [list(pack(members, 64).split(rows=2))],
        "a member a row": [alone],
        "four ranks, one of them with an empty row": [rows[0::3], rows[1::3], rows[2::3], [empty]],
    }
    for way, ranks in ways.items():
        parts = [accumulated(algorithm, now, micros, divisor) for micros in ranks]
        assert sum(part[0] for part in parts) == pytest.approx(loss, abs=1e-5), way
        assert {key: sum(part[1][key] for part in parts) for key in sums} == pytest.approx(sums, rel=1e-5), way
        torch.testing.assert_close(sum(part[2] for part in parts), gradient, atol=1e-6, rtol=1e-5, msg=way)


@every
def test_the_order_of_members_changes_nothing(name: str, knobs: dict[str, Any]) -> None:
    algorithm, members = load(name, **knobs), some_members(7)
    now, divisor = policy_now(members, 0.3), denominator(load(name), members, 100.0)
    loss, sums, gradient = accumulated(algorithm, now, [pack(members, 64)], divisor)
    other_loss, other_sums, _ = accumulated(algorithm, now[::-1], [pack(members[::-1], 80)], divisor)
    other_gradient = torch.cat([tensor.grad for tensor in now if tensor.grad is not None])
    assert other_loss == pytest.approx(loss, abs=1e-5)
    assert other_sums == pytest.approx(sums, rel=1e-5)
    torch.testing.assert_close(other_gradient, gradient, atol=1e-6, rtol=1e-5)


@every
def test_where_the_policy_did_not_move_the_gradient_is_plain(name: str, knobs: dict[str, Any]) -> None:
    """Ratio exactly 1, nothing held back; each token's gradient is -A of its member, over tokens or over members."""
    algorithm, members = load(name, **knobs), some_members(1)
    divisor = denominator(algorithm, members, 100.0)
    _, sums, gradient = accumulated(algorithm, policy_now(members, 0.0), [pack(members, 64)], divisor)
    assert sums["ratio"] == sums["tokens"] == sum(m.trajectory.spoken for m in members)
    assert sums["clip_low"] == sums["clip_high"] == sums["truncated"] == sums["kl"] == sums["gap"] == 0
    share = {id(m): 1 / m.trajectory.spoken if name == "gspo" else 1.0 for m in members}
    expected = [-m.advantage * spoken * share[id(m)] / divisor for m in members for spoken in m.trajectory.mask]
    torch.testing.assert_close(gradient, torch.tensor(expected), atol=1e-7, rtol=1e-5)


@every
def test_what_the_world_said_gets_exactly_no_gradient_whatever_stands_there(name: str, knobs: dict[str, Any]) -> None:
    algorithm, members = load(name, **knobs), some_members(2)
    divisor = denominator(algorithm, members, 100.0)
    sampled = torch.tensor([spoken for m in members for spoken in m.trajectory.mask])
    loss, sums, gradient = accumulated(algorithm, policy_now(members, 0.3), [pack(members, 64)], divisor)
    wild = policy_now(members, 0.3)
    for tensor, m in zip(wild, members, strict=True):
        tensor.data[~torch.tensor(m.trajectory.mask)] = float("nan")
    wild_loss, wild_sums, wild_gradient = accumulated(algorithm, wild, [pack(members, 64)], divisor)
    assert (gradient[~sampled] == 0).all() and (gradient[sampled] != 0).any()
    assert (wild_loss, wild_sums) == (loss, sums)
    assert torch.equal(wild_gradient, gradient)


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("grpo", {}, [1.221403, 1.221403, 1.0, 1.0, 0.904837, 0.904837]),
        ("dr_grpo", {}, [1.221403, 1.221403, 1.0, 1.0, 0.904837, 0.904837]),
        ("dapo", {}, [1.221403, 1.221403, 1.0, 1.0, 0.904837, 0.904837]),
        ("cispo", {"ratio_max": 1.1}, [1.1, 1.1, 1.0, 1.0, 0.904837, 0.904837]),
        ("grpo", {"correction": "token_truncate", "correction_cap": 1.1}, [1.1, 1.1, 1, 1, 0.904837, 0.904837]),
        ("grpo", {"correction": "token_mask", "correction_cap": 1.1}, [0, 0, 1, 1, 0.904837, 0.904837]),
        ("rloo", {}, [1.221403] * 6),
        ("grpo", {"correction": "sequence_truncate"}, [1.221403] * 6),
        ("gspo", {}, [1.033895 / 6] * 6),
        ("grpo", {"correction": "geometric_truncate"}, [1.033895] * 6),
    ],
)
def test_a_trajectory_written_by_three_versions(name: str, knobs: dict[str, Any], expected: list[float]) -> None:
    """Now all six tokens have ln p = -1; three versions sampled two each, at -1.2, -1.0, -0.9. A = -1, divided by 1.

    Log-ratios 0.2, 0, -0.1: e^0.2 = 1.221403, e^-0.1 = 0.904837; the product is e^0.2, its sixth root e^(0.2/6) =
    1.033895.
    """
    trajectory = Trajectory()
    trajectory.hear([1])
    trajectory.speak([9, 9], [-1.2, -1.2], [3, 3])
    trajectory.speak([9, 9], [-1.0, -1.0], [4, 4])
    trajectory.hear([5])
    trajectory.speak([9, 9], [-0.9, -0.9], [5, 5])
    m = Member(trajectory, member([[9]]).episode, member([[9]]).score, advantage=-1.0)
    _, _, gradient = accumulated(load(name, **knobs), [torch.full((8,), -1.0, requires_grad=True)], [pack([m], 8)], 1.0)
    torch.testing.assert_close(
        gradient[torch.tensor(trajectory.mask)], torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", TOKEN_LEVEL)
def test_three_versions_in_one_trajectory_are_as_three_trajectories(name: str) -> None:
    """At the level of tokens: each is held against the log-probability of the version that sampled it."""
    g = torch.Generator().manual_seed(5)
    parts = [member([[9] * n], logprobs=(-1 - torch.rand(n, generator=g)).tolist(), advantage=0.7) for n in (4, 6, 3)]
    joined = Trajectory()
    for version, part in enumerate(parts):
        said = part.trajectory
        joined.hear(said.ids[:3])
        joined.speak(said.ids[3:], said.logprobs[3:], [version] * said.spoken)
    whole = Member(joined, parts[0].episode, parts[0].score, advantage=0.7)
    now = policy_now(parts, 0.3)
    one = [torch.cat(list(now)).detach().requires_grad_()]
    apart = accumulated(load(name), now, [pack(parts, 64)], 10.0)
    together = accumulated(load(name), one, [pack([whole], 64)], 10.0)
    assert together[0] == pytest.approx(apart[0], abs=1e-6)
    assert together[1] == pytest.approx(apart[1])
    torch.testing.assert_close(together[2], apart[2])
