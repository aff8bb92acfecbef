"""A simulator behind `reset` and `step`, whichever of three interfaces it has, and what one attempt at it came to."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from envs import EnvCrashed, Facts, Message, Task
from envs.adapters.shared import rows
from envs.adapters.shared.reference import resolve

ROUNDING = 1e-9
INFO_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes one simulator: of Gymnasium's interface, or of SkyRL-Gym's, which begins with a row."""

    env: str
    new: Callable[[Mapping[str, Any]], Any]
    wants_rows: bool

    def space(self) -> Any:
        """Of the actions; None where any text is one. Raises ValueError where no simulator can be made."""
        if self.wants_rows:
            return None
        try:
            made = self.new({})
        except Exception as error:  # whatever the user's class raises is told, not traced
            raise ValueError(f"cannot be made: {type(error).__name__}: {error}") from None
        try:
            if not callable(getattr(made, "reset", None)) or not callable(getattr(made, "step", None)):
                raise ValueError(f"is a {type(made).__name__} without `reset` and `step`, or `init` and `step`")
            return getattr(made, "action_space", None)
        finally:
            if hasattr(made, "close"):
                made.close()


def maker(env: str, args: dict[str, Any], render: bool) -> Maker:
    """Raises ValueError for what is neither a registered id nor a class."""
    drawn: dict[str, Any] = {"render_mode": "ansi"} if render else {}
    if re.search(r"(-v\d+|^[^:./]+)$", env):
        try:
            import gymnasium
        except ImportError:
            raise ValueError(f"{env!r} needs the package gymnasium: pip install gymnasium") from None
        try:
            gymnasium.spec(env)
        except Exception as error:
            raise ValueError(f"there is no environment {env!r}: {error}") from None
        return Maker(env, lambda row: gymnasium.make(env, **drawn, **args), False)
    made = resolve(env, "env")
    if not callable(made):
        raise ValueError(f"env {env!r} is a {type(made).__name__}; expected a class")
    if hasattr(made, "init") and not hasattr(made, "reset"):
        names = inspect.signature(made).parameters
        config = {"env_config": args} if "env_config" in names else args
        return Maker(env, lambda row: made(**config, **({"extras": dict(row)} if "extras" in names else {})), True)
    return Maker(env, lambda row: made(**drawn, **args), False)


@dataclass(slots=True)
class Heard:
    """What a simulator answered."""

    observation: Any
    info: Mapping[str, Any]
    messages: list[Message]
    reward: float = 0.0
    ended: Literal["", "terminated", "truncated"] = ""
    replaces: bool = False
    """The messages are the whole conversation so far, and no observation."""


class Simulator:
    """One simulator, made and called on one thread."""

    def __init__(self, make: Maker, task: Task, render: bool) -> None:
        self.task, self.render = task, render
        self.row = task.hidden.get("columns", {})
        self.text_only = make.wants_rows
        self.env = make.new(self.row)

    def start(self) -> Heard:
        if self.text_only:
            found = self.env.init(list(rows.messages(self.row["prompt"])))
            said, info = found if isinstance(found, tuple) else (found, {})
            return Heard(said, info or {}, [_message(one) for one in said], replaces=True)
        found = self._reset(self.task.given.get("seed"))
        paired = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
        observation, info = found if paired else (found, {})
        return Heard(observation, info, self._observed(observation))

    def _reset(self, seed: int | None) -> Any:
        taken = inspect.signature(self.env.reset).parameters.values()
        if seed is None or any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in taken):
            return self.env.reset(**({} if seed is None else {"seed": seed}))
        if not callable(getattr(self.env, "seed", None)):
            raise TypeError("takes no seed: neither `reset(seed=…)` nor `seed(…)`, so its tasks could not be repeated")
        self.env.seed(seed)
        return self.env.reset()

    def step(self, action: Any) -> Heard:
        found = self.env.step(action)
        if isinstance(found, Mapping):
            said = [_message(one) for one in found["observations"] or ()]
            ended: Literal["", "terminated"] = "terminated" if found["done"] else ""
            return Heard(said, found.get("metadata") or {}, said, float(found["reward"]), ended)
        if not isinstance(found, tuple) or len(found) not in (4, 5):
            raise TypeError(f"step gave {str(found)[:80]}; expected a tuple of 4 or 5, or a dict with `observations`")
        observation, reward, *over, info = found
        info = info or {}
        cut = bool(over[1]) if len(over) == 2 else bool(info.get("TimeLimit.truncated"))
        terminated = bool(over[0]) and not (len(over) == 1 and cut)
        stopped: Literal["", "terminated", "truncated"] = "terminated" if terminated else "truncated" if cut else ""
        return Heard(observation, info, self._observed(observation), float(reward), stopped)

    def _observed(self, observation: Any) -> list[Message]:
        shown = [observation if isinstance(observation, str) else json.dumps(_plain(observation), default=str)]
        if self.render and isinstance(drawn := self.env.render(), str):
            shown.append(uncoloured(drawn))
        return [{"role": "user", "content": "\n".join(shown)}]

    def close(self) -> None:
        if hasattr(self.env, "close"):
            self.env.close()


def _message(one: Any) -> Message:
    made = {"role": str(one["role"]), "content": rows.text(one["content"])}
    return {**made, "name": str(one.get("name", "tool"))} if made["role"] == "tool" else made


def _plain(value: Any) -> Any:
    """As JSON has it, of numpy's types and tuples."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def uncoloured(drawn: str) -> str:
    """A drawing without terminal colours: what had a background stands in brackets, other colours in round ones."""
    drawn = re.sub(r"\x1b\[4\dm(.*?)\x1b\[0m", r"[\1]", drawn)
    drawn = re.sub(r"\x1b\[3\dm(.*?)\x1b\[0m", r"(\1)", drawn)
    return re.sub(r"\x1b\[[\d;]*m", "", drawn).strip("\n")


@dataclass(slots=True)
class Played:
    """One attempt, counted."""

    rewards: list[float] = field(default_factory=list)
    ended: Literal["", "terminated", "truncated", "turns"] = ""
    misread: int = 0
    """Turns whose action could not be understood."""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        return len(self.rewards)

    def count(self, heard: Heard, max_turns: int) -> None:
        if not math.isfinite(heard.reward):
            raise EnvCrashed(f"the reward of a turn is {heard.reward}; expected a finite number")
        self.info = heard.info
        self.turn(heard.reward, max_turns, heard.ended)

    def turn(self, reward: float, max_turns: int, ended: Literal["", "terminated", "truncated"] = "") -> None:
        self.rewards.append(reward)
        self.ended = ended or ("turns" if self.turns >= max_turns else "")

    def solved(self, solved_at: float) -> bool:
        told = [self.info[name] for name in ("success", "is_success") if name in self.info]
        return bool(told[0]) if told else sum(self.rewards) >= solved_at - ROUNDING

    def facts(self, solved_at: float) -> Facts:
        info = {str(name): _plain(value) for name, value in self.info.items()}
        try:
            shown = info if len(json.dumps(info, allow_nan=False)) <= INFO_CHARS else {}
        except (TypeError, ValueError, RecursionError):
            shown = {}
        return {
            "solved": self.solved(solved_at),
            "reward": sum(self.rewards),
            "rewards": list(self.rewards),
            "ended": self.ended,
            "truncated": self.ended in ("truncated", "turns"),
            "misread": self.misread,
            "info": shown,
        }
