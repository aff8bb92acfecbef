"""Documents such as each command of the lab makes, with what models write into them at its worst."""

import math

from rl.lab.document import Attempt, Document, Plot, Series, Table, Warned

SHAPINGS = ["outcome", "tests", "outcome+format", "brevity", "potential", "turn_cost", "hackable"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style></title></pre></details><script src=//evil.example/x.js></script>",
    '"><img src=x onerror=alert(1)>',
    "<a href='javascript:alert(1)'>javascript:alert(1)</a>",
    "<svg onload=alert(1)><!-- ]]> -->&lt;b&gt;&#60;",
    "\x00\x1b[31mred\x07 \u202egnp.exe\u2069 \ud800 \x9b2J",
    "[bold red]rich[/] :boom: $\\frac{1}{2}$ %s {} {{}}",
    "url(#x) #0072b2 </svg>",
]


def score(shapings: int = 3) -> Document:
    names = SHAPINGS[:shapings]
    worlds = ["math", "code", "swe"]
    figures = {
        "episodes": 10_240,
        "skipped_machinery": 12,
        "seconds": 41.3712,
        "shapings": {
            name: {"dead_groups": 0.31 - 0.04 * n, "inversion_rate": 0.02 * n * n, "rank_correlation": 1 - 0.07 * n}
            for n, name in enumerate(names)
        },
    }
    rows: list[list[str | float | int | bool | None]] = [
        [name, world, 1200 + 7 * n, 0.31 - 0.04 * n, 0.02 * n * n, None if n == 0 else -0.1 * n, n == 0]
        for n, name in enumerate(names)
        for world in worlds
    ]
    return Document(
        kind="score",
        name="quickstart under three rewards",
        hashes={"run/quickstart": "9f" * 32, **{f"reward/{name}": f"{n:02x}" * 32 for n, name in enumerate(names)}},
        figures=figures,
        tables=[
            Table(
                title="By shaping and world",
                columns=["shaping", "world", "pairs", "dead groups", "inversions", "length bias", "same as the truth"],
                rows=rows,
                note="Inversions: share of pairs of one group in which the wrong attempt has more advantage.",
            )
        ],
        plots=[
            Plot(
                title="Groups that teach nothing",
                kind="bar",
                x_label="world",
                y_label="share of groups with all advantages zero",
                series=[
                    Series(name=name, x=[*worlds], y=[0.3 - 0.1 * n, 0.21, 0.1 + 0.05 * n])
                    for n, name in enumerate(names)
                ],
            ),
            Plot(
                title="Score against length",
                kind="scatter",
                x_label="sampled tokens",
                y_label="advantage",
                series=[
                    Series(
                        name=name,
                        x=[float(20 + (37 * i) % 230) for i in range(80)],
                        y=[math.sin(i * 1.7 + n) - n * ((37 * i) % 230) / 200 for i in range(80)],
                    )
                    for n, name in enumerate(names[:2])
                ],
                note="Solved attempts only.",
            ),
            Plot(
                title="Length bias at equal truth",
                kind="interval",
                x_label="",
                y_label="correlation of advantage with sampled tokens",
                series=[
                    Series(name=name, x=["length bias"], y=[-0.12 * n], low=[-0.12 * n - 0.05], high=[-0.12 * n + 0.06])
                    for n, name in enumerate(names)
                ],
            ),
        ],
        warnings=[
            Warned(
                name="telescoping-potential",
                about=names[-1],
                text="The potential sums to a constant under an advantage by attempt: it can change nothing.",
            ),
            Warned(name="skipped", about="", text="12 attempts were lost to the machinery and are in no figure."),
        ],
        attempts=[attempt(n, names) for n in range(10)],
    )


def attempt(number: int, names: list[str]) -> Attempt:
    return Attempt(
        world=["math", "code", "swe"][number % 3],
        key=f"12+{number // 2}",
        outcome=["solved", "failed", "turns_spent"][number % 3],
        solved=number % 3 == 0,
        messages=[
            {"role": "system", "content": "Answer in a box."},
            {"role": "user", "content": f"What is 12 + {number // 2}?"},
            {
                "role": "assistant",
                "content": f"I think\n\n    12 + {number // 2}\n\nis {HOSTILE[number % len(HOSTILE)]}",
            },
        ],
        scores={name: 1.0 - 0.25 * n for n, name in enumerate(names)},
        ranks={name: 1 + (number + 2 * n) % 8 / 2 for n, name in enumerate(names)},
        note="" if number else "Last of its group by the truth, first by the shaping.",
    )


def audit() -> Document:
    kinds = ["gold", "equivalent to gold", "empty", "echo of the prompt", "near miss", "planted result file"]
    return Document(
        kind="audit",
        name="all worlds",
        hashes={"config": "ab" * 32},
        figures={
            "fails": True,
            "hacks_that_pay": ["hackable: echo of the prompt"],
            "worlds": {"math": {"attempts": 24}},
        },
        tables=[
            Table(
                title="math: what each reward pays",
                columns=["attempt", "truth", *SHAPINGS],
                rows=[
                    [kind, n < 2, *(round((n < 2) * 1.0 + 0.1 * m * (n == 3), 3) for m in range(len(SHAPINGS)))]
                    for n, kind in enumerate(kinds)
                ],
            )
        ],
        warnings=[Warned(name="hack-pays", about="hackable", text="An echo of the prompt is paid 0.6, gold 1.6.")],
    )


