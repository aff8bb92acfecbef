"""Every call to the Docker engine: connect, check, create, remove, count, reap. All of it blocks.

Labels carry what a stranger needs to clean up: `touchstone.run`, `touchstone.owner` (which process made it, told apart
from a later one with the same pid) and `touchstone.deadline` (unix time after which nobody needs it).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import Mount
from docker.utils import parse_repository_tag

from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.docker.admission import EngineSick, short_of_disk
from envs.sandboxes.docker.door import INSIDE, sweep
from envs.sandboxes.shared.program import BOOT, program

T = TypeVar("T")
API_TIMEOUT_S = 60
SUPERVISOR = program(Path(__file__).with_name("container.py"))
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]
"""Of the supervisor only: to wipe, to kill, to become the lease's user. With SYS_RESOURCE, where the machine has it,
that user cannot undo being the first victim when memory runs out."""
SYS_RESOURCE_BIT = 24
CONFLICT, TOO_MANY, SERVER_ERROR = 409, 429, 500
SYSCTLS = {"kernel.shmmni": "0", "kernel.msgmni": "0", "kernel.sem": "250 32000 32 0", "fs.mqueue.queues_max": "0"}
"""No System V or POSIX message objects: they would outlive the processes of an attempt."""
TROUBLE = (DockerException, OSError)


class ImageMissing(SandboxUnavailable):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one container may use. The memory limit covers the processes and all three in-memory folders."""

    memory_mb: int = 512
    pids: int = 64
    cpus: float = 1.0
    work_mb: int = 128
    tmp_mb: int = 64
    shm_mb: int = 16
    inodes: int = 16384
    """Of each of `/work` and `/tmp`."""

    def __post_init__(self) -> None:
        folders_mb = self.work_mb + self.tmp_mb + self.shm_mb
        if folders_mb * 2 > self.memory_mb:
            raise ValueError(
                f"the folders of a sandbox live in its memory: got work_mb + tmp_mb + shm_mb = {folders_mb}, "
                f"expected at most half of memory_mb = {self.memory_mb}"
            )


def connect() -> docker.APIClient:
    """A client of the engine that DOCKER_HOST names. Raises SandboxUnavailable where none answers."""
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = docker.APIClient(base_url=host, version="auto", timeout=API_TIMEOUT_S, num_pools=4)
    except TROUBLE as problem:
        raise SandboxUnavailable(
            f"no Docker engine answers at {host} ({_root_cause(problem)}): "
            "run `make setup`, or set DOCKER_HOST to one that runs"
        ) from problem
    if not client.base_url.startswith(("http+docker://localhost", "http://")):
        raise SandboxUnavailable(f"DOCKER_HOST is {host}: expected unix:// or tcp:// without TLS")
    return client


def preflight(image: str) -> None:
    """Check that an engine answers, with the image and some disk. Raises SandboxUnavailable: one sentence, a remedy."""
    client = connect()
    try:
        check_image(client, image)
        if problem := short_of_disk(disks(client, info(client))):
            raise SandboxUnavailable(problem)
    finally:
        client.close()


def check_image(client: docker.APIClient, image: str) -> None:
    """Raises SandboxUnavailable where the engine lacks the image, or attempts could leave things in it."""
    try:
        config = client.inspect_image(image).get("Config") or {}
    except ImageNotFound as problem:
        raise ImageMissing(f"the Docker engine has no image {image!r}: run `make setup`") from problem
    except TROUBLE as problem:
        raise SandboxUnavailable(
            f"the Docker engine did not answer about {image!r}: {_root_cause(problem)}"
        ) from problem
    if config.get("Volumes"):
        raise SandboxUnavailable(
            f"the image {image!r} declares volumes {sorted(config['Volumes'])}, where attempts could leave things for "
            "one another: expected an image without any"
        )


def pull(client: docker.APIClient, image: str) -> None:
    """Fetch an image from where its name says. Raises SandboxUnavailable."""
    repository, tag = parse_repository_tag(image)
    try:
        for said in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in said:
                raise SandboxUnavailable(_not_had(image, said["error"]))
    except TROUBLE as problem:
        raise SandboxUnavailable(_not_had(image, _root_cause(problem))) from problem


