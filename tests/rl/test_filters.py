"""Filters catch what they are for and spare what looks like it; a rejected attempt leaves its group whole."""

import math

import pytest

from envs import Outcome
from rl import filters
from rl.algorithms import load as load_algorithm
from rl.buffer import tokens_of, useful
from rl.metrics import Window
from rl.trajectory import Group, Member
from tests.rl.test_batch import member

VOCABULARY = 128_256
UNLIKELY = -math.log(VOCABULARY) - 2
GIBBERISH = {"vocabulary": VOCABULARY, "rare_from": 100_000}


def is_caught(name: str, attempt: Member, **args: object) -> bool:
    filters.check(name, args)
    return filters.load(name)(attempt, **args)


def test_gibberish_is_a_rare_token_less_likely_than_chance() -> None:
    def said(token: int, logprob: float) -> Member:
        return member([[7, token, 9]], logprobs=[-0.1, logprob, -0.1])

    assert is_caught("gibberish", said(100_001, UNLIKELY - 0.01), **GIBBERISH)
    assert not is_caught("gibberish", said(100_001, UNLIKELY + 0.01), **GIBBERISH), "rare, but no less likely"
    assert not is_caught("gibberish", said(100_000, UNLIKELY - 5), **GIBBERISH), "unlikely, but no rare token"
    heard = member([[7, 8]], heard=[1, 120_000, 6])
    heard.trajectory.logprobs[1] = -50.0
    assert not is_caught("gibberish", heard, **GIBBERISH), "the world said it"


def test_repetition_is_a_long_sure_run_within_one_turn() -> None:
    def sure(*turns: int, logprob: float = -0.001) -> Member:
        ids = [[(7919 * i) % 50_000 for i in range(count)] for count in turns]
        return member(ids, logprobs=[logprob] * sum(turns))

    assert is_caught("repetition", sure(3000))
    assert not is_caught("repetition", sure(2999))
    assert not is_caught("repetition", sure(1500, 1500)), "the world spoke in between"
    assert not is_caught("repetition", sure(3000, logprob=math.log(0.98)))
    doubt = sure(3000)
    doubt.trajectory.logprobs[1500] = -1.0
    assert not is_caught("repetition", doubt)


def test_repetition_is_the_same_words_again_and_again() -> None:
    phrase = list(range(100, 132))
    others = list(range(1000, 3000))
    often = [token for i in range(16) for token in [*phrase, *others[i * 50 : i * 50 + 50]]]
    assert is_caught("repetition", member([often]))
    assert not is_caught("repetition", member([often[82:]])), "15 times"
    assert is_caught("repetition", member([[5] * 512])), "one token for ever"
    assert not is_caught("repetition", member([[5] * 511 + others[:99]])), "overlapping phrases count once"
    assert not is_caught("repetition", member([others]))
    assert not is_caught("repetition", member([often[: 8 * 82], often[8 * 82 :]])), "the world spoke in between"
    assert is_caught("repetition", member([[1, 2, 3] * 5]), phrase_tokens=3, times=5)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_overlong_is_what_a_budget_cut(outcome: Outcome) -> None:
    attempt = member([[7, 8]], outcome=outcome)
    assert is_caught("overlong", attempt) == (outcome is Outcome.TOKENS_SPENT)
    both = is_caught("overlong", attempt, budgets=["turns", "time"])
    assert both == (outcome in (Outcome.TURNS_SPENT, Outcome.TIME_SPENT))


BAD = {
    "unknown": ("gibberisch", {}, "there is no filter 'gibberisch'; available: gibberish, overlong, repetition"),
    "mode": ("overlong", {"mode": "drop"}, "got mode='drop'; available: track, enforce"),
    "missing": ("gibberish", {"mode": "track"}, "missing a required argument: 'vocabulary'"),
    "rare": (
        "gibberish",
        {"vocabulary": 10, "rare_from": 10},
        "got vocabulary=10, rare_from=10; expected a token id within the vocabulary",
    ),
    "budget": ("overlong", {"budgets": ["tokns"]}, "got budgets ['tokns']; expected a list of tokens, turns, time"),
    "likelihood": (
        "repetition",
        {"likelihood": 1},
        "got run_tokens=3000, likelihood=1, phrase_tokens=32, times=16; expected counts of at least 1, times of at "
        "least 2, and a likelihood between 0 and 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_clear_sentence(case: str) -> None:
    name, args, sentence = BAD[case]
    with pytest.raises((ValueError, TypeError)) as raised:
        filters.check(name, args)
    assert str(raised.value) == sentence


def attempts() -> Group:
    """A short success, a short failure, one cut off, one that the machinery lost."""
    members = [
        member([[3] * 10], score=1.0),
        member([[3] * 30], score=0.0, outcome=Outcome.FAILED),
        member([[3] * 100], score=0.0, outcome=Outcome.TOKENS_SPENT),
        member([[3] * 50], score=None, outcome=Outcome.SANDBOX_LOST),
    ]
    for attempt in members:
        attempt.episode.facts = {"solved": attempt.episode.outcome is Outcome.SOLVED}
    return Group(lease=0, world="w", version=0, members=members)


def test_what_is_rejected_leaves_the_group_as_if_it_had_one_fewer() -> None:
    group = attempts()
    filters.screen(group, {"overlong": {"mode": "enforce"}})
    load_algorithm("grpo").advantages(group)
    assert [m.rejected for m in group.members] == [False, False, True, False]
    assert [m.advantage for m in group.members] == [0.75, -0.25, 0.0, 0.0], "the mean is over 10 and 30 tokens"
    assert sum(m.advantage * m.trajectory.spoken for m in group.valid) == 0
    assert useful(group) and tokens_of(group) == 40
    assert len(group.earned) == 3, "but it is the policy's doing"


def test_what_is_tracked_is_counted_and_trained_on() -> None:
    group = attempts()
    filters.screen(group, {"overlong": {"mode": "track"}, "repetition": {"phrase_tokens": 5, "times": 10}})
    load_algorithm("grpo").advantages(group)
    assert [m.caught for m in group.members] == [(), (), ("overlong", "repetition"), ()]
    assert not any(m.rejected for m in group.members) and len(group.valid) == 3
    window = Window()
    window.add(group)
    row = window.worlds()["w"]
    assert (row["caught"], row["rejected"], row["attempts"], row["lost"]) == ({"overlong": 1, "repetition": 1}, 0, 3, 1)


def test_a_group_that_is_rejected_whole_teaches_nothing_but_is_not_the_machinerys() -> None:
    group = attempts()
    for attempt in group.members[:2]:
        attempt.episode.outcome = Outcome.TOKENS_SPENT
    filters.screen(group, {"overlong": {"mode": "enforce"}})
    load_algorithm("grpo").advantages(group)
    assert not useful(group) and not group.valid and len(group.earned) == 3
    window = Window()
    window.add(group)
    row = window.worlds()["w"]
    assert (row["rejected"], row["attempts"], row["lost"], row["flat"]) == (3, 3, 1, 1.0)


def test_screening_again_forgets_what_was_found_before() -> None:
    group = attempts()
    filters.screen(group, {"overlong": {"mode": "enforce"}})
    filters.screen(group, {})
    assert len(group.valid) == 3 and not any(m.caught for m in group.members)