def train() -> Document:
    """Seven shapings: more than fit one panel."""
    steps = [float(step) for step in range(0, 61, 5)]

    def true(n: int) -> list[float | None]:
        return [0.44 + (0.4 - 0.09 * n) * (1 - math.exp(-step / 20)) for step in steps]

    def curve(n: int, name: str) -> Series:
        y = true(n)
        low, high = ([None if v is None else v + side * (0.02 + 0.004 * n) for v in y] for side in (-1, 1))
        return Series(name=name, x=[*steps], y=y, low=low, high=high)

    finals = [true(n)[-1] or 0.0 for n in range(len(SHAPINGS))]
    return Document(
        kind="train",
        name="Six shapings and outcome, five seeds",
        hashes={"config": "cd" * 32, "experiment": "ef" * 32},
        figures={
            "cells": 35,
            "seconds": 6312.5,
            "shapings": {
                name: {
                    "final": {"iqm": finals[n], "low": finals[n] - 0.03, "high": finals[n] + 0.03},
                    "area": 0.6 - 0.03 * n,
                    "steps_to_threshold": None if n > 4 else 12 + 5 * n,
                }
                for n, name in enumerate(SHAPINGS)
            },
        },
        tables=[
            Table(
                title="Against outcome",
                columns=["shaping", "final", "difference", "p", "tokens to 0.7"],
                rows=[
                    [name, finals[n], finals[n] - finals[0], 0.0625 if n else None, 123_456 * n]
                    for n, name in enumerate(SHAPINGS)
                ],
                note="Five pairs: no exact test can give p below 0.0625.",
            )
        ],
        plots=[
            Plot(
                title="True success on held-out tasks",
                kind="line",
                x_label="optimiser step",
                y_label="pass@1, interquartile mean over seeds",
                series=[curve(n, name) for n, name in enumerate(SHAPINGS)],
                note="Bands: 95 % bootstrap intervals over seeds.",
            ),
            Plot(
                title="True and paid, hackable",
                kind="line",
                x_label="optimiser step",
                y_label="mean",
                series=[
                    curve(6, "true"),
                    Series(name="paid", x=[*steps], y=[None, *(0.5 + 0.008 * step for step in steps[1:])]),
                ],
            ),
            Plot(
                title="Final success",
                kind="interval",
                x_label="",
                y_label="pass@1",
                series=[
                    Series(
                        name="final",
                        x=[*SHAPINGS],
                        y=[*finals],
                        low=[v - 0.03 for v in finals],
                        high=[v + 0.03 for v in finals],
                    )
                ],
            ),
            Plot(
                title="What it costs",
                kind="interval",
                x_label="",
                y_label="relative to outcome",
                series=[
                    Series(
                        name=name,
                        x=["steps", "tokens"],
                        y=[1 + 0.2 * n, 1 + 0.1 * n],
                        low=[1.0, None],
                        high=[1 + 0.3 * n, None],
                    )
                    for n, name in enumerate(SHAPINGS)
                ],
            ),
        ],
        warnings=[],
    )


def toy() -> Document:
    return Document(
        kind="toy",
        name="toy",
        hashes={"code": "01" * 32},
        figures={
            "potential_kept_optimum": 200,
            "planted_bonus_caught": 200,
            "identical_called_different": 3,
            "seconds": 8.25,
        },
        tables=[
            Table(
                title="By process", columns=["process", "states", "kept"], rows=[["chain", 5, True], ["grid", 25, True]]
            )
        ],
        plots=[
            Plot(
                title="p-values of identical shapings",
                kind="bar",
                x_label="p",
                y_label="repetitions",
                series=[
                    Series(name="count", x=[0.05 + 0.1 * n for n in range(10)], y=[9, 11, 10, 8, 12, 10, 9, 11, 10, 10])
                ],
            )
        ],
    )


def every() -> dict[str, Document]:
    return {"score": score(), "audit": audit(), "train": train(), "toy": toy()}


def hostile() -> Document:
    """Every text of it is an attack."""
    word = " ".join(HOSTILE)
    return Document(
        kind="score",
        name=word,
        hashes={word: word},
        figures={word: {word: word, "b": 1}, "other": {word: 1.5}, "list": [word]},
        tables=[Table(title=word, columns=[word, word], rows=[[word, 1.0], [word, None]], note=word)],
        plots=[
            Plot(
                title=word,
                kind=kind,
                x_label=word,
                y_label=word,
                series=[Series(name=f"{word} {n}", x=[word] if names else [1.0], y=[0.5]) for n in range(count)],
                note=word,
            )
            for kind, names, count in [
                ("line", False, 2),
                ("line", True, 1),
                ("bar", True, 6),
                ("interval", True, 2),
                ("scatter", False, 6),
            ]
        ],
        warnings=[Warned(name=word, about=word, text=word)],
        attempts=[
            Attempt(
                world=word,
                key=word,
                outcome=word,
                solved=False,
                messages=[{"role": word, "content": text, word: word} for text in HOSTILE],
                scores={word: 0.0},
                ranks={word: 1.0},
                note=word,
            )
        ],
    )
