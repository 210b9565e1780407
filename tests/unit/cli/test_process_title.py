from __future__ import annotations

import ctypes
import sys

import pytest
import typer

from stream_server.cli.main import app
from stream_server.cli.process_title import SECRET_OPTIONS, URL_OPTIONS, redact_arguments, redact_command_line


def test_secrets_become_asterisks_of_the_same_length() -> None:
    given = [
        *("python", "-m", "stream_server", "run", "chat", "--conf", '{"password": "mine"}', "--until", "--token"),
        *("--token", "tökén", "--password=a=b", "--url", "https://u:p@h:1/x", "--raw"),
    ]
    shown = [
        *("python", "-m", "stream_server", "run", "chat", "--conf", '{"password": "mine"}', "--until", "--token"),
        *("*******", "tökén", "--password=***", "--url", "https://u:*@h:1/x", "--raw"),
    ]
    assert redact_arguments([text.encode() for text in given]) == [text.encode() for text in shown]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--token", "tökén"], ["--token", "*******"]),
        (["--token=tökén", "next"], ["--token=*******", "next"]),
        (["--token"], ["--token"]),
        (["--token", ""], ["--token", ""]),
        (["--database-url", "postgresql://u:p=q@h/d", "x"], ["--database-url", "postgresql://u:***@h/d", "x"]),
        (["--database-url=postgresql://u:p@h/d?a=b"], ["--database-url=postgresql://u:*@h/d?***"]),
        (["--result", "token", "--json"], ["--result", "token", "--json"]),
    ],
)
def test_both_ways_to_give_an_option(given: list[str], shown: list[str]) -> None:
    assert redact_arguments([text.encode() for text in given]) == [text.encode() for text in shown]


def test_arguments_that_are_no_text_stay_what_they_are() -> None:
    assert redact_arguments([b"\xff\xfe", b"--token", b"\xff\xfe"]) == [b"\xff\xfe", b"--token", b"**"]


def test_no_command_has_an_option_for_a_secret_that_is_not_known() -> None:
    telling = {"password", "token", "url", "secret", "key"}
    group = typer.main.get_command(app)
    options = {
        option
        for command in group.commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
        if telling & set(option.strip("-").split("-"))
    }
    assert options == SECRET_OPTIONS | URL_OPTIONS


class Libc:
    """As much of macOS's C library as is asked for its arguments."""

    def __init__(self, *arguments: bytes) -> None:
        self.buffers = [ctypes.create_string_buffer(argument) for argument in arguments]
        self.vector = (ctypes.c_void_p * (len(arguments) + 1))(*map(ctypes.addressof, self.buffers))
        address = ctypes.cast(self.vector, ctypes.POINTER(ctypes.c_void_p))

        def vector() -> object:
            return ctypes.pointer(address)

        self._NSGetArgv = vector

    def __call__(self, _name: None) -> Libc:
        return self


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> Libc:
    """A process on macOS with a secret argument."""
    libc = Libc(b"python", b"--token", b"secret")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "orig_argv", ["python", "--token", "secret"])
    monkeypatch.setattr(ctypes, "CDLL", libc)
    return libc


def test_arguments_are_overwritten_on_macos(macos: Libc) -> None:
    assert redact_command_line()
    assert [buffer.value for buffer in macos.buffers] == [b"python", b"--token", b"******"]


def test_nothing_is_overwritten_where_the_arguments_are_others(macos: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "--token", "another"])
    assert not redact_command_line()
    assert [buffer.value for buffer in macos.buffers] == [b"python", b"--token", b"secret"]
