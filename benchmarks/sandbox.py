"""Sandboxes: a command, a hand-out and a crowd, against `docker exec`, `docker run` and SWE-ReX's Docker deployment.

    python -m benchmarks.sandbox [--json] [--rounds 40] [--live 64] [--swerex-python VENV/bin/python]

Every round times each side in turn, so that noise meets all alike; figures are medians. The engine's own side is called
through its API by the Python SDK and not by the slower command line. SWE-ReX runs in a virtual environment of its own
(`pip install swe-rex==1.4.0 aiohttp`, of the image's Python version); its server is put into an image made here and
removed at the end. `acquire` includes the hand-over: the attempt before is killed and wiped away first.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from envs.sandboxes import Snapshot
from envs.sandboxes.docker import DockerPool, count, engine

IMAGE = "touchstone-sandbox:bookworm"
COMMANDS = (["true"], ["cat", "/etc/hostname"], ["sh", "-c", "echo $((6 * 7)) >/tmp/answer; cat /tmp/answer"])
FILES = {f"package/module_{number}.py": b"def f(x):\n    return x + 1\n" * 40 for number in range(6)}
WARM = 4
"""Rounds that are not counted."""
IN_A_ROW = 3
"""Times that a round repeats what is quick, for each side: an agent's commands come one after another too."""
Exec = Callable[[list[str]], Awaitable[None]]

SWEREX = """\
import asyncio, json, logging, sys, time
from swerex.deployment.docker import DockerDeployment
from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest
logging.disable(logging.CRITICAL)
async def main():
    image, labels = json.loads(sys.stdin.readline())
    deployment = DockerDeployment(image=image, pull="never", docker_args=labels)
    began = time.perf_counter()
    await deployment.start()
    deployment.runtime._config.timeout = 60
    print(json.dumps(time.perf_counter() - began), flush=True)
    await deployment.runtime.create_session(CreateBashSessionRequest())
    for line in sys.stdin:
        kind, argv = json.loads(line)
        if kind == "execute":
            code = (await deployment.runtime.execute(Command(command=argv, timeout=60))).exit_code
        else:
            code = (await deployment.runtime.run_in_session(BashAction(command=argv, timeout=60))).exit_code
        print(code, flush=True)
    await deployment.stop()
asyncio.run(main())
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Engine:
    """Docker itself: one idle container for `docker exec`, and a new one for each `docker run`."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.client = engine.connect()
        self.labels = labels
        self.idle = self.start()

    def start(self) -> str:
        """What `docker run -d` does."""
        host = self.client.create_host_config(
            network_mode="none", read_only=True, tmpfs={"/tmp": "", "/work": ""}, auto_remove=True, init=True
        )
        made = self.client.create_container(IMAGE, ["sleep", "3600"], labels=self.labels, host_config=host)
        self.client.start(made["Id"])
        return str(made["Id"])

    async def exec(self, argv: list[str]) -> None:
        def call() -> int:
            asked = self.client.exec_create(self.idle, argv)
            self.client.exec_start(asked["Id"])
            return int(self.client.exec_inspect(asked["Id"])["ExitCode"])

        assert await asyncio.to_thread(call) == 0

    def remove(self, name: str) -> None:
        engine.remove(self.client, name)


