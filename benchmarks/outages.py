"""Faults of whole processes, for benchmarks/faults.py: actors killed with SIGKILL in a real run, a Docker engine of its
own that is restarted under episodes, a disk that fills up under a run. Each gives the figures of its run folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import envs
from envs.sandboxes import SandboxUnavailable
from policy.chat import Chat
from rl.store import Run

IMAGE = "touchstone-sandbox:bookworm"
STEPS = 16
TASKS = 400
"""Of the training stream, recited to the engine of a real run; more than it plays."""
DEADLINE_S = 240.0
"""Of each wait here; what is not there by then hangs."""
RESTART_GROUPS = 40
RESTART_AFTER_S = 3.0
ROOM = 2 * 2**20
"""Bytes left on the disk that fills up."""
KILLED = ("ray::RolloutWorker", "ray::Generator", "ray::LearnerWorker")


def prepare(folder: Path, model: Path, name: str) -> Path:
    """The configuration of a real run on the world `code`, whose engine recites what the experts say."""
    from benchmarks.faults import CONTEXT, expert

    world, chat = envs.load("code").World(None), Chat.load(model)
    told = []
    for (split, index), err in itertools.product(
        [*(("train", i) for i in range(TASKS)), *(("heldout", i) for i in range(40))], (False, True)
    ):
        opening, turns = expert(world, split, index, err=err)  # type: ignore[arg-type]
        told.append([chat.tokenizer.decode(chat.opening(opening)), turns])
    (folder / "told.json").write_text(json.dumps(told))
    text = {
        "name": name,
        "runs": str(folder),
        "worlds": {"code": {}},
        "policy": {"model": str(model), "context": CONTEXT, "turn_tokens": 1024},
        "engine": {"name": "recited", "args": {"file": str(folder / "told.json")}},
        "learner": {"lr": 1e-4, "batch_tokens": 2500, "row_tokens": CONTEXT},
        "rollout": {"group_size": 4, "sandboxes": 4},
        "train": {
            "steps": STEPS,
            "groups": 4,
            "checkpoint_every": 4,
            "selftest": False,
        },  # it recites, whatever the weights
        "eval": {"tasks": 4},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(text))
    return path


def started(path: Path, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "rl.cli", "train", str(path), *arguments]
    out = path.with_suffix(".out").open("a")
    return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str]) -> int | None:
    """The exit code; None for a run that hung, which is then killed."""
    try:
        return process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return None


def family(pid: int) -> Iterator[tuple[int, str]]:
    """Every process below one: its id and what it calls itself."""
    for folder in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in map(int, folder.read_text().split()):
            with contextlib.suppress(OSError):
                yield child, Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                yield from family(child)


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def waited(condition: Callable[[], Any], process: subprocess.Popen[str]) -> float | None:
    """Seconds until it holds; None where it never does."""
    began = time.monotonic()
    while time.monotonic() - began < DEADLINE_S and process.poll() is None:
        if condition():
            return time.monotonic() - began
        time.sleep(0.05)
    return time.monotonic() - began if condition() else None


def actor_kill(folder: Path, model: Path) -> dict[str, Any]:
    """A real run in which a rollout worker, the engine and the learner are killed, one after another."""
    from benchmarks.faults import account

    process = started(prepare(folder, model, "kills"))
    run, recovery, hung = folder / "kills", {}, 0
    try:
        for name in KILLED:
            at = steps(run) + 2
            hung += waited(lambda: steps(run) >= at, process) is None  # noqa: B023
            (pid,) = [pid for pid, called in family(process.pid) if called.startswith(name)]
            seen = steps(run)
            logged = (run / "metrics.jsonl").stat().st_mtime_ns
            os.kill(pid, signal.SIGKILL)
            after = waited(lambda: (run / "metrics.jsonl").stat().st_mtime_ns > logged and steps(run) != seen, process)  # noqa: B023
            hung += after is None
            recovery[name.removeprefix("ray::")] = after
        code = ended(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    found = account(run, {"code": envs.load("code").World(None)})
    rows = Run(run).rows("metrics.jsonl")
    in_flight = 4 * 4  # what the killed worker played, at most: nothing is known of it
    wasted = (found["wasted_fraction"] * found["attempts"] + in_flight) / (found["attempts"] + in_flight)
    return {
        **found,
        **trained_once(run, found),
        "wasted_fraction": wasted,
        "steps": [row["step"] for row in rows] == list(range(1, STEPS + 1)),
        "told": [line for line in (folder / "kills.out").read_text().splitlines() if "started again" in line],
        "exit": code,
        "recovery": recovery,
        "recovery_s": max((s for s in recovery.values() if s is not None), default=DEADLINE_S),
        "hung": hung + (code is None),
    }


def trained_once(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Leases trained, by the ledger and by the metrics: the two agree where none was trained twice."""
    run = Run.reopen(folder)
    (leases,) = run.db.execute("select count(*) from lease where state = 'trained'").fetchone()
    told = sum(row["trained_groups"] for row in run.rows("metrics.jsonl"))
    run.close()
    return {"trained": leases, "duplicated_prompts": found["duplicated_prompts"] + abs(told - leases)}


