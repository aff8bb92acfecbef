"""The report of every command is a sound page that fetches nothing, and no text of a document can act in it."""

import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl import cli
from rl.lab import page
from rl.lab.document import Document, Plot, Series, Table, save
from rl.lab.page import markup, numbers, plots
from rl.lab.show import show, write
from tests.rl.lab import browser, samples

ELEMENTS = """html head meta title style body header main section footer nav p h1 h2 h3 h4 a ul li b div dl dt dd code
    pre details summary table thead tbody tr th td figure figcaption article svg g path defs use text tspan clippath
    rect"""
ATTRIBUTES = """class id href lang charset content name http-equiv scope role tabindex aria-label style viewbox d
    transform x y width height clip-path"""


def test_a_file_that_is_no_document_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(samples.toy(), tmp_path / "toy")
    summary = tmp_path / "summary.json"
    summary.write_text('{"stopped": false}')
    words = ["lab", "report", str(tmp_path / "toy"), "--out", str(tmp_path / "summary.html")]
    assert cli.main(words) == 2 and summary.read_text() == '{"stopped": false}'
    assert "would replace summary.json" in capsys.readouterr().err
    words[-1] = str(tmp_path / "page.html")
    assert cli.main(words) == cli.main(words) == 0


def test_no_text_of_a_document_is_markup_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    document = samples.hostile()
    document.tables[0].rows = [["[x] [bold]y[/bold]", 1.0]]
    document.tables[0].title = "[y] :boom:"
    show(document, as_json=False)
    said = capsys.readouterr().out
    assert "[x] [bold]y[/bold]" in said and "[y] :boom:" in said
    assert not [c for c in said if c in "\x00\x07\x1b\x9b\u202e" or "\ud800" <= c <= "\udfff"]


@pytest.mark.parametrize("width", [30, 60, 500])
def test_nothing_is_cut_however_narrow_the_terminal(width: int) -> None:
    columns = ["shaping", "a measure of much", "another", "different"]
    rows: list[list[Any]] = [["outcome again", 0.123456, -1.5, True], ["unmeasured-here", None, 2.0, False]]
    said = io.StringIO()
    found = Document(kind="toy", name="t", tables=[Table(title="T", columns=columns, rows=rows)])
    write(found, Console(file=said, width=width))
    text = said.getvalue()
    assert "…" not in text and all(len(line) <= width for line in text.splitlines())
    for word in ("shaping" if width > 30 else "outcome", "unmeasured-here", "0.123", "-1.5", "different", "yes", "no"):
        assert word in text.split() or f"{word}," in text.split() or f"{word}:" in text.split(), word


