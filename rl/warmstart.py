"""The tiny policy's warm start: demonstrations of scripted experts that err at a declared rate, learnt with TRL's SFT
trainer. The only door to TRL in the product.

The result is a Hugging Face folder in a cache, named by the hash of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import envs
from envs import Message, World, find
from rl.config import RunConfig, plain

VERSION = 1
"""Raised when the demonstrations or the training change, so that older caches are not taken for the same."""
TOKENIZER_DEMONSTRATIONS = 2000
THREADS = 2
HEADS = (32, 64, 80, 96, 112, 128)
"""Dimensions of an attention head that vLLM serves on a CPU, as far as a small policy goes."""


class Progress(Protocol):
    def phase(self, name: str) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...


def place(settings: RunConfig) -> tuple[Path, dict[str, Any]]:
    """The warm-started policy's folder in the cache, there or not, and what its name is a digest of."""
    depends = {
        "version": VERSION,
        "seed": settings.seed,
        "context": settings.policy.context,
        **plain(settings.warmstart),
    }
    depends["worlds"] = {name: _depends(settings, name) for name in settings.worlds}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return Path(settings.warmstart.cache) / digest, depends


def ensure(settings: RunConfig, page: Progress) -> tuple[Path, float]:
    """The warm-started policy's folder, made now or before, and the seconds that making it took."""
    folder, depends = place(settings)
    if not (folder / "warmstart.json").is_file():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            seconds = _make(settings, draft, page)
            (draft / "warmstart.json").write_text(json.dumps({"seconds": seconds, **depends}, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder, float(json.loads((folder / "warmstart.json").read_text())["seconds"])


def _depends(settings: RunConfig, world: str) -> dict[str, Any]:
    """What decides a world's demonstrations: what plays it, its code, its arguments, and files among them."""
    ref, args = settings.plays(world), dict(settings.worlds[world].args)
    return {"world": ref, "code": find.digest(ref), "args": args, "files": find.of_data(args)}


def demonstrations(worlds: dict[str, World], error_rate: float) -> Iterator[list[Message]]:
    """Endless whole conversations on training tasks, the worlds in turn; the same every time."""
    for index in itertools.count():
        for name, world in worlds.items():
            rng = random.Random(f"{name}/{index}")
            yield world.demonstrate(world.task("train", index), rng, err=rng.random() < error_rate)


def _make(settings: RunConfig, folder: Path, page: Progress) -> float:
    began = time.monotonic()
    hidden, heads = settings.warmstart.hidden, settings.warmstart.heads
    if settings.engine.name == "vllm" and hidden / heads not in HEADS:
        raise ValueError(
            f"got warmstart.hidden={hidden} in {heads} heads, {hidden / heads:g} dimensions a head; "
            f"expected what vLLM serves on a CPU: {', '.join(map(str, HEADS))}"
        )
    page.phase("warm start: loading libraries")
    import torch

    from policy import tiny
    from policy.chat import Chat

    warm = settings.warmstart
    torch.set_num_threads(THREADS)
    torch.manual_seed(settings.seed)
    worlds = {
        name: envs.load(settings.plays(name)).World(None, seed=settings.seed, **world.args)
        for name, world in settings.worlds.items()
    }
    sample = list(itertools.islice(demonstrations(worlds, warm.error_rate), TOKENIZER_DEMONSTRATIONS))
    roles = [f"{m['role']}: {m['name']}" if m["role"] == "tool" else m["role"] for demo in sample for m in demo]
    tokenizer = tiny.train_tokenizer([*(m["content"] for demo in sample for m in demo), *roles], warm.vocab)
    model = tiny.make_model(
        tokenizer,
        hidden=warm.hidden,
        layers=warm.layers,
        heads=warm.heads,
        kv_heads=warm.kv_heads,
        mlp=warm.mlp,
        context=settings.policy.context,
    )
    rows = _rows(demonstrations(worlds, warm.error_rate), Chat(tokenizer), settings)
    page.phase(
        f"warm start: {model.num_parameters() / 1e6:.1f} M parameters, experts err {warm.error_rate:.0%} of the time"
    )
    _fit(model, tokenizer, rows, settings, folder, page)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return time.monotonic() - began


def _rows(demos: Iterator[list[Message]], chat: Any, settings: RunConfig) -> list[dict[str, list[int]]]:
    """Whole conversations side by side in rows of `row_tokens`; positions restart with each, labels only where the
    expert spoke. Each conversation goes into the first of a few open rows that has room; a longer one is a row."""
    count, row_tokens = settings.warmstart.steps * settings.warmstart.rows, settings.warmstart.row_tokens
    open_rows: list[dict[str, list[int]]] = []
    full: list[dict[str, list[int]]] = []
    while len(full) < count:
        ids, mask = chat.conversation(next(demos))
        if len(ids) > settings.policy.context:
            raise ValueError(
                f"got a demonstration of {len(ids)} tokens; expected at most policy.context={settings.policy.context}"
            )
        row = next((r for r in open_rows if len(r["input_ids"]) + len(ids) <= row_tokens), None)
        if row is None:
            row = {"input_ids": [], "position_ids": [], "labels": []}
            open_rows.append(row)
        row["input_ids"] += ids
        row["position_ids"] += range(len(ids))
        row["labels"] += [token if spoken else -100 for token, spoken in zip(ids, mask, strict=True)]
        if len(open_rows) > 16:
            full.append(open_rows.pop(0))
    random.Random(0).shuffle(full)
    return full


def _fit(
    model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], settings: RunConfig, folder: Path, page: Progress
) -> None:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import SFTConfig, SFTTrainer

    from policy.model import DOCUMENTS

    warm = settings.warmstart
    model.set_attn_implementation(DOCUMENTS)
    disable_progress_bar()  # the page shows progress

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            page.progress(state.global_step, warm.steps)

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        """One flat row of whole conversations, told apart by their lengths (policy/model.py, attention `documents`)."""
        flat = {key: [token for row in batch for token in row[key]] for key in ("input_ids", "position_ids", "labels")}
        starts = [i for i, position in enumerate(flat["position_ids"]) if position == 0]
        ends = [*starts[1:], len(flat["position_ids"])]
        tensors = {key: torch.tensor([values]) for key, values in flat.items()}
        return {**tensors, "document_lengths": [end - start for start, end in zip(starts, ends, strict=True)]}

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        data_collator=collate,
        callbacks=[Report()],
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=warm.steps,
            per_device_train_batch_size=warm.rows,
            learning_rate=warm.lr,
            lr_scheduler_type="linear",
            warmup_steps=50,
            adam_beta2=0.98,
            weight_decay=0.01,
            max_grad_norm=1.0,
            seed=settings.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
