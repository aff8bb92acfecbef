"""A run that goes on under another configuration says so, and keeps both."""

from pathlib import Path

from rl import config, resumed
from rl.config import RunConfig


def settings(**values: object) -> RunConfig:
    made = RunConfig()
    for key, value in values.items():
        room, _, name = key.partition("__")
        setattr(getattr(made, room), name, value)
    return made


def test_what_differs_is_named_with_both_values() -> None:
    then = {"a": 1, "worlds": {"math": {"args": {}}, "code": {"args": {"x": [1]}}}, "gone": True}
    now = {"a": 1.0, "worlds": {"math": {"args": {"y": 2}}, "code": {"args": {"x": [2]}}}, "new": None}
    assert list(resumed.changed(then, now)) == [
        ("worlds.math.args.y", None, 2),
        ("worlds.code.args.x", [1], [2]),
        ("gone", True, None),
    ]


def test_a_resume_says_what_changed_and_keeps_both_configurations(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert resumed.renew(settings(), tmp_path, 0) == []
    began = path.read_text()
    assert resumed.renew(settings(), tmp_path, 10) == [] and list(tmp_path.iterdir()) == [path]
    told = resumed.renew(settings(learner__lr=1e-5, train__steps=80), tmp_path, 20)
    assert told == [
        "goes on with learner.lr=1e-05, which was 0.0004 until step 20",
        "goes on with train.steps=80, which was 60 until step 20",
    ]
    assert (tmp_path / "config-until-20.yaml").read_text() == began
    assert config.mapping(path)["learner"]["lr"] == 1e-5
    resumed.renew(settings(learner__lr=1e-6), tmp_path, 20)
    assert (tmp_path / "config-until-20.yaml").read_text() == began, "what has been trained under is not overwritten"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["config-until-20.yaml", "config.yaml"]


def test_many_changes_are_counted(tmp_path: Path) -> None:
    resumed.renew(settings(), tmp_path, 0)
    others = {f"rollout__{name}": 77 for name in ("workers", "group_size", "sandboxes", "memory_mb", "replace_lost")}
    told = resumed.renew(settings(**others, learner__lr=1e-5, train__steps=80), tmp_path, 4)
    assert len(told) == resumed.MOST + 1
    assert told[-1] == f"goes on with 2 other changes of configuration, see {tmp_path / 'config-until-4.yaml'}"
