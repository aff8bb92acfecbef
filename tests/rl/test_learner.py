"""The learner as a whole: on-policy ratios, learning, checkpoints, and what must not move."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from benchmarks.learner import count
from rl.algorithms import load as load_algorithm
from rl.batch import pack
from rl.cluster import Cluster
from rl.config import LearnerConfig, RunConfig
from rl.learner import TRAINER_STATE, Learner, Settings
from rl.ranks import Ranks
from rl.trajectory import Group, Member
from tests.policy.test_model import small_cwm
from tests.rl.test_batch import member, some_members

GOOD, BAD = [10, 11, 12], [20, 21]
PROMPT = [1, 5, 6]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = small_cwm(tmp_path / "m")
    return Settings(model=str(path), lr=3e-3, loss_denominator=64.0, row_tokens=64, device="cpu", threads=1)


def on_policy(learner: Learner, answer: list[int], score: float) -> Member:
    """An attempt with the log-probabilities that the learner's own weights give it."""
    logprobs = learner.logprobs(PROMPT + answer)[len(PROMPT) :]
    return member([answer], heard=PROMPT, logprobs=logprobs, score=score)


def pair(learner: Learner) -> list[Member]:
    """One right and one wrong attempt at the same task, advantages set."""
    members = [on_policy(learner, GOOD, 1.0), on_policy(learner, BAD, 0.0)]
    load_algorithm("grpo").advantages(Group(lease=0, world="w", version=learner.version, members=members))
    return members


def test_first_step_on_policy_has_ratio_one_and_clips_nothing(settings: Settings) -> None:
    learner = Learner(settings)
    metrics = learner.step(pair(learner))
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_low"] == metrics["clip_high"] == 0
    assert metrics["gap"] < 1e-5 and abs(metrics["kl"]) < 1e-6
    assert metrics["loss"] == pytest.approx(0, abs=1e-6), "sum of A * L over a group is zero"
    assert metrics["grad_norm"] > 1e-3
    assert (metrics["version"], metrics["sampled_tokens"], metrics["tokens"], metrics["members"]) == (1, 5, 11, 2)
    assert (metrics["lag_max"], learner.version) == (0, 1)


def test_a_few_steps_raise_the_rewarded_answer(settings: Settings) -> None:
    learner = Learner(settings)
    before = [sum(learner.logprobs(PROMPT + answer)[3:]) for answer in (GOOD, BAD)]
    for _ in range(5):
        learner.step(pair(learner))
    after = [sum(learner.logprobs(PROMPT + answer)[3:]) for answer in (GOOD, BAD)]
    assert after[0] > before[0] + 1 and after[1] < before[1]
    assert learner.version == 5


