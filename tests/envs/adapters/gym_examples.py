"""Environments as people have them, of three interfaces; nothing here knows of this project."""

import numpy as np


class Four:
    """Of old Gym: `reset` gives an observation, `step` four things, the seed is set by itself."""

    def seed(self, seed):
        self.goal = seed % 5

    def reset(self):
        self.at = 0
        return f"At 0, wanted {self.goal}."

    def step(self, action):
        self.at += 1 if action == "up" else -1
        done = self.at == self.goal
        return f"At {self.at}.", 1.0 if done else 0.0, done, {}


class Cut(Four):
    def step(self, action):
        return "Late.", 0.0, True, {"TimeLimit.truncated": True}


class Told(Four):
    """Says by itself whether it was a success."""

    def reset(self, seed=None):
        self.goal = 1
        return "Go.", {}

    def step(self, action):
        return "", -5.0, True, False, {"is_success": action == "up", "array": np.arange(3)}


class Wrong(Told):
    def step(self, action):
        return {"nan": ("", float("nan"), True, False, {}), "two": ("", 1.0)}[action]


class Unseeded(Four):
    seed = None


class TwoMoves:
    """Of SkyRL-Gym."""

    def __init__(self, env_config=None, extras=None):
        self.bonus = (env_config or {}).get("bonus", 0.0)
        self.gold = extras["reward_spec"]["ground_truth"]
        self.turns = 0

    def init(self, prompt):
        return [*prompt, {"role": "user", "content": "Two words."}], {}

    def step(self, action):
        self.turns += 1
        done = self.turns == 2
        said = [] if done else [{"role": "user", "content": "And?"}]
        reward = 1.0 if action == self.gold else self.bonus
        return {"observations": said, "reward": reward, "done": done, "metadata": {"turn": self.turns}}

    def close(self):
        return None


def up(observation, info, env):
    return "up"


def straight(observation, info, env):
    """Right and down through the small lake without slipping."""
    return [1, 1, 2, 1, 2, 2][{0: 0, 4: 1, 8: 2, 9: 3, 13: 4, 14: 5}[int(observation)]]


def stuck(observation, info, env):
    return 0
