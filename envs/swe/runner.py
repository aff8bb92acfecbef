"""Runs the tests of the package in /work, inside a sandbox: sent there as text, spoken to over stdin and stdout.

Request: JSON with `token`, `root`, `paths` (test files), `only` (test ids) and `places` (a test function and which of
its cases), neither for all, `trace`, `library`.
Answer: lines of token and JSON: `ready`, then `test` (place, status, message, seconds, the functions that it ran) as
each one ends, `broken` for a file that could not be imported, and `done`. A test without a line has not passed.
"""

# ruff: noqa: PTH118

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

WORK = "/work"
MESSAGE_CHARS = 2000


def main() -> None:
    asked = json.load(sys.stdin)
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    # After the standard library: nothing in the package takes the place of a module of the interpreter or of pytest.
    place = os.path.join(WORK, asked["root"]).rstrip("/")
    places = list(dict.fromkeys((place, WORK)))
    sys.path.append(asked["library"])
    path = os.pathsep.join((asked["library"], *places))
    os.environ.update(PYTHONPATH=path, TZ="UTC", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    time.tzset()
    import pytest

    def send(**line: Any) -> None:
        data = (asked["token"] + json.dumps(line) + "\n").encode()
        while data:
            data = data[os.write(out, data) :]

    send(ready=pytest.__version__)
    sys.path += places  # from here on: what only looks for a module, as pytest did, would run the package's
    if asked["hypothesis"]:
        import hypothesis

        hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
        hypothesis.settings.load_profile("same")
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={WORK}", f"--confcutdir={WORK}"]
    done = pytest.main(
        [*options, "--import-mode=append", "--continue-on-collection-errors", *asked["paths"]],
        plugins=[watcher(pytest, asked, send)],
    )
    send(done=int(done))


def watcher(pytest: Any, asked: dict[str, Any], send: Callable[..., None]) -> object:
    """A plugin that reports each test as it ends."""
    only, trace = set(asked["only"] or ()), asked["trace"]
    places = {(function, at) for function, at in asked["places"]}
    cases: dict[str, int] = {}

    class Plugin:
        status, message = "", ""
        ran: dict[int, CodeType] = {}  # noqa: RUF012

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            for item in items:
                function = item.nodeid.removesuffix(item.name) + (getattr(item, "originalname", None) or item.name)
                item.place = function, cases.get(function, 0)
                cases[function] = item.place[1] + 1
            if only or places:
                items[:] = [item for item in items if item.nodeid in only or item.place in places]

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                send(broken=report.nodeid, message=told(report))

        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
            self.status, self.message, self.ran = "", "", {}
            began = time.process_time(), time.monotonic()
            if trace:
                sys.setprofile(self.profile)
            yield
            sys.setprofile(None)
            seconds = max(time.process_time() - began[0], 0.0), time.monotonic() - began[1]
            send(
                test=item.nodeid,
                place=item.place,
                status=self.status,
                message=self.message,
                cpu_s=round(seconds[0], 4),
                wall_s=round(seconds[1], 4),
                ran=sorted({(os.path.relpath(c.co_filename, WORK), c.co_firstlineno) for c in self.ran.values()}),
            )

        def profile(self, frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(WORK):
                self.ran[id(frame.f_code)] = frame.f_code

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed and self.status != "failed":
                self.status, self.message = "failed", told(report)
            elif report.skipped and not self.status:
                self.status = "skipped"
            elif report.when == "call" and not self.status:
                self.status = "skipped" if hasattr(report, "wasxfail") else "passed"

    return Plugin()


def told(report: Any) -> str:
    """What went wrong, in the words of the exception."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return text[:MESSAGE_CHARS] if crash else text[-MESSAGE_CHARS:]


if __name__ == "__main__":
    main()