class SweRex:
    """SWE-ReX in its own Python, spoken to line by line."""

    def __init__(self, python: str, labels: dict[str, str]) -> None:
        self.image = swerex_image(python, labels)
        self.process = subprocess.Popen([python, "-c", SWEREX], stdin=-1, stdout=-1, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        options = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        self.start_s = float(self.ask([self.image, options]))

    def ask(self, question: Any) -> str:
        self.stdin.write(json.dumps(question) + "\n")
        self.stdin.flush()
        return self.stdout.readline()

    async def execute(self, argv: list[str]) -> None:
        assert await asyncio.to_thread(self.ask, ["execute", argv]) == "0\n"

    async def in_session(self, argv: list[str]) -> None:
        line = argv[2] if argv[0] == "sh" else " ".join(argv)
        assert await asyncio.to_thread(self.ask, ["session", line]) == "0\n"

    def close(self) -> None:
        self.stdin.close()
        self.process.wait(60)
        engine.connect().remove_image(self.image, force=True)


def swerex_image(python: str, labels: dict[str, str]) -> str:
    """The sandbox image with the packages of SWE-ReX's environment and its server's command in it."""
    where = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    launcher = b"""#!/bin/sh
PYTHONPATH=/opt/swerex exec python3 -c 'import sys; from swerex.server import main; sys.exit(main())' "$@"
"""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(where.strip(), "opt/swerex")
        entry = tarfile.TarInfo("usr/local/bin/swerex-remote")
        entry.size, entry.mode = len(launcher), 0o755
        tar.addfile(entry, io.BytesIO(launcher))
    client = engine.connect()
    made = client.create_container(IMAGE, ["true"], labels=labels)["Id"]
    try:
        client.put_archive(made, "/", archive.getvalue())
        tag = f"touchstone-swerex-{uuid.uuid4().hex[:8]}"
        client.commit(made, tag)
    finally:
        engine.remove(client, made)
    return tag


async def timed(work: Awaitable[Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = await work
    return (time.perf_counter() - began) * 1000, result


async def one_at_a_time(pool: DockerPool, docker: Engine, swerex: SweRex | None, rounds: int) -> dict[str, float]:
    """Medians in ms of a command on each side, of a hand-out, and of a new container."""
    sandbox = await pool.acquire()
    snapshot = Snapshot.of(FILES)

    async def ours(argv: list[str]) -> None:
        assert (await sandbox.exec(argv)).exit_code == 0

    async def hand_out(begin_with: Snapshot | None = None) -> None:
        await (await pool.acquire(begin_with)).close()

    sides: dict[str, Exec] = {"exec": ours, "docker_exec": docker.exec}
    if swerex is not None:
        sides |= {"swerex_exec": swerex.execute, "swerex_session": swerex.in_session}
    took: dict[str, list[float]] = {}
    for number in range(WARM + rounds):
        found: list[tuple[str, float]] = []
        for name, side in sides.items():
            found += [(name, (await timed(side(argv)))[0]) for argv in COMMANDS * IN_A_ROW]
        for _ in range(IN_A_ROW):
            found.append(("acquire", (await timed(hand_out()))[0]))
            found.append(("acquire_snapshot", (await timed(hand_out(snapshot)))[0]))
        ms, name = await timed(asyncio.to_thread(docker.start))
        found.append(("docker_run", ms))
        await asyncio.to_thread(docker.remove, name)
        if number >= WARM:
            for key, value in found:
                took.setdefault(key, []).append(value)
        if number % 10 == 0:
            latest = ", ".join(f"{key} {value:.1f} ms" for key, value in dict(found).items())
            say(f"round {number + 1} of {WARM + rounds}: {latest}")
    await sandbox.close()
    return {f"{name}_ms": median(values) for name, values in took.items()}


async def crowd(run: str, size: int) -> dict[str, float]:
    """Many sandboxes from nothing, then all at work at the same time."""
    say(f"starting {size} sandboxes")
    pool = DockerPool(run=run, size=size)
    try:
        began = time.perf_counter()
        await pool.start()
        sandboxes = await asyncio.gather(*(pool.acquire() for _ in range(size)))
        started_s = time.perf_counter() - began
        say(f"{size} sandboxes in {started_s:.1f} s; each runs 10 commands, all at once")

        async def work(number: int) -> bool:
            said = [await sandboxes[number].exec(f"echo {number}", timeout_s=60) for _ in range(10)]
            return all(result.stdout == f"{number}\n".encode() for result in said)

        began = time.perf_counter()
        right = sum(await asyncio.gather(*map(work, range(size))))
        worked_s = time.perf_counter() - began
        return {"live": right, "containers_per_s": size / started_s, "commands_per_s": 10 * size / worked_s}
    finally:
        await pool.close()


def left(run: str) -> int:
    """Containers, volumes and images of this benchmark that are there after it."""
    client = engine.connect()
    label = {"label": f"touchstone.run={run}"}
    volumes = client.volumes(filters=label)["Volumes"] or []
    return count(run, client) + len(volumes) + len(client.images(filters=label, all=True))


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    run = f"bench-{uuid.uuid4().hex[:8]}"
    deadline = str(int(time.time() + 3600))
    labels = {"touchstone.run": run, "touchstone.owner": engine.owner(), "touchstone.deadline": deadline}
    async with AsyncExitStack() as stack:
        docker = Engine(labels)
        stack.callback(docker.remove, docker.idle)
        swerex = None
        if args.swerex_python:
            say("making an image with SWE-ReX's server")
            swerex = SweRex(args.swerex_python, labels)
            stack.callback(swerex.close)
        pool = DockerPool(run=run, size=2)
        stack.push_async_callback(pool.close)
        await pool.start(warm=2)
        found: dict[str, Any] = dict(await one_at_a_time(pool, docker, swerex, args.rounds))
    found |= await crowd(run, args.live)
    found |= {
        "exec_ratio": found["docker_exec_ms"] / found["exec_ms"],
        "acquire_ratio": found["docker_run_ms"] / found["acquire_ms"],
        "swerex_exec_ratio": None,
        "leaked": left(run),
    }
    if swerex is not None:
        found["swerex_start_ms"] = swerex.start_s * 1000
        best = min(found["swerex_exec_ms"], found["swerex_session_ms"])
        found["swerex_exec_ratio"] = best / found["exec_ms"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--live", type=int, default=64)
    parser.add_argument("--swerex-python", metavar="PATH", help="a Python that has swe-rex; without it, no comparison")
    args = parser.parse_args()
    if args.rounds < 1 or args.live < 1:
        parser.error(f"got --rounds {args.rounds} --live {args.live}; expected at least 1 each")
    if args.swerex_python and not Path(args.swerex_python).is_file():
        parser.error(f"got --swerex-python {args.swerex_python}; expected the Python of an environment with swe-rex")
    found = asyncio.run(measure(args))
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:<22}" + ("not measured" if value is None else f"{value:10.2f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
