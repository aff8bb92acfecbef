"""How alike a patch and the expert's are, for generated tasks: a fact that needs no sandbox."""

import random

import pytest

from envs import tool_call
from envs.swe import SweEnv, parse_edit, problems


@pytest.mark.parametrize("index", range(20))
def test_the_experts_patch_is_like_itself_and_none_is_like_no_patch(index: int) -> None:
    task = problems.Stream(0, problems.FAMILIES, (0, 1, 2)).task("train", index)
    env = SweEnv(task, None)  # type: ignore[arg-type]

    def likeness(*, edited: bool, err: bool = False) -> float:
        files = dict(task.given["files"])
        call = tool_call(problems.demonstrate(task, random.Random(1), err=err)[3]["content"])
        edit = parse_edit(call.body) if call else None
        assert edit is not None
        if edited:
            path, old, new = edit
            files[path] = files[path].replace(old, new)
        return float(env._similarity({path: text.encode() for path, text in files.items()})["similarity"])

    assert likeness(edited=True) == 1.0 and likeness(edited=False) == 0.0
    assert likeness(edited=True, err=True) < 1.0
    assert env._similarity({})["similarity"] < 1.0, "a package whose file is gone"
