"""A run that goes on under another configuration than it had: it is said, and both are kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl import config
from rl.config import RunConfig

MOST = 5
"""Keys that are told one by one."""


def changed(then: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; None where a side has none."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        if then != now:
            yield prefix, then, now
        return
    for key in dict.fromkeys((*then, *now)):
        yield from changed(then.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))


def renew(settings: RunConfig, folder: Path, step: int) -> list[str]:
    """Write `config.yaml` of a run that goes on at `step`; what it said until then is kept as `config-until-STEP.yaml`.
    A sentence for each key that differs.
    """
    path = folder / "config.yaml"
    draft = path.with_suffix(".new")
    config.save(settings, draft)
    found = list(changed(config.mapping(path), config.mapping(draft))) if path.is_file() else []
    kept = path.with_name(f"config-until-{step}.yaml")
    if found and not kept.exists():
        shutil.copyfile(path, kept)
    draft.replace(path)
    told = [f"goes on with {key}={_short(now)}, which was {_short(then)} until step {step}" for key, then, now in found]
    more = [f"goes on with {len(told) - MOST} other changes of configuration, see {kept}"] if len(told) > MOST else []
    return told[:MOST] + more


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
