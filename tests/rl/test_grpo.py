"""GRPO by hand, and against TRL's own code where the two definitions coincide (its `dr_grpo` loss)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from envs import Outcome
from policy.model import load as load_model
from policy.model import token_logprobs
from rl.algorithms import available, load
from rl.batch import Batch, pack
from rl.trajectory import Group, Member
from tests.policy.test_model import small_cwm
from tests.rl.test_batch import member


def group(*members: Member) -> Group:
    return Group(lease=0, world="w", version=0, members=list(members))


def attempt(score: float, tokens: int) -> Member:
    return member([[9] * tokens], score=score)


def test_advantages_by_hand() -> None:
    """Two groups of three. mu = (1*2 + 0*3 + 0*5) / 10 = 0.2, and (1*1 + 1*2 - 1*1) / 4 = 0.5."""
    first = group(attempt(1, 2), attempt(0, 3), attempt(0, 5))
    second = group(attempt(1, 1), attempt(1, 2), attempt(-1, 1))
    for g in (first, second):
        load("grpo").advantages(g)
    assert [m.advantage for m in first.members] == pytest.approx([0.8, -0.2, -0.2])
    assert [m.advantage for m in second.members] == pytest.approx([0.5, 0.5, -1.5])


def test_advantages_times_lengths_sum_to_zero() -> None:
    g = group(*(attempt(score, tokens) for score, tokens in ((0.3, 17), (-1.0, 400), (0.0, 3), (1.0, 58), (0.7, 9))))
    load("grpo").advantages(g)
    assert sum(m.advantage * m.trajectory.spoken for m in g.members) == pytest.approx(0, abs=1e-9)


def test_world_tokens_have_no_part_in_the_length() -> None:
    long_prompt = member([[9, 9]], heard=[1] * 50, score=1.0)
    g = group(long_prompt, attempt(0, 2))
    load("grpo").advantages(g)
    assert [m.advantage for m in g.members] == pytest.approx([0.5, -0.5])


def test_invalid_members_neither_get_an_advantage_nor_move_the_mean() -> None:
    lost = member([[9] * 7], score=None, outcome=Outcome.SANDBOX_LOST, advantage=0.125)
    scored_though_lost = member([[9] * 7], score=5.0, outcome=Outcome.ENGINE_LOST, advantage=0.125)
    silent = member([], score=5.0, advantage=0.125)
    g = group(lost, attempt(1, 2), scored_though_lost, attempt(0, 6), silent)
    load("grpo").advantages(g)
    assert [m.advantage for m in g.members] == pytest.approx([0.125, 0.75, 0.125, -0.25, 0.125])


@pytest.mark.parametrize("scores", [(0.1, 0.1, 0.1), (0.7,), ()])
def test_a_group_that_teaches_nothing_has_exact_zeros(scores: tuple[float, ...]) -> None:
    g = group(*(attempt(score, tokens) for score, tokens in zip(scores, (3, 7, 11), strict=False)))
    load("grpo").advantages(g)
    assert all(m.advantage == 0.0 for m in g.members)


def test_loss_and_gradient_by_hand() -> None:
    """Two rows of three tokens; ratios 1, 1.5, 0.5 at A = 0.5 and (masked), 0.5, 1.5 at A = -1.

    Surrogates 0.5, 1.25 * 0.5 (clipped), 0.25 and -0.8 (clipped), -1.5: they sum to -0.925.
    """
    behaviour_BT = torch.tensor([[-1.0, -2.0, -0.5], [0.0, -3.0, -1.5]])
    ratio_BT = torch.tensor([[1.0, 1.5, 0.5], [9.0, 0.5, 1.5]])
    logprob_BT = (behaviour_BT + ratio_BT.log()).requires_grad_()
    advantage_BT = torch.tensor([[0.5] * 3, [-1.0] * 3])
    mask_BT = torch.tensor([[True, True, True], [False, True, True]])
    entropy_BT = torch.tensor([[1.0, 2.0, 3.0], [100.0, 4.0, 5.0]])
    loss, sums = load("grpo").loss(logprob_BT, behaviour_BT, advantage_BT, mask_BT, entropy_BT, denominator=10.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0925)
    expected = torch.tensor([[-0.05, 0.0, -0.025], [0.0, 0.0, 0.15]])
    torch.testing.assert_close(logprob_BT.grad, expected, atol=1e-6, rtol=0)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx(
        {
            "tokens": 5,
            "clip_low": 1,
            "clip_high": 1,
            "ratio": 5.0,
            "kl": 2 * (0.5 - 0.405465) + 2 * (-0.5 + 0.693147),
            "gap": 2 * 0.405465 + 2 * 0.693147,
            "entropy": 15.0,
        },
        abs=1e-5,
    )


def test_unknown_names_and_knobs_are_refused() -> None:
    assert "grpo" in available()
    with pytest.raises(ValueError, match=r"no algorithm 'ppo'; available: .*grpo"):
        load("ppo")
    with pytest.raises(ValueError, match=r"has no knob clip_hi; available: clip_low, clip_high"):
        load("grpo", clip_hi=0.3)
    with pytest.raises(ValueError, match=r"got clip_low 1.5"):
        load("grpo", clip_low=1.5)


def trl_inputs(batch: Batch, prompt: int) -> dict[str, Tensor]:
    """The same tokens as TRL wants them: a row a trajectory, `prompt` tokens split off, completions padded right."""
    rows = [batch.document_BT == i for i in range(int(batch.document_BT.max()) + 1)]

    def padded(values_BT: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([values_BT[row][prompt:] for row in rows], batch_first=True)

    prompt_ids = torch.stack([batch.ids_BT[row][:prompt] for row in rows])
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": padded(batch.ids_BT),
        "completion_mask": padded(torch.ones_like(batch.ids_BT)),
        "tool_mask": padded(batch.mask_BT.long()),
        "old_per_token_logps": padded(batch.behaviour_BT),
        "advantages": torch.stack([batch.advantage_BT[row][0] for row in rows]),
    }


def test_loss_and_gradient_agree_with_trl(tmp_path: Path) -> None:
    """TRL 1.16 `dr_grpo` divides by rows * max_completion_length, which is our denominator; `tool_mask` is our mask."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    path = small_cwm(tmp_path / "m")
    generator = torch.Generator().manual_seed(3)
    members = []
    for tokens, score in ((4, 1.0), (9, 0.0), (13, -1.0), (2, 1.0)):
        turns = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in (tokens, 3)]
        logprobs = (-4.5 + torch.randn(tokens + 3, generator=generator)).tolist()
        members.append(member(turns, heard=(1, 5, 6), score=score, logprobs=logprobs))
    grpo = load("grpo")
    grpo.advantages(group(*members))
    batch = pack(members, 40)

    ours = load_model(path)
    logprob_BT, entropy_BT = token_logprobs(ours, batch.ids_BT, batch.position_BT, batch.mask_BT)
    loss, sums = grpo.loss(
        logprob_BT, batch.behaviour_BT, batch.advantage_BT, batch.mask_BT, entropy_BT, denominator=4 * 32.0
    )
    loss.backward()
    assert sums["clip_low"] > 0 and sums["clip_high"] > 0

    trainer = GRPOTrainer(
        model=load_model(path, attention="sdpa"),
        reward_funcs=lambda **_: [0.0],
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            loss_type="dr_grpo",
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.25,
            max_completion_length=32,
            per_device_train_batch_size=4,
            num_generations=4,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"a": 0, "<e>": 1}, unk_token="a")), eos_token="<e>", pad_token="<e>"
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer.model.train()
    their_loss = trainer.compute_loss(theirs, trl_inputs(batch, prompt=3))
    their_loss.backward()

    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    metrics = trainer._metrics["train"]
    assert float(sums["clip_low"] / sums["tokens"]) == pytest.approx(metrics["clip_ratio/low_mean"][0])
    assert float(sums["clip_high"] / sums["tokens"]) == pytest.approx(metrics["clip_ratio/high_mean"][0])
    assert float(sums["entropy"] / sums["tokens"]) == pytest.approx(metrics["entropy"][0], abs=1e-5)
    assert max(float(p.grad.abs().max()) for p in theirs.parameters()) > 1e-3
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=0, msg=name)
