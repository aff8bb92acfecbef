"""A data set for reasoning-gym as a user might write it, and its scorer in a process of its own."""

from dataclasses import dataclass
from typing import Any

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, register_dataset

from envs.adapters.reasoning_gym import score as score


class Brittle(ProceduralDataset):
    """A scorer that one answer breaks, and, where `broken`, every one does."""

    def __init__(self, config: "Settings") -> None:
        super().__init__(config, seed=config.seed, size=config.size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        question = f"{index % 40}?" if self.config.few else f"{self.seed} and {index}?"
        return {"question": question, "answer": "42", "metadata": {}}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        if self.config.broken:
            raise RuntimeError("no scorer today")
        if answer == "hold":
            return float(len(str(10**10**9)))  # lets no other thread of its process run
        if answer == "grow":
            return float(len(bytearray(3 * 2**30)))
        return 1.0 / (answer != "7000") if answer in ("42", "7000") else 0.0


@dataclass
class Settings:
    seed: int = 0
    size: int = 500
    broken: bool = False
    few: bool = False


if "brittle" not in DATASETS:
    register_dataset("brittle", Brittle, Settings)
