"""What the lab found survives being written down; anything else is refused in a sentence."""

from pathlib import Path

import pytest

from rl.lab.document import Attempt, Document, Plot, Series, Table, Warned, load, save


def test_a_document_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    document = Document(
        kind="score",
        name="two",
        hashes={"config": "ab"},
        figures={"A": {"dead": 0.25}},
        tables=[Table(title="t", columns=["a", "b"], rows=[["x", 1.5], [None, 2]])],
        plots=[
            Plot(
                title="p",
                kind="line",
                x_label="x",
                y_label="y",
                series=[Series(name="s", x=[1.0], y=[None], low=[0.5])],
            )
        ],
        warnings=[Warned(name="n", about="A", text="t")],
        attempts=[
            Attempt(
                world="math",
                key="1+1",
                outcome="solved",
                solved=True,
                messages=[{"role": "user", "content": "1+1?"}],
                scores={"A": 1.0},
                ranks={"A": 1.5},
            )
        ],
    )
    assert load(save(document, tmp_path / "lab")) == document
    assert load(tmp_path / "lab") == document


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}', '{"format": 1, "kind": "score"}'])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "document.json").write_text(text)
    with pytest.raises(ValueError, match="is no document of the lab"):
        load(tmp_path)
    with pytest.raises(ValueError, match="there is no document"):
        load(tmp_path / "nowhere")


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        save(Document(kind="toy", name="x", figures={"a": float("nan")}), tmp_path)
    assert not (tmp_path / "document.json").exists()
