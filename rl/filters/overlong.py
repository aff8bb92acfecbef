"""An attempt that a budget cut off. `budgets` says which: of tokens, turns, time."""

from collections.abc import Sequence

from envs import Outcome
from rl.trajectory import Member

BUDGETS = {"tokens": Outcome.TOKENS_SPENT, "turns": Outcome.TURNS_SPENT, "time": Outcome.TIME_SPENT}


def caught(member: Member, *, budgets: Sequence[str] = ("tokens",)) -> bool:
    return member.episode.outcome in {BUDGETS[name] for name in budgets}


def check(*, budgets: Sequence[str] = ("tokens",)) -> None:
    if isinstance(budgets, str) or not budgets or not set(budgets) <= set(BUDGETS):
        raise ValueError(f"got budgets {budgets!r}; expected a list of {', '.join(BUDGETS)}")
