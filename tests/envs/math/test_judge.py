"""The math verifier, through the real thing: a service in a container, with Math-Verify at the top of the ladder."""

import asyncio
import json
import resource
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from envs import JudgeFailed, JudgeTimedOut
from envs.math import World
from envs.math.exploits import EXPLOITS, LOOK_ALIKES
from envs.math.judge import CPU_S, MEMORY_MB, Judge, UnreadableGold, program
from envs.math.text import extract
from envs.sandboxes import SandboxUnavailable, bubblewrap
from envs.sandboxes.docker import DockerPool, engine
from envs.sandboxes.shared.service import PoolService

T = TypeVar("T")
PAIRS = [
    line.split("\t")
    for line in Path(__file__).with_name("pairs.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def pool(loop: asyncio.AbstractEventLoop) -> Iterator[DockerPool]:
    pool = DockerPool(run="test-judge", size=1)
    yield pool
    loop.run_until_complete(pool.close())
    assert engine.count("test-judge") == 0


@pytest.fixture(scope="module")
def judge(loop: asyncio.AbstractEventLoop, pool: DockerPool) -> Iterator[Judge]:
    judge = Judge(pool, timeout_s=60)
    yield judge
    loop.run_until_complete(judge.close())


async def verdicts(judge: Judge, pairs: list[tuple[str, str]]) -> list[str]:
    return list(await asyncio.gather(*(judge.verdict(answer, gold) for gold, answer in pairs)))


def test_the_table_has_both_kinds() -> None:
    labels = [label for label, _, _ in PAIRS]
    assert labels.count("right") >= 120 and labels.count("wrong") >= 100
    assert len({(gold, answer) for _, gold, answer in PAIRS}) == len(PAIRS)


@pytest.mark.docker
@pytest.mark.slow
def test_every_labelled_pair(loop: asyncio.AbstractEventLoop, judge: Judge) -> None:
    found = loop.run_until_complete(verdicts(judge, [(gold, answer) for _, gold, answer in PAIRS]))
    missed = [(*pair, verdict) for pair, verdict in zip(PAIRS, found, strict=True) if pair[0] != verdict]
    assert not missed
    assert judge.asked > 50  # else the container was hardly needed, and little was tested


@pytest.mark.docker
@pytest.mark.slow
def test_exploits_are_contained_and_refused(loop: asyncio.AbstractEventLoop, judge: Judge) -> None:
    """None is accepted, none takes longer than the CPU limit allows, and this process does not grow."""
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    for name, (gold, answer) in EXPLOITS.items():
        begun = time.monotonic()
        verdict = loop.run_until_complete(judge.verdict(answer, gold))
        assert verdict in ("wrong", "too_hard"), name
        assert time.monotonic() - begun < 20 * CPU_S, name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - before_mb < 64


@pytest.mark.docker
def test_honest_look_alikes_are_right(loop: asyncio.AbstractEventLoop, judge: Judge) -> None:
    found = loop.run_until_complete(verdicts(judge, list(LOOK_ALIKES.values())))
    assert [name for name, verdict in zip(LOOK_ALIKES, found, strict=True) if verdict != "right"] == []


@pytest.mark.docker
def test_bombs_are_the_answers_fault_unless_the_gold_is_one(loop: asyncio.AbstractEventLoop, judge: Judge) -> None:
    tower = "x^{9^{9^{9^{9}}}}"
    assert loop.run_until_complete(judge.verdict(tower, "x")) == "too_hard"
    assert loop.run_until_complete(judge.verdict("9^9^9^9", "4")) == "too_hard"
    for gold in (tower, "9^{9^{9^9}}"):
        with pytest.raises(UnreadableGold):
            loop.run_until_complete(judge.verdict("x + 1", gold))


@pytest.mark.docker
@pytest.mark.parametrize("gold", ["", " ", r"\frac{1}{", r"\unknown{3}", "x +* 2", "????", "4" * 1000])
def test_a_gold_answer_that_cannot_be_read_is_an_error_in_the_data(
    loop: asyncio.AbstractEventLoop, judge: Judge, gold: str
) -> None:
    with pytest.raises(UnreadableGold):
        loop.run_until_complete(judge.verdict("y + 1", gold))
    with pytest.raises(UnreadableGold):
        loop.run_until_complete(judge.check(gold))


@pytest.mark.docker
@pytest.mark.slow
def test_every_gold_of_the_table_passes_the_check(loop: asyncio.AbstractEventLoop, judge: Judge) -> None:
    async def faulty(gold: str) -> str | None:
        try:
            await judge.check(gold)
        except UnreadableGold:
            return gold
        return None

    golds = sorted({gold for _, gold, _ in PAIRS})
    found = loop.run_until_complete(_all([faulty(gold) for gold in golds]))
    assert [gold for gold in found if gold] == []


async def _all(work: list[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*work))


@pytest.mark.docker
def test_the_judge_outlives_its_container(loop: asyncio.AbstractEventLoop, pool: DockerPool) -> None:
    """Killed between two questions and in the middle of many: the verdicts are the same."""

    async def scenario() -> None:
        judge = Judge(pool, timeout_s=60)
        assert await judge.verdict(r"1 + \sqrt{x}", r"\sqrt{x} + 1") == "right"
        service = judge._service
        assert isinstance(service, PoolService)
        await asyncio.to_thread(engine.remove, pool._client, service.name)
        assert await judge.verdict(r"1 + \sqrt{y}", r"\sqrt{y} + 1") == "right"
        many = [
            asyncio.create_task(judge.verdict(f"{n} + \\sqrt{{x}}", f"\\sqrt{{x}} + {n + n % 2}"))
            for n in range(10, 30)
        ]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.remove, pool._client, service.name)
        assert await asyncio.gather(*many) == ["right", "wrong"] * 10
        assert service.started == 3
        await judge.close()
        assert service.name not in engine.names("test-judge")

    loop.run_until_complete(asyncio.wait_for(scenario(), 300))


@pytest.mark.docker
def test_a_cancelled_question_never_answers_the_next(loop: asyncio.AbstractEventLoop, judge: Judge) -> None:
    async def scenario() -> None:
        for k in range(10):
            leaving = [asyncio.create_task(judge.verdict(f"\\sqrt{{x}} - {n}", f"\\sqrt{{x}} + {k}")) for n in range(4)]
            await asyncio.sleep(0.01)
            for task in leaving:
                task.cancel()
            assert await judge.verdict(f"{k} + \\sqrt{{x}}", f"\\sqrt{{x}} + {k}") == "right"
            assert await judge.verdict(f"{k + 1} + \\sqrt{{x}}", f"\\sqrt{{x}} + {k}") == "wrong"

    loop.run_until_complete(asyncio.wait_for(scenario(), 120))


@pytest.mark.docker
def test_too_little_time_is_the_machinerys_fault(loop: asyncio.AbstractEventLoop, pool: DockerPool) -> None:
    async def scenario() -> None:
        judge = Judge(pool, timeout_s=60)
        await judge.verdict(r"1 + \sqrt{x}", r"\sqrt{x} + 1")
        judge.timeout_s = 0.001
        with pytest.raises(JudgeTimedOut):
            await judge.verdict("x^{9^{9^{9^{9}}}}", "x")
        judge.timeout_s = 60
        assert await judge.verdict(r"1 + \sqrt{x}", r"\sqrt{x} + 1") == "right"
        await judge.close()

    loop.run_until_complete(asyncio.wait_for(scenario(), 120))


def test_a_dead_engine_is_a_typed_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")

    async def scenario() -> None:
        pool = DockerPool(run="test-judge-dead", size=1)
        judge = Judge(pool)
        assert await judge.verdict("0.5", "1/2") == "right"  # needs no parser
        with pytest.raises(JudgeFailed, match="no Docker engine answers"):
            await judge.verdict(r"1 + \sqrt{x}", r"\sqrt{x} + 1")
        await judge.close()
        await pool.close()

    asyncio.run(scenario())


def test_without_sandboxes_only_a_parser_is_missed() -> None:
    judge = Judge(None)
    assert asyncio.run(judge.verdict("4", "4")) == "right"
    with pytest.raises(JudgeFailed, match="there is none"):
        asyncio.run(judge.verdict(r"1 + \sqrt{x}", r"\sqrt{x} + 1"))


PROBE = b"""
import glob, json, os, resource, socket

def tries(what):
    try:
        return str(what())
    except BaseException as problem:
        return type(problem).__name__

def answer(question):
    if question == b"grow":
        return str(len(bytearray(b"x") * (300 << 20))).encode()
    if question == b"spin":
        while True: pass
    if question == b"die":
        os.kill(os.getpid(), 9)
    if question == b"raise":
        raise KeyError("asked to")
    if question == b"flood":
        links = {fd: tries(lambda: os.readlink("/proc/self/fd/" + fd)) for fd in os.listdir("/proc/self/fd")}
        (pipe,) = [int(fd) for fd, link in links.items() if link.startswith("pipe")]
        while True: os.write(pipe, b"x" * 65536)
    return json.dumps({
        "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "connect": tries(lambda: socket.create_connection(("1.1.1.1", 53), 1)),
        "fork": tries(os.fork), "setuid": tries(lambda: os.setuid(0)),
        "kill parent": tries(lambda: os.kill(1, 9)),
        "parent's stdout": tries(lambda: open("/proc/1/fd/1", "wb")),
        "parent's memory": tries(lambda: open("/proc/1/mem", "rb")),
        "writable": [tries(lambda: open(folder + "/x", "w")) for folder in ("/", "/work", "/tmp", "/dev/shm")],
        "environment": sorted(os.environ), "files": glob.glob("/home/*") + glob.glob("/root/*"),
        "open": sorted(os.listdir("/proc/self/fd")), "cpu": resource.getrlimit(resource.RLIMIT_CPU)[0],
    }).encode()
"""


def zipped(source: bytes) -> bytes:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("program.py", source)
    return buffer.getvalue()


@pytest.mark.docker
def test_what_code_inside_a_service_could_do(loop: asyncio.AbstractEventLoop, pool: DockerPool) -> None:
    """Should a parser ever run the text that it parses: nothing is in reach, and limits hold."""

    async def scenario() -> None:
        service = pool.service(zipped(PROBE), workers=2, memory_mb=128)
        first = await service.ask(b"", cpu_s=2, timeout_s=60)
        seen = json.loads(first.body)
        assert seen["uid"] > 1_000_000 and seen["gid"] == seen["uid"] and seen["groups"] == []
        assert seen["interfaces"] == ["lo"] and seen["connect"] in ("OSError", "PermissionError", "gaierror")
        assert seen["fork"] == "BlockingIOError" and seen["setuid"] == "PermissionError"
        assert {seen[name] for name in ("kill parent", "parent's stdout", "parent's memory")} == {"PermissionError"}
        assert set(seen["writable"]) <= {"PermissionError", "OSError"}, seen["writable"]
        assert not {"SECRET"} & set(seen["environment"]) and seen["files"] == [] and seen["cpu"] == 2
        assert len(seen["open"]) <= 5, seen["open"]
        ended = {
            question: (await service.ask(question, cpu_s=1, timeout_s=60)).ended
            for question in (b"grow", b"spin", b"die", b"raise", b"flood", b"")
        }
        assert list(ended.values()) == ["spent", "spent", "spent", "raised", "spent", "answered"]
        assert (await service.ask(b"spin", cpu_s=30, timeout_s=0.5)).ended == "late"
        begun = time.monotonic()
        both = await asyncio.gather(*(service.ask(b"spin", cpu_s=30, timeout_s=1) for _ in range(2)))
        assert [each.ended for each in both] == ["late", "late"] and time.monotonic() - begun < 1.9
        await service.close()
        with pytest.raises(SandboxUnavailable, match="closed"):
            await service.ask(b"", cpu_s=1, timeout_s=1)
        broken = pool.service(zipped(b"import nothing_of_that_name"))
        with pytest.raises(SandboxUnavailable, match="nothing_of_that_name"):
            await broken.ask(b"", cpu_s=1, timeout_s=1)

    loop.run_until_complete(asyncio.wait_for(scenario(), 300))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (r"\boxed{4}", "4"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\fbox{4}", "4"),
        (r"\boxed {\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{ }", None),
        ("4", None),
        ("", None),
        ("}" * 10 + r"\boxed{4}", "4"),
        ("{" * 10 + r"\boxed{4}", "4"),
    ],
)
def test_the_answer_is_the_last_complete_box(said: str, answer: str | None) -> None:
    assert extract(said) == answer


