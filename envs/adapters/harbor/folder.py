"""A Harbor task folder as data: its files, read once, and what of its wishes is refused or overridden here.

task.toml   instruction.md   environment/   tests/test.sh   solution/solve.sh
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_BYTES = 32 * 2**20
"""Of a task's tests, and of its solution: they pass through a sandbox's memory."""
BUILD_VERSION = 1
"""Counts up where build.py makes other images out of the same folder."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}")
_CANARY = re.compile(r"(<!--.*canary.*-->|#.*canary.*)", re.IGNORECASE)


class Unplayable(ValueError):
    """A task that asks for what a sandbox here cannot be; the message says for what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One task as it stands on disk."""

    path: Path
    key: str
    instruction: str
    tests: Mapping[str, bytes]
    """By path below `tests/`."""
    solution: Mapping[str, bytes]
    environment: str
    """Digest of what the image is made of."""
    base_image: str | None
    """The task's `docker_image`; None where `environment/Dockerfile` makes it."""
    workdir: str | None
    separate: bool
    """Whether the verifier asks for an environment that holds the artifacts only."""
    artifacts: tuple[str, ...]
    agent_s: float
    verifier_s: float
    env: Mapping[str, str]
    verifier_env: Mapping[str, str]
    solution_env: Mapping[str, str]
    overridden: tuple[str, ...] = field(default=())

    @property
    def image(self) -> str:
        """The name that build.py gives the image."""
        return f"touchstone-harbor:{self.environment}"

    @property
    def digest(self) -> str:
        """Over all that decides about an attempt."""
        whole = hashlib.sha256(f"{self.environment} {self.instruction}".encode())
        for files in (self.tests, self.solution):
            _add(whole, files)
        whole.update(repr([self.workdir, self.separate, self.artifacts, self.env, self.verifier_env]).encode())
        return whole.hexdigest()[:16]


def folders(source: str) -> list[Path]:
    """The task folders at `source`: itself, or those directly or deeper below it. Raises ValueError where none is."""
    root = Path(source)
    found = [root] if (root / "task.toml").is_file() else sorted(path.parent for path in root.rglob("task.toml"))
    if not found:
        raise ValueError(
            f"{source} holds no Harbor task: expected a folder with a task.toml, or a folder of such folders"
        )
    return found


def read(path: Path, root: Path) -> Folder:
    """Raises Unplayable, or ValueError where the folder is not what the format says."""
    try:
        config = tomllib.loads((path / "task.toml").read_text())
        instruction = (path / "instruction.md").read_text()
    except FileNotFoundError as problem:
        lacks = Path(str(problem.filename)).name
        many = " (tasks of several steps are not played)" if (path / "steps").is_dir() else ""
        raise Unplayable(f"it has no {lacks}{many}") from None
    except tomllib.TOMLDecodeError as problem:
        raise ValueError(f"its task.toml cannot be read: {problem}") from None
    config = {name: value for name, value in config.items() if value is not None}
    environment, verifier = _table(config, "environment"), _table(config, "verifier")
    _refuse(path, config, environment, verifier)
    tests, solution = _files(path / "tests"), _files(path / "solution")
    if "test.sh" not in tests:
        raise Unplayable("it has no tests/test.sh")
    base = environment.get("docker_image")
    key = (
        path.resolve().relative_to(root.resolve()).as_posix()
        if path.resolve() != root.resolve()
        else path.resolve().name
    )
    return Folder(
        path=path,
        key=key,
        instruction=_without_canary(instruction),
        tests=tests,
        solution=solution,
        environment=_digest(base, {} if base else _files(path / "environment")),
        base_image=base,
        workdir=environment.get("workdir"),
        separate=verifier.get("environment_mode") == "separate" or "environment" in verifier,
        artifacts=tuple(entry if isinstance(entry, str) else entry["source"] for entry in config.get("artifacts", [])),
        agent_s=float(_table(config, "agent").get("timeout_sec") or 600.0),
        verifier_s=float(verifier.get("timeout_sec", 600.0)),
        env=_resolved(environment),
        verifier_env=_resolved(verifier),
        solution_env=_resolved(_table(config, "solution")),
        overridden=tuple(_overridden(config, environment, verifier)),
    )


