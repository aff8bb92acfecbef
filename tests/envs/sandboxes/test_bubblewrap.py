"""What is bubblewrap's own: the same user on both sides, memory that is watched, machines that do not allow it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from backends import Backend, Bubblewrap, Go, eventually, python, small_pool

from envs.sandboxes import SandboxLost, SandboxUnavailable
from envs.sandboxes.bubblewrap import WEAKER, Limits, launch, preflight, reap, seccomp

pytestmark = pytest.mark.bubblewrap


@pytest.fixture(scope="module")
def backend(bubblewrap: Backend) -> Backend:
    return bubblewrap


def test_the_keeper_is_no_root_and_a_command_is_below_it(go: Go, backend: Bubblewrap, pool: Any, sandbox: Any) -> None:
    (keeper,) = backend.keepers(pool)
    status = Path(f"/proc/{keeper}/status").read_text()
    assert status.split("Uid:")[1].split()[0] != "0"
    for kind in ("user", "pid", "mnt", "net", "ipc", "uts"):
        inside = go(sandbox.exec(["readlink", f"/proc/self/ns/{kind}"])).stdout.decode().strip()
        host, kept = os.readlink(f"/proc/self/ns/{kind}"), os.readlink(f"/proc/{keeper}/ns/{kind}")  # noqa: PTH115
        assert kept != host and inside != host
        assert (inside == kept) is (kind in ("net", "uts")), kind
    assert b"CapBnd:\t0000000000000000\n" in go(sandbox.exec(["cat", "/proc/self/status"])).stdout


def test_only_the_machines_programs_are_shown(go: Go, sandbox: Any) -> None:
    shown = go(sandbox.exec("ls -A / | tr '\\n' ' '; ls -A /etc | tr '\\n' ' '; ls /sys /run /var /root /home")).stdout
    top, etc = shown.decode().split("work ")
    assert set(top.split()) <= {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "dev", "etc", "proc", "tmp"}
    assert set(etc.split()) <= {"alternatives", "group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd"}
    assert go(sandbox.exec(["env", "-0"], env={})).stdout.count(b"\0") == 7


def test_memory_of_many_processes_and_of_files_counts_together(go: Go, sandbox: Any) -> None:
    many = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        break
x = bytearray(150_000_000)
time.sleep(5)
"""
    result = go(sandbox.exec(python(many), timeout_s=25))
    assert result.oom and not result.timed_out
    shared = "import mmap, time; x = mmap.mmap(-1, 900_000_000); x.write(b'x' * 900_000_000); time.sleep(5)"
    assert go(sandbox.exec(python(shared), timeout_s=25)).oom
    files = go(
        sandbox.exec(
            "head -c 128M /dev/zero >big; python3 -c 'import time; x = bytearray(450_000_000); time.sleep(1)'; echo $?",
            timeout_s=25,
        )
    )
    assert files.oom and files.stdout == b"137\n"


def test_a_child_that_shares_its_parents_memory_is_not_counted_twice(go: Go, sandbox: Any) -> None:
    code = """
import os, time
x = bytearray(200_000_000)
for _ in range(5):
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
while True:
    try: os.wait()
    except ChildProcessError: break
print('done')
"""
    result = go(sandbox.exec(python(code), timeout_s=25))
    assert (result.stdout, result.oom) == (b"done\n", False)


def test_what_would_take_more_than_its_address_space_is_refused_and_not_told(go: Go, sandbox: Any) -> None:
    """Weaker than Docker: the program learns of it by an error of its own, and `oom` stays false."""
    result = go(sandbox.exec(python("x = bytearray(10**10)")))
    assert (result.exit_code, result.oom) == (1, False) and b"MemoryError" in result.stderr


def test_memory_that_no_limit_would_count_cannot_be_had(go: Go, sandbox: Any) -> None:
    assert b"PermissionError" in go(sandbox.exec(python("import os; os.memfd_create('x')"))).stderr
    for family in ("AF_VSOCK", "AF_ALG", "AF_PACKET"):
        refused = go(sandbox.exec(python(f"import socket; socket.socket(socket.{family}, socket.SOCK_STREAM)")))
        assert b"OSError" in refused.stderr or b"PermissionError" in refused.stderr, family


def test_a_pseudo_terminal_works(go: Go, sandbox: Any) -> None:
    assert go(sandbox.exec(python("import os, pty; print(os.isatty(pty.openpty()[1]))"))).stdout == b"True\n"


def test_reap_ends_what_has_another_parent_than_its_owner(backend: Backend) -> None:
    mark = f"{launch.OWNER}\nreap-test/1"  # owned by process 1, so it says
    stray = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--setenv", *mark.split("\n"), "sleep", "60"]
    with subprocess.Popen(stray) as process:
        assert eventually(lambda: launch.count("reap-test") == 1, within_s=30)
        assert [name for name in reap() if "reap-test" in name] == [f"bwrap-reap-test-{process.pid}"]
    assert launch.count("reap-test") == 0


def test_reap_leaves_the_living_alone(go: Go, pool: Any, sandbox: Any) -> None:
    reap()
    assert go(sandbox.exec(["true"])).exit_code == 0


@pytest.mark.parametrize(
    ("part", "broken", "says"),
    [
        (b"NEWUSER | NEWPID | NEWNS | NEWIPC", b"NEWUSER | 0x800", "clone: Invalid argument"),
        (b'"/proc", NOSUID', b'"/nowhere", NOSUID', "mount /nowhere: No such file or directory"),
    ],
)
def test_a_keeper_that_makes_no_namespaces_is_lost_and_says_why(
    go: Go, backend: Bubblewrap, monkeypatch: pytest.MonkeyPatch, part: bytes, broken: bytes, says: str
) -> None:
    assert launch.PROGRAM.count(part) == 1
    whole = launch.PROGRAM
    monkeypatch.setattr(launch, "PROGRAM", whole.replace(part, broken.ljust(len(part))))

    async def scenario() -> None:
        async with small_pool(backend) as pool:
            await (await pool.acquire()).exec(["true"])

    with pytest.raises(SandboxLost, match=says):
        go(scenario())


# Where it does not work


def test_absent_bubblewrap_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        SandboxUnavailable, match=r"^there is no bwrap on this machine: type 'sudo apt-get install bubb"
    ):
        preflight()


def test_a_forbidding_machine_is_told_with_its_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "unprivileged_userns_clone"
    monkeypatch.setattr(launch, "SWITCHES", {str(switch): "0"})
    switch.write_text("1\n")
    assert launch.explain("No permissions to create new namespace") == "No permissions to create new namespace"
    switch.write_text("0\n")
    assert "lets its users make no user namespaces" in launch.explain("No permissions")
    assert launch.explain("x").endswith("=1'")


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got work_mb .* = 300, expected at most half of memory_mb = 512"):
        Limits(work_mb=220)


def test_the_weaker_line_is_one_line() -> None:
    assert "\n" not in WEAKER and "memory" in WEAKER and "core" in WEAKER


def test_the_filter_is_complete_for_every_machine() -> None:
    for machine in seccomp.ARCHITECTURES:
        code = seccomp.program(machine)
        assert len(code) % 8 == 0 and code[-8:] == bytes.fromhex("060000000000ff7f")
