"""The recipe that is shipped for CWM: it loads, and says what is known of the paper's run."""

from pathlib import Path

import pytest

from rl import algorithms, stages
from rl.config import load

RECIPE = Path(__file__).parent.parent.parent / "configs" / "cwm_recipe.yaml"


def test_the_recipe_says_what_the_paper_did(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = load(RECIPE, [f"policy.model={tmp_path}", "worlds.swe.args.tasks=null"])
    assert recipe.algorithm.name == "grpo"
    knobs = algorithms.load(recipe.algorithm.name, **recipe.algorithm.args).config  # type: ignore[attr-defined]
    assert (knobs.clip_low, knobs.clip_high, knobs.correction) == (0.2, 0.25, "none")
    assert recipe.policy.context == recipe.learner.row_tokens == 131_072
    assert 8.4e6 * 0.99 < recipe.learner.batch_tokens <= 16.8e6
    assert (recipe.policy.temperature, recipe.policy.top_p) == (1.0, 1.0)
    assert recipe.train.max_staleness == 100 and not recipe.train.sync
    assert recipe.rollout.group_size == 8
    assert (recipe.learner.lr, recipe.learner.warmup_steps, recipe.learner.grad_clip) == (1.4e-7, 400, 0.1)
    assert {name: world.weight for name, world in recipe.worlds.items()} == {"swe": 40, "code": 40, "math": 20}
    assert recipe.worlds["swe"].args["max_turns"] == 128
    assert recipe.rewards == {
        "outcome": {"weight": pytest.approx(2.0)},
        "patch_similarity": {"weight": 1.0, "threshold": 0.5, "only_failed": True},
    }, "scores 2 apart, as +1 and -1 are, and halfway where a failing patch resembles the right one"
    assert recipe.filters == {"gibberish": {"mode": "enforce", "vocabulary": 128_256, "rare_from": 100_000}}
    early, late = stages.at(recipe, 0), stages.at(recipe, 9_999)
    assert early.rewards["length"]["soft_tokens"] == 8192 and late.rewards["length"]["soft_tokens"] == 65_535
    assert "length" not in stages.at(recipe, 10_000).rewards
    shares = [{w: round(100 * s) for w, s in stages.targets(recipe, v).items()} for v in (14_124, 14_125, 16_500)]
    assert shares == [{"swe": 40, "code": 40, "math": 20}, *[{"swe": 30, "code": 50, "math": 20}] * 2]
    assert [stages.at(recipe, v).worlds["math"].difficulty.active for v in (16_499, 16_500)] == [False, True]
