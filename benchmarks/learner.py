"""The loss of one optimiser step, forward and backward: tokens/s and peak memory, against TRL's own on the same batch.

    python -m benchmarks.learner [--json] [--vocab 32000 128000] [--sequences 8] [--row-tokens 4096] [--count 64]

A CWM-shaped model of 128 hidden units and 4 layers, attempts of 64 to 128 prompt tokens and 16 to 480 sampled ones.
Ours: packed rows of `--row-tokens`, the learner's default. TRL's: GRPOTrainer's own loss with its chunked head, in
padded micro-batches of `--sequences`, its default and about as many tokens. On both sides float32 on CPU, autocast to
bfloat16 on CUDA, torch's scaled-dot-product attention, no activation checkpointing, the gradient of the whole batch
accumulated, and no optimiser.

Each side runs in a process of its own, one after the other. Peak: what the process holds at most (on CUDA: what is
allocated) during the step, over what it held once the model was loaded. Tokens: those of the attempts, padding left
out; the clock runs over the second step. `memory_ratio_*` and `speed_ratio_*` are ours over TRL's.
`--count` counts the memory of one rank of that many for CWM's own 32 billion parameters, without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARIES = (32_000, 128_000)
ATTEMPTS = 16
SEQUENCES = 8
"""TRL's default for one device."""
ROW_TOKENS = 4096
LONGEST = 480
CLIP_LOW, CLIP_HIGH = 0.2, 0.25
SIDES = ("touchstone", "trl")


def attempts(vocab: int) -> list[dict[str, Any]]:
    """Prompt and sampled tokens, the behaviour's log-probabilities and the advantage of each attempt."""
    g = torch.Generator().manual_seed(0)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=g))
        return torch.randint(0, vocab, (length,), generator=g).tolist()

    made = []
    for _ in range(ATTEMPTS):
        prompt, sampled = tokens(64, 128), tokens(16, LONGEST)
        logprobs = (torch.randn(len(sampled), generator=g) * 0.1 - 10).tolist()
        advantage = float(torch.randn(1, generator=g))
        made.append({"prompt": prompt, "sampled": sampled, "logprobs": logprobs, "advantage": advantage})
    return made


def make_model(vocab: int, folder: Path) -> None:
    from transformers import CwmConfig, CwmForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = CwmConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=512,
        rope_parameters={**rope, "original_max_position_embeddings": 512},
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    CwmForCausalLM(config).save_pretrained(folder)


def ours(folder: Path, vocab: int, device: str, row_tokens: int) -> tuple[torch.nn.Module, Callable[[], float]]:
    """The model, and what adds the gradient of the whole batch to it and returns the loss."""
    from envs import Episode, Outcome, Task
    from policy.model import load, token_logprobs
    from rewards import Score
    from rl import algorithms
    from rl.batch import pack
    from rl.trajectory import Member, Trajectory

    members = []
    for made in attempts(vocab):
        trajectory = Trajectory()
        trajectory.hear(made["prompt"])
        trajectory.speak(made["sampled"], made["logprobs"], [0] * len(made["sampled"]))
        task = Task(world="w", key="k", family="f", level=0, messages=())
        episode = Episode(task=task, messages=[], outcome=Outcome.SOLVED)
        members.append(Member(trajectory, episode, Score(1.0), made["advantage"]))
    batch = pack(members, row_tokens)
    model = load(folder).to(device)
    algorithm = algorithms.load("grpo", clip_low=CLIP_LOW, clip_high=CLIP_HIGH)

    def step() -> float:
        total = 0.0
        for row in batch.split(rows=1):
            row = row.to(torch.device(device))
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                logprob_BT, entropy_BT = token_logprobs(model, row.ids_BT, row.position_BT, row.mask_BT)
            given = (logprob_BT, row.behaviour_BT, row.advantage_BT, row.mask_BT, entropy_BT, row.document_BT)
            loss, _ = algorithm.loss(*given, denominator=float(ATTEMPTS * LONGEST))
            loss.backward()
            total += float(loss.detach())
        return total

    return model, step


