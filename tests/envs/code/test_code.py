"""The verifier of programs in real sandboxes: what each ending is called, real stdin, limits, languages, checkers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from envs import Facts, JudgeFailed, Task
from envs.code import World, program
from envs.code.languages import chosen
from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.docker import DockerPool

Go = Callable[[Coroutine[Any, Any, Any]], Any]
CPP_IMAGE = "touchstone-sandbox:bookworm-cpp"


@pytest.fixture(scope="module")
def go() -> Iterator[Go]:
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def pool(go: Go) -> Iterator[DockerPool]:
    pool = DockerPool(run="test-code", size=2)
    yield pool
    go(pool.close())


def task(**hidden: Any) -> Task:
    hidden = {"inputs": ["2 3\n"], "outputs": ["5"], **hidden}
    return Task(world="code", key="t", family="t", level=0, messages=(), hidden=hidden)


async def answer(world: World, task: Task, text: str) -> Facts:
    env = world.open(task)
    await env.start()
    await env.step(text)
    return await env.measure()


def python(code: str) -> str:
    return f"```python\n{code}\n```"


SUM = "print(sum(map(int, input().split())))"


@pytest.mark.docker
@pytest.mark.parametrize(
    ("code", "verdict", "ended"),
    [
        (SUM, "right", ""),
        ("print(6)", "wrong", ""),
        ("pass", "wrong", ""),
        ("1 +", "compile_error", "exit 1"),
        ("1 / 0", "crashed", "exit 1"),
        (f"{SUM}\nimport sys; sys.exit(3)", "crashed", "exit 3"),
        ("import os; os.abort()", "crashed", "signal 6"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "signal 11"),
        ("import time; time.sleep(60)", "timed_out", "signal 9"),
        ("while True: pass", "timed_out", "signal 24"),
        ("a = [0] * 10**10", "out_of_memory", "exit 1"),
        ("print('x' * 10**7)", "output_too_long", "exit 1"),
        ("import os; os.kill(os.getppid(), 9)", "tampered", "exit 137"),
    ],
)
def test_every_ending_has_its_name(go: Go, pool: DockerPool, code: str, verdict: str, ended: str) -> None:
    world = World(pool, time_limit_s=0.5)
    facts = go(answer(world, task(memory_limit_mb=200), python(code)))
    assert (facts["verdict"], facts["ended"].get("0", "")) == (verdict, ended), facts
    assert facts["solved"] is (verdict == "right")


@pytest.mark.docker
@pytest.mark.parametrize(
    "code",
    [
        "import sys; a = sys.stdin.buffer.read(); b = "
        "sys.stdin.buffer.read(); assert not b; print(sum(map(int, a.split())))",
        "print(sum(map(int, open(0).read().split())))",
        "print(sum(map(int, open('/dev/stdin').read().split())))",
        "import os; print(sum(map(int, os.read(0, os.fstat(0).st_size).split())))",
        "import mmap; print(sum(map(int, mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:].split())))",
        "import sys; a = sys.stdin.read(); sys.stdin.seek(0); assert "
        "sys.stdin.read() == a; print(sum(map(int, a.split())))",
        "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))",
        "import fileinput\nfor line in fileinput.input(): print(sum(map(int, line.split())))",
        "import subprocess; print(sum(map(int, subprocess.check_output(['cat']).split())))",
        "import sys, threading\ndef main(): print(sum(map(int, input().split())))\n"
        "threading.stack_size(1 << 26); sys.setrecursionlimit(10**6)\nt = threading.Thread(target=main); t.start()",
        "import atexit; atexit.register(lambda: print(5))",
        "import pickle\nclass A: pass\npickle.dumps(A())\nif __name__ == '__main__': print(5)",
        "import multiprocessing as m\ndef f(x): return x + 3\nprint(m.Pool(1).map(f, [2])[0])",
        "import sys; sys.stdout.buffer.write(b'5'); sys.stdout.flush()",
        "import os; print(len(__file__) and 5); assert __name__ == '__main__' and not os.environ.get('X')",
        "from __future__ import annotations\ndef f(a: 1 / 0): ...\nprint(5)",
        "print(5)\nexit()",
    ],
)
def test_a_program_runs_as_if_it_were_started_alone(go: Go, pool: DockerPool, code: str) -> None:
    facts = go(answer(World(pool), task(), python(code)))
    assert facts["verdicts"] == ["right"], facts


@pytest.mark.docker
def test_cases_do_not_influence_one_another(go: Go, pool: DockerPool) -> None:
    """No process, variable or input of a case is found in the next; each failure is told apart."""
    cases = task(inputs=["1\n", "2\n", "3\n", "4\n"], outputs=["1", "2", "3", "4"])
    code = (
        "import builtins, os, time\nassert not hasattr(builtins, 'left')\nbuiltins.left = 1\nn = int(input())\n"
        "alive = [p for p in os.listdir('/proc') if p.isdigit() and int(p) > 1]\n"
        "assert len(alive) <= 2, alive\n"
        "for _ in range(20):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        slow_to_die = bytearray(4 << 20)\n        time.sleep(99)\n"
        "if n == 2: raise ValueError\nprint(n + (n == 3))"
    )
    facts = go(answer(World(pool), cases, python(code)))
    assert facts["verdicts"] == ["right", "crashed", "wrong", "right"], facts
    assert facts["passed"] == 0.5 and facts["verdict"] == "crashed"


@pytest.mark.docker
@pytest.mark.parametrize("name", ["mem", "maps", "fd/1", "environ"])
def test_the_runner_cannot_be_read_or_written_by_a_case(go: Go, pool: DockerPool, name: str) -> None:
    code = f"import os\ntry:\n    open(f'/proc/{{os.getppid()}}/{name}')\nexcept PermissionError:\n    print(5)"
    assert go(answer(World(pool), task(), python(code)))["verdicts"] == ["right"]


@pytest.mark.docker
def test_groups_earn_where_all_their_cases_are_right(go: Go, pool: DockerPool) -> None:
    groups = [{"cases": [0], "points": 30}, {"cases": [0, 1], "points": 50}, {"cases": [2], "points": 20}]
    facts = go(answer(World(pool), task(inputs=["1"] * 3, outputs=["1", "2", "1"], groups=groups), python("print(1)")))
    assert [g["right"] for g in facts["groups"]] == [True, False, True]
    assert facts["points"] == 0.5 and not facts["solved"]


@pytest.mark.docker
def test_after_some_timeouts_the_rest_is_not_run(go: Go, pool: DockerPool) -> None:
    cases = task(inputs=["1"] * 5, outputs=["1"] * 5)
    facts = go(answer(World(pool, time_limit_s=0.2, timeouts=2), cases, python("import time; time.sleep(9)")))
    assert facts["verdicts"] == ["timed_out"] * 2 + ["not_run"] * 3


@pytest.mark.docker
def test_a_near_miss_is_run_again_alone(go: Go, pool: DockerPool) -> None:
    """The first run takes a little more than its second of CPU time; the second none, and counts."""
    code = (
        "import os, time\nif not os.path.exists('/work/again'):\n    open('/work/again', 'w')\n"
        "    while time.process_time() < 1.1: pass\n" + SUM
    )
    world = World(pool, time_limit_s=0.5)
    assert go(answer(world, task(), python(code)))["verdicts"] == ["right"]
    always = "import time\nwhile time.process_time() < 1.1: pass\n" + SUM
    assert go(answer(world, task(), python(always)))["verdicts"] == ["timed_out"]


@pytest.mark.docker
def test_large_outputs_and_inputs_arrive_whole(go: Go, pool: DockerPool) -> None:
    text = "\n".join(str(n) for n in range(400_000))
    big = task(inputs=[text] * 8, outputs=[text] * 8)
    facts = go(answer(World(pool), big, python("import sys; sys.stdout.write(sys.stdin.read())")))
    assert facts["verdicts"] == ["right"] * 8


@pytest.mark.docker
def test_calls(go: Go, pool: DockerPool) -> None:
    world = World(pool, time_limit_s=0.5)
    problem = task(function="f", inputs=[[1, 2], {"a": 3, "b": 4}], outputs=[3, 7], prelude="from typing import *")
    code = "def f(a: Optional[int], b):\n    print('noise')\n    {}\n    return a + b"
    right = go(answer(world, problem, python(code.format("pass"))))
    assert right["verdicts"] == ["right", "right"] and right["solved"]
    for body, verdict in {
        "if a == 3: raise ValueError": "crashed",
        "if a == 3: import os; os._exit(0)": "unfinished",
        "if a == 3: exit()": "unfinished",
        "if a == 3: return True": "wrong",
        "if a == 3: import os; os.abort()": "crashed",
        "while a == 3: pass": "timed_out",
    }.items():
        assert go(answer(world, problem, python(code.format(body))))["verdicts"] == ["right", verdict], body
    assert go(answer(world, problem, python("def g(): ...")))["verdicts"] == ["missing"] * 2
    assert go(answer(world, problem, python("import nowhere")))["verdicts"] == ["missing"] * 2


CHECKER = {"language": "python", "source": "import sys\nsys.exit(int(open(sys.argv[2]).read()))"}


@pytest.mark.docker
def test_a_checker_decides_and_its_failure_is_nobodys_verdict(go: Go, pool: DockerPool) -> None:
    world = World(pool)
    for code, verdict in {0: "right", 1: "wrong", 2: "presentation", 8: "presentation"}.items():
        assert go(answer(world, task(checker=CHECKER), python(f"print({code})")))["verdicts"] == [verdict]
    with pytest.raises(JudgeFailed, match="exit code 3"):
        go(answer(world, task(checker=CHECKER), python("print(3)")))
    with pytest.raises(JudgeFailed, match="checker"):
        go(answer(world, task(checker={**CHECKER, "language": "cobol"}), python("print(0)")))


@pytest.mark.docker
def test_the_checkers_sandbox_has_the_answer_and_not_the_program(go: Go, pool: DockerPool) -> None:
    source = (
        "import os, sys\nassert sorted(os.listdir('/work')) == ['answer.txt', 'input.txt', 'main.py', 'output.txt']\n"
        "assert 'SECRET' not in open('/work/main.py').read().replace('SEC' + 'RET', '', 1)\n"
        "texts = [open(name).read() for name in sys.argv[1:]]\nsys.exit(texts != ['2 3\\n', '9\\n', '5'])"
    )
    problem = task(checker={"language": "python", "source": source})
    assert go(answer(World(pool), problem, python("open('/work/left', 'w')\nprint(9)")))["verdicts"] == ["right"]


@pytest.mark.docker
@pytest.mark.parametrize(
    "hidden",
    [
        {"outputs": []},
        {"outputs": [5]},
        {"compare": "fuzzy"},
        {"compare": "checker"},
        {"groups": [{"cases": [7], "points": 1}]},
        {"inputs": None},
        {"time_limit_s": "soon"},
    ],
)
def test_data_that_make_no_problem_are_the_machinerys_failure(go: Go, pool: DockerPool, hidden: Any) -> None:
    with pytest.raises(JudgeFailed, match="not fit to judge by"):
        go(answer(World(pool), task(**hidden), python(SUM)))


@pytest.mark.docker
def test_another_language_is_configuration(go: Go, pool: DockerPool) -> None:
    own = {"python": None, "awk": {"tags": ["awk"], "file": "main.awk", "run": ["awk", "-f", "main.awk"]}}
    world = World(pool, languages=own)
    go(world.ready())
    assert go(answer(world, task(), "```awk\n{ print $1 + $2 }\n```"))["solved"]
    assert go(answer(world, task(), python(SUM)))["solved"]
    assert go(answer(world, task(), "```ruby\nputs 5\n```"))["verdicts"] == ["no_code"]
    assert go(answer(world, task(function="f", inputs=[[1]]), "```awk\n1\n```"))["verdicts"] == ["no_code"]


def test_the_fence_chooses_the_language() -> None:
    languages = chosen(["python", "cpp"])
    for text, found in {
        "```cpp\nA\n```": ("main.cpp", "A\n"),
        "```C++\nA\n```": ("main.cpp", "A\n"),
        "```\nA\n```": ("main.py", "A\n"),
        "```py\nA\n```\nso\n```text\nB\n```": ("main.py", "A\n"),
        "```py\nA\n```\nbetter\n```cpp title=x\nB\n```": ("main.cpp", "B\n"),
    }.items():
        got = program(text, languages)
        assert got is not None and (got[0].file, got[1]) == found, text
    assert program("```rust\nA\n```", languages) is None


def test_languages_that_make_no_sense_are_refused() -> None:
    for given, says in (
        (["cobol"], "got language 'cobol'; available: python, cpp"),
        ([], "got no language"),
        ({"x": {"file": "x"}}, "run, tags missing"),
        ({"x": {"tags": [], "file": "x", "run": ["x"], "speed": 1}}, "got speed; available"),
    ):
        with pytest.raises(ValueError, match=says):
            World(None, languages=given)


@pytest.mark.docker
def test_a_world_without_its_compiler_says_so_before_any_attempt(go: Go, pool: DockerPool) -> None:
    with pytest.raises(SandboxUnavailable, match=r"has no 'g\+\+': take cpp from"):
        go(World(pool, languages=["python", "cpp"]).ready())


def has_cpp() -> bool:
    return subprocess.run(["docker", "image", "inspect", CPP_IMAGE], capture_output=True, check=False).returncode == 0


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.skipif(not has_cpp(), reason=f"no image {CPP_IMAGE}: `make image-cpp`")
def test_cpp(go: Go) -> None:
    def cpp(body: str) -> str:
        return f"```cpp\n#include <bits/stdc++.h>\nusing namespace std;\nint main() {{ {body} }}\n```"

    async def verdicts() -> dict[str, Any]:
        pool = DockerPool(run="test-cpp", size=1, image=CPP_IMAGE)
        try:
            world = World(pool, languages=["python", "cpp"], time_limit_s=1.0)
            await world.ready()
            bodies = {
                "right": "long a, b; cin >> a >> b; cout << a + b;",
                "wrong": "cout << 6;",
                "crashed": "abort();",
                "timed_out": "volatile long n = 0; while (true) n++;",
                "out_of_memory": "vector<long> v(1L << 40, 1); cout << v[5];",
                "output_too_long": "while (true) puts(string(1000, 'x').c_str());",
                "compile_error": "int x = nothing;",
            }
            return {v: await answer(world, task(memory_limit_mb=200), cpp(body)) for v, body in bodies.items()}
        finally:
            await pool.close()

    found = go(verdicts())
    assert {v: facts["verdict"] for v, facts in found.items()} == {v: v for v in found}, found
    assert "nothing" in found["compile_error"]["error"]
