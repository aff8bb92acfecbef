"""Every algorithm against TRL's own code: the same loss, the same gradient of every parameter, to 1e-5."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.model import load as load_model
from policy.model import token_logprobs
from rl.algorithms import denominator, load
from rl.batch import Batch, pack
from rl.trajectory import Group
from tests.policy.test_model import small_cwm
from tests.rl.test_batch import member

LONGEST = 32
"""TRL's `max_completion_length`. Its `dr_grpo` divides by rows times this, a constant of the run."""
PROMPT = 3


@dataclass
class Oracle:
    """TRL's two trainers over one small model; losses are asked of them without training."""

    path: Path
    grpo: Any
    rloo: Any


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    folder = tmp_path_factory.mktemp("trl")
    path = small_cwm(folder / "m")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "<e>": 1}, unk_token="a")), eos_token="<e>", pad_token="<e>"
    )
    settings = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "beta": 0.0,
        "max_completion_length": LONGEST,
        "per_device_train_batch_size": 6,
        "num_generations": 6,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
    }
    grpo, rloo = (
        trainer(
            model=load_model(path, attention="sdpa"),
            reward_funcs=lambda **_: [0.0],
            args=config(**settings),
            train_dataset=Dataset.from_dict({"prompt": ["a"] * 6}),
            processing_class=tokenizer,
        )
        for trainer, config in ((GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig))
    )
    grpo.current_gradient_accumulation_steps = rloo.current_gradient_accumulation_steps = 1
    return Oracle(path, grpo, rloo)


def by_document(batch: Batch, values_BT: Tensor) -> Tensor:
    """A row a trajectory, as TRL wants them: the prompt split off, completions padded on the right."""
    rows = [values_BT[batch.document_BT == i][PROMPT:] for i in range(int(batch.document_BT.max()) + 1)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def trl_inputs(batch: Batch) -> dict[str, Tensor]:
    rows = [batch.document_BT == i for i in range(int(batch.document_BT.max()) + 1)]
    prompt_ids = torch.stack([batch.ids_BT[row][:PROMPT] for row in rows])
    mask = by_document(batch, batch.mask_BT.long())
    behaviour = by_document(batch, batch.behaviour_BT)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": by_document(batch, batch.ids_BT),
        "completion_mask": by_document(batch, torch.ones_like(batch.ids_BT)),
        "tool_mask": mask,
        "old_per_token_logps": behaviour,
        "old_logps": (behaviour * mask).sum(1),
        "advantages": torch.stack([batch.advantage_BT[row][0] for row in rows]),
        "num_items_in_batch": mask.sum(),
    }


def a_batch(path: Path, name: str, *, turns: int) -> tuple[Batch, float]:
    """Six attempts, sampled by a policy that has moved since; and what their loss is divided by."""
    g = torch.Generator().manual_seed(3)
    model = load_model(path)
    members = []
    for tokens, score in ((4, 1.0), (9, 0.0), (13, -1.0), (2, 1.0), (7, 0.5), (11, -0.5)):
        spoken = [torch.randint(3, 97, (n,), generator=g).tolist() for n in (tokens, 3)[:turns]]
        attempt = member(spoken, heard=(1, 5, 6), score=score)
        ids_BT = torch.tensor([attempt.trajectory.ids])
        with torch.no_grad():
            now_BT, _ = token_logprobs(model, ids_BT, torch.arange(ids_BT.shape[1])[None])
        moved = (now_BT[0] + 0.3 * torch.randn(now_BT.shape[1], generator=g)).tolist()
        logprobs = [value for value, sampled in zip(moved, attempt.trajectory.mask, strict=True) if sampled]
        members.append(member(spoken, heard=(1, 5, 6), score=score, logprobs=logprobs))
    algorithm = load(name)
    algorithm.advantages(Group(lease=0, world="w", version=0, members=members))
    return pack(members, 40), denominator(algorithm, members, 6 * LONGEST)


def ours(path: Path, batch: Batch, name: str, knobs: dict[str, Any], divisor: float) -> tuple[Any, Any, Any]:
    model = load_model(path)
    logprob_BT, entropy_BT = token_logprobs(model, batch.ids_BT, batch.position_BT, batch.mask_BT)
    loss, sums = load(name, **knobs).loss(
        logprob_BT,
        batch.behaviour_BT,
        batch.advantage_BT,
        batch.mask_BT,
        entropy_BT,
        batch.document_BT,
        denominator=divisor,
    )
    loss.backward()
    return model, loss.item(), {key: float(value) for key, value in sums.items()}


def agree(model: Any, loss: float, trainer: Any, inputs: dict[str, Tensor]) -> dict[str, list[float]]:
    """Hold loss and gradients against TRL's; return the metrics that it noted."""
    theirs = trainer.model.train()
    theirs.zero_grad()
    trainer._metrics["train"].clear()
    their_loss = trainer.compute_loss(theirs, inputs)
    their_loss.backward()
    assert loss == pytest.approx(their_loss.item(), abs=1e-5)
    assert max(float(p.grad.abs().max()) for p in theirs.parameters()) > 1e-3
    for (name, mine), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    return dict(trainer._metrics["train"])