def test_a_marker_counts_only_where_nothing_is_boxed() -> None:
    assert extract("#### 3\nso\n#### 4 \nbye", "####") == "4"
    assert extract("Answer: 4", "") is None
    assert extract("Answer: 3 \\boxed{4}", "Answer:") == "4"
    assert extract("Answer:", "Answer:") is None


def test_a_long_text_is_searched_in_linear_time() -> None:
    begun = time.monotonic()
    for piece in ("\\boxed{", "{", "}", "\\boxed{}", "\\"):
        extract(piece * 100_000)
    assert time.monotonic() - begun < 5


@pytest.mark.docker
def test_the_world_tells_the_verdicts_apart(loop: asyncio.AbstractEventLoop, pool: DockerPool) -> None:
    async def verdict(world: World, action: str) -> tuple[str, bool]:
        env = world.open(task)
        await env.start()
        await env.step(action)
        facts = await env.measure()
        json.dumps(facts)
        return facts["verdict"], facts["solved"]

    world = World(pool, answer_marker="Answer:")
    task = world.task("train", 0)
    gold = task.hidden["answer"]
    said = {
        f"\\boxed{{{gold}}}": ("right", True),
        f"Answer: {gold}": ("right", True),
        f"\\boxed{{{int(gold) + 1}}}": ("wrong", False),
        f"\\boxed{{{task.hidden['expression']}}}": ("wrong", False),
        "\\boxed{9^9^9^9}": ("too_hard", False),
        "I give up": ("no_answer", False),
    }
    assert {action: loop.run_until_complete(verdict(world, action)) for action in said} == said
    loop.run_until_complete(world.close())


