"""What a command must not reach, by attack: the same over every backend; where one is weaker the test says so."""

from __future__ import annotations

import errno
import uuid
from pathlib import Path
from typing import Any

import pytest
from backends import Backend, Go, python

from envs.sandboxes.shared.wire import FRAME_HEADER


def test_no_privileges(go: Go, sandbox: Any) -> None:
    status = go(sandbox.exec(["cat", "/proc/self/status"])).stdout.decode()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert len(set(fields["Uid"].split() + fields["Gid"].split())) == 1
    assert int(fields["Uid"].split()[0]) >= 1000
    assert [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert go(sandbox.exec(python("import os; print(os.getsid(0) == os.getpid())"))).stdout == b"True\n"
    assert fields["NoNewPrivs"].strip() == "1" and fields["Seccomp"].strip() == "2"


def test_no_network(go: Go, sandbox: Any) -> None:
    connect = "import socket; s = socket.socket(); s.settimeout(3); print(s.connect_ex(('{}', 53)))"
    assert int(go(sandbox.exec(python(connect.format("1.1.1.1")))).stdout) == errno.ENETUNREACH
    names = "import socket; print([name for _, name in socket.if_nameindex()])"
    assert go(sandbox.exec(python(names))).stdout == b"['lo']\n"


def test_only_the_wiped_folders_are_writable(go: Go, backend: Backend, sandbox: Any) -> None:
    assert b"Read-only file system" in go(sandbox.exec("mkdir -m 777 /x; touch /usr/x")).stderr
    find = "find / ( -path /proc -o -path /dev/pts ) -prune -o -type d -writable -print"  # pts: made by opening ptmx
    writable = go(sandbox.exec(find.split(), timeout_s=20))
    assert tuple(sorted(writable.stdout.decode().split())) == backend.folders


def test_process_one_cannot_be_read_or_harmed(go: Go, backend: Backend, sandbox: Any) -> None:
    attack = """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, work):
    try:
        work()
        print(name, 'DONE')
    except OSError as problem:
        print(name, 'refused')
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), '')
for name in ('environ', 'mem', 'maps', 'fd/0', 'fd/1', 'auxv', 'root', 'cwd', 'ns/user'):
    attempt(name, lambda: os.open('/proc/1/' + name, os.O_RDONLY))
attempt('write', lambda: os.open('/proc/1/fd/1', os.O_WRONLY))
attempt('list', lambda: os.listdir('/proc/1/fd'))
attempt('oom', lambda: open('/proc/1/oom_score_adj', 'w'))
attempt('setuid', lambda: os.setuid(0))
attempt('unprivileged', lambda: os.setgroups([0]))
attempt('attach', lambda: call(libc.ptrace(16, 1, None, None)))
attempt('seize', lambda: call(libc.ptrace(0x4206, 1, None, None)))
attempt('pidfd', lambda: call(libc.syscall(438, os.pidfd_open(1), 0, 0)))
attempt('kill', lambda: os.kill(1, 9))
attempt('terminate', lambda: os.kill(1, 15))
attempt('interrupt', lambda: os.kill(1, 2))
attempt('nice', lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
print(*[pid for pid in range(1, 70000) if pid != os.getpid() and os.path.exists(f'/proc/{pid}')])
raise SystemExit(7)
"""
    result = go(sandbox.exec(python(attack)))
    *lines, others = result.stdout.decode().splitlines()
    assert len(lines) == 21 and others == "1" and result.exit_code == 7
    # Under bubblewrap process 1 is the same user's: it may be sent signals, and takes none; it may be made to wait.
    harmless = {"kill", "terminate", "interrupt", "nice"} if backend.name == "bubblewrap" else set()
    assert {line.split()[0] for line in lines if not line.endswith("refused")} == harmless
    assert go(sandbox.exec("echo fine")).stdout == b"fine\n"


def test_no_process_outside_can_be_signalled(go: Go, sandbox: Any) -> None:
    code = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for pid in (*range(2, 70000), -1):
    try:
        os.kill(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        pass
print('tried')
"""
    assert go(sandbox.exec(python(code), timeout_s=20)).stdout == b"tried\n"
    assert go(sandbox.exec("echo fine")).stdout == b"fine\n"


def test_no_new_namespaces_mounts_or_kernel_corners(go: Go, sandbox: Any) -> None:
    code = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(result):
    return result < 0
arm = os.uname().machine == 'aarch64'
print(refused(libc.unshare(0x10000000)), refused(libc.unshare(0x20000)))
print(refused(libc.syscall(220 if arm else 56, ctypes.c_ulong(0x10000000 | 17), None, None, None, None)))
print(refused(libc.syscall(435, ctypes.create_string_buffer(88), 88)))
print(refused(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)), refused(libc.umount2(b'/proc', 2)))
print(refused(libc.syscall(219 if arm else 250, 0, -3, 1)))
print(refused(libc.syscall(282 if arm else 323, 0)), refused(libc.syscall(280 if arm else 321, 0, None, 0)))
print(refused(libc.sethostname(b'mine', 4)))
"""
    answers = go(sandbox.exec(python(code))).stdout.split()
    assert answers == [b"True"] * 10


def test_host_files_cannot_be_reached(go: Go, sandbox: Any) -> None:
    marker = Path.home() / f".touchstone-{uuid.uuid4().hex}"
    shared = Path("/var/tmp") / marker.name
    for file in (marker, shared):
        file.write_text("secret")
    try:
        climb = go(sandbox.exec(f"cat {marker} {shared} /proc/1/root{marker} /proc/self/cwd/../../../..{marker}"))
        assert climb.stdout == b"" and climb.exit_code == 1
        assert go(sandbox.exec("test -e /run/docker.sock -o -e /var/run/docker.sock")).exit_code == 1
        assert not go(sandbox.exec(f"find / -name {marker.name} 2>/dev/null", timeout_s=20)).stdout
        for path in (str(marker), f"../../../..{marker}", f"/proc/self/root{shared}"):
            with pytest.raises(OSError):
                go(sandbox.read(path))
    finally:
        marker.unlink()
        shared.unlink()


def test_printed_frames_are_only_output(go: Go, sandbox: Any) -> None:
    fake = FRAME_HEADER.pack(b"\0" * 16, 9, 0) + b'{"id": 1}'
    result = go(sandbox.exec(["cat"], stdin=fake))
    assert result.stdout == fake and result.exit_code == 0


def test_kernel_objects_that_outlive_processes_cannot_be_made(go: Go, sandbox: Any) -> None:
    make = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(1, 4096, 0o1666), libc.msgget(1, 0o1666), libc.semget(1, 1, 0o1666))
print(ctypes.CDLL('librt.so.1', use_errno=True).mq_open(b'/q', 0o102, 0o666, None))
"""
    assert go(sandbox.exec(python(make))).stdout.split() == [b"-1"] * 4


def test_disk_filler_is_bounded(go: Go, sandbox: Any) -> None:
    filled = go(sandbox.exec("head -c 1G /dev/zero >big; stat -c %s big"))
    assert int(filled.stdout) == 128 * 2**20 and b"No space left" in filled.stderr
    with pytest.raises(OSError) as full:
        go(sandbox.write("more", b"x" * 100_000))
    assert full.value.errno == errno.ENOSPC
    many = go(sandbox.exec(python("for n in range(10**6): open(f'/tmp/{n}', 'w').close()"), timeout_s=20))
    assert many.exit_code == 1 and b"No space left" in many.stderr
    assert go(sandbox.exec("rm big; echo fine >more; cat more")).stdout == b"fine\n"
