from __future__ import annotations

import ctypes
import sys

import pytest
import typer

from stream_server.cli.main import app
from stream_server.cli.process_title import SECRET_OPTIONS, URL_OPTIONS, redact_arguments, redact_command_line


def test_secrets_are_replaced_by_asterisks() -> None:
    arguments = [
        *("python", "-m", "stream_server", "run", "chat", "--conf", '{"password": "mine"}', "--until", "--token"),
        *("--token", "tökén", "--password=a=b", "--url", "https://u:p@h:1/x", "--raw"),
    ]
    expected = [
        *("python", "-m", "stream_server", "run", "chat", "--conf", '{"password": "mine"}', "--until", "--token"),
        *("*******", "tökén", "--password=***", "--url", "https://u:*@h:1/x", "--raw"),
    ]
    assert redact_arguments([text.encode() for text in arguments]) == [text.encode() for text in expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
def test_option_with_a_space_or_an_equals_sign(arguments: list[str], expected: list[str]) -> None:
    assert redact_arguments([text.encode() for text in arguments]) == [text.encode() for text in expected]


def test_arguments_that_are_not_utf8() -> None:
    assert redact_arguments([b"\xff\xfe", b"--token", b"\xff\xfe"]) == [b"\xff\xfe", b"--token", b"**"]


def test_all_secret_options_are_known() -> None:
    secret_words = {"password", "token", "url", "secret", "key"}
    group = typer.main.get_command(app)
    options = {
        option
        for command in group.commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
        if secret_words & set(option.strip("-").split("-"))
    }
    assert options == SECRET_OPTIONS | URL_OPTIONS


class Libc:
    """The part of macOS's C library that returns the arguments."""

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
    """C library of a process on macOS with a secret argument."""
    libc = Libc(b"python", b"--token", b"secret")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "orig_argv", ["python", "--token", "secret"])
    monkeypatch.setattr(ctypes, "CDLL", libc)
    return libc


def test_arguments_are_overwritten_on_macos(macos: Libc) -> None:
    assert redact_command_line()
    assert [buffer.value for buffer in macos.buffers] == [b"python", b"--token", b"******"]


def test_other_memory_is_not_overwritten(macos: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "--token", "another"])
    assert not redact_command_line()
    assert [buffer.value for buffer in macos.buffers] == [b"python", b"--token", b"secret"]
