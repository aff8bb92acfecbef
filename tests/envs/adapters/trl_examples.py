"""Reward functions and classes as people have them for TRL's GRPO trainer; nothing here knows of this project."""

import asyncio
import os
import re
import signal
import time

RUNNING = 0
MOST = 0


def exact(completions, answer, **kwargs):
    return [1.0 if text.strip() == str(gold) else 0.0 for text, gold in zip(completions, answer, strict=True)]


def brief(prompts, completions, log_extra=None, log_metric=None, **kwargs):
    lengths = [len(text) for text in completions]
    log_extra("length", lengths)
    log_metric("mean_length", sum(lengths) / len(lengths))
    return [0.5 if length < 10 else 0.0 for length in lengths]


def only_sums(completions, kind, **kwargs):
    return [0.25 if one == "sum" else None for one in kind]


def never(completions, **kwargs):
    return [None] * len(completions)


async def slow_judge(completions, **kwargs):
    global RUNNING, MOST
    RUNNING += 1
    MOST = max(MOST, RUNNING)
    await asyncio.sleep(0.2)
    RUNNING -= 1
    return [float(MOST)] * len(completions)


class Judge:
    async def __call__(self, completions, **kwargs):
        return await slow_judge(completions)


other_judge = Judge()


def contents(completions, **kwargs):
    return [float(len(messages)) + len(messages[0]["content"]) / 100 for messages in completions]


def boxed_alarm(completions, **kwargs):
    """As math verifiers do: with an alarm, which only the main thread may set."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(5)
    signal.alarm(0)
    return [1.0 if re.search(r"\\boxed\{4\}", text) else 0.0 for text in completions]


def shortest(completions, **kwargs):
    """Compares what it was handed together."""
    return [float(len(text) == min(map(len, completions))) for text in completions]


def prints(completions, **kwargs):
    print("a line on stdout")
    return [1.0] * len(completions)


def hangs(completions, **kwargs):
    if "hang" in completions[0]:
        time.sleep(600)
    return [1.0] * len(completions)


def dies(completions, **kwargs):
    if "die" in completions[0]:
        os._exit(7)
    return [1.0] * len(completions)


def raises(completions, **kwargs):
    raise KeyError("no such thing")


def too_few(completions, **kwargs):
    return []


def infinite(completions, **kwargs):
    return [float("inf")]


def tokens(completion_ids, **kwargs):
    return [0.0 for _ in completion_ids]


def by_state(completions, trainer_state):
    return [0.0]


class Counter:
    """The environment of TRL's own guide, nearly."""

    def reset(self, target: int = 0, **kwargs) -> str | None:
        self.value, self.target = 0, target
        return f" Reach {target}."

    def increment(self, step: int) -> int:
        """
        Increment the counter.

        Args:
            step: How much to add.

        Returns:
            The new value.
        """
        if step > 100:
            raise ValueError("Steps are at most 100.")
        self.value += step
        return self.value

    async def double(self) -> int:
        """
        Double the counter.

        Returns:
            The new value.
        """
        await asyncio.sleep(0)
        self.value *= 2
        return self.value

    def get_reward(self) -> float:
        return 1.0 if self.value == self.target else 0.0

    def _secret(self) -> int:
        return self.target


class Echo:
    def reset(self, prompt, word, **kwargs):
        assert "environment" not in kwargs
        self.word, self.said = word, ""

    def say(self, text: str) -> str:
        """
        Say something.

        Args:
            text: What to say.
        """
        self.said = text
        return text * 10_000 if text == "much" else text


class Broken:
    def reset(self, seed: int) -> None:
        if seed % 2:
            raise RuntimeError("no reset today")

    def get_reward(self):
        raise RuntimeError("no reward today")


class Seedless:
    def reset(self):
        return None

    def get_reward(self):
        return 1.0


class Unscored:
    def reset(self, **kwargs):
        return None


class Untyped(Counter):
    def guess(self, number):
        """Guess."""


def says(environments=None, completions=None, word=None, **kwargs):
    tool = [message["content"] for message in completions[0] if message["role"] == "tool"]
    return [1.0 if tool and tool[-1] == word[0] else 0.0]


def reach(row):
    return [("increment", {"step": row["target"]}), "Done."]


def sleeps(completions, **columns):
    time.sleep(3600.0 if completions[0] == "hang" else 0.08)
    if completions[0] == "die":
        os._exit(7)
    return [1.0]
