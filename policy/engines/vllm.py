"""vLLM as the engine: continuous batching, and weights swapped under requests in flight. The only door to vLLM.

Facts used (vLLM 0.32): a paused scheduler keeps its requests; the engine labels each step's tokens with the weight
version that it was told, and a finished output carries the spans; `cache_salt` keeps prefix-cache entries of an older
version from being reused by new requests.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from policy.engines import Canary, Completion, EngineDied, EngineLost, Sampling, SwapFailed, Swapped
from policy.weights import digest, read_back

FOLDERS = "touchstone-weights-"
CANARY_TIMEOUT_S = 60.0
_WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""On a CPU vLLM 0.32 dies where a prompt with a seed is taken in parts: the generators there have no offset."""


class SwapExtension:
    """Mixed into vLLM's worker: the only code of ours that runs in its process."""

    def stage_weights(self, path: str) -> str:
        """Read new weights while the old ones still serve; returns the digest of what was read."""
        blob = Path(path).read_bytes()
        self._staged = load(blob)
        return digest(blob)

    def swap_weights(self) -> tuple[int, list[str]]:
        """Load what was staged and read it back (policy/weights.py)."""
        model = self.model_runner.model  # type: ignore[attr-defined]
        staged, self._staged = self._staged, {}
        self.model_runner.reload_weights(weights_iterator=iter(staged.items()))  # type: ignore[attr-defined]
        return read_back(staged, dict(model.named_parameters()))


async def start(
    path: str,
    *,
    max_model_len: int,
    dtype: str = "auto",
    seed: int = 0,
    threads: int = 1,
    tensor_parallel: int = 1,
    max_sequences: int = 64,
    args: dict[str, Any] | None = None,
) -> VllmEngine:
    """Start vLLM on a Hugging Face folder; `args` go to vLLM's own engine arguments. Takes 20 to 40 s on a CPU."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        _settle_on_cpu()
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine_args = AsyncEngineArgs(
        model=path,
        dtype=dtype,
        seed=seed,
        max_model_len=max_model_len,
        max_num_seqs=max_sequences,
        tensor_parallel_size=tensor_parallel,
        skip_tokenizer_init=True,
        enforce_eager=True,
        disable_log_stats=True,
        worker_extension_cls=f"{SwapExtension.__module__}.{SwapExtension.__qualname__}",
        **({"distributed_executor_backend": "uni"} if on_cpu and tensor_parallel == 1 else {}),
        **{**(_WHOLE_PROMPTS if on_cpu else {}), **(args or {})},
    )
    _sweep()
    folder = tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-", dir=_memory_folder())
    os.environ["VLLM_RPC_BASE_PATH"] = folder  # where its sockets lie, which it leaves there
    llm = AsyncLLM.from_engine_args(engine_args)
    await llm.update_weight_version("0")
    return VllmEngine(llm, Path(folder))


def _settle_on_cpu() -> None:
    """Two facts of vLLM 0.32 on CPUs, before it is imported.

    With a worker process of its own the engine core spins while it waits, which on two cores takes one from everybody;
    vLLM lets the worker share the core's process where it believes that nothing else is in there. The sampler is
    compiled with the machine's C++ compiler at the first request and dies where there is none.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()):
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


