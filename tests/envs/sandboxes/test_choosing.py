"""Which backend runs: the one named; else Docker; else bubblewrap, for an ordinary user whom no engine answers."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from backends import IMAGE, Backend

from envs import sandboxes
from envs.sandboxes import SandboxUnavailable


def as_nobody(work: Callable[[], str]) -> str:
    """What `work` returns, or raises, in a child that is an ordinary user without any group."""
    if os.geteuid() != 0:
        pytest.skip("only root may become somebody else; the other tests run as an ordinary user already")
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writable, work().encode())
        except BaseException as problem:
            os.write(writable, f"{type(problem).__name__}: {problem}".encode())
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def test_backends_are_found_by_name() -> None:
    assert sandboxes.available() == ["bubblewrap", "docker"]
    for name in sandboxes.available():
        module = sandboxes.load(name)
        assert all(hasattr(module, wanted) for wanted in ("Pool", "preflight", "count", "reap", "WEAKER"))
    with pytest.raises(ValueError, match="there is no sandbox backend 'podman'; available: bubblewrap, docker"):
        sandboxes.load("podman")


@pytest.mark.docker
def test_docker_comes_first(docker: Backend) -> None:
    assert sandboxes.choose("auto", IMAGE) == sandboxes.choose("docker", IMAGE) == "docker"
    assert sandboxes.load("docker").WEAKER == ""


@pytest.mark.bubblewrap
def test_bubblewrap_by_name_and_where_no_engine_answers(bubblewrap: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandboxes.choose("bubblewrap", IMAGE) == "bubblewrap"
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert as_nobody(lambda: sandboxes.choose("auto", IMAGE)) == "bubblewrap"


def test_an_engine_that_was_named_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    for name in ("auto", "docker"):
        with pytest.raises(SandboxUnavailable, match=r"^no Docker engine answers at unix:///nowhere/docker\.sock"):
            sandboxes.choose(name, IMAGE)


def test_where_neither_works_both_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    said = as_nobody(lambda: sandboxes.choose("auto", IMAGE))
    assert said.startswith("SandboxUnavailable: no Docker engine answers at unix:///var/run/docker.sock (")
    assert "and in its place: there is no bwrap on this machine: type 'sudo apt-get install bubblewrap'" in said
