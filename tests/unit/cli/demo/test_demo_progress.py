from __future__ import annotations

import errno
import io

import pytest

from stream_server.cli.demo.progress import ConsoleReporter, format_duration, report_step


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Reported:
    def __init__(self, *, terminal: bool = False) -> None:
        self.file = Terminal() if terminal else io.StringIO()
        self.clock = Clock()
        self.progress = ConsoleReporter(self.file, self.clock)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s")],
)
def test_durations_are_written_for_people(duration: float, text: str) -> None:
    assert format_duration(duration) == text


def test_a_step_is_a_line_at_its_begin_and_one_at_its_end() -> None:
    reported = Reported()
    with report_step(reported.progress, "Starting Airflow"):
        reported.clock.now += 13
    assert reported.lines == ["... Starting Airflow", "ok  Starting Airflow (13 s)"]


def test_a_long_step_is_told_again_every_ten_seconds() -> None:
    reported = Reported()
    with report_step(reported.progress, "Starting Airflow"):
        for _ in range(250):
            reported.clock.now += 0.1
            reported.progress.update_step()
    assert reported.lines[1:-1] == ["... Starting Airflow (10 s)", "... Starting Airflow (20 s)"]


def test_a_step_given_up_is_told_as_such() -> None:
    reported = Reported()
    with pytest.raises(RuntimeError), report_step(reported.progress, "Starting Airflow"):
        raise RuntimeError
    assert reported.lines[-1] == "!!  Starting Airflow (0.0 s)"


def test_addresses_are_not_wrapped() -> None:
    reported = Reported()
    reported.progress.print_line("x" * 200)
    assert reported.lines == ["x" * 200]


def test_a_terminal_shows_a_moving_line_and_keeps_the_last() -> None:
    reported = Reported(terminal=True)
    with report_step(reported.progress, "Starting Airflow"):
        reported.clock.now += 1
        reported.progress.update_step("scheduler")
    assert reported.lines[-1].endswith("ok  Starting Airflow (1.0 s)")


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "closed"), OSError(errno.EIO, "hung up")])
def test_a_reader_who_has_gone_does_not_stop_the_work(error: OSError) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise error

    progress = ConsoleReporter(Gone())
    progress.print_line("Stopping everything ...")
    progress.print_line("The logs are in .demo")
