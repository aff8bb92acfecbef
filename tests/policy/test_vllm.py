"""vLLM itself: a swap is proven before what follows it counts, and an engine that failed one does not generate."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from policy.engines import Canary, Completion, EngineError, Sampling, SwapFailed
from policy.engines.vllm import VllmEngine, start
from policy.model import load, token_logprobs
from policy.weights import Weights, digest
from tests.policy.test_model import small_cwm

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

T = TypeVar("T")
PROMPT = list(range(3, 80))
"""Several blocks of the prefix cache."""
ARGS = {"block_size": 16, "enable_prefix_caching": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one shape with different weights, their embeddings tied: the output matrix is the input's."""
    folders = [small_cwm(tmp_path_factory.mktemp("m"), hidden=128, layers=2, seed=seed) for seed in range(3)]
    for folder in folders:
        model = load(folder)
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
        model.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def engine(models: list[Path]) -> Iterator[tuple[VllmEngine, Callable[[Coroutine[Any, Any, Any]], Any]]]:
    """One engine for all tests of this file, and what runs a coroutine in its loop."""
    with asyncio.Runner() as runner:
        served = runner.run(start(str(models[0]), max_model_len=256, dtype="float32", max_sequences=8, args=ARGS))
        yield served, runner.run
        runner.run(served.close())


def scored(model: Path, ids: list[int]) -> list[float]:
    """The learner's log-probabilities of all tokens but the first."""
    with torch.no_grad():
        logprob, _ = token_logprobs(load(model), torch.tensor([ids]), torch.arange(len(ids))[None])
    return [float(x) for x in logprob[0, 1:]]


def canary(model: Path) -> Canary:
    ids = [(7919 * (i + 1)) % 97 for i in range(24)]
    return Canary(ids, scored(model, ids))


def blob(model: Path, *, without: str = "") -> bytes:
    """As the learner sends them: the shared matrix under both of its names."""
    state = {name: tensor.clone() for name, tensor in load(model).state_dict().items() if name != without}
    return Weights.pack(state, 0).check()


def assert_of(model: Path, said: Completion) -> None:
    """What was said after PROMPT has this model's log-probabilities, from the first token on."""
    expected = scored(model, PROMPT + said.ids)[len(PROMPT) - 1 :]
    assert said.logprobs == pytest.approx(expected, abs=1e-3)


def test_swaps_are_proven_and_a_failed_one_ends_generation(
    models: list[Path], engine: tuple[VllmEngine, Callable[[Coroutine[Any, Any, Any]], Any]]
) -> None:
    served, run = engine
    old, new, other = models
    few, many = Sampling(max_tokens=4, stop_ids=(2,)), Sampling(max_tokens=60, stop_ids=())

    async def scenario() -> None:
        assert_of(old, await served.generate(PROMPT, few))
        swapped = await served.swap(blob(new), 1, canary(new))
        assert swapped.bytes == len(blob(new)) and 0 < swapped.pause_s < swapped.seconds
        assert 0 < swapped.read_back <= 1 and swapped.canary_gap < 1e-3
        said = await served.generate(PROMPT, few)
        assert_of(new, said)  # nothing of the old weights' prefix cache was reused
        assert set(said.versions) == {1}

        running = asyncio.create_task(served.generate(PROMPT, many))
        await asyncio.sleep(0)
        # The known trap: sent once, as a checkpoint has it, the matrix is new at the input, the old one at the output.
        with pytest.raises(SwapFailed, match=r"differ from the learner's by .* Tied embeddings"):
            await served.swap(blob(other, without="lm_head.weight"), 2, canary(other))
        with pytest.raises(EngineError, match="does not generate until a swap succeeds"):
            await running  # it was in flight: some of it may be of the wrong weights
        with pytest.raises(EngineError, match="does not generate until a swap succeeds"):
            await served.generate(PROMPT, few)
        await served.swap(blob(other), 2, canary(other))
        assert_of(other, await served.generate(PROMPT, few))

    run(scenario())


def test_weights_that_are_not_those_that_were_sent_are_refused(
    models: list[Path], engine: tuple[VllmEngine, Callable[[Coroutine[Any, Any, Any]], Any]], tmp_path: Path
) -> None:
    served, run = engine
    (tmp_path / "w").write_bytes(blob(models[0]))
    with pytest.raises(SwapFailed, match=f"expected {digest(blob(models[1]))[:12]}"):
        run(served._stage(tmp_path / "w", blob(models[1]), 7))
    left = list(served._folder.iterdir())
    assert left and all(path.is_socket() for path in left), "vLLM's own, which go with the folder"
