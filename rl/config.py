"""Configuration: one YAML file plus `key=value` overrides, checked before anything starts. The only door to OmegaConf.

A file holds only what differs from the defaults below. Unknown keys, wrong types, and keys that would have no effect
are refused with the nearest or the available names.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import envs
import rewards
from envs import sandboxes
from policy import engines
from rl import algorithms, filters, stages
from rl.stages import DifficultyConfig, StageConfig

PLUGINS = ("worlds", "rewards", "filters")


class ConfigError(ValueError):
    """One sentence on what was got, what was expected and what there is."""


@dataclass
class Policy:
    model: str | None = None
    """A Hugging Face folder. None warm-starts the project's own tiny policy (see `warmstart`)."""
    context: int = 384
    """Longest episode in tokens, prompt and observations included."""
    turn_tokens: int = 128
    """Longest single turn of the policy."""
    temperature: float = 1.0
    top_p: float = 1.0
    dtype: str = "float32"
    """What engines and learner compute in: float32 or bfloat16."""


@dataclass
class WarmStart:
    steps: int = 2000
    row_tokens: int = 208
    rows: int = 6
    lr: float = 2e-3
    error_rate: float = 0.5
    """Share of demonstrations in which the scripted expert errs."""
    vocab: int = 704
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    cache: str = ".cache/warmstart"


@dataclass
class WorldConfig:
    weight: float = 1.0
    """Share of the tokens trained on, relative to the other worlds: see rl/mix.py."""
    world: str = ""
    """What plays it: a name out of envs/ or envs/adapters/, a dotted module, or a Python file; empty: its own name."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world itself: see `World` in envs/<name>."""
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)


@dataclass
class AlgorithmConfig:
    name: str = "grpo"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class LearnerConfig:
    lr: float = 4e-4  # the tiny policy's (docs/log.md, 22); a pretrained one wants about 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    batch_tokens: int = 4096
    """Sampled tokens of one optimiser step, and the loss's constant denominator."""
    row_tokens: int = 4096
    attention: str = "documents"
    recompute: bool = False
    """Compute the activations of the decoder layers again in backward: less memory, about a third more time."""
    ranks: int = 1
    """Processes that share the weights (FSDP2) and the rows of a step, `train.learner_gpus` each."""
    threads: int = 1
    """CPU threads of one rank."""


@dataclass
class EngineConfig:
    name: str = "vllm"
    count: int = 1
    tensor_parallel: int = 1
    threads: int = 1
    max_sequences: int = 64
    gpus: float = 0.0
    """GPUs of one engine, as Ray counts them."""
    args: dict[str, Any] = field(default_factory=dict)
    """Passed on to the engine itself."""


@dataclass
class RolloutConfig:
    workers: int = 1
    group_size: int = 8
    sandboxes: int = 16
    """Sandboxes a worker may hold at once."""
    backend: str = "auto"
    """A file in envs/sandboxes; `auto` is docker, or bubblewrap where no Docker engine answers."""
    image: str = "touchstone-sandbox:bookworm"
    memory_mb: int = 512
    episode_timeout_s: float = 120.0
    replace_lost: int = 1
    """How often a member that the machinery lost is played again."""


@dataclass
class TrainConfig:
    steps: int = 60
    tokens: int = 0
    """Stop once this many sampled tokens were trained on; 0 for no such bound."""
    sync: bool = False
    """Play, wait, learn, publish, and again: the same parts in lock-step."""
    groups: int = 24
    """Groups in flight or waiting to be trained on."""
    max_staleness: int = 8
    """No token is trained on that a policy more than this many steps old has sampled; at 0 nothing is admitted during a
    step."""
    checkpoint_every: int = 20
    learner_gpus: float = 0.0
    """GPUs of one rank of the learner, as Ray counts them."""
    selftest: bool = True
    """Before learning, check that engine, learner, loss and graders agree: some seconds (rl/selftest.py)."""
    deadline_s: float = 7200.0
    """Longest that the driver waits for one group, batch, step, swap or checkpoint before the run stops."""
    trackers: list[str] = field(default_factory=list)
    """Where each step's figures go beside metrics.jsonl, by accelerate's names: tensorboard, wandb, …"""


