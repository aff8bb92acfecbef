"""What a person is told: the time left from the pace of the last advances; and nothing where nobody reads."""

import os

from rl.config import RunConfig
from rl.live import Pace, Page, Steady


def test_time_left_follows_the_pace_of_the_last_minute() -> None:
    pace = Pace(100.0)
    assert pace.left_s(100.0) is None
    for step in range(1, 21):
        pace.moved(100 + 5 * step, step, 40)
    assert pace.left_s(200.0) == 100 and pace.left_s(203.0) == 97
    for step in range(21, 31):
        pace.moved(200 + 30 * (step - 20), step, 40)
    assert pace.left_s(500.0) == 300, "the quick steps of the beginning are forgotten"
    assert pace.left_s(900.0) == 0
    pace.moved(900.0, 40, 40)
    assert pace.left_s(900.0) is None, "nothing is left"


def test_what_was_done_before_a_resume_is_no_pace() -> None:
    pace = Pace(0.0)
    pace.moved(10.0, 21, 40, begun_at=20)
    assert pace.left_s(10.0) == 190
    pace.moved(20.0, 22, 40, begun_at=21)
    assert pace.left_s(20.0) == 180


def test_a_run_goes_on_where_nobody_reads_what_it_says() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as file, Page(RunConfig(), Steady(file=file)) as page:
        page.say("heard")
        assert os.read(reader, 100) == b"[0:00] heard\n"
        os.close(reader)
        page.say("not heard")
        page.phase("learning")
        print("nor this", file=file, flush=True)
