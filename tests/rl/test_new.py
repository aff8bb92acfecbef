"""`rl new env`: what it writes is short, tidy and works as it is, in a checkout and in an empty folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl.cli import main

ROOT = Path(__file__).parent.parent.parent
LINES = {"": 25, "--tools": 60}


def ran(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder if (folder / "envs").is_dir() else ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for room in ("envs", "rewards", "policy", "rl", "configs"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


@pytest.mark.parametrize("tools", LINES)
def test_it_works_in_an_empty_folder(tmp_path: Path, tools: str) -> None:
    said = ran(tmp_path, "rl.cli", "new", "env", "chess", *([tools] if tools else [])).splitlines()
    assert said[0] == "wrote chess.py and test_chess.py; next:"
    assert len((tmp_path / "chess.py").read_text().splitlines()) <= LINES[tools]
    assert " passed" in ran(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_chess.py")
    assert ran(tmp_path, "rl.cli", "check", "./chess.py").splitlines()[-1] == "fit to train on"
    assert said[2:4] == [
        "  rl check ./chess.py",
        "  echo '{name: chess, worlds: {chess: {world: ./chess.py}}}' > chess.yaml",
    ]
    (tmp_path / "chess.yaml").write_text("{name: chess, worlds: {chess: {world: ./chess.py}}}")
    ran(tmp_path, "rl.cli", "new", "env", "other")  # a second one beside it
    checked = "from rl.config import load; c = load('chess.yaml'); print(c.plays('chess'), c.folder)"
    done = subprocess.run(
        [sys.executable, "-c", checked],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "./chess.py runs/chess\n"


@pytest.mark.parametrize("tools", LINES)
def test_it_works_in_a_checkout_and_is_tidy(checkout: Path, tools: str) -> None:
    said = ran(checkout, "rl.cli", "new", "env", "chess", *([tools] if tools else [])).splitlines()
    assert said == [
        "wrote envs/chess.py and tests/envs/test_chess.py; next:",
        "  python -m pytest tests/envs/test_chess.py",
        "  rl check chess",
        "  rl train configs/quickstart.yaml name=chess 'worlds={chess: {}}'",
        "  rl report runs/chess",
    ]
    assert " passed" in ran(checkout, "pytest", "-q", "-p", "no:cacheprovider", "tests/envs/test_chess.py")
    assert ran(checkout, "rl.cli", "check", "chess").splitlines()[-1] == "fit to train on"
    files = ["envs/chess.py", "tests/envs/test_chess.py"]
    ran(checkout, "ruff", "format", "--check", "--no-cache", *files)
    ran(checkout, "ruff", "check", "--no-cache", *files)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Chess", "got the name 'Chess'; expected small letters, digits and _, as in `rl new env chess`"),
        ("../chess", "got the name '../chess'; expected small letters, digits and _, as in `rl new env chess`"),
        ("class", "got the name 'class', which is a keyword of Python; expected another name"),
        ("torch", "there is a module 'torch' already, which a file of that name would hide; expected another name"),
        ("there", "there is a file there.py already; expected another name"),
        ("half", "there is a file test_half.py already; expected another name"),
    ],
)
def test_names_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("there.py", "test_half.py"):
        Path(file).write_text("mine\n")
    assert main(["new", "env", name]) == 2
    assert capsys.readouterr().err == f"rl new: {said}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"there.py", "test_half.py"}


def test_a_world_that_there_is_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("math", "tools"):
        assert main(["new", "env", name]) == 2
        assert capsys.readouterr().err.startswith(
            "rl new: there is a file envs/tools.py" if name == "tools" else "rl new: envs has math"
        )
