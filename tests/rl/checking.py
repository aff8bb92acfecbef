"""What `rl check` hears from the process that plays, played in this one instead: no start-up for each small world."""

import asyncio
import json
from typing import Any

from rl.check.player import Order, Player
from rl.check.result import Result
from rl.check.watch import Page, Watch

IMAGE = "touchstone-sandbox:bookworm"


def heard(world: str, tasks: int | None, deadline_s: float = 60.0, exploits: bool = False, **args: Any) -> Result:
    """For worlds that neither block nor end their process, and keep nothing outside of their `World`."""
    order: dict[str, Any] = {"world": world, "args": args, "tasks": tasks, "deadline_s": deadline_s, "image": IMAGE}
    order |= {"backend": "docker", "exploits": exploits, "only": []}
    result = Result(world, args, IMAGE)
    watch = Watch(order, result, Page(world), None)

    def say(said: str, **more: Any) -> None:
        watch._hear(json.loads(json.dumps({"said": said, **more}, default=str)))

    asyncio.run(Player(Order(run="test-check", skip=[], hung=[], alone=[], **order), say).run())
    result.fold()
    return result