def test_the_program_holds_no_answers_and_fits_a_frame() -> None:
    import io
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(program())).namelist()
    assert not [name for name in names if "problems" in name or "tests/" in name]
    assert len(program()) < 32 * 2**20 and MEMORY_MB < 1024


SHORT_PROBE = b"""
import glob, json, os, signal, socket

def tries(action):
    try:
        action()
    except OSError as problem:
        return type(problem).__name__
    return "done"

def answer(question):
    if question == b"spin":
        while True: pass
    if question == b"grow":
        held = []
        while True: held.append(bytes(1 << 20))
    return json.dumps({
        "killed": [tries(lambda: os.kill(1, number)) for number in (signal.SIGKILL, signal.SIGSTOP)],
        "parent": [tries(lambda: open(f"/proc/1/{name}", "rb")) for name in ("mem", "fd/0", "fd/1")],
        "connect": tries(lambda: socket.create_connection(("1.1.1.1", 53), 1)),
        "written": [tries(lambda: open(f"{folder}/x", "w")) for folder in ("/", "/tmp", "/usr", "/dev/shm")],
        "files": glob.glob("/home/*") + glob.glob("/root/*") + glob.glob("/etc/*shadow*"),
    }).encode()
"""


@pytest.mark.bubblewrap
def test_the_judge_without_docker() -> None:
    async def scenario() -> None:
        pool = bubblewrap.Pool(run="test-judge-bwrap", size=1)
        try:
            judge = Judge(pool)
            asked = (
                (r"\sqrt{8}", r"2\sqrt{2}"),
                ("9^{9^{9^9}}", "3"),
                (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
            )
            assert [await judge.verdict(*pair) for pair in asked] == ["right", "too_hard", "wrong"]
            service = pool.service(zipped(SHORT_PROBE), workers=2, memory_mb=128)
            seen = json.loads((await service.ask(b"", cpu_s=2, timeout_s=60)).body)
            assert set(seen["parent"]) == {"PermissionError"} and seen["connect"] != "done" and seen["files"] == []
            assert "done" not in seen["written"]
            ended = [(await service.ask(what, cpu_s=1, timeout_s=60)).ended for what in (b"spin", b"grow", b"")]
            assert ended == ["spent", "spent", "answered"] and service.started == 1  # signals did not reach process 1
        finally:
            await pool.close()
        assert bubblewrap.count("test-judge-bwrap") == 0

    asyncio.run(asyncio.wait_for(scenario(), 120))
