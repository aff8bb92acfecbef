"""A data set of reasoning-gym by name: procedural, seeded, without an end; one turn, judged by its own `score_answer`.

    worlds: {countdown: {world: reasoning_gym, args: {dataset: countdown, args: {max_numbers: 5}}}}

The answer is what stands between the last `<answer>` and `</answer>`. `facts["score"]` is the data set's own score;
`facts["reward"]` is the same but for one hole: scorers pay a part where the right answer is merely contained in what
was said, which here pays nothing. Solved is the full score only. The words of a problem decide on its split.

Some scorers evaluate the answer as Python. Where the right answers need few signs, others are refused before the scorer
sees them; what cannot be made safe, or gives another problem each time, is in `REFUSED` and cannot be played. Scorers
run in a process of their own with limited memory, ended where one takes longer than `timeout_s`: where it takes the
right answer in time, an answer over which it was late, raised or died is a wrong one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs import Env, EnvCrashed, Facts, JudgeFailed, JudgeTimedOut, Message, Split, Step, Task, heldout
from envs.adapters.shared.functions import Functions
from envs.sandboxes import SandboxPool

ASK = "Give the final answer alone between <answer> and </answer>."
NEVER_RIGHT = "I do not know"
CHUNK = 500
"""Problems of one seed: some data sets draw as many when they are made."""
SPAN, CHUNKS = 100, 32
"""Neighbouring tasks share the data set of one seed; so many are kept, for some take long to make."""
TRIES = 500
ANSWER_CHARS = 20_000
FULL = 1.0 - 1e-9
MAKE_S, MEMORY_MB = 600.0, 2048
"""To make the problems of one seed again; what a scorer may take beyond what its process has at first."""
SCORER = f"{__name__}:score"

_EVALUATES = "its scorer runs the answer as Python, and no set of signs would make that safe"
_CHANGES = "the same position gives another problem each time"
REFUSED = {
    "intermediate_integration": _EVALUATES,
    "polynomial_multiplication": _EVALUATES,
    "simple_integration": _EVALUATES,
    "codeio": _CHANGES,
    "list_functions": _CHANGES,
}
HASHED = ("isomorphic_strings", "knight_swap", "ransom_note", "word_ladder")
"""Their problems depend on the order of sets, which differs between processes unless PYTHONHASHSEED is a number."""
_NUMBERS = r"[\d\[\],'\"\s-]*"
_SUM = r"(?!.*\*\s*\*)[\d+\-*/().\s]{0,400}"
SIGNS = {
    "binary_matrix": _NUMBERS,
    "spiral_matrix": _NUMBERS,
    "string_insertion": r"[A-E\[\],'\"\s]*",
    "n_queens": r"[Q_\[\],'\"\s]*",
    "countdown": _SUM,
    "puzzle24": _SUM,
}
"""Of scorers that run the answer as Python, the only signs that an answer may have: none of them can call anything."""
_HUGE = re.compile(r"[\d.][eE][+-]?\d{4,}")
"""A number that would take minutes to write out."""


class World:
    """`dataset`: a name of reasoning-gym's; `args`: its configuration, without `seed` and `size`."""

    name = "reasoning_gym"
    max_turns = 1

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        dataset: str,
        args: Mapping[str, Any] | None = None,
        seed: int = 0,
        ask: str = ASK,
        timeout_s: float = 20.0,
    ) -> None:
        self.dataset, self.args, self.seed, self.ask, self.timeout_s = dataset, dict(args or {}), seed, ask, timeout_s
        self._chunks: OrderedDict[int, Any] = OrderedDict()
        _known(dataset, self.args)
        try:
            self._chunk(0)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"world {self.name}: {dataset} refuses {self.args}: {error}") from None
        self.functions = Functions([SCORER], None, timeout_s)

    def task(self, split: Split, index: int) -> Task:
        own = f"{self.seed}/" if split == "train" else ""
        for tried in range(TRIES):
            turn, place = divmod(tried, CHUNK // SPAN)
            chunk = _number(f"{split}/{own}{index // SPAN}/{turn}")
            position = _shuffled(chunk)[place * SPAN + index % SPAN]
            entry = self._chunk(chunk)[position]
            key = _key(entry)
            if heldout(key) == (split == "heldout"):
                return self._task(entry, key, chunk, position)
        raise ValueError(
            f"world {self.name}: {self.dataset} has no {split} problem among {TRIES}; expected more variety"
        )

    def _task(self, entry: Mapping[str, Any], key: str, chunk: int, position: int) -> Task:
        return Task(
            world=self.name,
            key=f"{self.dataset}/{key}",
            family=self.dataset,
            level=0,
            messages=({"role": "user", "content": f"{entry['question']}\n\n{self.ask}"},),
            hidden={"answer": _text(entry["answer"]), "chunk": chunk, "position": position},
        )

    def _chunk(self, seed: int) -> Any:
        import reasoning_gym

        if seed not in self._chunks:
            self._chunks[seed] = reasoning_gym.create_dataset(self.dataset, seed=seed, size=CHUNK, **self.args)
            if len(self._chunks) > CHUNKS:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(seed)
        return self._chunks[seed]

    def entry(self, task: Task) -> tuple[Any, dict[str, Any]]:
        """The data set that made a task, and its problem, made again. Raises EnvCrashed where it is another one."""
        made = self._chunk(task.hidden["chunk"])
        entry = made[task.hidden["position"]]
        if _key(entry) != task.key.rpartition("/")[2] or _text(entry["answer"]) != task.hidden["answer"]:
            raise EnvCrashed(f"{self.dataset} made another problem than {task.key} at the same position")
        return made, entry

    def open(self, task: Task) -> Env:
        return Attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        answer = NEVER_RIGHT if err else task.hidden["answer"]
        if answer is None:
            raise ValueError(f"{self.dataset} states no right answer, it only scores them")
        return [*task.messages, {"role": "assistant", "content": f"<answer>{answer}</answer>"}]

    async def close(self) -> None:
        self.functions.close()


class Attempt:
    def __init__(self, world: World, task: Task) -> None:
        self.world, self.task = world, task
        self.said = ""

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.said = action
        return Step(done=True)

    async def measure(self) -> Facts:
        answer = extract(self.said)
        if answer is None:
            return {"solved": False, "reward": 0.0, "verdict": "no answer"}
        _, entry = self.world.entry(self.task)
        dataset = entry.get("metadata", {}).get("source_dataset", self.world.dataset)
        shown = {"answer": answer[:200]}
        if why := _refused(dataset, answer):
            return {"solved": False, "reward": 0.0, "verdict": why, **shown}
        score, why = await self._score(answer)
        gold = self.task.hidden["answer"]
        if score >= FULL and dataset in ALSO and not ALSO[dataset](answer, entry):
            score, why = 0.0, "taken by the scorer, though wrong"
        reward = score
        if 0 < score < FULL and gold and gold.strip() in answer:
            reward, why = 0.0, "contains the right answer"
        return {"solved": score >= FULL, "reward": reward, "score": score, "verdict": why, **shown}

    async def _score(self, answer: str) -> tuple[float, str]:
        """The scorer's number. Where this answer breaks it or keeps it, and the right one does not, it is wrong."""
        try:
            return await self._asked(answer), "scored"
        except JudgeTimedOut:
            broke, late = "took too long over it", True
        except JudgeFailed as error:
            broke, late = f"raised {str(error)[:160]}", False
        gold = self.task.hidden["answer"]
        try:
            sound = await self._asked(gold) >= FULL or gold is None
        except JudgeFailed:
            sound = False
        if not sound:
            failed = JudgeTimedOut if late else JudgeFailed
            raise failed(f"the scorer of {self.world.dataset} {broke}, and does not take the right answer either")
        return 0.0, f"the scorer takes no such answer: it {broke}"

    async def _asked(self, answer: str | None) -> float:
        """Raises JudgeTimedOut, and JudgeFailed where the scorer raises, dies, or gives no finite number."""
        world, hidden = self.world, self.task.hidden
        which = {"dataset": world.dataset, "args": json.dumps(world.args), "position": hidden["position"]}
        which["chunk"] = hidden["chunk"]
        await world.functions.judge("", None, {**which, "asks": False}, MAKE_S)
        parts = (await world.functions.judge("", answer, {**which, "asks": True})).parts
        if not parts:
            raise JudgeFailed(f"the scorer of {world.dataset} gave NaN; expected a finite number")
        return parts["score"]

    async def close(self) -> None:
        return None


@lru_cache(maxsize=4)
def _again(dataset: str, args: str) -> World:
    """The world that asks, made in the process of scorers, which from now on has so much memory and no more."""
    place = World(None, dataset=dataset, args=json.loads(args))  # type: ignore[arg-type]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_MB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return place


def score(completions: list[Any], dataset: Any, args: Any, chunk: Any, position: Any, asks: Any) -> list[float]:
    """Called in a process of its own, with lists of one. `asks`: whether to score, or only to make the problem."""
    made = _again(dataset[0], args[0])._chunk(chunk[0])
    entry = made[position[0]]
    return [float(made.score_answer(completions[0], entry)) if asks[0] else 0.0]


def extract(said: str) -> str | None:
    """What stands between the last pair of marks."""
    found = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", said, re.DOTALL)
    return found[-1].strip() or None if found else None


def _refused(dataset: str, answer: str) -> str:
    """Why the scorer may not see an answer; empty where it may."""
    if dataset in REFUSED:  # within a composite
        raise JudgeFailed(f"{dataset} cannot be played: {REFUSED[dataset]}")
    if _HUGE.search(answer.replace("_", "")):
        return "has a number of thousands of digits"
    if len(answer) > ANSWER_CHARS:
        return "too long"
    if dataset in SIGNS and not re.fullmatch(SIGNS[dataset], answer, re.DOTALL):
        return "has signs that no right answer has"
    return ""


def _same_numbers(answer: str, entry: Mapping[str, Any]) -> bool:
    """The scorer of puzzle24 only asks whether four numbers of the range were used."""
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(map(int, entry["metadata"]["numbers"]))


def _near(answer: str, entry: Mapping[str, Any]) -> bool:
    """The scorer of coin_flip takes any beginning of the right number, so 0 for every probability."""
    try:
        if _HUGE.search(answer.replace("_", "").replace(",", "")):
            return False
        got, gold = (float(Fraction(text.replace(",", ""))) for text in (answer, entry["answer"]))
        return abs(got - gold) <= min(1e-4, abs(gold) / 100)
    except (ValueError, ZeroDivisionError, OverflowError):
        return False


def _same_text(answer: str, entry: Mapping[str, Any]) -> bool:
    """The scorer of game_of_life_halting takes any answer that is not empty."""
    return answer.strip().casefold() == str(entry["answer"]).strip().casefold()


ALSO = {"puzzle24": _same_numbers, "coin_flip": _near, "game_of_life_halting": _same_text}
"""What a full score must pass as well, where the scorer alone takes wrong answers."""


def _known(dataset: str, args: Mapping[str, Any]) -> None:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ValueError("world reasoning_gym needs the package reasoning-gym: pip install reasoning-gym") from None
    if dataset in REFUSED:
        raise ValueError(f"world reasoning_gym: {dataset} cannot be played: {REFUSED[dataset]}")
    if dataset in HASHED and not os.environ.get("PYTHONHASHSEED", "").isdecimal():
        raise ValueError(
            f"world reasoning_gym: {dataset} makes other problems in each process unless all are started with the same "
            "PYTHONHASHSEED, as in PYTHONHASHSEED=0 rl train …"
        )
    if dataset not in DATASETS:
        playable = ", ".join(sorted(set(DATASETS) - set(REFUSED)))
        raise ValueError(f"world reasoning_gym: there is no data set {dataset!r}; available: {playable}")
    for name in ("seed", "size"):
        if name in args:
            raise ValueError(f"world reasoning_gym: args.{name} has no effect: problems have no end; leave it out")


@lru_cache(maxsize=CHUNKS)
def _shuffled(chunk: int) -> list[int]:
    """The positions of a chunk, in an order that repeats in none of its neighbours: some data sets count through few
    problems in turn."""
    return random.Random(chunk).sample(range(CHUNK), CHUNK)


def _key(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(str(entry["question"]).encode()).hexdigest()[:12]


def _text(answer: Any) -> str | None:
    return None if answer is None else str(answer)


def _number(text: str) -> int:
    """31 bits that depend on all of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
