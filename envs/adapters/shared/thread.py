"""One thread for one attempt: blocking code of the user's runs there, all of it in the same thread, call after call."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Thread:
    """Begun at the first call. A call that never ends keeps only this thread, which the process does not wait for."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def __call__(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """The result, awaited where it is a coroutine's."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if answer.done():  # nobody waits any more
                return
            if error is None:
                answer.set_result(result)
            elif isinstance(error, Exception) and not isinstance(error, StopIteration):
                answer.set_exception(error)
            else:
                answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

        def call() -> None:
            result, problem = None, None
            try:
                result = function(*args, **named)
            except BaseException as error:
                problem = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, problem)

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._calls.put(call)
        result = await answer
        return await result if inspect.isawaitable(result) else result

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def close(self) -> None:
        self._calls.put(None)


def wait(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, for a caller that may itself be called from a coroutine."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(work))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()
