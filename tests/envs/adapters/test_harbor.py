"""Harbor task folders, written by the published format: read, built, played in real sandboxes, graded, not fooled."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from replayed import Replayed, gold, replay

from envs import JudgeFailed
from envs.adapters import harbor
from envs.adapters.harbor import build, folder, grading
from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.docker import DockerPool, preflight

T = TypeVar("T")
IMAGE = "touchstone-sandbox:bookworm"

TOML = """\
version = "1.0"

[metadata]
difficulty = "easy"

[verifier]
timeout_sec = 60.0

[agent]
timeout_sec = 60.0

[environment]
cpus = 1
memory_mb = 2048
allow_internet = true
env = { GREETING = "${NOT_SET_HERE:-hello}" }
"""
DOCKERFILE = f"""\
FROM {IMAGE}
ENV FROM_IMAGE=yes
WORKDIR /app
COPY total.py data/numbers.txt /app/
"""
TOTAL = "import sys\nprint(sum(int(line) for line in open(sys.argv[1])) + 1)\n"
SOLVE = "#!/bin/bash\nset -e\nsed -i 's/ + 1)/)/' total.py\npython3 total.py numbers.txt > answer.txt\n"
CHECK = """\
import subprocess
assert open("/app/answer.txt").read().strip() == "42"
ran = subprocess.run(["python3", "/app/total.py", "/tests/others.txt"], capture_output=True, text=True)
assert ran.stdout.strip() == "7", ran
"""
TEST = """\
#!/bin/bash
[ "$GREETING $FROM_IMAGE" = "hello yes" ] || exit 1
if python3 /tests/check.py; then echo 1 > /logs/verifier/reward.txt; else echo 0 > /logs/verifier/reward.txt; fi
"""


def write(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def sums(path: Path, **other: str | None) -> Path:
    """A task in Harbor's format; `other` replaces or (None) leaves out files, `__` in a name standing for `/`."""
    files: dict[str, str | None] = {
        "task.toml": TOML,
        "instruction.md": "<!-- harbor-canary GUID 1234 -->\n\nMend `total.py`; what it prints goes to answer.txt.\n",
        "environment/Dockerfile": DOCKERFILE,
        "environment/total.py": TOTAL,
        "environment/data/numbers.txt": "20\n22\n",
        "tests/test.sh": TEST,
        "tests/check.py": CHECK,
        "tests/others.txt": "3\n4\n",
        "solution/solve.sh": SOLVE,
    }
    files |= {name.replace("__", "/").replace("_dot_", "."): text for name, text in other.items()}
    return write(path, {name: text for name, text in files.items() if text is not None})


# -- reading, without an engine ---------------------------------------------------------------------------------------


def test_a_folder_is_read_and_what_is_not_met_is_said(tmp_path: Path) -> None:
    task = folder.read(sums(tmp_path / "sums"), tmp_path)
    assert task.key == "sums" and task.instruction.startswith("Mend ")
    assert set(task.tests) == {"test.sh", "check.py", "others.txt"}
    assert task.env == {"GREETING": "hello"} and task.verifier_s == 60
    assert task.overridden == ("network access", "cpus = 1", "memory_mb = 2048")


def test_harbors_own_parser_reads_the_same(tmp_path: Path) -> None:
    """Its package asks for Python 3.12: elsewhere nothing of it can be installed."""
    theirs = pytest.importorskip("harbor.models.task.task")
    toml = (
        TOML.replace("[verifier]", '[verifier]\nenvironment_mode = "separate"')
        + '[[artifacts]]\nsource = "/app/a.txt"\n'
    )
    quiet = '[environment]\nnetwork_mode = "no-network"\nworkdir = "/srv"\n[solution.env]\nMODE = "fast"\n'
    for name, text in {"plain": TOML, "separate": toml, "empty": "", "quiet": quiet}.items():
        path = sums(tmp_path / name, task_dot_toml=text)
        ours, config = folder.read(path, tmp_path), theirs.Task(path).config
        assert theirs.Task.is_valid_dir(path) and ours.instruction == theirs.Task(path).instruction.strip()
        assert (ours.verifier_s, ours.workdir) == (config.verifier.timeout_sec, config.environment.workdir)
        assert ours.solution_env == config.solution.env and list(ours.artifacts) == [a.source for a in config.artifacts]
        assert ours.separate == (config.verifier.environment_mode == "separate")
        assert ("network access" in ours.overridden) == (config.environment.network_mode != "no-network")


