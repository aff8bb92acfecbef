"""Environments written for the package `verifiers`, as they are: v0 (`load_environment`) and v1 (a `Taskset`).

    worlds:
      words:
        world: verifiers_hub
        args: {environment: reverse_text, args: {n: 100}, gold: "<answer>{answer}</answer>"}
    rewards: {fact: {name: reward}}                   # the weighted sum of the package's own rewards

The package and the environment's own are the user's to install; both run in the process that plays, with its rights,
and v1's tools in processes that it starts. Of v0 all that takes turns with one policy works (classic.py); of v1 all
that has one agent and needs no container of the package's (taskset.py). What is raised in a reward loses the episode,
where the package itself would make a 0 of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from envs import Env, Message, Split, Task, heldout
from envs.sandboxes import SandboxPool


class Kind(Protocol):
    """One generation of the package: classic.py, taskset.py."""

    max_turns: int | None
    """None where the environment says nothing of it."""

    def rows(self) -> tuple[list[Any], list[Any] | None]:
        """Problems to train on, and others held out; None where there is one lot for both."""
        ...

    def seen(self, row: Any) -> tuple[list[Message], str]:
        """What the policy reads of a problem, and its right answer, empty where it has none."""
        ...

    def told(self, row: Any) -> Mapping[str, Any]:
        """All of a problem, as JSON."""
        ...

    def open(self, row: Any, solved_at: float) -> Env: ...

    async def close(self) -> None: ...


class World:
    """`environment` and `args`: as the package takes them. `gold`: how a right answer is written, with `{answer}` for
    the problem's own: only with it can `rl check` play one. `solved_at`: the least reward that counts as solved.
    """

    name = "verifiers_hub"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        environment: str,
        args: Mapping[str, Any] | None = None,
        seed: int = 0,
        gold: str = "",
        solved_at: float = 1.0,
        max_turns: int | None = None,
    ) -> None:
        if gold and (not isinstance(gold, str) or "{answer}" not in gold):
            raise ValueError(f"world verifiers_hub: got gold={gold!r}; expected a text with {{answer}} in it")
        self.seed, self.gold, self.solved_at = seed, gold, solved_at
        self.kind = _loaded(environment, dict(args or {}))
        self.max_turns = max_turns or self.kind.max_turns or 20
        self.environment = environment
        self._rows: dict[str, Any] = {}
        train, held = self.kind.rows()
        known = list(dict.fromkeys(map(self._known, train)))
        apart = None if held is None else list(dict.fromkeys(map(self._known, held)))
        side = self._sides([*known, *(apart or ())])
        beyond = {side[key] for key in apart or ()}
        self.keys: dict[Split, list[str]] = {
            "train": [
                key for key in known if (side[key] not in beyond if apart is not None else not heldout(side[key]))
            ],
            "heldout": apart if apart is not None else [key for key in known if heldout(side[key])],
        }

    def _sides(self, keys: Sequence[str]) -> dict[str, str]:
        """What decides the split by key: what the policy reads, or the whole row where it always reads the same."""
        seen = {key: json.dumps(self.kind.seen(self._rows[key])[0]) for key in keys}
        several = len(set(seen.values())) > 1
        return {key: hashlib.sha256((said if several else key).encode()).hexdigest() for key, said in seen.items()}

    def _known(self, row: Any) -> str:
        text = json.dumps(self.kind.told(row), sort_keys=True, default=str)
        key = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
        self._rows.setdefault(key, row)
        return key

    def task(self, split: Split, index: int) -> Task:
        keys = self.keys[split]
        if not keys:
            raise ValueError(f"{self.environment} has no {split} problem among {len(self._rows)}; expected more")
        turn, place = divmod(index, len(keys))
        order = list(keys)
        if split == "train":
            random.Random(f"verifiers/{self.seed}/{turn}").shuffle(order)
        row = self._rows[order[place]]
        messages, answer = self.kind.seen(row)
        hidden = {"row": dict(self.kind.told(row)), **({"answer": answer} if answer else {})}
        family = str(self.environment)
        return Task(world=self.name, key=order[place], family=family, level=0, messages=tuple(messages), hidden=hidden)

    def size(self, split: Split) -> int:
        return len(self.keys[split])

    def open(self, task: Task) -> Env:
        return self.kind.open(self._rows[task.key], self.solved_at)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        answer = task.hidden.get("answer")
        if not self.gold or answer is None:
            lacks = "no `gold` says how an answer is written" if answer else "the problem has no answer of its own"
            raise ValueError(f"{lacks}, so {self.environment} has no right demonstration; got gold={self.gold!r}")
        said = self.gold.replace("{answer}", "no such answer" if err else str(answer))
        return [*task.messages, {"role": "assistant", "content": said}]

    async def close(self) -> None:
        await self.kind.close()


def _loaded(environment: str, args: dict[str, Any]) -> Kind:
    """Raises ValueError where the package or the environment is not installed, or the environment cannot be loaded."""
    try:
        verifiers = importlib.import_module("verifiers")
    except ModuleNotFoundError:
        raise ValueError("world verifiers_hub needs the package `verifiers`: `pip install verifiers`") from None
    name = environment.replace("-", "_").rpartition("/")[2]
    try:
        module = importlib.import_module(name)
        if hasattr(module, "load_environment"):
            if not hasattr(verifiers, "Rubric"):
                raise ValueError(
                    f"environment {environment!r} is of v0 (it has load_environment), which verifiers "
                    f"{verifiers.__version__} no longer knows: expected an older one, as verifiers==0.3.1"
                )
            from envs.adapters.verifiers_hub.classic import Classic

            return Classic(module, environment, args)
        if importlib.util.find_spec("verifiers.v1") is None:
            raise ValueError(
                f"environment {environment!r} has no load_environment, and the installed verifiers knows no v1: "
                "expected verifiers 0.3 or newer"
            )
        from envs.adapters.verifiers_hub.taskset import Tasks

        return Tasks(module, environment, args)
    except ModuleNotFoundError as problem:
        lacks = f"a module {problem.name!r}, which it needs" if problem.name != name else f"a module {name!r}"
        raise ValueError(f"environment {environment!r}: there is not {lacks}; install it first") from None
