"""The learner: members in, one optimiser step, a new policy version out. The only door to accelerate.

`B` rows, `T` tokens of a packed row. One row is one micro-batch: rows are packed full (rl/batch.py), so a longer row is
a larger micro-batch. Weights are kept in float32; `dtype` is what the forward pass computes in. One process drives one
device; several are one learner over shards of the weights (rl/ranks.py), each with its share of the rows.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from policy.model import Scorer, layers, load, recompute_layers
from rl import algorithms
from rl.batch import Batch, pack
from rl.metrics import means, sums_by_world
from rl.ranks import ALONE, Ranks, part, whole
from rl.trajectory import Member

if TYPE_CHECKING:
    from rl.config import RunConfig

TRAINER_STATE = "trainer.pt"
"""Optimiser, random generators and version, beside the weights of a checkpoint."""

_WITH_THE_WEIGHTS = ("*token*", "*vocab*", "merges.txt", "chat_template*", "generation_config.json")
"""Files of the model's folder that a checkpoint needs to be a whole model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one learner is. Defaults suit a small policy on a CPU."""

    model: str
    """A Hugging Face folder."""
    lr: float
    """Constant after the warm-up."""
    loss_denominator: float
    """Tokens, a constant of the run. The budget of sampled tokens of one step makes the loss a mean over tokens."""
    algorithm: str = "grpo"
    algorithm_args: Mapping[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to `lr`."""
    weight_decay: float = 0.0
    """On matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    row_tokens: int = 4096
    """Length of a packed row, at least that of the longest trajectory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str = "documents"
    """See policy/model.py."""
    recompute: bool = False
    """Compute the activations of the decoder layers again in backward, instead of keeping them."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes an accelerator where there is one."""
    threads: int = 0
    """CPU threads of torch in this process, 0 to leave them."""
    seed: int = 0

    @classmethod
    def of(cls, config: RunConfig, model: str) -> Settings:
        """The learner of a run, with the weights in the folder `model`."""
        settings = config.learner
        return cls(
            model=model,
            lr=settings.lr,
            loss_denominator=settings.batch_tokens,
            algorithm=config.algorithm.name,
            algorithm_args=config.algorithm.args,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            betas=(settings.beta1, settings.beta2),
            grad_clip=settings.grad_clip,
            row_tokens=settings.row_tokens,
            dtype="bfloat16" if config.policy.dtype == "bfloat16" else "float32",
            attention=settings.attention,
            recompute=settings.recompute,
            threads=settings.threads,
            seed=config.seed,
        )

    def __post_init__(self) -> None:
        for name in ("loss_denominator", "grad_clip", "row_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"got {name} {getattr(self, name)}; expected a positive number")
        for name in ("lr", "warmup_steps", "weight_decay", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"got {name} {getattr(self, name)}; expected zero or more")


class Learner:
    """Owns the weights that are trained. `version` counts the optimiser steps they have seen.

    Where there are several ranks, each has one; all call the same methods, with the same arguments, in the same order.
    """

    def __init__(self, settings: Settings, ranks: Ranks = ALONE) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        set_seed(settings.seed)
        self.settings = settings
        self.ranks = ranks
        self.version = 0
        self.algorithm = algorithms.load(settings.algorithm, **settings.algorithm_args)
        self.accelerator = Accelerator(
            cpu=settings.device == "cpu", mixed_precision="bf16" if settings.dtype == "bfloat16" else "no"
        )
        ranks.join(self.accelerator.device)
        model = load(settings.model, attention=settings.attention)
        if settings.recompute:
            recompute_layers(model)
        scorer = Scorer(model)
        if ranks.count > 1:
            ranks.shard(scorer, layers(model), self.accelerator.device)
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
        self.model = model
        self.scorer, self.optimizer = self.accelerator.prepare(scorer, optimizer)

    def step(self, members: Sequence[Member]) -> dict[str, float]:
        """One optimiser step on members whose advantages are set. Returns means over sampled tokens, and its own facts.

        Raises ValueError (rl/batch.py) on members that cannot be trained on, FloatingPointError where the gradient is
        not finite; weights, optimiser and version are then as before.
        """
        started = time.perf_counter()
        batch = pack(members, self.settings.row_tokens)
        denominator = algorithms.denominator(self.algorithm, members, self.settings.loss_denominator)
        lr = self._set_rate()
        self.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for micro in self.ranks.deal(list(batch.split(rows=1))):
            for name, value in (self._backward(micro, members, denominator) if micro else self._idle()).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        sums = self.ranks.sum(sums)
        norm = float(whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)))
        if not math.isfinite(norm):
            raise FloatingPointError(f"got a gradient of norm {norm} at version {self.version}; expected a finite one")
        self.optimizer.step()
        self.optimizer.zero_grad()
        lag = [self.version - member.trajectory.oldest for member in members]
        self.version += 1
        seconds = time.perf_counter() - started
        count = sums["tokens"]
        return {
            "loss": sums.pop("loss"),
            **means(sums),
            "grad_norm": norm,
            "lr": lr,
            "version": float(self.version),
            "members": float(len(members)),
            "tokens": float(batch.tokens),
            "sampled_tokens": count,
            "lag_mean": sum(lag) / len(lag),
            "lag_max": float(max(lag)),
            "seconds": seconds,
            "tokens_per_s": batch.tokens / seconds,
        }

    def rehearse(self, members: Sequence[Member]) -> dict[str, float]:
        """What a step on these members would report, as means over sampled tokens, without taking it."""
        denominator = algorithms.denominator(self.algorithm, members, self.settings.loss_denominator)
        sums: dict[str, float] = {}
        for micro in pack(members, self.settings.row_tokens).split(rows=1):
            for name, value in self._backward(micro, members, denominator).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        self.optimizer.zero_grad()
        return means(sums)

    def _set_rate(self) -> float:
        """Linear warm-up, then constant: a function of the version alone, so that a restart needs no schedule."""
        settings = self.settings
        lr = settings.lr * min(1.0, (self.version + 1) / max(1, settings.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _backward(self, micro: Batch, members: Sequence[Member], denominator: float) -> dict[str, Tensor]:
        """Add the gradient of one micro-batch; return its metrics as sums, `loss` among them."""
        micro = micro.to(self.accelerator.device)
        with self.accelerator.autocast():
            logprob_BT, entropy_BT = self.scorer(micro.ids_BT, micro.position_BT, micro.mask_BT)

        def score(logprob_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.algorithm.loss(
                logprob_BT,
                micro.behaviour_BT,
                micro.advantage_BT,
                mask_BT,
                entropy_BT,
                micro.document_BT,
                denominator=denominator,
            )

        loss, sums = score(logprob_BT, micro.mask_BT)
        self.accelerator.backward(loss)
        of_worlds = sums_by_world(members, micro, lambda mask_BT: score(logprob_BT.detach(), mask_BT)[1])
        return {**sums, **of_worlds, "loss": loss.detach()}

    def _idle(self) -> dict[str, Tensor]:
        """A gradient of zero, of one token: shards are gathered and reduced by all ranks, or by none."""
        token_BT = torch.zeros((1, 1), dtype=torch.int64, device=self.accelerator.device)
        with self.accelerator.autocast():
            logprob_BT, _ = self.scorer(token_BT, token_BT)
        self.accelerator.backward(logprob_BT.sum())
        return {}

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each token given those before it, 0.0 for the first. For canaries against the engines."""
        ids_BT = torch.tensor([list(ids)], device=self.accelerator.device)
        position_BT = torch.arange(len(ids), device=self.accelerator.device)[None]
        with self.accelerator.autocast():
            logprob_BT, _ = self.scorer(ids_BT, position_BT)
        return [float(x) for x in logprob_BT[0]]

    def state(self) -> dict[str, Tensor]:
        """A copy of the whole weights by their Hugging Face names, on the CPU, to publish: later steps leave it as it
        is. Empty on all ranks but the first.
        """
        return self.ranks.gather(self.model.state_dict())

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint: a Hugging Face model folder plus TRAINER_STATE. It appears whole, or not at all.

        The first rank writes the whole of everything, so that any number of ranks can go on from it.
        """
        folder = Path(folder)
        if folder.exists():
            raise ValueError(f"there is already something at {folder}; expected the name of a new checkpoint")
        weights = self.state()
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {index: self.ranks.gather(held) for index, held in optimizer["state"].items()}
        if self.ranks.first:
            self._write(folder, weights, optimizer)

    def _write(self, folder: Path, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for pattern in _WITH_THE_WEIGHTS:
            for source in Path(self.settings.model).glob(pattern):
                shutil.copy(source, draft)
        self.model.save_pretrained(draft, state_dict=weights, safe_serialization=True)
        torch.save(
            {
                "version": self.version,
                "optimizer": optimizer,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all(),
            },
            draft / TRAINER_STATE,
        )
        for entry in (*draft.iterdir(), draft):
            _flush(entry)
        draft.rename(folder)
        _flush(folder.parent)

    def restore(self, folder: str | Path) -> None:
        """Continue from a checkpoint of any number of ranks: the next step is the one that would have followed it, bit
        for bit on one CPU.
        """
        path = Path(folder) / TRAINER_STATE
        if not path.is_file():
            raise ValueError(f"{folder} is no checkpoint: expected {TRAINER_STATE} in it")
        weights = load(folder, attention=self.settings.attention).state_dict()
        self.model.load_state_dict({name: part(weights[name], like) for name, like in self.model.state_dict().items()})
        saved = torch.load(path, map_location="cpu", weights_only=True)
        optimizer = saved["optimizer"]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, held in optimizer["state"].items():
            optimizer["state"][index] = {name: part(value, parameters[index]) for name, value in held.items()}
        self.optimizer.load_state_dict(optimizer)
        self.version = int(saved["version"])
        torch.set_rng_state(saved["rng"])
        if len(saved["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