class VllmEngine:
    def __init__(self, llm: Any, folder: Path) -> None:
        """`folder`: its own, in memory where there is one, and removed with it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self.llm, self._folder = llm, folder
        self.version = 0
        self._dead = EngineDeadError
        self._names = itertools.count()
        self._swaps = 0
        """Part of the prefix cache's key: a version that is sent again after it failed is not the same."""
        self._unfit: str | None = None
        self._settled = asyncio.Event()
        self._settled.set()

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """What ends during a swap waits for its verdict, and is refused with it."""
        self._refuse_unfit()
        output = await self._finished(
            list(ids),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(sampling.stop_ids),
            logprobs=0,
        )
        await self._settled.wait()
        self._refuse_unfit()
        sampled = output.outputs[0]
        logprobs = [entry[token].logprob for token, entry in zip(sampled.token_ids, sampled.logprobs, strict=True)]
        versions = [int(span.version) for span in sampled.weight_versions or () for _ in range(span.start, span.end)]
        if len(versions) != len(logprobs):
            raise EngineLost(f"vLLM labelled {len(versions)} of {len(logprobs)} tokens with a policy version")
        return Completion(
            ids=list(sampled.token_ids), logprobs=logprobs, versions=versions, stopped=sampled.finish_reason == "stop"
        )

    def _refuse_unfit(self) -> None:
        if self._unfit is not None:
            raise SwapFailed(f"this engine does not generate until a swap succeeds: {self._unfit}")

    async def _finished(self, ids: list[int], **params: Any) -> Any:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        prompt = TokensPrompt(prompt_token_ids=ids, cache_salt=f"{self.version}/{self._swaps}")
        settings = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False, **params)
        output = None
        try:
            async for latest in self.llm.generate(prompt, settings, request_id=str(next(self._names))):
                output = latest
        except self._dead as error:
            raise EngineDied(f"vLLM died: {error}") from None
        if output is None:
            raise EngineLost("vLLM ended a request without output")
        return output

    async def swap(self, blob: bytes, version: int, canary: Canary | None) -> Swapped:
        """What fails here leaves an engine that refuses to generate until a swap succeeds."""
        began = time.monotonic()
        path = self._folder / f"{version}.safetensors"
        self._settled.clear()
        verdict: str | None = "its last swap did not end"
        try:
            await asyncio.to_thread(path.write_bytes, blob)
            await self._stage(path, blob, version)
            pause_s, equal = await self._load(version)
            gap = await self._verify(canary) if canary is not None else 0.0
            verdict = None
        except SwapFailed as error:
            verdict = str(error)
            raise
        except self._dead as error:
            raise EngineDied(f"vLLM died while taking version {version}: {error}") from None
        finally:
            self._unfit = verdict
            self._settled.set()
            path.unlink(missing_ok=True)
        return Swapped(pause_s, time.monotonic() - began, len(blob), equal / len(blob), gap)

    async def _stage(self, path: Path, blob: bytes, version: int) -> None:
        """Into the workers' memory, while requests go on."""
        expected = digest(blob)
        for got in await self.llm.collective_rpc("stage_weights", args=(str(path),)):
            if got != expected:
                raise SwapFailed(
                    f"an engine's worker read weights of version {version} with digest {got[:12]}; "
                    f"expected {expected[:12]}"
                )

    async def _load(self, version: int) -> tuple[float, int]:
        """Returns the pause in s, and how many bytes every worker has read back equal. What one of them holds otherwise
        than sent is a failed swap."""
        began = time.monotonic()
        await self.llm.pause_generation(mode="keep", clear_cache=False)
        try:
            loaded = await self.llm.collective_rpc("swap_weights")
            await self.llm.update_weight_version(str(version))
        except self._dead:
            raise
        except Exception as error:  # whatever the worker raised; vLLM hands it on without its type
            raise SwapFailed(f"the engine could not load version {version}: {error}") from error
        finally:
            self.version, self._swaps = version, self._swaps + 1
            await self.llm.resume_generation()
        pause_s = time.monotonic() - began
        if differ := sorted({name for _, names in loaded for name in names}):
            raise SwapFailed(
                f"after the swap to version {version} the engine holds {len(differ)} tensors otherwise than sent, the "
                f"first of them {differ[0]}"
            )
        return pause_s, min(equal for equal, _ in loaded)

    async def _verify(self, canary: Canary) -> float:
        """Compare the served log-probabilities of the canary with the learner's; returns the largest difference."""
        request = self._finished(list(canary.ids), max_tokens=1, prompt_logprobs=0, temperature=1.0)
        try:
            output = await asyncio.wait_for(request, CANARY_TIMEOUT_S)
        except TimeoutError:
            raise SwapFailed(
                f"after the swap to version {self.version} the engine did not score the canary within "
                f"{CANARY_TIMEOUT_S:g} s"
            ) from None
        served = [entry[token].logprob for token, entry in zip(canary.ids[1:], output.prompt_logprobs[1:], strict=True)]
        gaps = [abs(a - b) for a, b in zip(served, canary.logprobs, strict=True)]
        worst = largest(gaps)
        if not worst <= canary.tolerance:
            raise SwapFailed(
                f"after the swap to version {self.version} the engine's log-probabilities differ from the learner's by "
                f"{worst:.3g} nats; expected at most {canary.tolerance:g}. Tied embeddings are one known cause: "
                "untie them."
            )
        return worst

    async def close(self) -> None:
        self.llm.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def largest(gaps: Sequence[float]) -> float:
    """Not a number where any is not: `max` would pass over it."""
    return max(gaps, key=lambda gap: (math.isnan(gap), gap))


def _sweep() -> None:
    """Remove the folders of engines that were killed: what lies in them takes memory."""
    for folder in Path(_memory_folder() or tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        try:
            os.kill(int(folder.name.removeprefix(FOLDERS).partition("-")[0]), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue  # somebody else's


def _memory_folder() -> str | None:
    """A folder in memory where the machine has one, so that a swap does not touch a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
