"""The laws of the house, held by reading every import: which room may know which, and one door per heavy dependency."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "envs": {"envs"},
    "rewards": {"rewards", "envs"},
    "policy": {"policy"},
    "rl": {"rl", "policy", "rewards", "envs"},
}
DOORS = {
    "ray": {"rl/workers.py", "rl/cluster.py"},
    "vllm": {"policy/engines/vllm.py"},
    "docker": {"envs/sandboxes/docker/engine.py", "envs/sandboxes/docker/__init__.py"},
    "omegaconf": {"rl/config.py"},
    "accelerate": {"rl/learner.py", "rl/trackers.py"},
    "trl": {"rl/warmstart.py"},
}
LONGEST = 450


def files() -> list[Path]:
    return sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


def test_rooms_know_only_the_rooms_below() -> None:
    for path in files():
        room = path.relative_to(ROOT).parts[0]
        above = (imported(path) & set(MAY_IMPORT)) - MAY_IMPORT[room]
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_one_door_per_heavy_dependency() -> None:
    for path in files():
        name = str(path.relative_to(ROOT))
        for dependency, doors in DOORS.items():
            assert dependency not in imported(path) or name in doors, (
                f"{name} imports {dependency}; its door is {doors}"
            )


def test_envs_and_rewards_never_import_torch() -> None:
    for room in ("envs", "rewards"):
        for path in (ROOT / room).rglob("*.py"):
            assert not imported(path) & {"torch", "transformers"}, path


def test_files_stay_readable() -> None:
    for path in files():
        assert len(path.read_text().splitlines()) <= LONGEST, path