def _table(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"[{name}] of its task.toml is a {type(found).__name__}; expected a table")
    return found


def _refuse(path: Path, config: dict[str, Any], environment: dict[str, Any], verifier: dict[str, Any]) -> None:
    """What cannot be had here, and would change what the task is."""
    places = {"an": environment, "a verifier's": _table(verifier, "environment")}
    wishes = {
        "several steps": config.get("steps"),
        "Windows": str(environment.get("os", "linux")).lower() != "linux",
        "several containers (docker-compose.yaml)": (path / "environment/docker-compose.yaml").exists(),
        "a GPU": environment.get("gpus"),
        "a TPU": environment.get("tpu"),
        "MCP servers in its environment": environment.get("mcp_servers"),
        "a healthcheck, thus a service that stays up between commands": environment.get("healthcheck"),
        "an image of its verifier's own": places["a verifier's"].get("docker_image")
        or (path / "tests/Dockerfile").exists(),
        "commands that collect the state of services": verifier.get("collect"),
    }
    if asked := [what for what, is_asked in wishes.items() if is_asked]:
        raise Unplayable(f"it asks for {' and '.join(asked)}, which sandboxes here do not have")
    if not environment.get("docker_image") and not (path / "environment/Dockerfile").is_file():
        raise Unplayable("it has neither environment.docker_image nor environment/Dockerfile")


def _overridden(config: dict[str, Any], environment: dict[str, Any], verifier: dict[str, Any]) -> list[str]:
    """What is not done as the task asks, in words."""
    agent = _table(config, "agent")
    open_network = environment.get(
        "network_mode", "public" if environment.get("allow_internet", True) else "no-network"
    )
    networks = {open_network, agent.get("network_mode"), verifier.get("network_mode")} - {None, "no-network"}
    said = ["network access"] if networks else []
    said += [f"user {part['user']!r}" for part in (agent, verifier) if part.get("user") is not None]
    said += [
        f"{name} = {environment[name]!r}"
        for name in ("cpus", "memory_mb", "storage_mb", "memory", "storage")
        if environment.get(name)
    ]
    return said + (["skills_dir"] if environment.get("skills_dir") else [])


def _resolved(table: Mapping[str, Any]) -> dict[str, str]:
    """`env` of a section. Raises Unplayable where a value is to come from the host, whose variables stay there."""

    def value(match: re.Match[str]) -> str:
        if match[2] is None:
            raise Unplayable(f"it asks for this machine's variable {match[1]}, which no sandbox may see")
        return match[3]

    return {name: _VARIABLE.sub(value, str(text)) for name, text in _table(table, "env").items()}


def _files(folder: Path) -> dict[str, bytes]:
    """All regular files below a folder, by path; a link that leads out of it is refused."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise Unplayable(f"{folder.name}/{path.relative_to(folder)} is a link that leads out of the task")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    if sum(map(len, found.values())) > MOST_BYTES and folder.name != "environment":
        raise Unplayable(f"its {folder.name}/ is over {MOST_BYTES} bytes")
    return found


def _digest(base: str | None, files: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256(f"{BUILD_VERSION} {base}".encode())
    _add(whole, files)
    return whole.hexdigest()[:16]


def _add(whole: Any, files: Mapping[str, bytes]) -> None:
    for path, data in sorted(files.items()):
        whole.update(f"\0{path}\0{len(data)}\0".encode() + data)


def _without_canary(text: str) -> str:
    """Without the lines before it by which data sets find copies of themselves."""
    lines = text.split("\n")
    while lines and (_CANARY.fullmatch(lines[0].strip()) or (not lines[0].strip() and len(lines) > 1)):
        lines.pop(0)
    return "\n".join(lines).strip()
