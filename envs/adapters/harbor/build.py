"""Makes the images of Harbor tasks, once and beforehand: `python -m envs.adapters.harbor.build TASKS`.

A sandbox's root is read-only and its user has no rights, but a Harbor task works as root in `/app` or where its image
says. So the image made here has the folders that a task writes to moved aside, with links to `/work` in their places;
each attempt begins with a copy of them there. The task's own `Dockerfile` is trusted, and its build the only moment at
which anything of a task sees a network.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

from envs.adapters.harbor.folder import Folder, Unplayable, folders, read

ASIDE = "/.harbor"
MOVE = """
import json, os, shutil
here = os.getcwd()
system = "bin boot dev etc home lib lib64 media mnt opt proc run sbin srv sys usr var".split()
parts = here.strip("/").split("/")
if parts[0] in ("work", "tmp", "proc", "sys", "dev"):
    raise SystemExit(f"the image works in {here}, which is a sandbox's own folder: expected another WORKDIR")
wanted = {"/app", "/root", "/tests", "/logs", "/solution"}
if parts[0] and parts[0] not in system:
    wanted.add("/" + parts[0])
elif len(parts) > 1:
    wanted.add(here)
elif here != "/":
    raise SystemExit(f"the image works in {here}, which must stay read-only: expected another WORKDIR")
os.chdir("/")
for place in sorted(wanted):
    if any(place.startswith(other + "/") for other in wanted):
        continue
    aside = "/.harbor/files" + place
    os.makedirs(os.path.dirname(aside), exist_ok=True)
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.move(place, aside)
    else:
        os.makedirs(aside)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.symlink("/work" + place, place)
for folder, _, names in os.walk("/.harbor/files"):
    os.chmod(folder, os.stat(folder).st_mode | 0o755)
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            mode = os.stat(path).st_mode
            os.chmod(path, mode | (0o755 if mode & 0o111 else 0o644))
names = ("PATH", "HOME", "PWD", "OLDPWD", "HOSTNAME", "SHLVL", "_")
with open("/.harbor/about.json", "w") as file:
    json.dump({"workdir": here, "env": {k: v for k, v in os.environ.items() if k not in names}}, file)
"""
"""Runs in the image, as root, while it is made."""
DOCKERFILE = """\
FROM {base}
USER root
RUN ["python3", "-c", "import base64; exec(base64.b64decode('{move}'))"]
"""


def build(task: Folder) -> None:
    """Raises Unplayable where the image cannot be made, with the last line of what Docker said."""
    base = task.base_image
    if base is None:
        base = f"{task.image}-base"
        _docker(["build", "-t", base, str(task.path / "environment")])
    moving = DOCKERFILE.format(base=base, move=base64.b64encode(MOVE.encode()).decode())
    _docker(["build", "-t", task.image, "-"], moving)


def _docker(arguments: list[str], given: str = "") -> None:
    try:
        ran = subprocess.run(["docker", *arguments], input=given.encode(), capture_output=True, check=False)
    except FileNotFoundError:
        raise Unplayable("there is no command `docker` on this machine, which makes the images") from None
    if ran.returncode != 0:
        said = (ran.stderr.strip() or ran.stdout.strip()).decode(errors="replace").splitlines() or ["nothing"]
        without = " (a sandbox's image needs python3)" if "python3" in said[-1] else ""
        raise Unplayable(f"`docker {' '.join(arguments)}` failed{without}: {said[-1][:300]}")


def main(source: str) -> int:
    made: set[str] = set()
    failed = 0
    for path in folders(source):
        try:
            task = read(path, Path(source))
            if task.image not in made:
                build(task)
            made.add(task.image)
            print(f"{task.key}: {task.image}")
        except ValueError as problem:
            failed += 1
            print(f"{path}: not built: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m envs.adapters.harbor.build TASKS")
    sys.exit(main(sys.argv[1]))