class Page(HTMLParser):
    """What a reader of the page would get: its elements, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def sound(text: str) -> Page:
    """The page, if it is whole, keeps to the elements it needs and refers to nothing but itself."""
    seen = Page(text)
    assert {tag for tag, _ in seen.elements} <= set(ELEMENTS.split())
    assert {name for _, given in seen.elements for name in given} <= set(ATTRIBUTES.split())
    assert not seen.comments
    ids = [given["id"] for _, given in seen.elements if "id" in given]
    assert len(ids) == len(set(ids))
    links = [given["href"] or "" for _, given in seen.elements if "href" in given]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    styled = [given.get(name) or "" for _, given in seen.elements for name in ("style", "clip-path")]
    used = re.findall(r"url\((.*?)\)", " ".join(styled))
    assert all(link.startswith("#") and link[1:] in ids for link in used)
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", text, re.S)))
    policy = [given["content"] for given in seen.all("meta") if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [page.POLICY] and "script" not in page.POLICY and page.POLICY.startswith("default-src 'none'")
    return seen


@pytest.mark.parametrize("kind", ["score", "audit", "train", "toy"])
def test_every_kind_of_document_is_a_sound_page(kind: str) -> None:
    document = samples.every()[kind]
    text = page.render(document)
    seen = sound(text)
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert len(seen.all("svg")) == sum(len(plots.panels(plot)) for plot in document.plots)
    assert all(given.get("role") == "img" for given in seen.all("svg"))
    assert not re.search(r"https?:|//www|xmlns", text)
    told = "".join(seen.text)
    for shown in [
        document.name,
        *document.hashes.values(),
        *(t.title for t in document.tables),
        *(p.title for p in document.plots),
    ]:
        assert shown in told
    assert all(warned.text in told and warned.name in told for warned in document.warnings)
    order = [given["id"] for given in seen.all("section")]
    assert order == [name for name in ("warnings", "figures", "tables", "plots", "attempts") if name in order]
    assert order[0] == "warnings"


def test_no_text_of_a_document_can_act_in_the_page() -> None:
    text = page.render(samples.hostile())
    seen = sound(text)
    told = "".join(seen.text)
    for attack in samples.HOSTILE:
        assert markup.clean(attack) in told, "it is to be read, as it is"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    text.encode()


def test_hostile_texts_survive_the_way_through_the_file(tmp_path: Path) -> None:
    save(samples.hostile(), tmp_path)
    assert cli.main(["lab", "report", str(tmp_path)]) == 0
    sound((tmp_path / "report.html").read_text())


def test_the_page_its_plots_and_its_json_lie_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(samples.train(), tmp_path / "lab")
    assert cli.main(["lab", "report", str(tmp_path / "lab"), "--out", str(tmp_path / "out" / "study.html")]) == 0
    assert "4 plots" in capsys.readouterr().out
    pictures = sorted(path.name for path in (tmp_path / "out" / "study-plots").iterdir())
    assert pictures[0] == "01-true-success-on-held-out-tasks.png" and len(pictures) == 4
    assert (tmp_path / "out" / "study-plots" / pictures[0]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "study.json").read_text())["kind"] == "train"
    first = (tmp_path / "out" / "study.html").read_bytes()

    assert cli.main(["lab", "report", str(tmp_path / "out" / "study.json")]) == 0, "what lies beside it is a document"
    assert (tmp_path / "out" / "report.html").read_bytes() == first, "the same document gives the same page"
    save(samples.toy(), tmp_path / "lab")
    assert cli.main(["lab", "report", str(tmp_path / "lab"), "--out", str(tmp_path / "out" / "study.html")]) == 0
    assert [path.name for path in (tmp_path / "out" / "study-plots").iterdir()] == [
        "01-p-values-of-identical-shapings.png"
    ]


def test_what_cannot_be_reported_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lab", "report", str(tmp_path)]) == 2
    save(samples.toy(), tmp_path)
    assert cli.main(["lab", "report", str(tmp_path), "--out", str(tmp_path / "x.pdf")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "there is no document of the lab" in said[0] and "ends in .html" in said[1] and len(said) == 2


def test_an_empty_document_is_a_page_too() -> None:
    empty = Plot(title="p", kind="line", x_label="", y_label="", series=[])
    seen = sound(page.render(Document(kind="score", name="", plots=[empty])))
    assert [given["id"] for given in seen.all("section")] == ["warnings"] and not seen.all("svg")


def test_values_that_are_missing_leave_gaps() -> None:
    series = Series(name="s", x=[1.0, 2.0, 3.0], y=[None, 0.5, None], low=[None, 0.4], high=[])
    nothing = Series(name="none", x=[1.0, 2.0], y=[None, None])
    for kind in ("line", "bar", "interval", "scatter"):
        shown = [
            Plot(title="p", kind=kind, x_label="x", y_label="y", series=held)
            for held in ([series], [series, nothing], [nothing] * 5)
        ]
        sound(page.render(Document(kind="score", name="gaps", plots=shown)))


def test_many_series_become_small_multiples() -> None:
    curves, pair, finals, costs = samples.train().plots
    assert [panel.title for panel in plots.panels(curves)] == samples.SHAPINGS
    assert [len(plots.panels(plot)) for plot in (pair, finals)] == [1, 1]
    steps, tokens = plots.panels(costs)
    assert (steps.title, tokens.title) == ("steps", "tokens")
    assert steps.plot.series[0].x == samples.SHAPINGS and tokens.plot.series[0].y[1] == pytest.approx(1.1)
    (length,) = plots.panels(samples.score(7).plots[2])
    assert length.plot.series[0].x == samples.SHAPINGS, "series of one point each are the rows of one"
    assert length.plot.series[0].low[1] == pytest.approx(-0.17)


def test_small_multiples_are_of_one_height() -> None:
    around = [Series(name=str(n), x=[0.0, 1.0], y=[n, n], low=[n - 1.0] * 2, high=[n + 1.0] * 2) for n in range(5)]
    many = Plot(title="p", kind="line", x_label="x", y_label="y", series=around)
    said = [re.findall(r">([−\d.]+)</text>", plots.svg(panel, "p", "l", many=True)) for panel in plots.panels(many)]
    assert len(said) == 5 and all(ticks == said[0] for ticks in said), said


def test_plots_take_their_colours_from_the_page_and_name_their_series() -> None:
    pair = samples.train().plots[1]
    drawn = plots.svg(plots.panels(pair)[0], "p0-", "True & paid", many=False)
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\(#[^)]*\)', "", drawn))
    assert "var(--s0)" in drawn and "var(--s1)" in drawn and "<title>True &amp; paid</title>" in drawn
    assert ">true</text>" in drawn and ">paid</text>" in drawn
    long = Series(name="s", x=[float(n) for n in range(2_001)], y=[0.0] * 2_001)
    assert plots.stride(Plot(title="", kind="line", x_label="", y_label="", series=[long])) == 6


def test_both_palettes_can_be_read() -> None:
    style = (Path(page.__file__).parent / "style.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part)) for part in style.split("prefers-color-scheme: dark")[:2]
    )
    assert {name: light[name] for name in plots.COLOURS} == plots.COLOURS
    assert set(light) == set(dark)
    for mode in (light, dark):
        for name, least in {
            "ink": 7,
            "muted": 4.5,
            "accent": 4.5,
            **{f"t{n}": 4.5 for n in range(4)},
            **{f"s{n}": 3 for n in range(4)},
        }.items():
            for ground in ("paper", "wash"):
                assert contrast(mode[name], mode[ground]) >= (least if ground == "paper" or name[0] != "s" else 2.8), (
                    name,
                    ground,
                )


def contrast(a: str, b: str) -> float:
    """As WCAG 2 has it."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.12345, 0.5, None], ["0.123", "0.500", "–"]),
        ([1234.5, 0.25], ["1,234", "0.25"]),
        ([1, -20_000, True], ["1", "\u221220,000", "yes"]),
        ([0.00000123, 0.0], ["1.2e\u221206", "0"]),
        ([0.0625, 0.5], ["0.062", "0.500"]),
        ([0.0625, None], ["0.0625", "–"]),
        ([1.5, "x", float("inf")], ["1.5", "x", "inf"]),
        ([12.345, 1.0], ["12.3", "1.0"]),
        ([1.0, 3.0], ["1", "3"]),
        ([1, 0.75], ["1.00", "0.75"]),
    ],
)
def test_numbers_of_a_column_share_their_decimals(values: list[float | str | None], shown: list[str]) -> None:
    assert numbers.column(values) == shown


@pytest.mark.slow
@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium on this machine")
def test_a_real_browser_shows_it_without_complaint(tmp_path: Path) -> None:
    documents = {**samples.every(), "hostile": samples.hostile()}
    for name, document in documents.items():
        (tmp_path / f"{name}.html").write_text(page.render(document))
    with browser.started(tmp_path / "profile") as seen:
        for name in documents:
            for width, dark in [(390, True), (1280, False)]:
                seen.open(tmp_path / f"{name}.html", width=width, dark=dark)
                assert seen.ask("document.documentElement.scrollWidth") <= width, f"{name} is wider than the screen"
                assert seen.ask("getComputedStyle(document.body).backgroundColor") == (
                    "rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)"
                )
                assert seen.ask("document.querySelectorAll('script, img, iframe').length") == 0
        assert seen.logged == []