def ask(trainer: Any, **settings: Any) -> None:
    """Set what TRL's loss reads, whatever an earlier test left there."""
    plain = {"importance_sampling_level": "token", "use_vllm": False, "vllm_importance_sampling_correction": True}
    for key, value in {**plain, **settings}.items():
        assert hasattr(trainer, key), key
        setattr(trainer, key, value)


@pytest.mark.parametrize(("name", "high"), [("grpo", 0.25), ("dr_grpo", 0.2), ("dapo", 0.28)])
def test_token_ratios(oracle: Oracle, name: str, high: float) -> None:
    """`tool_mask` is our mask. GRPO as CWM runs it is TRL's `dr_grpo` loss with other advantages and another clip."""
    batch, divisor = a_batch(oracle.path, name, turns=2)
    model, loss, sums = ours(oracle.path, batch, name, {}, divisor)
    ask(oracle.grpo, loss_type="dapo" if name == "dapo" else "dr_grpo", epsilon_low=0.2, epsilon_high=high)
    metrics = agree(model, loss, oracle.grpo, trl_inputs(batch))
    assert sums["clip_low"] > 0 and sums["clip_high"] > 0
    assert sums["clip_low"] / sums["tokens"] == pytest.approx(metrics["clip_ratio/low_mean"][0])
    assert sums["clip_high"] / sums["tokens"] == pytest.approx(metrics["clip_ratio/high_mean"][0])
    assert sums["entropy"] / sums["tokens"] == pytest.approx(metrics["entropy"][0], abs=1e-5)


@pytest.mark.parametrize("ratio_max", [5.0, 1.1])
def test_cispo(oracle: Oracle, ratio_max: float) -> None:
    batch, divisor = a_batch(oracle.path, "cispo", turns=2)
    model, loss, sums = ours(oracle.path, batch, "cispo", {"ratio_max": ratio_max}, divisor)
    ask(oracle.grpo, loss_type="cispo", epsilon_high=ratio_max)
    agree(model, loss, oracle.grpo, trl_inputs(batch))
    assert (sums["truncated"] > 0) == (ratio_max < 5)


@pytest.mark.parametrize("knobs", [{}, {"clip_low": 0.05, "clip_high": 0.1}])
def test_gspo(oracle: Oracle, knobs: dict[str, float]) -> None:
    """GSPO is TRL's `grpo` loss at `importance_sampling_level` sequence."""
    batch, divisor = a_batch(oracle.path, "gspo", turns=2)
    model, loss, sums = ours(oracle.path, batch, "gspo", knobs, divisor)
    ask(
        oracle.grpo,
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon_low=knobs.get("clip_low", 3e-4),
        epsilon_high=knobs.get("clip_high", 4e-4),
    )
    agree(model, loss, oracle.grpo, trl_inputs(batch))
    assert 0 < sums["clip_low"] + sums["clip_high"] < sums["tokens"]


def test_rloo(oracle: Oracle) -> None:
    """Attempts of one turn: TRL's trainer has no mask for what a tool said."""
    batch, divisor = a_batch(oracle.path, "rloo", turns=1)
    model, loss, sums = ours(oracle.path, batch, "rloo", {}, divisor)
    assert (oracle.rloo.epsilon_low, oracle.rloo.epsilon_high) == (0.2, 0.2)
    agree(model, loss, oracle.rloo, trl_inputs(batch))
    assert 0 < sums["clip_low"] + sums["clip_high"] < sums["tokens"]


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_weights(oracle: Oracle, correction: str) -> None:
    """TRL multiplies its loss by weights that it made while sampling; there it has no old policy but the one now.

    It computes them beside the generation, out of reach; here as its documentation has them.
    """
    batch, divisor = a_batch(oracle.path, "dr_grpo", turns=2)
    knobs = {"correction": correction, "correction_cap": 1.15}
    model, loss, sums = ours(oracle.path, batch, "dr_grpo", knobs, divisor)
    inputs = trl_inputs(batch)
    with torch.no_grad():
        logprob_BT, _ = token_logprobs(model, batch.ids_BT, batch.position_BT, batch.mask_BT)
    log_weight = (by_document(batch, logprob_BT) - inputs["old_per_token_logps"]) * inputs["tool_mask"]
    if correction.startswith("sequence"):
        log_weight = log_weight.sum(-1, keepdim=True)
    weight = log_weight.exp()
    inputs["importance_sampling_ratio"] = (
        weight.clamp(max=1.15) if correction.endswith("truncate") else weight.masked_fill(weight > 1.15, 0.0)
    )
    del inputs["old_per_token_logps"]
    ask(oracle.grpo, loss_type="dr_grpo", epsilon_low=0.2, epsilon_high=0.2, use_vllm=True)
    oracle.grpo.vllm_importance_sampling_correction = True
    metrics: dict[str, list[float]]
    metrics = agree(model, loss, oracle.grpo, inputs)
    assert metrics["clip_ratio/region_mean"] == [0.0], "there is no ratio that its clip could act on"
    assert 0 < sums["truncated"] < sums["tokens"]
