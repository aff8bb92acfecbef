"""`rl eval`: measure one model on the held-out tasks of a configuration's worlds, without a run."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rl import evaluate, quarantine, warmstart
from rl.cluster import Cluster, preflight
from rl.config import RunConfig
from rl.live import Page
from rl.quarantine import Quarantine
from rl.store import Run
from rl.trajectory import Group


def evaluate_model(settings: RunConfig, model: str | None, *, as_json: bool) -> int:
    """`model`, else the run's last checkpoint, else `policy.model`, else the warm-started policy."""
    barred, _ = quarantine.read(settings)
    for world in settings.worlds:
        evaluate.indices(settings, world, settings.eval.tasks, barred)
    if model is not None and not (Path(model) / "config.json").is_file():
        raise ValueError(f"there is no Hugging Face model in {model!r}; expected a folder with config.json")
    preflight(settings)
    with Page(settings, Console(stderr=True)) as page:
        chosen = model or Run(settings.folder).latest() or settings.policy.model or warmstart.ensure(settings, page)[0]
        groups = asyncio.run(played(settings, str(chosen), page, barred))
    row = evaluate.row(settings, 0, groups)
    print(json.dumps({"model": str(chosen), "worlds": row["worlds"]})) if as_json else _table(str(chosen), row)
    return 0


async def played(settings: RunConfig, model: str, page: Page, barred: Quarantine) -> list[Group]:
    """The held-out tasks as `model` plays them, in an engine and sandboxes of their own."""
    with tempfile.TemporaryDirectory(prefix="touchstone-eval-") as logs:
        cluster = Cluster(settings, f"eval-{Path(logs).name}")
        try:
            page.phase("starting engine and workers")
            await cluster.start(model, Path(logs), learn=False)
            page.phase(f"measuring {model}")
            return await evaluate.played(cluster, settings, 0, None, page, barred)
        finally:
            await cluster.close()


def _table(model: str, row: dict[str, Any]) -> None:
    table = Table(title=f"Held-out success, {model}", title_justify="left")
    ks = list(dict.fromkeys(key for seen in row["worlds"].values() for key in seen if key.startswith("pass@")))
    for column in ("world", *ks, "tasks", "lost"):
        table.add_column(column, justify="left" if column == "world" else "right")
    for world, seen in row["worlds"].items():
        table.add_row(world, *(f"{seen[k]:.2f}" if k in seen else "" for k in ks), str(seen["n"]), str(seen["lost"]))
    Console().print(table)
