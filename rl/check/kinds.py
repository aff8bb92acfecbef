"""Every fault that `rl check` knows, by the name it has in the result: what is seen, and what to change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    plain: str
    """What is wrong, in words that fit every case."""
    change: str
    """What to do about it."""


KINDS = {
    "gold-fails": Kind(
        "the right answer is not scored as right",
        "correct what the grader compares, or the answer that the task and its demonstration hold",
    ),
    "never-done": Kind(
        "the attempt goes on after the right answer, so that nothing is ever scored",
        "end the attempt once the answer is in, let the demonstration end with what hands it in, or raise max_turns",
    ),
    "accepts-anything": Kind(
        "whatever is said is scored as right",
        "let the grader compare what was said with the answer, and be False for what it cannot read",
    ),
    "empty-scores": Kind("an empty answer is scored as right", "let the grader be False where nothing was said"),
    "wrong-scores": Kind(
        "a wrong answer is scored as right",
        "let the grader compare the whole answer, or correct the demonstration of a wrong one",
    ),
    "malformed-scores": Kind(
        "an answer that cannot be understood is scored as right",
        "take the answer out of what was said before it is compared, and be False where there is none",
    ),
    "flat-reward": Kind(
        "a wrong answer is paid as much as the right one",
        "let the fact `reward` be higher for the right answer, or leave it out",
    ),
    "exploit-passes": Kind("a known exploit is scored as right", "close the way that the exploit takes"),
    "honest-refused": Kind(
        "an honest answer that looks like an exploit is not scored as right", "let the grader accept it"
    ),
    "wrong-verdict": Kind(
        "an answer that never ends, floods or breaks off is not called what it is",
        "say what happened in a message or in the facts",
    ),
    "leak": Kind("the task tells its own answer", "keep the answer out of messages, `given` and observations"),
    "sandbox-tells": Kind(
        "a sandbox holds what the attempt may not see", "put it where only the grader can read it, or bring it in later"
    ),
    "history": Kind(
        "a sandbox holds history that leads to the answer", "begin the repository anew, with one commit and no remote"
    ),
    "splits-overlap": Kind(
        "training and held-out tasks are not apart", "decide the split by the key alone, e.g. with envs.heldout(key)"
    ),
    "all-alike": Kind(
        "all tasks are one and the same",
        "let `task` depend on its index or its `rng`; a world that has only one task says so by `size`",
    ),
    "task-changes": Kind(
        "the same split and index give another task each time",
        "draw a task's numbers from the `rng` it is given, or from random.Random(f'{seed}/{split}/{index}')",
    ),
    "not-repeatable": Kind(
        "the same thing done twice has two results",
        "let the verdict depend on the task and what was done only: on no chance, clock or earlier attempt",
    ),
    "state-shared": Kind(
        "one attempt changes the verdict of another",
        "keep all that an attempt changes in its own object (`self`, set in `start`), not in the world, class or task",
    ),
    "never-ends": Kind("a call does not end", "give every loop and every wait in it a limit"),
    "raises": Kind(
        "a call raises, which would lose the episode",
        "correct or catch it; what a policy may say wrongly is no error: False, BadCall in a tool, Step(invalid=True)",
    ),
    "data-error": Kind("the hidden answer cannot be read", "correct the task's data, or leave the task out"),
    "judge-fails": Kind("the verifier gives no verdict", "correct the verifier; what it said is told"),
    "huge-output": Kind("a message or the facts are too large", "cut them to what a policy can read"),
    "wrong-type": Kind(
        "a call answers with something else than the contract says",
        "answer with what was expected; the contract is in envs/__init__.py",
    ),
    "not-json": Kind(
        "a message, a task or its facts cannot be stored",
        "make text, numbers, lists and dicts with text keys of it, e.g. str(...) or float(...)",
    ),
    "sandbox-kept": Kind("an attempt does not hand its sandbox back", "close in `close` all that was acquired"),
    "container-left": Kind("containers are left after the end", "close what was acquired"),
    "dies": Kind("the world ends its whole process", "raise or answer instead of exiting; look for what crashes"),
}


class Fault(Exception):
    """Something wrong with a world: its kind, and the plain words for this case."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind, self.words = kind, words