@dataclass
class EvalConfig:
    tasks: int = 128
    """Held-out tasks of each world, before and after."""
    samples: int = 1


def _default_rewards() -> dict[str, dict[str, Any]]:
    return {"outcome": {"weight": 1.0}}


@dataclass
class RunConfig:
    name: str = "run"
    seed: int = 0
    runs: str = "runs"
    policy: Policy = field(default_factory=Policy)
    warmstart: WarmStart = field(default_factory=WarmStart)
    worlds: dict[str, WorldConfig] = field(default_factory=dict)
    rewards: dict[str, dict[str, Any]] = field(default_factory=_default_rewards)
    """Where a file has any, they stand in place of the default."""
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is not learnt from: see rl/filters."""
    stages: list[StageConfig] = field(default_factory=list)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def plays(self, world: str) -> str:
        """What `envs.load` takes for one of the worlds."""
        return self.worlds[world].world or world


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, merge and check. Raises ConfigError."""
    if not Path(path).is_file():
        shipped = ", ".join(sorted(map(str, Path("configs").glob("*.yaml")))) or "none"
        raise ConfigError(f"there is no configuration file {path}; available: {shipped}")
    over = _overrides(overrides)
    try:
        read = OmegaConf.load(path)
        if not isinstance(read, DictConfig):
            raise ConfigError(f"{path} holds a list; expected keys and values")
        whole = {name for override in overrides if (name := override.partition("=")[0]) in PLUGINS}
        for name in whole & set(read):
            del read[name]  # what is set as a whole is not merged with the file's
        given = cast(DictConfig, OmegaConf.merge(read, over))
        _known(given, OmegaConf.structured(RunConfig), "")
        defaults = RunConfig(rewards={} if "rewards" in {*read, *whole} else _default_rewards())
        merged = OmegaConf.merge(OmegaConf.structured(defaults), given)
        config = cast(RunConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_sentence(error)}") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
        if isinstance(error, OSError) and str(error).startswith("Invalid loaded object type"):
            raise ConfigError(f"{path} holds a single value; expected keys and values") from None
        raise
    _check(config)
    _inert(given, config)
    return config


