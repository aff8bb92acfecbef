"""`rl lab report`: a document as one HTML page to read and to send, with PNGs of its plots and the JSON beside it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from rl.lab.document import Document, load
from rl.lab.page.markup import clean

HELP = "what a command of the lab found, as one HTML page with plots"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER|FILE", help="a folder with document.json, or such a file")
    parser.add_argument("--out", metavar="FILE.html", help="default: report.html beside the document")


def run(args: argparse.Namespace) -> int:
    source = Path(args.source)
    document = load(source)
    out = Path(args.out) if args.out else (source if source.is_dir() else source.parent) / "report.html"
    if out.suffix != ".html":
        raise ValueError(f"got --out {out}; expected a name that ends in .html")
    beside = out.with_suffix(".json")
    if beside.is_file():
        try:
            load(beside)
        except ValueError as error:
            raise ValueError(
                f"--out {out} would replace {beside.name} beside it, which is another file: {error}"
            ) from None
    pictures = write(document, (source / "document.json" if source.is_dir() else source).read_bytes(), out)
    print(f"{out}; beside it {beside.name}" + (f" and {len(pictures)} plots" if pictures else ""))
    return 0


def write(document: Document, data: bytes, out: Path) -> list[Path]:
    """The page at `out`, the JSON as `out` with .json, the plots in a folder named after both. Replaces older ones."""
    from rl.lab import page
    from rl.lab.page import plots

    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f"{out.stem}-plots")
    for old in folder.glob("[0-9][0-9]-*.png"):
        old.unlink()
    pictures = []
    for number, plot in enumerate(document.plots, 1):
        if any(series.x for series in plot.series):
            folder.mkdir(exist_ok=True)
            slug = re.sub(r"[^a-z0-9]+", "-", clean(plot.title).lower())[:48].strip("-") or "plot"
            pictures.append(folder / f"{number:02d}-{slug}.png")
            plots.png(plot, pictures[-1])
    _replace(out.with_suffix(".json"), data)
    _replace(out, page.render(document).encode())
    return pictures


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)