# -- a Docker engine of our own --------------------------------------------------------------------------------------


@contextmanager
def private_engine(folder: Path) -> Iterator[Callable[[], None]]:
    """A Docker engine beside the machine's, with the image; gives what restarts it. Raises SandboxUnavailable."""
    if os.getuid() or not shutil.which("dockerd"):
        raise SandboxUnavailable("a Docker engine of our own needs root and dockerd")
    home = Path(tempfile.mkdtemp(prefix="td-"))
    host = f"unix://{home}/s"
    options = f"-H {host} --data-root {home}/d --exec-root {home}/x --pidfile {home}/p --bridge=none --iptables=false"
    log = (folder / "dockerd.log").open("ab")

    def start() -> subprocess.Popen[bytes]:
        # In a network of its own: one without a bridge takes the machine's bridge away from the other engine.
        process = subprocess.Popen(["unshare", "--net", "dockerd", *options.split()], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "-H", host, "version"], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or process.poll() is not None:
                raise SandboxUnavailable(f"a Docker engine of our own does not start here: {last_line(folder)}")
            time.sleep(0.2)
        return process

    process = start()

    def restart() -> None:
        nonlocal process
        end(home)
        process.wait()
        process = start()

    before = os.environ.get("DOCKER_HOST")
    try:
        saved = subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE)
        subprocess.run(["docker", "-H", host, "load"], stdin=saved.stdout, capture_output=True, check=True)
        os.environ["DOCKER_HOST"] = host
        yield restart
    except subprocess.CalledProcessError as problem:
        raise SandboxUnavailable(f"the image does not go into an engine of our own: {problem.stderr!r:.200}") from None
    finally:
        os.environ.pop("DOCKER_HOST") if before is None else os.environ.update(DOCKER_HOST=before)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        end(home)
        subprocess.run(
            f"awk '$2 ~ \"^{home}/\" {{print $2}}' /proc/mounts | xargs -r umount -l", shell=True, check=False
        )
        shutil.rmtree(home, ignore_errors=True)


def end(home: Path) -> None:
    """Kill an engine of our own and all that is of it: each process that names its folder, and its containers."""
    inside = [int(file.read_text()) for file in (home / "x").rglob("init.pid")]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{home}/".encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                inside.append(int(folder.name))
    for pid in inside:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for file in [home / "p", *(home / "x").rglob("*.pid")]:  # or the next one takes the dead for the living
        file.unlink(missing_ok=True)


def last_line(folder: Path) -> str:
    return ((folder / "dockerd.log").read_text(errors="replace").splitlines() or ["it said nothing"])[-1][:300]


def daemon_restart(folder: Path, model: Path) -> dict[str, Any]:
    """Episodes go on while their Docker engine is killed with everything in it, and started again."""
    from benchmarks.faults import scenario

    with private_engine(folder) as restart:

        async def outage() -> float:
            await asyncio.sleep(RESTART_AFTER_S)
            now = time.monotonic()
            await asyncio.to_thread(restart)
            return now

        playing = scenario("daemon_restart", "docker", folder, model, RESTART_GROUPS, 0.0, meanwhile=outage)
        return asyncio.run(playing)[0]


# -- a disk that fills up --------------------------------------------------------------------------------------------


def disk_full(folder: Path, model: Path) -> dict[str, Any]:
    """A real run on a small disk of its own, mounted for it alone: it fills up, room is made, the run goes on."""
    from benchmarks.faults import account

    disk = folder / "disk"
    disk.mkdir()
    path = prepare(folder, model, "full")
    apart = ("unshare", "--mount") if not os.getuid() else ("unshare", "--mount", "--map-root-user")
    tried = subprocess.run(
        [*apart, "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        raise SandboxUnavailable(f"no disk of our own can be mounted here: {tried.stderr.strip()}")
    train = shlex.join([sys.executable, "-m", "rl.cli", "train", str(path), f"runs={disk}"])
    script = (
        f"mount -t tmpfs -o size=64m none {disk} && head -c {64 * 2**20 - ROOM} /dev/zero > {disk}/filler\n"
        f"{train}; echo first $?; rm {disk}/filler; ls -a {disk}/full {disk}/full/*\n"
        f"{train} --resume; echo second $?; cp -r {disk}/full {folder}/kept"
    )
    began = time.monotonic()
    process = subprocess.Popen(
        [*apart, "bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=2 * DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return {"hung": 1}
    found = account(folder / "kept", {"code": envs.load("code").World(None)})
    sentence = next((line for line in said.splitlines() if line.startswith("rl train: ")), "")
    return {
        **found,
        **trained_once(folder / "kept", found),
        "said": sentence,
        "one_sentence": " is full " in sentence and "Traceback" not in said.partition("first ")[0],
        "exits": re.findall(r"^(?:first|second) (\d+)$", said, re.MULTILINE),
        "wall_s": time.monotonic() - began,
        "hung": 0,
        "output": said[-3000:] if "second 0" not in said else "",
    }


OUTAGES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "actor_kill": actor_kill,
    "daemon_restart": daemon_restart,
    "disk_full": disk_full,
}
