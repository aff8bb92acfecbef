"""A small piece of benchmarks/faults.py: real worlds, sandboxes, rewards, ledger and learner, under injected faults."""

from pathlib import Path

import pytest

from benchmarks import outages
from benchmarks.faults import in_process, policy
from envs import sandboxes

pytestmark = pytest.mark.docker
INSIDE = ["sandbox_create", "sandbox_exec", "mid_episode_death", "grading", "engine_crash"]


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    try:
        sandboxes.load("docker").preflight(outages.IMAGE)
    except sandboxes.SandboxUnavailable as problem:
        pytest.skip(str(problem))


def test_no_fault_reaches_a_reward_or_the_gradient_and_no_prompt_is_lost(tmp_path: Path) -> None:
    model = policy(tmp_path / "policy")
    found = in_process(INSIDE, "docker", tmp_path, model, groups=8, rate=0.2)
    assert found.pop("gradient_equal") is True
    for boundary, row in found.items():
        assert row["struck"] > 0 and row["wasted_fraction"] > 0, boundary
        assert row["right"] >= 8, "there are right attempts that could have become zeros"
        assert (row["false_zeros"], row["lost_prompts"], row["duplicated_prompts"], row["hung"]) == (0, 0, 0, 0), row


@pytest.mark.slow
def test_a_run_goes_on_over_the_death_of_its_worker_its_engine_and_its_learner(tmp_path: Path) -> None:
    found = outages.actor_kill(tmp_path, policy(tmp_path / "policy"))
    assert found["exit"] == 0 and found["steps"] and found["hung"] == 0, found
    assert (found["false_zeros"], found["lost_prompts"], found["duplicated_prompts"]) == (0, 0, 0), found
    told = " ".join(found["told"])
    assert all(f"{name} " in told for name in ("rollout-0", "generator-0", "learner")), found