def trl(
    folder: Path, vocab: int, device: str, sequences: int, work: Path
) -> tuple[torch.nn.Module, Callable[[], float]]:
    """The same with TRL's trainer: its loss, its padding, its accumulation over micro-batches."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import pad

    words = Tokenizer(models.WordLevel({"<bos>": 0, "<eos>": 1, "<pad>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        args=GRPOConfig(
            output_dir=str(work),
            per_device_train_batch_size=sequences,
            gradient_accumulation_steps=ATTEMPTS // sequences,
            num_generations=2,
            max_completion_length=LONGEST,
            loss_type="dr_grpo",
            epsilon=CLIP_LOW,
            epsilon_high=CLIP_HIGH,
            beta=0.0,
            use_cpu=device == "cpu",
            bf16=device == "cuda",
            gradient_checkpointing=False,
            report_to="none",
        ),
    )
    trainer.current_gradient_accumulation_steps = ATTEMPTS // sequences

    def padded(rows: list[list[Any]], value: float, side: str) -> torch.Tensor:
        return pad([torch.tensor(row) for row in rows], padding_value=value, padding_side=side).to(device)

    def inputs(some: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "prompt_ids": padded([a["prompt"] for a in some], 2, "left"),
            "prompt_mask": padded([[1] * len(a["prompt"]) for a in some], 0, "left"),
            "completion_ids": padded([a["sampled"] for a in some], 2, "right"),
            "completion_mask": padded([[1] * len(a["sampled"]) for a in some], 0, "right"),
            "old_per_token_logps": padded([a["logprobs"] for a in some], 0.0, "right"),
            "advantages": torch.tensor([a["advantage"] for a in some], device=device),
        }

    made = attempts(vocab)
    micros = [inputs(made[first : first + sequences]) for first in range(0, ATTEMPTS, sequences)]
    trainer.model.train()

    def step() -> float:
        total = 0.0
        for micro in micros:
            loss = trainer._compute_loss(trainer.model, micro)
            loss.backward()
            total += float(loss.detach())
        return total

    return trainer.model, step


def measure(side: str, folder: Path, vocab: int, device: str, micro: int) -> dict[str, float]:
    """In a process of its own: two steps, the first to warm up. `micro`: row tokens, or TRL's sequences."""
    with tempfile.TemporaryDirectory() as work:
        made = (
            ours(folder, vocab, device, micro)
            if side == "touchstone"
            else trl(folder, vocab, device, micro, Path(work))
        )
        model, step = made
        gc.collect()
        before = held(device, reset=True)
        tokens = sum(len(a["prompt"]) + len(a["sampled"]) for a in attempts(vocab))
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            loss = step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
    norm = float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
    peak_mb = (held(device) - before) / 2**20
    return {"tokens_per_s": tokens / seconds, "peak_mb": peak_mb, "tokens": tokens, "loss": loss, "grad_norm": norm}


def held(device: str, *, reset: bool = False) -> int:
    """Bytes: the peak since the last reset; at a reset, what is held now."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def in_a_child(side: str, folder: Path, vocab: int, device: str, micro: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.learner", "--side", side, "--folder", str(folder), "--device", device]
    command += ["--vocab", str(vocab), "--micro", str(micro)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{side} at a vocabulary of {vocab} ended with code {ran.returncode}:\n{ran.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def count(ranks: int) -> dict[str, float]:
    """Bytes of one rank of CWM's 32 billion parameters, sharded for real over a process group that is not."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import CwmConfig, CwmForCausalLM

    from policy.model import Scorer, layers
    from rl.ranks import Ranks

    with torch.device("meta"):
        model = CwmForCausalLM(CwmConfig())
    whole = sum(p.numel() for p in model.parameters())
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    began = time.perf_counter()
    Ranks(0, ranks, "nowhere:1").shard(Scorer(model), layers(model), torch.device("cpu"))
    seconds = time.perf_counter() - began
    mine = sum(p.to_local().numel() for p in model.parameters())
    dist.destroy_process_group()
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers(model))
    rest = whole - sum(p.numel() for layer in layers(model) for p in layer.parameters())
    return {
        "parameters": whole,
        "of_one_rank": mine,
        "weights_gradients_adamw_gb": mine * 16 / 1e9,
        "one_layer_whole_gb": largest * 4 / 1e9,
        "embeddings_and_head_whole_gb": rest * 4 / 1e9,
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--vocab", type=int, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of one micro-batch of TRL's")
    parser.add_argument("--row-tokens", type=int, default=ROW_TOKENS, help="of one micro-batch of ours")
    parser.add_argument("--count", type=int, metavar="RANKS")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--micro", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if ATTEMPTS % args.sequences:
        parser.error(f"got --sequences {args.sequences}; expected a divisor of {ATTEMPTS}")
    if args.count:
        print(json.dumps(count(args.count)))
        return 0
    if args.side:
        print(json.dumps(measure(args.side, args.folder, args.vocab[0], args.device, args.micro)))
        return 0
    if importlib.util.find_spec("trl") is None:
        print("trl is not installed, so there is nothing to compare with; pip install trl", file=sys.stderr)
        return 1
    found: dict[str, Any] = {}
    for vocab in args.vocab:
        with tempfile.TemporaryDirectory(prefix="touchstone-bench-") as folder:
            make_model(vocab, Path(folder))
            micro = {"touchstone": args.row_tokens, "trl": args.sequences}
            sides = {name: in_a_child(name, Path(folder), vocab, args.device, micro[name]) for name in SIDES}
        us, peer = sides["touchstone"], sides["trl"]
        size = f"{vocab // 1000}k"
        found[f"memory_ratio_{size}"] = us["peak_mb"] / peer["peak_mb"]
        found[f"speed_ratio_{size}"] = us["tokens_per_s"] / peer["tokens_per_s"]
        found[size] = sides
    if args.json:
        print(json.dumps(found))
        return 0
    for size, sides in ((name, value) for name, value in found.items() if isinstance(value, dict)):
        for name, figures in sides.items():
            print(f"{size:<6}{name:<12}" + "  ".join(f"{value:10.4g} {key}" for key, value in figures.items()))
    print("  ".join(f"{name} {value:.2f}" for name, value in found.items() if "ratio" in name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
