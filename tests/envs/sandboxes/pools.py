"""What the tests of the Docker pool share: its mark, a pool for one test, a command that must succeed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from envs.sandboxes.docker import DockerPool, Lease, count


def docker(test: Any) -> Any:
    """Marks a test that needs an engine and the image; skipped where they are absent."""
    return pytest.mark.docker(pytest.mark.usefixtures("image")(test))


@asynccontextmanager
async def new_pool(**options: Any) -> AsyncIterator[DockerPool]:
    pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", **{"size": 1, **options})
    try:
        yield pool
    finally:
        await pool.close()
        assert await asyncio.to_thread(count, pool.run) == 0


async def run(sandbox: Lease, command: str, **options: Any) -> str:
    result = await sandbox.exec(command, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode(errors="surrogateescape")