def test_restore_reproduces_the_next_step_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    members = [some_members(seed=seed) for seed in range(3)]
    settings = replace(settings, warmup_steps=4)
    straight = Learner(settings)
    straight.step(members[0])
    straight.step(members[1])
    straight.save(tmp_path / "run" / "step_2")
    expected = straight.step(members[2])

    resumed = Learner(replace(settings, seed=99))
    resumed.restore(tmp_path / "run" / "step_2")
    assert resumed.version == 2
    got = resumed.step(members[2])
    timed = {"seconds", "tokens_per_s"}
    assert {k: v for k, v in got.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    for (name, a), b in zip(straight.state().items(), resumed.state().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_is_a_whole_model_and_never_half_written(settings: Settings, tmp_path: Path) -> None:
    (Path(settings.model) / "tokenizer.json").write_text("{}")
    learner = Learner(settings)
    learner.step(some_members())
    learner.save(tmp_path / "run" / "step_1")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["step_1"]
    assert {"config.json", "model.safetensors", "tokenizer.json", TRAINER_STATE} <= {
        p.name for p in (tmp_path / "run" / "step_1").iterdir()
    }
    again = Learner(replace(settings, model=str(tmp_path / "run" / "step_1")))
    assert again.logprobs([1, 2, 3, 4]) == learner.logprobs([1, 2, 3, 4])
    with pytest.raises(ValueError, match="there is already something at"):
        learner.save(tmp_path / "run" / "step_1")
    with pytest.raises(ValueError, match=r"is no checkpoint: expected trainer.pt"):
        learner.restore(settings.model)


def test_rate_zero_leaves_the_weights(settings: Settings) -> None:
    learner = Learner(replace(settings, lr=0.0, weight_decay=0.1))
    before = learner.state()
    learner.step(some_members())
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state().items())
    assert learner.version == 1


def test_weight_decay_shrinks_matrices_only(settings: Settings) -> None:
    plain, decayed = Learner(settings), Learner(replace(settings, weight_decay=0.5))
    for learner in (plain, decayed):
        learner.step(some_members())
    for (name, a), b in zip(plain.state().items(), decayed.state().values(), strict=True):
        assert torch.equal(a, b) == (a.dim() < 2), name


def test_warm_up_is_linear_and_state_is_a_copy(settings: Settings) -> None:
    learner = Learner(replace(settings, warmup_steps=3))
    before = learner.state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    rates = [learner.step(some_members())["lr"] for _ in range(4)]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])
    assert all(torch.equal(before[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(learner.state()["lm_head.weight"], before["lm_head.weight"])


def test_world_tokens_get_no_gradient(settings: Settings) -> None:
    """What the world says last conditions nothing that was sampled: the step must be as if it were not there."""
    plain, chatty = Learner(settings), Learner(settings)
    expected = plain.step(pair(plain))
    members = pair(chatty)
    for m in members:
        m.trajectory.hear([70, 71, 72])
    got = chatty.step(members)
    assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert got["sampled_tokens"] == expected["sampled_tokens"] == 5
    start = Learner(settings).state()["model.embed_tokens.weight"]
    end = chatty.state()["model.embed_tokens.weight"]
    assert torch.equal(start[70:73], end[70:73])
    assert not torch.equal(start[5], end[5]), "the prompt conditions the answer"


def test_several_rows_are_one_step(settings: Settings) -> None:
    """Gradient accumulation over short rows and one long row give the same norm and metrics."""
    short = Learner(settings).step(some_members())
    long = Learner(replace(settings, row_tokens=4096)).step(some_members())
    for name in ("loss", "grad_norm", "entropy", "ratio", "tokens", "sampled_tokens"):
        assert short[name] == pytest.approx(long[name], rel=1e-4, abs=1e-6), name


def test_a_gradient_that_is_not_finite_changes_nothing(settings: Settings) -> None:
    learner = Learner(settings)
    before = learner.state()
    broken = pair(learner)
    broken[1].trajectory.logprobs[-1] = -1e4
    with pytest.raises(FloatingPointError, match="expected a finite one"):
        learner.step(broken)
    assert learner.version == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state().items())
    assert learner.step(pair(learner))["ratio"] == pytest.approx(1, abs=1e-5), "no trace of the broken gradient"


def test_recomputed_activations_change_nothing(settings: Settings) -> None:
    kept, again = Learner(settings), Learner(replace(settings, recompute=True))
    for learner in (kept, again):
        learner.step(some_members())
    assert all(torch.equal(a, b) for a, b in zip(kept.state().values(), again.state().values(), strict=True))


def steps_of(settings: Settings) -> list[list[Member]]:
    """Three batches: of an odd number of rows, of one row, which leaves the second of two ranks nothing, and even."""
    batches = [some_members(seed=0), some_members(seed=1)[:1], some_members(seed=2)]
    assert [pack(batch, settings.row_tokens).ids_BT.shape[0] for batch in batches] == [5, 1, 4]
    return batches


def one_of_two(rank: int, address: str, settings: Settings, folder: Path) -> None:
    """What each of two processes does: three steps, a checkpoint; then on from the checkpoint of one."""
    learner = Learner(settings, Ranks(rank, 2, address))
    rows = [learner.step(batch) for batch in steps_of(settings)]
    learner.save(folder / "two")
    logprobs = learner.logprobs([1, 2, 3, 4])
    learner.restore(folder / "one")
    rows.append(learner.step(some_members(seed=4)))
    state = learner.state()
    held = sum(p.to_local().numel() for p in learner.model.parameters())
    torch.save({"rows": rows, "logprobs": logprobs, "state": state, "held": held}, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one_learner(settings: Settings, tmp_path: Path) -> None:
    """Same parameters, metrics and checkpoints as of one process, also where a rank has no rows."""
    settings = replace(settings, warmup_steps=2, recompute=True)
    alone = Learner(settings)
    rows = [alone.step(batch) for batch in steps_of(settings)]
    alone.save(tmp_path / "one")
    logprobs = alone.logprobs([1, 2, 3, 4])
    after_three = alone.state()
    rows.append(alone.step(some_members(seed=4)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    torch.multiprocessing.spawn(one_of_two, args=(address, settings, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))

    timed = {"seconds", "tokens_per_s"}
    for got, expected in zip(first["rows"], rows, strict=True):
        assert got.keys() == expected.keys()
        for name in expected.keys() - timed:
            assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert [row["loss"] for row in second["rows"]] == [row["loss"] for row in first["rows"]]
    assert first["logprobs"] == second["logprobs"] == pytest.approx(logprobs, abs=1e-4)
    assert not second["state"] and first["held"] < 0.6 * sum(t.numel() for t in after_three.values())

    one = Learner(settings)
    one.restore(tmp_path / "two")
    assert one.version == 3
    for name, tensor in one.state().items():
        torch.testing.assert_close(tensor, after_three[name], rtol=1e-5, atol=1e-6, msg=name)
    one.step(some_members(seed=4))
    for name, tensor in alone.state().items():
        torch.testing.assert_close(one.state()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(first["state"][name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_cluster_starts_as_many_ranks_as_configured(settings: Settings, tmp_path: Path) -> None:
    """Two learner processes of Ray's step, publish and save as one; without engines or rollout workers."""
    config = RunConfig()
    config.engine.count = config.rollout.workers = 0
    config.learner = LearnerConfig(ranks=2, row_tokens=64, batch_tokens=64, lr=3e-3)
    members = some_members(seed=0)
    group = Group(lease=0, world="w", version=0, members=members)

    async def drive() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        cluster = Cluster(config, "two-ranks")
        try:
            await cluster.start(settings.model, tmp_path, learn=True)
            metrics = await cluster.step([group])
            first, second = [learner.weights.remote() for learner in cluster.learners]
            weights, nothing = await first, await second
            assert nothing is None
            told = [await canary for canary in [learner.canary.remote() for learner in cluster.learners]]
            assert told[0].logprobs == told[1].logprobs
            await cluster.save(tmp_path / "step_1")
            return metrics, safetensors.torch.load(weights.check())
        finally:
            await cluster.close()

    metrics, published = asyncio.run(asyncio.wait_for(drive(), 240))
    alone = Learner(settings)
    assert metrics["grad_norm"] == pytest.approx(alone.step(members)["grad_norm"], rel=1e-4)
    again = Learner(settings)
    again.restore(tmp_path / "step_1")
    for name, tensor in alone.state().items():
        torch.testing.assert_close(published[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(again.state()[name], published[name])


def test_memory_of_a_rank_is_its_share_of_the_weights() -> None:
    """CWM's own 32.58 billion parameters over 64 ranks, counted without memory or a network."""
    found = count(64)
    assert found["parameters"] == pytest.approx(32.58e9, rel=1e-3)
    assert found["of_one_rank"] == pytest.approx(found["parameters"] / 64, rel=1e-2)
    assert not dist.is_initialized()


def test_bfloat16_is_near_float32_and_one_rank_starts_no_process_group(settings: Settings) -> None:
    high = Learner(settings)
    expected = high.step(some_members())
    AcceleratorState._reset_state(True)  # one process has one precision
    try:
        low = Learner(replace(settings, dtype="bfloat16"))
        got = low.step(some_members())
    finally:
        AcceleratorState._reset_state(True)
    assert got["grad_norm"] != expected["grad_norm"]
    assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in low.state().values())
    assert not dist.is_initialized()


def test_ranks_deal_rows_in_turn_and_say_what_is_wrong() -> None:
    shares = [Ranks(rank, 3, "127.0.0.1:1").deal("abcde") for rank in range(3)]
    assert shares == [["a", "d"], ["b", "e"], ["c", None]]
    assert Ranks().deal("ab") == ["a", "b"]
    with pytest.raises(ValueError, match="got rank 2 of 2; expected 0 to 1"):
        Ranks(2, 2, "127.0.0.1:1")
    with pytest.raises(ValueError, match="got 2 ranks and no address"):
        Ranks(0, 2)


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="got loss_denominator 0; expected a positive number"):
        Settings(model="m", lr=1e-3, loss_denominator=0)
    with pytest.raises(ValueError, match="got lr -1; expected zero or more"):
        Settings(model="m", lr=-1, loss_denominator=1)
