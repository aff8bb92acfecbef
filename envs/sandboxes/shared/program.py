"""Several modules as one program that needs no file system: what a pool sends into a sandbox over stdin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

BOOT = (
    "import os\ns=b''\nwhile len(s)<{size}:s+=os.read(0,{size}-len(s)) or os._exit(0)\n"
    "exec(compile(s,'supervisor.py','exec'))"
)
"""Reads the program from stdin and not a byte more; `size` is its length."""
HERE = Path(__file__).parent
SHARED = {f"{__package__}.{name}": HERE / f"{name}.py" for name in ("clock", "tree", "frames", "supervisor")}


def program(main: Path, modules: Mapping[str, Path] | None = None) -> bytes:
    """Runs `main`, which may import the shared modules, and by their names those given here."""
    files = {**SHARED, **(modules or {}), "__main__": main}
    sources = {name: path.read_text() for name, path in files.items()}
    return (
        "import sys,types\n"
        f"for name,source in {sources!r}.items():\n"
        " module=sys.modules[name]=types.ModuleType(name)\n"
        " exec(compile(source,name,'exec'),module.__dict__)"
    ).encode()