def values(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` by itself, values as YAML. Raises ConfigError."""
    try:
        found = OmegaConf.to_container(_overrides(overrides), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"got {' '.join(overrides)}: {_sentence(error)}") from None
    return cast("dict[str, Any]", found)


def mapping(path: str | Path) -> dict[str, Any]:
    """A YAML file of keys and values by itself, unchecked. Raises ConfigError."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # of the file system, of OmegaConf or of its YAML parser
        raise ConfigError(f"{path} cannot be read as YAML: {_sentence(error)}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no mapping; expected keys and values")
    return cast("dict[str, Any]", found)


def _overrides(given: Sequence[str]) -> DictConfig:
    for override in given:
        if "=" not in override.lstrip("="):
            raise ConfigError(f"got override {override!r}; expected key=value, as in learner.lr=1e-4")
        try:
            OmegaConf.from_dotlist([override])
        except Exception as error:  # of OmegaConf or of its YAML parser
            hint = "; YAML wants a space after each colon" if ":" in override else ""
            raise ConfigError(f"got override {override!r}: {_sentence(error)}{hint}") from None
    return OmegaConf.from_dotlist(list(given))


def save(config: RunConfig, path: Path) -> None:
    """Write every key that has an effect, so that `load` takes the file again."""
    resolved = plain(config)
    if config.policy.model is not None:
        del resolved["warmstart"]
    if config.train.sync:
        del resolved["train"]["max_staleness"]
    if config.rollout.backend == "bubblewrap":
        del resolved["rollout"]["image"]
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved)))


def plain(config: Any) -> dict[str, Any]:
    """A configuration object as nested dicts, lists and scalars."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.structured(config)))


def _known(given: DictConfig, schema: DictConfig, prefix: str) -> None:
    """Refuse a key that the schema does not have, naming the nearest that it has."""
    names = [str(k) for k in schema]
    for key in given:
        name = str(key)
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"available: {', '.join(names)}"
            raise ConfigError(f"unknown key {prefix}{name}; {hint}")
        below = given._get_node(key)
        if isinstance(below, ListConfig) and isinstance(schema._get_node(name), DictConfig):
            raise ConfigError(f"{prefix}{name} holds a list; expected keys and values")
        plugins = name in (*PLUGINS, "args")
        if isinstance(below, DictConfig) and not plugins:
            inner = schema._get_node(name)
            if isinstance(inner, DictConfig):
                _known(below, inner, f"{prefix}{name}.")
    if prefix == "" and isinstance(given._get_node("worlds"), DictConfig):
        for world in given.worlds:
            settings = given.worlds[world]
            if isinstance(settings, DictConfig):
                _known(settings, OmegaConf.structured(WorldConfig), f"worlds.{world}.")
    if prefix == "" and isinstance(given._get_node("stages"), ListConfig):
        for number, stage in enumerate(given.stages):
            if isinstance(stage, DictConfig):
                _known(stage, OmegaConf.structured(StageConfig), f"stages[{number}].")


def _sentence(error: Exception) -> str:
    """OmegaConf's message in one line: the first line and the key it speaks of."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {lines[0]}" if key else lines[0]


def _check(config: RunConfig) -> None:
    if not config.rewards:
        raise ConfigError(f"no rewards are configured; available: {', '.join(rewards.available())}")
    if not config.worlds:
        raise ConfigError(f"no worlds are configured; available: {', '.join(envs.available())}")
    try:
        for name in config.worlds:
            _world(config, name)
        for name, settings in config.rewards.items():
            reward = rewards.load(settings.get("reward", name))
            _arguments(f"rewards.{name}", reward, settings, skip=("episode", "episodes"), also=rewards.KEYS)
            _callable(f"rewards.{name}", rewards.check, name, settings)
        rewards.check_sum(config.rewards)
        for name, settings in config.filters.items():
            _arguments(f"filters.{name}", filters.load(name), settings, skip=("member",), also=("mode",))
            _callable(f"filters.{name}", filters.check, name, settings)
        algorithms.load(config.algorithm.name, **config.algorithm.args)
        engines.load(config.engine.name)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None
    if not any(world.weight > 0 for world in config.worlds.values()):
        raise ConfigError("every world has weight 0; expected at least one above")
    _ranges(config)
    _stages(config)
    if config.rollout.backend not in (backends := ["auto", *sandboxes.available()]):
        raise ConfigError(f"got rollout.backend={config.rollout.backend}; available: {', '.join(backends)}")
    if config.policy.model is not None and not (Path(config.policy.model) / "config.json").is_file():
        raise ConfigError(
            f"policy.model: there is no Hugging Face model in {config.policy.model!r}; "
            "expected a folder with config.json"
        )


def _world(config: RunConfig, name: str) -> None:
    """One world: what plays it can be made, with these arguments. Raises ValueError."""
    world, ref = config.worlds[name], config.plays(name)
    if re.fullmatch(r"[A-Za-z_][\w-]*", name) is None:
        raise ConfigError(
            f"got {name!r} as the name of a world; expected letters, digits, _ and -, and what plays it in its key "
            f"`world`, as in worlds={{{envs.short(name)}: {{world: {name}}}}}"
        )
    world.difficulty.check(f"worlds.{name}.difficulty")
    make = envs.load(ref).World
    _arguments(f"worlds.{name}.args", make, world.args, skip=("self", "sandboxes", "seed"))
    if world.weight < 0:
        raise ConfigError(f"got worlds.{name}.weight={world.weight}; expected zero or more")
    try:
        make(None, **world.args)
    except TypeError as error:
        raise ConfigError(f"worlds.{name}.args: {error}") from None


def _callable(where: str, check: Any, name: str, args: Mapping[str, Any]) -> None:
    """Refuse arguments that a plug-in refuses, or that are not all it needs."""
    try:
        check(name, args)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _stages(config: RunConfig) -> None:
    """Each stage, at its first and at its last step, must be a configuration that would be taken as a file."""
    try:
        stages.check(config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for number in range(len(config.stages)):
        try:
            for view in stages.views(config, number):
                _check(view)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"stages[{number}]: {error}") from None


def _ranges(config: RunConfig) -> None:
    positive = {
        "policy.context": config.policy.context,
        "policy.turn_tokens": config.policy.turn_tokens,
        "policy.temperature": config.policy.temperature,
        "learner.batch_tokens": config.learner.batch_tokens,
        "learner.ranks": config.learner.ranks,
        "rollout.workers": config.rollout.workers,
        "rollout.sandboxes": config.rollout.sandboxes,
        "rollout.memory_mb": config.rollout.memory_mb,
        "rollout.episode_timeout_s": config.rollout.episode_timeout_s,
        "engine.count": config.engine.count,
        "train.groups": config.train.groups,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.deadline_s": config.train.deadline_s,
        "eval.tasks": config.eval.tasks,
        "eval.samples": config.eval.samples,
    }
    for key, value in positive.items():
        if value <= 0:
            raise ConfigError(f"got {key}={value}; expected more than 0")
    not_negative = {
        "train.steps": config.train.steps,
        "train.tokens": config.train.tokens,
        "train.max_staleness": config.train.max_staleness,
        "rollout.replace_lost": config.rollout.replace_lost,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"got {key}={value}; expected 0 or more")
    if not 0 < config.policy.top_p <= 1:
        raise ConfigError(f"got policy.top_p={config.policy.top_p}; expected more than 0, at most 1")
    if config.rollout.group_size < 2:
        raise ConfigError(
            f"got rollout.group_size={config.rollout.group_size}; expected at least 2, to compare attempts"
        )
    if config.learner.row_tokens < config.policy.context:
        raise ConfigError(
            f"got learner.row_tokens={config.learner.row_tokens}; "
            f"expected at least policy.context={config.policy.context}, so that a whole episode fits into a row"
        )
    if config.policy.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"got policy.dtype={config.policy.dtype}; available: float32, bfloat16")
    if not 0 <= config.warmstart.error_rate < 1:
        raise ConfigError(f"got warmstart.error_rate={config.warmstart.error_rate}; expected 0 or more, below 1")


def _arguments(
    where: str, function: Any, args: Mapping[str, Any], skip: Sequence[str], also: Sequence[str] = ()
) -> None:
    """Refuse an argument that the function does not take, naming the nearest of those it takes and `also`."""
    names = [*also, *(n for n in inspect.signature(function).parameters if n not in skip)]
    for name in args:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(names) or 'none'}"
            raise ConfigError(f"unknown key {where}.{name}; {hint}")


def _inert(given: DictConfig, config: RunConfig) -> None:
    """Refuse keys that were set and would do nothing."""
    if config.policy.model is not None and "warmstart" in given:
        raise ConfigError("warmstart has no effect where policy.model names a model; leave one of the two out")
    if config.train.sync and "max_staleness" in given.get("train", {}):
        raise ConfigError("train.max_staleness has no effect where train.sync is true: its staleness is always 0")
    if config.rollout.backend == "bubblewrap" and "image" in given.get("rollout", {}):
        raise ConfigError("rollout.image has no effect where rollout.backend is bubblewrap: the machine is the image")
