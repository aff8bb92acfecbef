"""An OpenEnv server as a user would have it: count down from a number to exactly nought. Started with a port."""

import os
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Take(Action):
    """Take some away, or read the rules."""

    count: int
    note: str = ""


class Left(Observation):
    left: int = 0


class Countdown(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Left:
        self.left = (seed or 0) % 5 + more.get("base", 3)
        return Left(left=self.left, done=False, reward=None)

    def step(self, action: Take, **_: Any) -> Left:  # type: ignore[override]
        if action.note == "crash":
            raise RuntimeError("the abacus broke")
        if action.note == "die":
            os._exit(3)
        self.left -= action.count
        return Left(left=self.left, done=self.left <= 0, reward=1.0 if self.left == 0 else 0.0)

    @property
    def state(self) -> State:
        return State(step_count=0)


if __name__ == "__main__":
    app = create_fastapi_app(Countdown, Take, Left, max_concurrent_envs=4)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
