from __future__ import annotations

import sys

import pytest

from stream_server import __version__
from stream_server.cli.main import main


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Return the exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["stream-server", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    return exited.value.code


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nonsense"], "No such option: --nonsense"),
        (["nonsense"], "No such command 'nonsense'"),
        (["tail", "dag"], "Missing argument"),
        (["serve", "--port", "x"], "Invalid value for '--port'"),
        (["install", "--attempts", "0"], "Invalid value for '--attempts'"),
        (["tail", "dag", "run", "--until", "x"], "--until must be 'result' or 'run', not 'x'"),
        (["tail", "dag", "run", "--timeout", "x"], "'x' is not a duration"),
        (["run", "dag", "--conf", "[]"], "--conf: the configuration must be a JSON object"),
        (["status"], "set --database-url or STREAM_SERVER_DATABASE_URL"),
    ],
)
def test_usage_errors_exit_with_64(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STREAM_SERVER_DATABASE_URL", raising=False)
    assert run_main(monkeypatch, *arguments) == 64
    output = capsys.readouterr()
    assert text in output.err
    assert output.out == ""


def test_no_command_prints_the_help_and_exits_with_64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch) == 64
    output = capsys.readouterr()
    assert "Usage: " in output.out + output.err


def test_success_exits_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "version") in (0, None)
    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_exits_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "serve", "--help") in (0, None)
    assert "--database-url" in capsys.readouterr().out
