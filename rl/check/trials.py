"""Known exploits, their honest look-alikes, and answers that run into a limit, played against the world as configured.

They come from `envs/exploits/<world>`, or from `EXPLOITS` and `LIMITS` of a world's own file.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import envs
from envs import MachineryError, Task, World, exploits
from envs.exploits import Exploit, Limit
from rl.check.episodes import Played
from rl.check.kinds import Fault
from rl.check.streams import At

LOST = ("judge-fails", "data-error", "raises")
"""What an attack may come to but a zero: the episode is lost to the machinery and scores nothing."""


class Trials:
    def __init__(
        self,
        world: World,
        name: str,
        play: Callable[..., Awaitable[Played]],
        say: Callable[..., None],
        fault: Callable[[Fault, tuple[str, Any], Task | None], None],
    ) -> None:
        self.world, self.play, self.say, self.fault = world, play, say, fault
        self.exploits: Sequence[Exploit] = ()
        self.limits: Sequence[Limit] = ()
        if name in exploits.available():
            self.exploits, self.limits = exploits.against(name, world), exploits.limits(name, world)
        else:
            own = envs.load(name)
            self.exploits, self.limits = getattr(own, "EXPLOITS", ()), getattr(own, "LIMITS", ())
        if not self.exploits:
            say("note", words="there are no exploits for this world as it is configured")

    async def exploit(self, exploit: Exploit) -> None:
        """The attack earns nothing, the honest answer beside it all."""
        try:
            await self._attack(exploit)
        except Fault:
            self.say("exploit", name=exploit.name, attack="passed", honest="")
            raise
        played = await self.play(exploit.task, list(exploit.honest)) if exploit.honest else Played(solved=True)
        ended = {"attack": "failed" * bool(exploit.attack), "honest": "accepted" * bool(exploit.honest)}
        if not played.solved:
            self.say("exploit", name=exploit.name, **{**ended, "honest": "refused"})
            said = json.dumps(played.facts)[:200]
            raise Fault("honest-refused", f"the honest answer beside {exploit.name} is not solved; {said}")
        self.say("exploit", name=exploit.name, **ended)

    async def _attack(self, exploit: Exploit) -> None:
        if exploit.attack:
            try:
                if (await self.play(exploit.task, list(exploit.attack))).solved:
                    raise Fault("exploit-passes", f"{exploit.name} counts as solved: it {exploit.tries}")
            except Fault as fault:
                if fault.kind not in LOST:
                    raise
            except MachineryError:
                pass

    async def limit(self, limit: Limit, at: At, task: Task) -> None:
        try:
            played = await self.play(task, list(limit.actions))
        except Fault as fault:
            raise Fault(fault.kind, f"{fault.words}, after {limit.name}") from None
        if played.solved:
            raise Fault("malformed-scores", f"{limit.name} counts as solved")
        said = "\n".join([*played.heard, *played.after, json.dumps(played.facts), played.ended])
        if not any(word in said for word in limit.says):
            words = f"{limit.name} should be told as {' or '.join(map(repr, limit.says))}; got {said[-200:]}"
            raise Fault("wrong-verdict", words)
        self.say("kept", what="looked", at=["limit", limit.name], value={"limits": 1})
