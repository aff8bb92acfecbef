"""The process in which reward functions run: `python -m envs.adapters.shared.serve FD REFERENCE…`.

Requests come as JSON lines on stdin, answers go to the file descriptor FD, so that what the functions print is in
nobody's way. They run on the main thread, where `signal.alarm` works: one after the other where they are plain, all
that wait together where they are coroutines. Each is answered twice: when it begins, for only then its time
runs, and with the values. The process ends with its stdin.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from envs.adapters.shared.reference import resolve

NOT_OURS = ("completion_ids", "trainer_state", "environments")
"""What a trainer would hand over and nobody here has."""
TEXT_CHARS = 2000


def is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def accepted(function: Any) -> tuple[set[str], set[str], bool]:
    """Names that a function must be given, all that it names, and whether it takes any other."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in named if p.default is p.empty}
    return needed, {p.name for p in named}, any(p.kind is p.VAR_KEYWORD for p in parameters)


class Logged:
    """What functions say beside their rewards: `log_metric` and `log_extra`."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.extra: dict[str, list[Any]] = {}

    def metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(str(name), []).append(float(value))

    def column(self, column: str, values: list[Any]) -> None:
        self.extra.setdefault(str(column), []).extend(map(_plain, values))

    def to_json(self) -> dict[str, Any]:
        means = {name: sum(values) / len(values) for name, values in self.metrics.items()}
        return {"metrics": {name: mean for name, mean in means.items() if math.isfinite(mean)}, "extra": self.extra}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int) else str(value)[:TEXT_CHARS]


async def judge(functions: list[Callable[..., Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Values by function, each a list as long as `completions`."""
    logged = Logged()
    columns = {
        **request["columns"],
        "prompts": request["prompts"],
        "completions": request["completions"],
        "log_extra": logged.column,
        "log_metric": logged.metric,
    }
    count = len(request["completions"])

    async def one(function: Callable[..., Any]) -> list[float | None]:
        _, named, open_ended = accepted(function)
        given = columns if open_ended else {name: value for name, value in columns.items() if name in named}
        result = function(**given)
        return _values(await result if inspect.isawaitable(result) else result, function, count)

    later = [(at, one(function)) for at, function in enumerate(functions) if is_async(function)]
    try:
        values = {at: await one(function) for at, function in enumerate(functions) if not is_async(function)}
    except BaseException:
        for _, waiting in later:
            waiting.close()
        raise
    awaited = await asyncio.gather(*(waiting for _, waiting in later))
    values |= {at: value for (at, _), value in zip(later, awaited, strict=True)}
    return {"values": [values[at] for at in range(len(functions))], **logged.to_json()}


def _values(result: Any, function: Any, count: int) -> list[float | None]:
    name = getattr(function, "__name__", type(function).__name__)
    found = [None if value is None else float(value) for value in result]
    if len(found) != count:
        raise ValueError(f"{name} returned {len(found)} rewards; expected one for each of {count} completions")
    if any(value is not None and math.isinf(value) for value in found):
        raise ValueError(f"{name} returned {found}; expected finite numbers or None")
    return [None if value is None or math.isnan(value) else value for value in found]


async def serve(out: int, references: list[str]) -> None:
    functions = [resolve(reference, "reward function") for reference in references]
    requests: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(requests.put_nowait, line)
        os._exit(0)  # whoever asked is gone, and a function that never ends must not outlive it

    async def answer(request: dict[str, Any]) -> None:
        _write(out, {"id": request["id"], "began": True})
        try:
            said = await judge(functions, request)
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        _write(out, {"id": request["id"], **said})

    threading.Thread(target=read, daemon=True).start()
    running: set[asyncio.Task[None]] = set()
    while True:
        task = asyncio.create_task(answer(json.loads(await requests.get())))
        running.add(task)
        task.add_done_callback(running.discard)


def _write(out: int, said: dict[str, Any]) -> None:
    data = json.dumps(said).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:]))
