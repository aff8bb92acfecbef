"""What a world answers with, held against the contract: its types, its size, and whether a run could store it.

Messages of plain text, which most are, are not made JSON for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from envs import Facts, Step, Task
from rl.check.kinds import Fault

MOST_CHARS = 200_000
"""Most that one call may say, and largest facts."""
ROLES = ("system", "user", "assistant", "tool")
ATTEMPT = ("start", "step", "measure", "close")


def attempt(env: Any) -> None:
    """What `open` gave."""
    if absent := [name for name in ATTEMPT if not callable(getattr(env, name, None))]:
        how = "; it is a plain `def`, not `async def`" if hasattr(env, "__await__") else ""
        raise Fault("wrong-type", f"open gave {_a(env)} without {', '.join(absent)}; expected an attempt{how}")


def step(answer: Any, odd: bool = False) -> Step:
    if not isinstance(answer, Step):
        raise Fault("wrong-type", f"step answered with {_a(answer)}; expected envs.Step")
    for name in ("done", "invalid"):
        if type(value := getattr(answer, name)) is not bool:
            raise Fault("wrong-type", f"step answered {name}={value!r:.40}; expected True or False")
    spent = answer.seconds
    if isinstance(spent, bool) or not isinstance(spent, int | float) or not 0 <= spent < math.inf:
        raise Fault("wrong-type", f"step answered seconds={spent!r:.40}; expected a number, 0 or more")
    return answer


def messages(call: str, found: Any, odd: bool = False) -> list[str]:
    """Their texts. `odd`: the attempt itself said half a character, as JSON escapes let it, which may be repeated."""
    if not isinstance(found, list | tuple):
        raise Fault("wrong-type", f"{call} gave {_a(found)} as messages; expected a list of role and content")
    texts = [_text(call, message, odd) for message in found]
    if (size := sum(map(len, texts))) > MOST_CHARS:
        raise Fault("huge-output", f"{call} gave messages of {size} characters; expected at most {MOST_CHARS}")
    return texts


def _text(call: str, message: Any, odd: bool) -> str:
    if not isinstance(message, Mapping):
        raise Fault("wrong-type", f"{call} gave the message {message!r:.80}; expected a dict of role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Fault("wrong-type", f"{call} gave a message with role={role!r:.40}; available: {', '.join(ROLES)}")
    if isinstance(content, str) and len(content) > MOST_CHARS:  # before it is made JSON
        raise Fault("huge-output", f"{call} gave a message of {len(content)} characters; expected at most {MOST_CHARS}")
    if type(message) is not dict or not all(_whole(key) and _whole(value, odd) for key, value in message.items()):
        storable(f"{call} gave a {role} message that", message, odd)
    if not isinstance(content, str):
        raise Fault("wrong-type", f"{call} gave a {role} message whose content is {_a(content)}; expected text")
    return content


def facts(found: Any, odd: bool = False) -> Facts:
    if not isinstance(found, Mapping):
        raise Fault("wrong-type", f"measure answered with {_a(found)}; expected a dict of facts")
    if type(found.get("solved")) is not bool:
        raise Fault("wrong-type", f"measure says solved={found.get('solved', 'nothing')!r:.40}; expected True or False")
    size = storable("measure gave facts that", found, odd)
    if size > MOST_CHARS:
        raise Fault("huge-output", f"measure gave facts of {size} characters; expected at most {MOST_CHARS}")
    reward = found.get("reward")
    if reward is not None and not isinstance(reward, int | float):
        raise Fault("wrong-type", f"measure says reward={reward!r:.40}; expected a number")
    return dict(found)


def task(found: Task) -> None:
    """A task before it is played."""
    for name, kind in (("key", str), ("family", str), ("level", int)):
        if not isinstance(value := getattr(found, name), kind):
            raise Fault("wrong-type", f"task gave {name}={value!r:.40}; expected {_a(kind())}")
    for name in ("given", "hidden"):
        if not isinstance(value := getattr(found, name), Mapping):
            raise Fault("wrong-type", f"task gave {_a(value)} as `{name}`; expected a dict")
        storable(f"task gave `{name}` that", value)
    if not messages("task", found.messages):
        raise Fault("wrong-type", "task gave no message; expected what is asked, as role and content")


def storable(what: str, value: Any, odd: bool = False) -> int:
    """Length as JSON. Raises Fault where it has none, or does not come back as it was."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode(errors="surrogatepass" if odd else "strict")
    except UnicodeEncodeError:
        why = "has half a character, as errors='surrogateescape' leaves; decode with errors='replace'"
        raise Fault("not-json", f"{what} JSON cannot hold: it {why}") from None
    except (TypeError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:120]
        raise Fault("not-json", f"{what} JSON cannot hold: {said}, in {value!r:.80}") from None
    if (key := _odd_key(value)) is not None:
        raise Fault("not-json", f"{what} JSON cannot hold: the key {key!r:.40} would come back as text")
    return len(text)


def _whole(value: Any, odd: bool = False) -> bool:
    """Text without half a character, or with one where `odd`: as JSON without looking further."""
    if type(value) is not str:
        return False
    try:
        return odd or value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _odd_key(value: Any) -> Any:
    """A key that is no text, somewhere within."""
    if isinstance(value, Mapping):
        odd = (key for key in value if not isinstance(key, str))
        return next((k for k in (*odd, *map(_odd_key, value.values())) if k is not None), None)
    if isinstance(value, list | tuple):
        return next((k for k in map(_odd_key, value) if k is not None), None)
    return None


def _a(value: Any) -> str:
    return {"NoneType": "None", "str": "text", "int": "a whole number"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