def test_its_digest_and_image_change_with_what_they_are_made_of(tmp_path: Path) -> None:
    first = folder.read(sums(tmp_path / "a"), tmp_path)
    tests = folder.read(sums(tmp_path / "b", tests__check_dot_py="assert False\n"), tmp_path)
    image = folder.read(sums(tmp_path / "c", environment__total_dot_py="print(1)\n"), tmp_path)
    assert first.image == tests.image != image.image
    assert len({first.digest, tests.digest, image.digest}) == 3


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"task_dot_toml": TOML + "gpus = 1\n"}, "a GPU"),
        ({"task_dot_toml": TOML + 'os = "Windows"\n'}, "Windows"),
        ({"task_dot_toml": TOML + '[environment.healthcheck]\ncommand = "true"\n'}, "a service that stays up"),
        ({"task_dot_toml": TOML + '[verifier.environment]\ndocker_image = "x"\n'}, "image of its verifier's own"),
        ({"task_dot_toml": TOML.replace(":-hello", "")}, "variable NOT_SET_HERE"),
        ({"environment__docker-compose_dot_yaml": "services: {}\n"}, "several containers"),
        ({"environment__Dockerfile": None}, "neither environment.docker_image nor"),
        ({"tests__test_dot_sh": None}, "no tests/test.sh"),
        ({"instruction_dot_md": None}, "no instruction.md"),
        ({"task_dot_toml": "version = ["}, "cannot be read"),
    ],
)
def test_what_cannot_be_played_is_refused_in_words(tmp_path: Path, files: dict[str, str | None], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        folder.read(sums(tmp_path / "sums", **files), tmp_path)


def test_one_bad_folder_among_good_ones_is_left_out_and_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sums(tmp_path / name)
    sums(tmp_path / "bad", tests__test_dot_sh=None)
    world = harbor.World(None, tasks=str(tmp_path))  # type: ignore[arg-type]
    assert world.size("train") + world.size("heldout") == 2 and world.size("train") == 1
    assert "2 of 3 Harbor tasks taken" in str(world.stream.report) and "no tests/test.sh" in str(world.stream.report)
    with pytest.raises(ValueError, match="holds no Harbor task"):
        harbor.World(None, tasks=str(tmp_path / "bad" / "solution"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "is_json", "expected"),
    [
        (b"1\n", False, (1.0, {})),
        (b"0.25", True, (0.25, {})),
        (b'{"reward": 0.5, "style": 1}', True, (0.5, {"reward": 0.5, "style": 1.0})),
        (b'{"accuracy": 0.75}', True, (0.75, {"accuracy": 0.75})),
    ],
)
def test_rewards_are_read_as_harbor_does(data: bytes, is_json: bool, expected: Any) -> None:
    assert grading.numbers(data, is_json=is_json) == expected


@pytest.mark.parametrize(
    ("data", "is_json"),
    [
        *((data, False) for data in (b"", b"nan", b"inf", b"one", b"\xff")),
        *(
            (data, True)
            for data in (b"", b"1" * 401, b"NaN", b'{"a": 1, "b": 1}', b'{"a": "1"}', b"1e999", b"[1]", b"{}")
        ),
    ],
)
def test_no_number_is_no_reward(data: bytes, is_json: bool) -> None:
    with pytest.raises(ValueError):
        grading.numbers(data, is_json=is_json)


def test_a_solution_of_several_files_becomes_one_command(tmp_path: Path) -> None:
    alone = folder.read(sums(tmp_path / "a"), tmp_path)
    assert harbor.gold(alone) == SOLVE.strip()
    more = sums(tmp_path / "b", solution__patch_dot_txt="x", task_dot_toml=TOML + '[solution.env]\nMODE = "it\'s"\n')
    command = harbor.gold(folder.read(more, tmp_path))
    assert command.startswith("export MODE='it'\\''s'\n") and command.endswith("/solution/solve.sh")
    with pytest.raises(ValueError, match=r"no solution/solve\.sh"):
        harbor.gold(folder.read(sums(tmp_path / "c", solution__solve_dot_sh=None), tmp_path))


# -- in sandboxes -----------------------------------------------------------------------------------------------------


class Place:
    """Two tasks with their images, and a pool, on one event loop."""

    def __init__(self, root: Path, loop: asyncio.Runner) -> None:
        self.root, self.loop = root, loop
        self.pool = self.go(self._made())

    async def _made(self) -> Any:
        return DockerPool(run="test-harbor", size=2)

    def go(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, 120)

        return self.loop.run(bounded())

    def world(self, **args: Any) -> harbor.World:
        return harbor.World(self.pool, tasks=str(self.root), **args)

    def play(self, key: str, actions: list[str], **args: Any) -> Replayed:
        world = self.world(**args)
        return self.go(replay(world, self.task(world, key), actions))

    @staticmethod
    def task(world: harbor.World, key: str) -> Any:
        both = (world.task(split, n) for split in ("train", "heldout") for n in range(world.size(split)))  # type: ignore[arg-type]
        return next(task for task in both if task.key == key)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    try:
        preflight(IMAGE)
    except SandboxUnavailable as problem:
        pytest.skip(str(problem))
    root = tmp_path_factory.mktemp("tasks")
    sums(root / "sums")
    parts = '#!/bin/sh\necho \'{"reward": 0.5, "style": 1}\' > /logs/verifier/reward.json\n'
    separate = TOML + '[[artifacts]]\nsource = "/app/answer.txt"\n'
    separate = separate.replace("[verifier]", '[verifier]\nenvironment_mode = "separate"')
    own = "#!/bin/sh\nif [ $(cat /app/answer.txt) = 42 ] && grep -q '+ 1' /app/total.py; then echo 1; else echo 0; fi"
    sums(root / "separate", task_dot_toml=separate, tests__test_dot_sh=f"{own} > /logs/verifier/reward.txt\n")
    prebuilt = f'[environment]\ndocker_image = "{IMAGE}"\nworkdir = "/app"\n'
    sums(root / "parts", task_dot_toml=prebuilt, environment__Dockerfile=None, tests__test_dot_sh=parts)
    same = (
        "#!/bin/sh\n[ -e /app/prog.py ] && python3 /app/prog.py > /app/out.txt\n"
        "if cmp -s /app/answer.txt /tests/others.txt; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n"
    )
    sums(root / "linked", task_dot_toml=prebuilt, environment__Dockerfile=None, tests__test_dot_sh=same)
    apart = f'artifacts = ["/app/answer.txt", "/app/way"]\n{prebuilt}[verifier]\nenvironment_mode = "separate"\n'
    sums(root / "linked-separate", task_dot_toml=apart, environment__Dockerfile=None, tests__test_dot_sh=same)
    silent = "#!/bin/sh\necho no network to fetch pytest from >&2\nexit 1\n"
    sums(root / "silent", task_dot_toml=prebuilt, environment__Dockerfile=None, tests__test_dot_sh=silent)
    assert build.main(str(root)) == 0
    images = {folder.read(path, root).image for path in folder.folders(str(root))}
    with asyncio.Runner() as loop:
        place = Place(root, loop)
        yield place
        place.go(place.pool.close())
    subprocess.run(["docker", "rmi", "-f", *images, *(f"{i}-base" for i in images)], capture_output=True, check=False)


def bash(command: str) -> str:
    return f"<tool: bash>\n{command}\n</tool>"


SUBMIT = "<tool: submit>\n</tool>"


@pytest.mark.docker
def test_the_solution_earns_the_reward_and_nothing_earns_none(place: Place) -> None:
    world = place.world()
    task = place.task(world, "sums")
    played = place.go(replay(world, task, gold(world, task)))
    assert played.solved and played.facts["reward"] == 1.0 and played.facts["verdict"] == "graded"
    idle = place.go(replay(world, task, gold(world, task, err=True)))
    assert not idle.solved and idle.facts["reward"] == 0.0 and idle.facts["verdict"] == "graded"
    assert not place.play("sums", [SUBMIT]).solved
    assert not place.play("sums", [bash(SOLVE)]).solved, "not submitted"
    assert place.play("sums", ["I am done"]).invalid
    assert place.play("sums", [bash(""), SUBMIT]).heard[-1] == "no output", "an empty command is one"


@pytest.mark.docker
def test_it_works_where_the_image_says_and_finds_no_test_and_no_solution(place: Place) -> None:
    asked = "pwd; echo $HOME $GREETING $FROM_IMAGE; ls; ls /tests /solution; find / -name check.py -o -name solve.sh"
    said = place.play(
        "sums", [bash(f"({asked}) 2>/dev/null; true"), '<tool_call>{"name": "submit", "arguments": {}}</tool_call>']
    ).heard[-1]
    assert said.split() == ["/app", "/root", "hello", "yes", "numbers.txt", "total.py", "/solution:", "/tests:"]


@pytest.mark.docker
def test_what_an_attempt_plants_for_the_grader_counts_nothing(place: Place) -> None:
    """A reward written beforehand, tests of its own, links in their place, files that shells and Python read first, a
    process that waits for the grader.
    """
    reward = "echo 1 > /logs/verifier/reward.txt; echo 1 > /logs/verifier/reward.json"
    late = f"(setsid sh -c 'while :; do mkdir -p /work/logs/verifier; {reward}; done' >/dev/null 2>&1 &)"
    site = "/root/.local/lib/python3.11/site-packages"
    hook = f'mkdir -p {site}; echo \'import os; open("/logs/verifier/reward.json", "w").write("1"); os._exit(0)\''
    attacks = [
        f"mkdir -p /logs/verifier; {reward}; chmod 444 /logs/verifier/*; chmod 555 /logs/verifier",
        f"mkdir -p /tests; cd /tests; printf '#!/bin/sh\\n{reward}' > test.sh; chmod +x test.sh",
        "mkdir -p x/verifier; echo 1 > x/verifier/reward.json; rm -rf /work/logs; ln -s /work/app/x /work/logs",
        "rm -rf /work/tests; ln -s /work/app /work/tests; printf 'print(1)' > /work/app/check.py",
        f"{hook} | tee {site}/usercustomize.py {site}/sitecustomize.py",
        f"for name in .bashrc .profile .bash_profile; do echo '{reward}; exit 0' > /root/$name; done",
        late,
    ]
    for attack in attacks:
        played = place.play("sums", [bash(attack), SUBMIT])
        assert not played.solved and played.facts["reward"] == 0.0, (attack, played.facts)
    links = [
        "ln -s /tests/others.txt answer.txt",
        "ln -s ../tests/others.txt answer.txt",
        "ln -s / way; ln -s way/tests/others.txt answer.txt",
        "ln -s /proc/self/root/tests/others.txt answer.txt",
        "ln -s /logs/verifier/reward.json out.txt; echo 'print(1)' > prog.py",
        "ln -s /work/logs/verifier /root/v; ln -s /root/v/reward.json out.txt; echo 'print(1)' > prog.py",
    ]
    for key, link in ((key, link) for key in ("linked", "linked-separate") for link in links):
        played = place.play(key, [bash(link), SUBMIT])
        assert not played.solved and played.facts["reward"] == 0.0, (key, link, played.facts)
    own = "printf '3\\n4\\n' > real.txt; ln -s real.txt answer.txt"
    assert place.play("linked", [bash(own), SUBMIT]).solved, "a link to a file of its own stays"
    whole = [bash("; ".join(attacks[:2])), *gold_of(place, "sums")]
    assert place.play("sums", whole).solved, "what was planted does not stop an honest end"


def gold_of(place: Place, key: str) -> list[str]:
    world = place.world()
    return gold(world, place.task(world, key))


@pytest.mark.docker
def test_an_attempt_that_keeps_the_verifier_from_a_verdict_has_earned_nothing(place: Place) -> None:
    """Where it works on an untouched environment, its failure is the attempt's; where not, the machinery's."""
    stuck = "printf 'while True: pass\\n' > total.py; echo 42 > answer.txt"
    played = place.play("sums", [bash(stuck), SUBMIT], grading_timeout_s=4)
    assert not played.solved and played.facts["reward"] == 0.0 and "did not end" in played.facts["verdict"]
    gone = place.play("sums", [bash("cd /; rm -rf /work/app"), SUBMIT])
    assert not gone.solved and gone.facts["reward"] == 0.0
    huge = place.play("sums", [bash("head -c 60000000 /dev/zero > big"), SUBMIT])
    assert not huge.solved and "cannot be taken" in huge.facts["verdict"]
    with pytest.raises(JudgeFailed, match="no network to fetch pytest from"):
        place.play("silent", [bash("true"), SUBMIT])


@pytest.mark.docker
def test_a_separate_verifier_sees_the_artifacts_in_an_untouched_environment(place: Place) -> None:
    assert place.play("separate", [bash("rm total.py; echo 42 > answer.txt"), SUBMIT]).solved
    assert not place.play("separate", [bash("echo 41 > answer.txt"), SUBMIT]).solved


@pytest.mark.docker
def test_named_parts_and_an_image_that_was_there_before(place: Place) -> None:
    played = place.play("parts", [bash("pwd; touch here"), SUBMIT])
    assert played.heard[-1] == "/app"
    assert not played.solved and played.facts["reward"] == 0.5
    assert played.facts["parts"] == {"reward": 0.5, "style": 1.0}
    assert place.play("parts", [SUBMIT], solved_at=0.5).solved


@pytest.mark.docker
def test_a_task_whose_image_was_not_built_says_what_to_type(place: Place, tmp_path: Path) -> None:
    sums(tmp_path / "a", environment__data__numbers_dot_txt="1\n")
    world = harbor.World(place.pool, tasks=str(tmp_path / "a"))
    key = "train" if world.size("train") else "heldout"
    with pytest.raises(SandboxUnavailable, match=r"python -m envs\.adapters\.harbor\.build"):
        place.go(replay(world, world.task(key, 0), [bash("true")]))  # type: ignore[arg-type]
