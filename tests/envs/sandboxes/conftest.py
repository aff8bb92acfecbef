"""Fixtures of the contract's tests: each backend in turn, one event loop, a pool, a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from backends import BACKENDS, IMAGE, Backend, Go

from envs.sandboxes import SandboxUnavailable


@pytest.fixture(scope="module", params=[pytest.param(n, marks=getattr(pytest.mark, n)) for n in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    return ready(request.param)


def ready(name: str) -> Backend:
    """The backend, or the test is skipped with its own sentence on why it does not work here."""
    backend = BACKENDS[name]
    try:
        backend.module().preflight(IMAGE)
    except SandboxUnavailable as problem:
        pytest.skip(f"{name}: {problem}")
    return backend


@pytest.fixture(scope="module")
def docker() -> Backend:
    return ready("docker")


@pytest.fixture(scope="module")
def image() -> None:
    ready("docker")


@pytest.fixture(scope="module")
def bubblewrap() -> Backend:
    return ready("bubblewrap")


@pytest.fixture(scope="module")
def go() -> Iterator[Go]:
    """Runs a coroutine on the module's one event loop."""
    with asyncio.Runner() as runner:
        yield lambda work: runner.get_loop().run_until_complete(asyncio.wait_for(work, 60))


@pytest.fixture(scope="module")
def pool(go: Go, backend: Backend) -> Iterator[Any]:
    async def made() -> Any:
        return backend.pool(size=2)

    pool = go(made())
    yield pool
    go(pool.close())
    assert backend.module().count(pool.run) == 0


@pytest.fixture
def sandbox(go: Go, pool: Any) -> Iterator[Any]:
    async def acquire() -> Any:
        return await pool.acquire()

    sandbox = go(acquire())
    yield sandbox
    go(sandbox.close())
