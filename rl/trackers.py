"""Each step's figures to TensorBoard, W&B and whatever else accelerate can speak to. A door to accelerate.

What is sent is every number of the row in metrics.jsonl, by its path: `worlds/math/success`, `learner/entropy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = "touchstone"


class Trackers:
    """The trackers of one run. None of them may stop it: what one raises ends that tracker, with a sentence."""

    def __init__(self, trackers: Iterable[Any] = ()) -> None:
        self._trackers = list(trackers)
        self.said: list[str] = []

    def step(self, row: Mapping[str, Any]) -> None:
        self._each("log", numbers({k: v for k, v in row.items() if k != "step"}), step=int(row["step"]))

    def measured(self, when: str, row: Mapping[str, Any]) -> None:
        """Held-out success."""
        self._each("log", numbers({"heldout": row["worlds"]}), step=int(row["step"]))

    def finish(self) -> None:
        self._each("finish")

    def _each(self, method: str, *args: Any, **kwargs: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*args, **kwargs)
            except Exception as error:  # of somebody's service, network or disk
                self._trackers.remove(tracker)
                self.said.append(f"tracker {tracker.name} ended: {type(error).__name__}: {error}")


def check(names: Sequence[str]) -> None:
    """Raises ValueError where a tracker is unknown, or the package that it needs is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, here = sorted(LOGGER_TYPE_TO_CLASS), sorted(str(name) for name in get_available_trackers())
    for name in names:
        if name not in known:
            raise ValueError(f"train.trackers: there is no tracker {name!r}; available: {', '.join(known)}")
        if name not in here:
            raise ValueError(
                f"train.trackers: the package of {name!r} is not installed; install it (pip install {name}) or leave "
                f"it out; installed: {', '.join(here) or 'none'}"
            )


def start(
    names: Sequence[str], folder: Path, run: str, settings: Mapping[str, Any], resumed_at: int | None = None
) -> Trackers:
    """Start them on a run's folder; what they write goes to `<tracker>/` in it. Call `check` first.

    Of a run that is resumed at a step, TensorBoard hides what it was told of later ones, which come again.
    """
    if not names:
        return Trackers()
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)  # the driver computes nothing
    started = []
    for name in names:
        kind = LOGGER_TYPE_TO_CLASS[name]
        if name == "wandb":
            tracker = kind(PROJECT, name=run, dir=str(folder), config=dict(settings))
        elif kind.requires_logging_directory:
            purged = {} if resumed_at is None or name != "tensorboard" else {"purge_step": resumed_at + 1}
            tracker = kind(name, logging_dir=str(folder), **purged)
        else:
            tracker = kind(PROJECT)
        try:
            tracker.start()
        except Exception as error:  # of somebody's service or network
            raise ValueError(f"train.trackers: {name} could not start: {type(error).__name__}: {error}") from error
        started.append(tracker)
    return Trackers(started)


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number in nested mappings, by its path."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
