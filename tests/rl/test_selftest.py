"""The self-tests over real rollouts and a real tiny learner: silent where all agrees, a stop where a fault is set."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policy import tiny
from policy.chat import Chat
from policy.engines import Completion, Sampling
from policy.engines.scripted import ScriptedEngine
from policy.model import load, token_logprobs
from rl import config, rollout, selftest
from rl.learner import Learner, Settings
from rl.selftest import SelfTestFailed
from rl.store import Run
from rl.trajectory import Group, Member
from tests.rl.planted import World


class Page:
    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, name: str) -> None:
        self.said.append(name)

    def say(self, text: str) -> None:
        self.said.append(text)


class Served:
    """Scripted replies with the log-probabilities of a model of its own, as an engine that holds a copy of weights."""

    def __init__(self, folder: Path, chat: Chat) -> None:
        self.model, self.rng = load(folder), random.Random(0)
        self.engine = ScriptedEngine(lambda prompt: [*chat.encode(self.rng.choice("123")), chat.stop_ids[0]])

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        said = await self.engine.generate(ids, sampling)
        with torch.no_grad():
            whole = torch.tensor([[*ids, *said.ids]])
            logprob, _ = token_logprobs(self.model, whole, torch.arange(whole.shape[1])[None])
        return replace(said, logprobs=[float(x) for x in logprob[0, len(ids) :]])


class Bench:
    """One process with all parts: what rl/cluster.py spreads over several."""

    def __init__(self, folder: Path, settings: config.RunConfig, fault: str = "") -> None:
        self.config = settings
        self.chat = Chat.load(folder)
        self.engine = Served(folder, self.chat)
        self.worlds = {"math": World(None, fault=fault)}
        self.learner = Learner(
            Settings(model=str(folder), lr=1e-3, loss_denominator=64, row_tokens=256, device="cpu", threads=1)
        )

    def limits(self, world: str) -> rollout.Limits:
        policy = self.config.policy
        return rollout.Limits(context=policy.context, turn_tokens=policy.turn_tokens, turns=2, timeout_s=60)

    async def play(self, world: str, split: Any, index: int, lease: int, version: int, size: int) -> Group:
        place = self.worlds[world]
        task, limits = place.task(split, index), self.limits(world)
        members = await rollout.play_group(place, task, size, self.engine, self.chat, limits, {"outcome": {}}, 0)
        return Group(lease, world, version, members)

    async def expert(self, world: str, index: int) -> Member:
        return await selftest.play_expert(self.worlds[world], self, index)  # type: ignore[arg-type]

    async def score(self, members: Sequence[Member]) -> tuple[list[list[float]], dict[str, float]]:
        return [self.learner.logprobs(m.trajectory.ids) for m in members], self.learner.rehearse(members)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer(["What is 123 + 456?", "user assistant"] * 4, 330)
    made = tiny.make_model(tokenizer, hidden=32, layers=2, heads=4, kv_heads=2, mlp=64, context=128)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def outcome_of(
    model: Path, tmp_path: Path, *overrides: str, fault: str = "", spoil: str = ""
) -> tuple[Page, dict[str, Any], str]:
    """What the page was told, the file, and the sentence of the stop if there was one."""
    (tmp_path / "x.yaml").write_text("worlds: {math: {}}\npolicy: {context: 128, turn_tokens: 32}\n")
    settings = config.load(tmp_path / "x.yaml", [*overrides, "rollout.group_size=4"])
    run = Run.create(tmp_path / "run")
    bench, page, stop = Bench(model, settings, fault), Page(), ""
    if spoil:
        with torch.no_grad():
            dict(bench.engine.model.named_parameters())[spoil].mul_(1.5)
    try:
        asyncio.run(selftest.run(bench, settings, 0, run, page))
    except SelfTestFailed as error:
        stop = str(error)
    finally:
        run.close()
    return page, json.loads((run.folder / selftest.FILE).read_text()), stop


def test_parts_that_agree_pass_and_each_test_is_a_line(model: Path, tmp_path: Path) -> None:
    page, told, stop = outcome_of(model, tmp_path)
    assert not stop and page.said[0] == "self-tests"
    assert [line.split(":")[0] for line in page.said[1:]] == [
        f"self-test {name}" for name in ("agreement", "ratio", "gold", "variance")
    ]
    figures = {test["name"]: test["figures"] for test in told["tests"]}
    assert figures["agreement"]["tokens"] > 0 and figures["agreement"]["max"] < 1e-4
    assert figures["ratio"]["ratio"] == pytest.approx(1, abs=1e-5) and figures["ratio"]["clipped"] == 0
    assert figures["gold"] == {"right": 3, "tasks": 3, "spent": 0, "no_expert": 0}
    assert figures["variance"]["useful"] == 0, "no reply is ever right, and that does not stop the run"


@pytest.mark.parametrize("spoil", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_an_engine_with_other_weights_stops_the_run(model: Path, tmp_path: Path, spoil: str) -> None:
    page, told, stop = outcome_of(model, tmp_path, spoil=spoil)
    assert "agreement: engine and learner differ by" in stop and "train.selftest=false" in stop
    assert not told["tests"][0]["passed"] and "\n" not in stop
    assert any(line.startswith("self-test agreement: OFF") for line in page.said)


def test_a_grader_that_refuses_right_answers_stops_the_run(model: Path, tmp_path: Path) -> None:
    _, told, stop = outcome_of(model, tmp_path, fault="gold-fails")
    assert "gold: 0 of 3 right answers" in stop and "3 ended as failed, as planted" in stop
    assert [test["passed"] for test in told["tests"]] == [True, True, False, True]


def test_a_grader_that_breaks_stops_the_run_with_its_error(model: Path, tmp_path: Path) -> None:
    _, _, stop = outcome_of(model, tmp_path, fault="judge-fails")
    assert "3 ended as judge_failed" in stop and "it is gone" in stop
    assert "agreement: none of 8 sampled attempts was valid" in stop


def test_a_task_without_an_expert_and_a_budget_too_tight_are_told_and_pass(model: Path, tmp_path: Path) -> None:
    page, _, stop = outcome_of(model, tmp_path, fault="no-gold")
    assert not stop and any("3 tasks have no expert" in line for line in page.said)
    (tmp_path / "tight").mkdir()
    page, _, stop = outcome_of(model, tmp_path / "tight", "policy.turn_tokens=2")
    assert not stop and any("3 spent a budget" in line for line in page.said)


def test_the_forecast_counts_groups_and_says_how_sure_it_is() -> None:
    low, high = selftest._interval(0, 6)
    assert low == 0 and high == pytest.approx(0.390, abs=1e-3)
    low, high = selftest._interval(3, 6)
    assert (low, high) == (pytest.approx(0.188, abs=1e-3), pytest.approx(0.812, abs=1e-3))
