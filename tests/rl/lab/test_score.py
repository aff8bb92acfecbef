"""Stored attempts under other rewards: known answers, refusals, going on after a kill, and training's own figures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import envs
from envs import Outcome, find
from rl import cli, config
from rl.lab import hashes, scoring, shapings
from rl.lab.document import Document, load
from rl.lab.rescore import score
from rl.lab.stored import Stored
from rl.store import Run
from rl.trajectory import Group
from tests.rl import driven
from tests.rl.lab import stores
from tests.rl.lab.stores import RIGHT, WRONG, Said, shaping, write

OUTCOME = "rewards: {outcome: {}}"
LONG, SHORT = Said(tokens=40), Said(tokens=4)
MIXED = [[RIGHT, WRONG, WRONG, RIGHT], [RIGHT, RIGHT, RIGHT, WRONG], [WRONG] * 4, [RIGHT] * 4]


def scored(run: Path, folder: Path, *, processes: int = 1, gradients: bool = False, **texts: str) -> Document:
    files = [shaping(folder, name, text) for name, text in texts.items()]
    return score([run], shapings.load(files), folder / "out", processes, gradients)


def test_dead_groups_inversions_and_rank_correlation_are_as_counted_by_hand(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED)
    document = scored(
        run, tmp_path, truth=OUTCOME, lie="rewards: {outcome: {weight: -1}}", none="rewards: {tool_format: {}}"
    )
    truth, lie, none = (document.figures["shapings"][name] for name in ("truth", "lie", "none"))
    assert (truth["dead_groups"], lie["dead_groups"], none["dead_groups"]) == (0.5, 0.5, 1.0)
    assert truth["pairs"] == lie["pairs"] == 4 + 3
    assert (truth["inversion_rate"], lie["inversion_rate"], none["inversion_rate"]) == (0, 1, 0)
    assert (truth["tie_rate"], lie["tie_rate"], none["tie_rate"]) == (0, 0, 1)
    assert truth["rank_correlation"] == pytest.approx(1) and lie["rank_correlation"] == pytest.approx(-1)
    assert none["rank_correlation"] is None
    assert document.figures["advantage_correlation"]["all"]["truth"]["lie"] == pytest.approx(-1)
    assert truth["worlds"]["math"]["pairs"] == 7 and document.figures["attempts"] == 16
    assert load(tmp_path / "out").figures == document.figures


def test_a_planted_length_bias_is_found_with_its_sign_and_none_where_there_is_none(tmp_path: Path) -> None:
    groups = [[Said(solved=n % 2 == 0, tokens=tokens) for n, tokens in enumerate((5, 9, 17, 30))] for _ in range(12)]
    groups += [[Said(solved=right, tokens=tokens) for right in (True, False) for tokens in (4, 25)]] * 4
    document = scored(
        write(tmp_path, groups),
        tmp_path,
        truth=OUTCOME,
        short="rewards: {outcome: {}, length: {soft_tokens: 0, hard_tokens: 100, only_solved: false, weight: 0.2}}",
        long="rewards: {outcome: {}, length: {soft_tokens: 0, hard_tokens: 100, only_solved: false, weight: -0.2}}",
    )
    bias = {name: own["length_bias"] for name, own in document.figures["shapings"].items()}
    assert bias["truth"] == 0
    assert bias["short"] == pytest.approx(-1) and bias["long"] == pytest.approx(1)
    assert document.figures["shapings"]["short"]["parts"]["length"] == pytest.approx(
        1 - document.figures["shapings"]["short"]["parts"]["outcome"]
    )


def test_two_identical_shapings_agree_in_everything(tmp_path: Path) -> None:
    text = "rewards: {outcome: {}, length: {soft_tokens: 0, hard_tokens: 50}}\nalgorithm: {name: dapo}"
    document = scored(write(tmp_path, [*MIXED, [LONG, RIGHT, SHORT, WRONG]]), tmp_path, one=text, other=text)
    one, other = (document.figures["shapings"][name] for name in ("one", "other"))
    assert one == other and one["algorithm"] == "dapo"
    assert document.figures["advantage_correlation"]["all"]["one"]["other"] == pytest.approx(1)
    assert [warned.name for warned in document.warnings] == ["identical-shapings"]
    assert document.attempts == []


def test_several_runs_are_scored_together_and_their_leases_kept_apart(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, MIXED) for name in ("a", "b")]
    chosen = shapings.load([shaping(tmp_path, "truth", OUTCOME)])
    one, both = score(runs[:1], chosen, tmp_path / "one", 1).figures, score(runs, chosen, tmp_path / "both", 1)
    assert both.figures["groups"] == 2 * one["groups"] and len({k for k in both.hashes if k.startswith("run/")}) == 2
    truth, twice = one["shapings"]["truth"], both.figures["shapings"]["truth"]
    assert (twice["pairs"], twice["dead_groups"]) == (2 * truth["pairs"], truth["dead_groups"])


def test_the_attempts_whose_rank_changed_most_come_first_and_can_be_read(tmp_path: Path) -> None:
    groups = [[RIGHT, WRONG, WRONG, WRONG]] * 2 + [
        [Said(solved=True, tokens=90, text="\\boxed{0}"), WRONG, WRONG, WRONG]
    ]
    short = "rewards: {length: {soft_tokens: 0, hard_tokens: 99, only_solved: false}}"
    document = scored(write(tmp_path, groups), tmp_path, truth=OUTCOME, short=short)
    first = document.attempts[0]
    assert (first.ranks["truth"], first.ranks["short"]) == (1, 4) and first.solved
    assert first.messages[-1]["content"] == "\\boxed{0}" and first.key and "lease 3" in first.note
    assert len(document.attempts) <= 10


def test_what_the_machinery_lost_is_skipped_counted_and_in_no_mean(tmp_path: Path) -> None:
    lost = Said(outcome=Outcome.SANDBOX_LOST)
    without = scored(write(tmp_path / "a", [[RIGHT, WRONG, LONG]] * 2), tmp_path / "a", truth=OUTCOME)
    beside = scored(write(tmp_path / "b", [[RIGHT, lost, WRONG, LONG, lost]] * 2), tmp_path / "b", truth=OUTCOME)
    assert beside.figures["skipped"] == {"sandbox_lost": 4} and without.figures["skipped"] == {}
    assert beside.figures["shapings"] == without.figures["shapings"]


def test_an_enforced_filter_of_the_run_leaves_attempts_out_here_as_well(tmp_path: Path) -> None:
    spent = Said(outcome=Outcome.TOKENS_SPENT)
    run = write(tmp_path, [[RIGHT, spent, WRONG]], extra="filters: {overlong: {mode: enforce}}\n")
    document = scored(run, tmp_path, truth=OUTCOME)
    assert (document.figures["rejected"], document.figures["attempts"]) == (1, 2)


def test_a_real_run_scored_by_its_own_rewards_gets_its_own_scores_and_advantages(tmp_path: Path) -> None:
    driven.prepare(tmp_path)
    dapo = ["train.steps=3", "algorithm.name=dapo"]
    driven.drive(tmp_path, "real", dapo, None)
    folder = tmp_path / "real"
    settings = config.load(tmp_path / "run.yaml", [f"runs={tmp_path}", "name=real", *dapo])
    config.save(settings, folder / "config.yaml")
    attempts, shaped = scoring.columns(
        [found for found, _ in _all(folder, shaping(tmp_path, "own", OUTCOME))], [_one(tmp_path, OUTCOME)]
    )
    stored = {
        (row["lease"], row["member"]): row
        for shard in (folder / "episodes").glob("*.parquet")
        for row in pq.read_table(shard, columns=["purpose", "lease", "member", "score", "advantage"]).to_pylist()
        if row["purpose"] == "train"
    }
    own = shaped["own"]
    again = zip(attempts.lease_N, attempts.member_N, own.score_N, own.advantage_N, strict=True)
    checked = 0
    for lease, member, value, advantage in again:
        if row := stored.get((lease, member)):
            assert (value, advantage) == pytest.approx((row["score"], row["advantage"]))
            checked += row["advantage"] != 0
    assert checked > 10


def _one(folder: Path, text: str) -> shapings.Shaping:
    return shapings.read(Path(shaping(folder, "own", text)))


def _all(folder: Path, file: str) -> list[tuple[scoring.Found, bool]]:
    return list(scoring.run(Stored(folder).chunks(), shapings.load([file]), folder / "parts", 1))


# -- what cannot be scored again --------------------------------------------------------------------------------------


def refused(run: Path, folder: Path, text: str) -> str:
    with pytest.raises(ValueError) as error:
        scored(run, folder, x=text)
    return str(error.value)


def test_other_data_are_refused_also_where_only_what_is_hidden_changed(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED)
    data = tmp_path / "bits.jsonl"
    before = data.read_text()
    data.write_text(before.replace('"answer": "1"', '"answer": "3"').replace('"answer": "0"', '"answer": "2"'))
    assert "its code or data are others" in refused(run, tmp_path, OUTCOME)
    data.write_text(before.replace("Guess", "Say"))
    assert "its code or data are others" in refused(run, tmp_path, OUTCOME)
    data.unlink()
    assert "bits.jsonl" in refused(run, tmp_path, OUTCOME)
    data.write_text(before)
    assert scored(run, tmp_path, x=OUTCOME).figures["attempts"] == 16


def test_attempts_that_a_run_moves_to_a_shard_meanwhile_are_not_lost(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED[:1])
    writer = Run.reopen(run)
    try:
        world = envs.load("math").World(None, **config.load(run / "config.yaml").worlds["math"].args)
        lease = writer.grant("math", 0)
        group = Group(lease.id, "math", 0, [stores.member(world.task("train", lease.index), RIGHT)] * 3)
        writer.keep(group, "train")
        writer.settle([group], "flat", 1)
        reading = Stored(run)._tables([1, lease.id])
        assert len(next(reading)) == 4
        writer.flush()
        assert sum(len(table) for table in reading) == 3
    finally:
        writer.close()
    assert [len(group.members) for group in Stored(run).groups([1, lease.id])] == [4, 3]
    last = max((run / "episodes").glob("*.parquet"))
    pq.write_table(pq.read_table(last).slice(1), last)
    with pytest.raises(ValueError, match=r"shard .* has 2 of these attempts; expected 3"):
        list(Stored(run).groups([1, lease.id]))


def test_a_scoring_touches_no_file_but_its_own(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED)
    mine = tmp_path / "out" / "parts" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("kept")
    scored(run, tmp_path, truth=OUTCOME)
    assert mine.read_text() == "kept" and sorted(path.name for path in mine.parent.parent.iterdir()) == [
        "document.json",
        "parts",
    ]


def test_hashes_cover_the_files_that_arguments_name(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED)
    grader = tmp_path / "grader.py"
    text = "rewards: {outcome: {}, mine: {reward: trl, weight: 0.5, functions: [" + f"'{grader}:pay'" + "]}}"
    source = "def pay(completions, **kwargs):\n    return [1.0 for _ in completions]\n"
    digests, keys = [], []
    for code in (source, source.replace("1.0", "2.0")):
        grader.write_text(code)
        chosen = shapings.load([shaping(tmp_path, "graded", text)])
        digests.append(chosen[0].digest)
        keys.append(scoring.key(Stored(run).chunks()[0], chosen))
    assert digests[0] != digests[1] and keys[0] != keys[1]
    found = []
    for name in ("before", "after"):
        found.append(hashes.world("math", {"tasks": str(tmp_path / "bits.jsonl")}))
        (tmp_path / "bits.jsonl").write_text(name)
    assert found[0] != found[1] and found[0] != find.digest("math")


def test_shares_under_an_enforced_filter_are_of_the_scores_that_were_given(tmp_path: Path) -> None:
    spent = Said(outcome=Outcome.TOKENS_SPENT)
    run = write(tmp_path, [[RIGHT, spent, WRONG, RIGHT]], extra="filters: {overlong: {mode: enforce}}\n")
    file = shaping(tmp_path, "z", "rewards: {outcome: {normalise: true}}")
    found, _ = next(scoring.run(Stored(run).chunks(), shapings.load([file]), tmp_path / "kept", 1))
    column = found["shapings"]["z"]
    assert [part["outcome"] for part in column["parts"]] == pytest.approx(column["score"])


def test_missing_columns_another_layout_and_no_run_are_refused(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED)
    shard = next((run / "episodes").glob("*.parquet"))
    whole = pq.read_table(shard)
    pq.write_table(whole.drop_columns(["facts"]), shard)
    assert "has no column facts" in refused(run, tmp_path, OUTCOME)
    pq.write_table(whole, shard)
    ledger = Run.reopen(run)
    ledger.db.execute("pragma user_version = 1")
    ledger.db.close()
    assert "layout 1" in refused(run, tmp_path, OUTCOME)
    assert "there is no run" in refused(tmp_path, tmp_path, OUTCOME)


def test_a_reward_that_needs_what_is_not_stored_is_refused_and_named(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED)
    assert "cannot be scored on what is stored of world math" in refused(run, tmp_path, "rewards: {fact: {name: luck}}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rewards: {outcom: {}}", "outcome"),
        ("rewards: {outcome: {wieght: 2}}", "wieght"),
        ("rewards: {tool_format: {gate: true}}", "expected one that adds"),
        ("rewards: {outcome: {}}\nalgorithm: {name: ppo}", "grpo"),
        ("rewards: {outcome: {}}\nalgorithm: {name: grpo, args: {clip: 1}}", "clip_low"),
        ("reward: {outcome: {}}", "'reward'"),
        ("- outcome", "mapping"),
        ("rewards: [outcome]", "expected names"),
    ],
)
def test_a_shaping_that_makes_no_sense_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        shapings.load([shaping(tmp_path, "x", text)])


def test_two_shapings_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="two shapings named 'x'"):
        shapings.load([shaping(tmp_path, "x", OUTCOME), shaping(tmp_path / "other", "x", OUTCOME)])


# -- going on ---------------------------------------------------------------------------------------------------------


def test_what_an_earlier_scoring_left_is_used_and_of_another_shaping_it_is_not(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED, size=512)
    chunks = Stored(run).chunks()
    assert [len(chunk.leases) for chunk in chunks] == [1, 1, 1, 1]
    chosen, parts = [_one(tmp_path, OUTCOME)], tmp_path / "parts"
    first, fresh = next(scoring.run(chunks, chosen, parts, 1))
    assert fresh and len(list(parts.iterdir())) == 1
    again = list(scoring.run(chunks, chosen, parts, 1))
    assert [fresh for _, fresh in again] == [False, True, True, True] and again[0][0] == first
    other = list(scoring.run(chunks, [_one(tmp_path, "rewards: {outcome: {weight: 2}}")], parts, 1))
    assert [fresh for _, fresh in other] == [True] * 4 and len(list(parts.iterdir())) == 4


def test_a_scoring_killed_in_the_middle_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    run = write(tmp_path, MIXED * 40, size=512)
    file = shaping(tmp_path, "x", "rewards: {outcome: {}, length: {soft_tokens: 0, hard_tokens: 50}}")
    command = [sys.executable, "-m", "rl.cli", "lab", "score", str(run), "--rewards", file, "--json"]
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "a")], stdout=subprocess.DEVNULL)
    folder = tmp_path / "a"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(folder.glob(".parts-*/*.json")):
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = len(list(folder.glob(".parts-*/*.json")))
    finished = (tmp_path / "a" / "document.json").is_file()
    assert finished or done > 0
    chunks, chosen = Stored(run).chunks(), shapings.load([file])
    if not finished:
        (parts,) = folder.glob(".parts-*")
        assert sum(not fresh for _, fresh in scoring.run(chunks, chosen, parts, 1)) == done
    whole = score([run], chosen, tmp_path / "b", 1)
    on = score([run], chosen, tmp_path / "a", 2)
    same = [{k: v for k, v in document.figures.items() if k != "seconds"} for document in (whole, on)]
    assert same[0] == same[1] and not list(folder.glob(".parts-*"))


def test_the_command_prints_figures_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path, MIXED)
    file = shaping(tmp_path, "truth", OUTCOME)
    words = ["lab", "score", str(run), "--rewards", file, "--processes", "1"]
    assert cli.main([*words, "--out", str(tmp_path / "o"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shapings"]["truth"]["dead_groups"] == 0.5
    assert cli.main(words) == 0
    assert "Share of the variance" in capsys.readouterr().out
    assert (run.parent / "lab").is_dir()
    assert cli.main(["lab", "score", str(tmp_path / "none"), "--rewards", file]) == 2
    said = capsys.readouterr().err
    assert "there is no run" in said and len(said.strip().splitlines()) == 1


def test_an_empty_run_and_one_that_goes_on_are_read_without_a_lock(tmp_path: Path) -> None:
    run = write(tmp_path, [])
    assert "no attempts" in refused(run, tmp_path, OUTCOME)
    shutil.rmtree(run)
    run = write(tmp_path, MIXED)
    writer = Run.reopen(run)
    try:
        assert scored(run, tmp_path, x=OUTCOME).figures["groups"] == 4
    finally:
        writer.close()
    assert config.load(run / "config.yaml").name == "run"