def _not_had(image: str, why: str) -> str:
    return (
        f"a task's image {image!r} is not on the Docker engine and cannot be pulled ({why.strip().splitlines()[0]}): "
        "make it there with `docker build`, `docker load` or `docker pull`"
    )


def is_local(client: docker.APIClient) -> bool:
    return bool(client.base_url.startswith("http+docker://localhost"))


def disks(client: docker.APIClient, about: dict[str, Any]) -> tuple[Path, ...]:
    """Folders of this machine on whose file systems the engine writes; none where it runs elsewhere."""
    if not is_local(client):
        return ()
    return tuple(path for path in (Path(about["DockerRootDir"]), Path("/")) if path.exists())


def info(client: docker.APIClient) -> dict[str, Any]:
    known: dict[str, Any] = _asked(client.info)
    return known


def create(
    client: docker.APIClient,
    image: str,
    run: str,
    limits: Limits,
    lifetime_s: float,
    sent: bytes = SUPERVISOR,
    *,
    name: str | None = None,
    runtime: str | None = None,
    door: Path | None = None,
) -> tuple[str, socket.socket]:
    """Start one hardened container, which waits for the program `sent`. Returns its name and a socket to its streams.

    A socket of this machine's, `door`, is put where its process 1 can call on it.

    Raises SandboxUnavailable where the engine will not, EngineSick where it may later.
    """
    name = name or f"touchstone-{run}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        mounts = [Mount(INSIDE, str(door), "bind", read_only=True)] if door else []
        host = client.create_host_config(**_isolation(limits), runtime=runtime, mounts=mounts)
        client.create_container(
            image,
            entrypoint=["python3", "-I", "-S", "-c", BOOT.format(size=len(sent))],
            command=[],
            name=name,
            hostname="sandbox",
            user="0:0",
            working_dir="/",
            stdin_open=True,  # and once: when this process dies, the supervisor's stdin ends
            labels={
                "touchstone.run": run,
                "touchstone.owner": owner(),
                "touchstone.deadline": str(int(time.time() + lifetime_s)),
            },
            healthcheck={"test": ["NONE"]},
            host_config=host,
        )
        raw = client.attach_socket(name, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        sock = socket.socket(fileno=os.dup(raw.fileno()))
        getattr(raw, "_response", raw).close()  # the whole response, or its parts complain when collected
        client.start(name)
    except TROUBLE as problem:
        with contextlib.suppress(SandboxUnavailable):  # the pool looks for it again
            remove(client, name)
        kind = EngineSick if _may_pass(problem) else SandboxUnavailable
        raise kind(f"a container of {image!r} did not start: {_root_cause(problem)}") from problem
    sock.setblocking(False)
    return name, sock


def _may_pass(problem: Exception) -> bool:
    """Whether it is the engine's own trouble, and not its answer to what was asked."""
    status = problem.status_code if isinstance(problem, APIError) else None
    return status is None or status >= SERVER_ERROR or status in (CONFLICT, TOO_MANY)


def _isolation(limits: Limits) -> dict[str, Any]:
    folder = f"rw,exec,nosuid,nodev,nr_inodes={limits.inodes}"  # noexec would only break builds: /work is executable
    return {
        "network_mode": "none",
        "read_only": True,
        "tmpfs": {
            "/work": f"{folder},size={limits.work_mb}m,mode=0700",
            "/tmp": f"{folder},size={limits.tmp_mb}m,mode=1777",
        },
        "ipc_mode": "private",
        "shm_size": limits.shm_mb * 2**20,
        "sysctls": SYSCTLS,
        "cap_drop": ["ALL"],
        "cap_add": CAPABILITIES + (["SYS_RESOURCE"] if _has_sys_resource() else []),
        "security_opt": ["no-new-privileges"],
        "mem_limit": limits.memory_mb * 2**20,
        "memswap_limit": limits.memory_mb * 2**20,
        "pids_limit": limits.pids + 1,
        "nano_cpus": int(limits.cpus * 1e9),
        "log_config": {"type": "none"},
        "auto_remove": True,
    }


def _has_sys_resource() -> bool:
    """Whether this machine lets anyone have it; asking an engine for what it lacks would fail every start."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapBnd:")[1].split()[0], 16) >> SYS_RESOURCE_BIT & 1)


def remove(client: docker.APIClient, name: str) -> None:
    """Remove a container, running or not, and wait until it is gone; one that is gone or going already is no error."""
    deadline = time.monotonic() + API_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            try:
                client.remove_container(name, force=True, v=True)
            except NotFound:
                return
            except APIError as problem:
                if problem.status_code != CONFLICT:  # its own removal is in progress
                    raise
            time.sleep(0.02)
    except TROUBLE as problem:
        raise SandboxUnavailable(f"container {name} was not removed: {_root_cause(problem)}") from problem
    raise SandboxUnavailable(f"container {name} was still there {API_TIMEOUT_S} s after its removal")


def names(run: str, client: docker.APIClient | None = None) -> list[str]:
    """Containers of a run that exist now, in any state."""
    found = _containers(client or connect(), f"touchstone.run={run}")
    return [container["Names"][0].lstrip("/") for container in found]


def count(run: str, client: docker.APIClient | None = None) -> int:
    return len(names(run, client))


def reap(client: docker.APIClient | None = None) -> list[str]:
    """Remove the containers and volumes of every run whose owner is dead or whose deadline has passed.

    Returns their names.
    """
    client = client or connect()
    removed = []
    with contextlib.suppress(SandboxUnavailable):  # that folder is somebody else's, and so is what lies in it
        sweep()
    for container in _containers(client, "touchstone.owner"):
        if _is_over(container["Labels"]):
            remove(client, container["Id"])
            removed.append(container["Names"][0].lstrip("/"))
    for volume in _asked(lambda: client.volumes(filters={"label": "touchstone.owner"})["Volumes"] or []):
        if _is_over(volume["Labels"]):
            with contextlib.suppress(NotFound, APIError):  # in use: next time
                client.remove_volume(volume["Name"])
                removed.append(volume["Name"])
    return removed


def _is_over(labels: dict[str, str]) -> bool:
    return float(labels.get("touchstone.deadline", 0)) < time.time() or not _may_live(labels["touchstone.owner"])


def _containers(client: docker.APIClient, label: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _asked(lambda: client.containers(all=True, filters={"label": label}))
    return found


def _asked(question: Callable[[], T]) -> T:
    """The engine's answer; NotFound passes, any other trouble becomes EngineSick."""
    try:
        return question()
    except NotFound:
        raise
    except TROUBLE as problem:
        raise EngineSick(f"the Docker engine did not answer: {_root_cause(problem)}") from problem


def owner(pid: int | None = None) -> str:
    """A process as a label: this boot, this pid namespace, the pid and the clock tick at which it started."""
    pid = pid or os.getpid()
    stat = Path(f"/proc/{pid}/stat").read_text()
    started = stat[stat.rindex(")") + 2 :].split()[19]
    return f"{_machine()}/{pid}/{started}"


def _machine() -> str:
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"


def _may_live(label: str) -> bool:
    """False where the owner is a process of this machine that is gone. Other machines' have until their deadline."""
    machine, pid, _ = label.rsplit("/", 2)
    if machine != _machine():
        return True
    try:
        return owner(int(pid)) == label
    except (FileNotFoundError, ProcessLookupError):
        return False


def _root_cause(problem: BaseException) -> str:
    """The innermost reason, in one line: what a person can act on."""
    if isinstance(problem, APIError) and problem.explanation:
        return str(problem.explanation).strip().splitlines()[0]
    while (inner := problem.__cause__ or problem.__context__) is not None:
        problem = inner
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return (str(problem) or type(problem).__name__).strip().splitlines()[0]
