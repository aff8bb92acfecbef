"""Configuration: what is right loads and comes back as it was; what is wrong is one sentence, before anything runs."""

from pathlib import Path

import pytest

import envs
import rewards
from rl import cli
from rl.config import ConfigError, RunConfig, WorldConfig, load, plain, save

GOOD = "worlds: {math: {args: {python_tool: false}}}\n"
ROOT = Path(__file__).parent.parent.parent
WORLDS = ", ".join(envs.available())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(text: str = GOOD, *overrides: str) -> RunConfig:
    Path("x.yaml").write_text(text)
    return load("x.yaml", overrides)


# The text of the file, the overrides, and the whole of what is said.
BAD = {
    "unknown key": (GOOD, ["polcy.context=3"], "unknown key polcy; did you mean policy?"),
    "unknown key in the file": (GOOD + "sead: 3\n", [], "unknown key sead; did you mean seed?"),
    "unknown nested key": (GOOD, ["policy.contxt=3"], "unknown key policy.contxt; did you mean policy.context?"),
    "unknown key of a world": (
        GOOD,
        ["worlds.math.wieght=1"],
        "unknown key worlds.math.wieght; did you mean worlds.math.weight?",
    ),
    "no rewards": (
        GOOD + "rewards: {}\n",
        [],
        f"no rewards are configured; available: {', '.join(rewards.available())}",
    ),
    "nothing near": (
        GOOD,
        ["eval.zzz=3"],
        "unknown key eval.zzz; available: tasks, samples",
    ),
    "wrong type": (
        GOOD,
        ["policy.context=many"],
        "x.yaml: policy.context: Value 'many' of type 'str' could not be converted to Integer",
    ),
    "unknown sandbox backend": (
        GOOD,
        ["rollout.backend=podman"],
        "got rollout.backend=podman; available: auto, bubblewrap, docker",
    ),
    "an image without Docker": (
        GOOD,
        ["rollout.backend=bubblewrap", "rollout.image=x"],
        "rollout.image has no effect where rollout.backend is bubblewrap: the machine is the image",
    ),
    "no value": (GOOD, ["learner.lr="], "x.yaml: learner.lr: Incompatible value 'None' for field of type 'float'"),
    "a value for a section": (
        GOOD,
        ["learner=3"],
        "x.yaml: Merge error: int is not a subclass of LearnerConfig. value: 3",
    ),
    "no world": ("", [], f"no worlds are configured; available: {WORLDS}"),
    "unknown world": (GOOD, ["worlds.mth={}"], f"there is no world 'mth'; available: {WORLDS}"),
    "unknown file of a world": (
        GOOD,
        ["worlds.math.world=./chess.py"],
        f"there is no file ./chess.py; expected a world's file, or one of {WORLDS}",
    ),
    "a path as a name": (
        GOOD,
        ["worlds={./chess.py: {}}"],
        "got './chess.py' as the name of a world; expected letters, digits, _ and -, and what plays it in "
        "its key `world`, as in worlds={chess: {world: ./chess.py}}",
    ),
    "another world in a stage": (
        GOOD,
        ["stages=[{worlds: {math: {world: code}}}]"],
        "unknown key stages[0].worlds.math.world; available: weight, args, difficulty",
    ),
    "no YAML": (
        GOOD,
        ["worlds={math:{}}"],
        "got override 'worlds={math:{}}': while scanning a plain scalar; YAML wants a space after each colon",
    ),
    "empty world": ("worlds: {math: }\n", [], "x.yaml: worlds.math: field 'worlds.math' is not Optional"),
    "worlds as a list": ("worlds: [math]\n", [], "worlds holds a list; expected keys and values"),
    "unknown world argument": (
        GOOD,
        ["worlds.math.args.levls=[0]"],
        "unknown key worlds.math.args.levls; did you mean levels?",
    ),
    "world argument out of range": (
        GOOD,
        ["worlds.math.args.levels=[9]"],
        "world math: got levels [9]; available: 0, 1, 2",
    ),
    "world argument of a wrong type": (
        GOOD,
        ["worlds.math.args.levels=3"],
        "worlds.math.args: 'int' object is not iterable",
    ),
    "no world played": (GOOD, ["worlds.math.weight=0"], "every world has weight 0; expected at least one above"),
    "negative weight": (GOOD, ["worlds.math.weight=-1"], "got worlds.math.weight=-1.0; expected zero or more"),
    "unknown reward": (
        GOOD + "rewards: {outcom: {weight: 1}}\n",
        [],
        f"there is no reward 'outcom'; available: {', '.join(rewards.available())}",
    ),
    "unknown reward argument": (
        GOOD,
        ["rewards.outcome.wieght=1"],
        "unknown key rewards.outcome.wieght; did you mean weight?",
    ),
    "missing reward argument": (
        GOOD,
        ["rewards.length.soft_tokens=5"],
        "rewards.length: missing a required argument: 'hard_tokens'",
    ),
    "unknown filter": (
        GOOD + "filters: {gibberich: {mode: track}}\n",
        [],
        "there is no filter 'gibberich'; available: gibberish, overlong, repetition",
    ),
    "filter mode": (
        GOOD,
        ["filters.overlong.mode=drop"],
        "filters.overlong: got mode='drop'; available: track, enforce",
    ),
    "unknown filter argument": (
        GOOD,
        ["filters.overlong.budget=[time]"],
        "unknown key filters.overlong.budget; did you mean budgets?",
    ),
    "filters as a list": (GOOD + "filters: [overlong]\n", [], "filters holds a list; expected keys and values"),
    "unknown key of the difficulty": (
        GOOD,
        ["worlds.math.difficulty.lo=0.1"],
        "unknown key worlds.math.difficulty.lo; did you mean worlds.math.difficulty.low?",
    ),
    "reward weight": (GOOD, ["rewards.outcome.weight=lots"], "rewards.outcome: got weight='lots'; expected a number"),
    "reward gate": (GOOD, ["rewards.outcome.gate=1"], "rewards.outcome: got gate=1; expected true or false"),
    "a gate with a weight": (
        GOOD,
        ["rewards.outcome.gate=true"],
        "rewards.outcome: weight has no effect on a gate, which multiplies the sum; leave one of the two out",
    ),
    "only gates": (
        GOOD + "rewards: {outcome: {gate: true}, tool_format: {weight: 0}}\n",
        [],
        "got rewards that are all gates or of weight 0 (outcome, tool_format); expected one that adds to the score",
    ),
    "normalised to no effect": (
        GOOD,
        ["rewards.outcome.weight=0", "rewards.outcome.normalise=true"],
        "rewards.outcome: normalise has no effect on a part of weight 0, whose value is kept as it is; leave it out",
    ),
    "a threshold that is normalised": (
        GOOD,
        ["rewards.outcome.threshold=0.5", "rewards.outcome.normalise=true"],
        "rewards.outcome: a part has a threshold or is normalised within its group, not both; leave one of the two out",
    ),
    "another name for no reward": (
        GOOD,
        ["rewards.boxed.reward=frmat"],
        f"there is no reward 'frmat'; available: {', '.join(rewards.available())}",
    ),
    "another name's argument": (
        GOOD,
        ["rewards.boxed.reward=format", "rewards.boxed.patern=x"],
        "unknown key rewards.boxed.patern; did you mean pattern?",
    ),
    "an argument that a reward refuses": (
        GOOD,
        ["rewards.format.pattern=x", "rewards.format.where=first"],
        "rewards.format: got where='first'; available: last, any, every",
    ),
    "unknown algorithm": (
        GOOD,
        ["algorithm.name=grop"],
        "there is no algorithm 'grop'; available: cispo, dapo, dr_grpo, grpo, gspo, rloo, turns",
    ),
    "unknown knob": (
        GOOD,
        ["algorithm.args.clip=1"],
        "algorithm 'grpo' has no knob clip; available: clip_low, clip_high, correction, correction_cap",
    ),
    "unknown engine": (
        GOOD,
        ["engine.name=vlm"],
        "there is no engine 'vlm'; available: drawn, recited, scripted, vllm",
    ),
    "no model": (
        GOOD,
        ["policy.model=nowhere"],
        "policy.model: there is no Hugging Face model in 'nowhere'; expected a folder with config.json",
    ),
    "inert staleness": (
        GOOD,
        ["train.sync=true", "train.max_staleness=1"],
        "train.max_staleness has no effect where train.sync is true: its staleness is always 0",
    ),
    "short rows": (
        GOOD,
        ["learner.row_tokens=100", "policy.context=101"],
        "got learner.row_tokens=100; expected at least policy.context=101, so that a whole episode fits into a row",
    ),
    "zero": (GOOD, ["train.groups=0"], "got train.groups=0; expected more than 0"),
    "newer than now": (
        GOOD,
        ["train.max_staleness=-1"],
        "got train.max_staleness=-1; expected 0 or more",
    ),
    "nucleus": (GOOD, ["policy.top_p=0"], "got policy.top_p=0.0; expected more than 0, at most 1"),
    "nothing to compare": (
        GOOD,
        ["rollout.group_size=1"],
        "got rollout.group_size=1; expected at least 2, to compare attempts",
    ),
    "unknown dtype": (GOOD, ["policy.dtype=int8"], "got policy.dtype=int8; available: float32, bfloat16"),
    "no override": (GOOD, ["nonsense"], "got override 'nonsense'; expected key=value, as in learner.lr=1e-4"),
    "override without key": (GOOD, ["=3"], "got override '=3'; expected key=value, as in learner.lr=1e-4"),
    "a list": ("- 1\n", [], "x.yaml holds a list; expected keys and values"),
    "a list and an override": ("- 1\n", ["seed=1"], "x.yaml holds a list; expected keys and values"),
    "a number": ("3\n", [], "x.yaml holds a single value; expected keys and values"),
    "dangling reference": (GOOD + "name: ${y}\n", [], "x.yaml: name: Interpolation key 'y' not found"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_clear_sentence(case: str) -> None:
    text, overrides, sentence = BAD[case]
    with pytest.raises(ConfigError) as caught:
        loaded(text, *overrides)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_command_says_it_in_one_line_and_leaves_nothing(
    case: str, command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, overrides, sentence = BAD[case]
    Path("x.yaml").write_text(text)
    assert cli.main([command, "x.yaml", *overrides]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"rl {command}: {sentence}\n")
    assert [path.name for path in place.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("text", ["a: [", GOOD + GOOD, "a:\n\t- b\n"])
def test_what_is_no_yaml(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(text)
    assert cli.main(["train", "x.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rl train: x.yaml is no YAML: ") and said.count("\n") == 1
    assert [path.name for path in place.iterdir()] == ["x.yaml"]


def test_a_missing_file_and_what_there_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nope.yaml"]) == 2
    assert capsys.readouterr().err == "rl train: there is no configuration file nope.yaml; available: none\n"
    assert not list(place.iterdir())
    (place / "configs").mkdir()
    (place / "configs" / "small.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no configuration file nope.yaml; available: configs/small\.yaml$"):
        load("nope.yaml")


def test_warm_start_has_no_effect_beside_a_model(place: Path) -> None:
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    assert loaded(GOOD, "policy.model=model").policy.model == "model"
    with pytest.raises(ConfigError, match=r"^warmstart has no effect where policy\.model names a model; leave one"):
        loaded(GOOD + "warmstart: {steps: 3}\n", "policy.model=model")


def test_overrides_win_over_the_file_and_the_file_over_the_defaults() -> None:
    config = loaded(GOOD + "train: {steps: 7, groups: 9}\n", "train.groups=11", "learner.lr=1e-4", "name=try")
    assert (config.train.steps, config.train.groups, config.learner.lr) == (7, 11, 1e-4)
    assert config.train.checkpoint_every == RunConfig().train.checkpoint_every
    assert config.folder == Path("runs/try")
    assert config.rewards == {"outcome": {"weight": 1.0}}


_OWN = {"policy.model=model": "no Hugging Face model", "worlds.swe.args.tasks=null": "no tasks/"}
NEEDS = {"joint_real.yaml": _OWN, "cwm_recipe.yaml": _OWN}
"""What a configuration leaves to its user, and what is said where that is missing."""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_load_and_come_back_as_they_were_saved(path: Path, place: Path) -> None:
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    needs = NEEDS.get(path.name, {})
    for missing, said in needs.items():
        with pytest.raises(ConfigError, match=said):
            load(path, [given for given in needs if given != missing])
    config = load(path, ["engine.args.block_size=16", "seed=3", *needs])
    save(config, place / "saved.yaml")
    assert plain(load(place / "saved.yaml")) == plain(config)


def test_the_file_that_a_run_saves_is_loaded_again(place: Path) -> None:
    """`rl eval runs/x/config.yaml` and the like: every default that has an effect is spelled out in it."""
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    for overrides in ([], ["policy.model=model"], ["train.sync=true"], ["rollout.backend=bubblewrap"]):
        config = loaded(GOOD, *overrides)
        save(config, place / "saved.yaml")
        assert load(place / "saved.yaml") == config
        assert f"checkpoint_every: {config.train.checkpoint_every}" in (place / "saved.yaml").read_text()


def test_the_rewards_of_a_file_stand_in_place_of_the_default_and_overrides_beside_them() -> None:
    both = {"outcome": {"weight": 1.0}, "tool_format": {"weight": 0.5}}
    assert loaded(GOOD + "rewards: {tool_format: {weight: 0.5}}\n").rewards == {"tool_format": {"weight": 0.5}}
    assert loaded(GOOD, "rewards.tool_format.weight=0.5").rewards == both
    config = loaded(GOOD + "rewards: {tool_format: {weight: 0.5}}\n", "rewards.outcome.weight=1.0")
    assert config.rewards == both


def test_overrides_may_follow_options_and_other_words_may_not(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(GOOD)
    assert cli.main(["eval", "x.yaml", "sead=1", "--worlds", "math", "seed=2"]) == 2
    assert cli.main(["eval", "x.yaml", "--worlds", "math", "sead=1"]) == 2
    assert capsys.readouterr().err == "rl eval: unknown key sead; did you mean seed?\n" * 2
    for wrong in (
        ["eval", "x.yaml", "--worlds", "math", "--sead=1"],
        ["report", "x", "a=1"],
        ["eval", "x.yaml", "--json", "a"],
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(wrong)


def test_a_world_is_called_as_its_user_likes_and_played_by_what_it_says(place: Path) -> None:
    (place / "chess.py").write_text("class World:\n    def __init__(self, sandboxes, *, seed=0, level=1): ...\n")
    config = loaded(GOOD, "worlds.mine={world: ./chess.py, args: {level: 2}}", "worlds.hard.world=math")
    assert [config.plays(name) for name in config.worlds] == ["math", "./chess.py", "math"]
    save(config, Path("again.yaml"))
    assert load("again.yaml") == config
    with pytest.raises(ConfigError, match=r"unknown key worlds.mine.args.lvl; did you mean level"):
        loaded(GOOD, "worlds.mine={world: ./chess.py, args: {lvl: 2}}")


def test_what_is_set_as_a_whole_is_not_merged_with_the_files() -> None:
    text = GOOD + "rewards: {outcome: {}}\nfilters: {overlong: {mode: track}}\n"
    config = loaded(text, "worlds={code: {}}", "worlds.code.weight=2", "rewards={tool_format: {}}", "filters={}")
    assert {**config.worlds} == {"code": WorldConfig(weight=2)}
    assert config.rewards == {"tool_format": {}} and config.filters == {}
    assert loaded(GOOD, "rewards={tool_format: {}}").rewards == {"tool_format": {}}
    assert [*loaded(text, "worlds.code={}").worlds] == ["math", "code"]
