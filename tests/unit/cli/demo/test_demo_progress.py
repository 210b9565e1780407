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


class Recorder:
    def __init__(self, *, terminal: bool = False) -> None:
        self.file = Terminal() if terminal else io.StringIO()
        self.clock = Clock()
        self.reporter = ConsoleReporter(self.file, self.clock)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s")],
)
def test_format_duration(duration: float, text: str) -> None:
    assert format_duration(duration) == text


def test_step_has_a_first_and_a_last_line() -> None:
    recorder = Recorder()
    with report_step(recorder.reporter, "Starting Airflow"):
        recorder.clock.now += 13
    assert recorder.lines == ["... Starting Airflow", "ok  Starting Airflow (13 s)"]


def test_long_step_has_a_line_every_ten_seconds() -> None:
    recorder = Recorder()
    with report_step(recorder.reporter, "Starting Airflow"):
        for _ in range(250):
            recorder.clock.now += 0.1
            recorder.reporter.update_step()
    assert recorder.lines[1:-1] == ["... Starting Airflow (10 s)", "... Starting Airflow (20 s)"]


def test_failed_step_is_marked() -> None:
    recorder = Recorder()
    with pytest.raises(RuntimeError), report_step(recorder.reporter, "Starting Airflow"):
        raise RuntimeError
    assert recorder.lines[-1] == "!!  Starting Airflow (0.0 s)"


def test_long_lines_are_not_wrapped() -> None:
    recorder = Recorder()
    recorder.reporter.print_line("x" * 200)
    assert recorder.lines == ["x" * 200]


def test_terminal_keeps_the_last_line() -> None:
    recorder = Recorder(terminal=True)
    with report_step(recorder.reporter, "Starting Airflow"):
        recorder.clock.now += 1
        recorder.reporter.update_step("scheduler")
    assert recorder.lines[-1].endswith("ok  Starting Airflow (1.0 s)")


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "closed"), OSError(errno.EIO, "hung up")])
def test_closed_output_is_ignored(error: OSError) -> None:
    class ClosedFile(io.StringIO):
        def write(self, _text: str) -> int:
            raise error

    reporter = ConsoleReporter(ClosedFile())
    reporter.print_line("Stopping all processes ...")
    reporter.print_line("The logs are in .demo")
