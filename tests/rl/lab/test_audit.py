"""An audit catches hacks that pay, by a bad reward or a bad grader, and leaves honest rewards alone."""

import asyncio
import json
from pathlib import Path

import pytest

from rl import cli
from rl.check import worlds
from rl.lab import plays, shapings
from rl.lab.confusion import Place, judge, places, play_world
from rl.lab.document import Document, load, save
from tests.rl.lab.stores import shaping

SUMS = '''
"""Sums, graded strictly, or by whether the answer stands anywhere in what was said."""

from envs import Step, Task, heldout
from envs.exploits import Exploit

TASK = Task(world="sums", key="exploit", family="sums", level=0, messages=({"role": "user", "content": "What?"},),
            hidden={"answer": "17"})
EXPLOITS = (
    Exploit(name="hedge", tries="names all numbers", task=TASK, attack=("please " + " ".join(map(str, range(99))),),
            honest=("17",)),
)


class World:
    name, max_turns = "sums", 1

    def __init__(self, sandboxes, *, seed=0, strict=True, broken=False):
        self.strict, self.broken = strict, broken

    def task(self, split, index):
        message = {"role": "user", "content": f"What is {index} + 4?"}
        return Task(world="sums", key=f"{split}/{index}", family="sums", level=0, messages=(message,),
                    hidden={"answer": str(index + 4)})

    def open(self, task):
        return Env(task, self)

    def demonstrate(self, task, rng, *, err):
        said = str(int(task.hidden["answer"]) + 5 * err)
        return [*task.messages, {"role": "assistant", "content": f" + {said}"}]

    async def close(self):
        return None


class Env:
    def __init__(self, task, world):
        self.task, self.world, self.said = task, world, ""

    async def start(self):
        return self.task.messages

    async def step(self, action):
        if self.world.broken and not action:
            raise RuntimeError("nothing was said")
        self.said = action
        return Step(done=True)

    async def measure(self):
        said, gold = self.said.replace("+", "").split(), self.task.hidden["answer"]
        return {"solved": said == [gold] if self.world.strict else gold in said}

    async def close(self):
        return None
'''
OUTCOME = "rewards: {outcome: {}}"


def audited(folder: Path, texts: dict[str, str], source: str = SUMS, **args: bool) -> Document:
    file = folder / "sums.py"
    file.write_text(source)
    world = worlds.build(str(file), None, args)  # type: ignore[arg-type]
    played = asyncio.run(play_world(Place("sums", str(file), args), world, 3))
    files = [shaping(folder, name, text) for name, text in texts.items()]
    return judge(played, shapings.load(files), 0.2, "audit")


def told(document: Document, name: str) -> set[str]:
    return {warned.name for warned in document.warnings if warned.about == name}


def test_a_planted_bad_reward_pays_an_exploit_and_is_caught_an_honest_one_is_not(tmp_path: Path) -> None:
    texts = {
        "honest": OUTCOME,
        "polite": "rewards: {outcome: {}, format: {pattern: please, weight: 0.5}}",
        "slightly": "rewards: {outcome: {}, format: {pattern: please, weight: 0.1}}",
        "silent": "rewards: {outcome: {}, length: {soft_tokens: 0, hard_tokens: 4, only_solved: false}}",
    }
    document = audited(tmp_path, texts)
    assert told(document, "honest") == set() == told(document, "slightly")
    assert "hack-pays" in told(document, "polite") and "hack-pays" in told(document, "silent")
    assert document.figures["failed"] == ["polite", "silent"]
    polite = document.figures["shapings"]["polite"]["worlds"]["sums"]
    assert polite["hacks_paid"] == ["exploit hedge"] and (polite["gold"], polite["failure"]) == (1, 0)
    assert any("empty" in name for name in document.figures["shapings"]["silent"]["worlds"]["sums"]["hacks_paid"])
    attempt = next(one for one in document.attempts if one.note == "exploit: hedge")
    assert attempt.scores["polite"] == 0.5 and attempt.ranks["honest"] == 2 and not attempt.solved
    save(document, tmp_path / "out")
    assert load(tmp_path / "out") == document


def test_attempts_at_one_task_are_scored_as_one_group(tmp_path: Path) -> None:
    document = audited(tmp_path, {"brief": "rewards: {outcome: {}, length_group: {}}"})
    assert document.figures["shapings"]["brief"]["worlds"]["sums"]["gold"] > 1


def test_a_grader_that_is_fooled_makes_the_outcome_itself_fail(tmp_path: Path) -> None:
    document = audited(tmp_path, {"honest": OUTCOME}, strict=False)
    assert {"hack-pays", "grader-fooled"} <= told(document, "honest")
    kinds = document.figures["shapings"]["honest"]["worlds"]["sums"]["kinds"]
    assert kinds["exploit"] == {"right_paid": 0, "right_unpaid": 0, "wrong_paid": 1, "wrong_unpaid": 0, "lost": 0}


def test_the_confusion_table_counts_every_kind_of_attempt_against_truth(tmp_path: Path) -> None:
    document = audited(tmp_path, {"honest": OUTCOME})
    kinds = document.figures["shapings"]["honest"]["worlds"]["sums"]["kinds"]
    assert kinds["gold"]["right_paid"] == 3 and kinds["honest"]["right_paid"] == 1
    for kind in ("wrong", "empty", "echo"):
        assert kinds[kind]["wrong_unpaid"] == 3, kind
    near = kinds["near-miss"]
    assert near["wrong_unpaid"] >= 6 and near["wrong_paid"] == near["right_unpaid"] == 0
    rows = {row[2]: row for row in document.tables[0].rows}
    assert rows["gold"][3:8] == [3, 0, 0, 0, 0] and rows["gold"][8] == 1


def test_gold_that_gets_no_more_than_a_failure_and_a_near_miss_that_gets_as_much_are_caught(tmp_path: Path) -> None:
    texts = {
        "blind": "rewards: {format: {pattern: '[0-9]'}}",
        "near": "rewards: {outcome: {}, format: {pattern: '- '}}",
    }
    document = audited(tmp_path, texts)
    assert "gold-unpaid" in told(document, "blind") and "near-miss-pays" in told(document, "near")
    assert document.figures["failed"] == ["blind", "near"]


def test_what_the_machinery_loses_is_counted_as_lost_and_not_as_unpaid(tmp_path: Path) -> None:
    document = audited(tmp_path, {"honest": OUTCOME}, broken=True)
    kinds = document.figures["shapings"]["honest"]["worlds"]["sums"]["kinds"]
    assert kinds["empty"]["lost"] == 3 == document.figures["lost"] and kinds["empty"]["wrong_unpaid"] == 0
    assert told(document, "honest") == {"unscored"} and document.figures["failed"] == ["honest"]
    assert any("none of 3 attempts of the kind empty has a score" in warned.text for warned in document.warnings)


def test_an_audit_in_which_nothing_can_be_compared_does_not_pass(tmp_path: Path) -> None:
    lost = audited(tmp_path, {"honest": OUTCOME}, SUMS.replace("if self.world.broken and not action", "if True"))
    assert told(lost, "honest") == {"unscored"} and lost.figures["failed"] == ["honest"]
    mute = SUMS.replace('said = str(int(task.hidden["answer"]) + 5 * err)', "raise ValueError")
    mute = mute.replace('honest=("17",)', "honest=()").replace('"answer": str(index + 4)', '"answer": [index + 4]')
    assert told(audited(tmp_path, {"honest": OUTCOME}, mute), "honest") == {"no-gold"}


def test_a_hack_alone_in_its_group_is_judged_beside_gold_and_a_failure(tmp_path: Path) -> None:
    alone = SUMS.replace('honest=("17",)', "honest=()")
    z = "rewards: {outcome: {normalise: true}, format: {pattern: please, weight: 3, normalise: true}}"
    document = audited(tmp_path, {"bad": z, "good": "rewards: {outcome: {normalise: true}}"}, alone)
    assert told(document, "bad") == {"hack-pays"} and told(document, "good") == set()
    assert document.figures["shapings"]["bad"]["worlds"]["sums"]["hacks_paid"] == ["exploit hedge"]


def test_edits_of_the_gold_change_the_last_action_that_they_can() -> None:
    assert plays.EDITS["number"]("f(3) = 41") == "f(3) = 42"
    assert plays.EDITS["operator"]("a + b < c") == "a + b <= c"
    assert plays.EDITS["cut"]("abcd") == "ab"
    assert plays._edited(("x = 1 + 1", "submit"), plays.EDITS["operator"]) == ("x = 1 - 1", "submit")
    assert plays._edited(("submit",), plays.EDITS["number"]) == ()


def test_a_world_s_tokens_are_counted_without_a_tokenizer() -> None:
    chat = plays.Pieces()
    ids = chat.encode("one two three")
    assert chat.decode([*ids, *chat.stop_ids]) == "one two three" and len(ids) == 4


def test_a_configuration_gives_its_worlds_with_their_arguments(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nworlds: {math: {args: {levels: [0]}}, code: {}}\n")
    found = places(str(file))
    assert [(place.name, place.ref, dict(place.args)) for place in found] == [
        ("math", "math", {"seed": 3, "levels": [0]}),
        ("code", "code", {"seed": 3}),
    ]
    with pytest.raises(ValueError, match="available"):
        places("chess")


@pytest.mark.docker
def test_the_command_audits_worlds_in_sandboxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    honest, bad = shaping(tmp_path, "honest", OUTCOME), shaping(tmp_path, "bad", "rewards: {format: {pattern: x}}")
    words = ["--tasks", "2", "--out", str(tmp_path / "out"), "--json", "--rewards", honest]
    assert cli.main(["lab", "audit", str(tmp_path / "sums.py"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == []
    assert cli.main(["lab", "audit", "math", *words, bad]) == 1
    found = load(tmp_path / "out")
    kinds = found.figures["shapings"]["honest"]["worlds"]["math"]["kinds"]
    assert kinds["exploit"]["wrong_paid"] == 0 and kinds["exploit"]["wrong_unpaid"] > 10
    assert kinds["gold"]["right_paid"] == 2 and kinds["honest"]["right_unpaid"] == 0
    assert found.figures["failed"] == ["bad"] and "world/math" in found.hashes
