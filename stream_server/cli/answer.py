"""The command `stream-server answer`, and questions on a terminal."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from stream_server.cli.control_characters import replace_control_characters
from stream_server.cli.run_table import describe_instance
from stream_server.client import ClientError, Refused
from stream_server.domain.human_input import RequestKey
from stream_server.protocol.frames import TaskInfo, TaskTransition
from stream_server.protocol.input_frames import Input, InputAnswered


class Answer(NamedTuple):
    """An answer to a request for human input."""

    chosen_options: list[str]
    params_input: dict[str, Any]


ReadLine = Callable[[str], Awaitable[str | None]]
"""Shows a prompt, and returns a line; `None` at the end of the input."""

SendAnswer = Callable[[Input, Answer], Awaitable[object]]


class Prompter:
    """Puts the questions of tasks to the user, one after the other.

    Args:
        read_line: Reads from the terminal.
        write: Writes a line to the terminal.
        send: Sends an answer.
    """

    def __init__(self, read_line: ReadLine, write: Callable[[str], None], send: SendAnswer) -> None:
        self._read_line, self._write, self._send = read_line, write, send
        self._turn = asyncio.Lock()
        self._open: dict[RequestKey, Input] = {}

    def open(self, request: Input) -> bool:
        """Note an open request. Return whether it is to be put to the user."""
        key = instance_of(request)
        before = self._open.get(key)
        self._open[key] = request
        is_new = before is None or (before.try_number, before.asked_at) != (request.try_number, request.asked_at)
        return is_new and bool(request.options)

    def close(self, frame: InputAnswered | TaskTransition) -> None:
        """Note that a task instance does not ask any more."""
        self._open.pop(instance_of(frame), None)

    async def ask(self, request: Input) -> None:
        """Put a request to the user, and send the answer. One that does not fit the request can be corrected."""
        async with self._turn:
            while self._is_open(request):
                answer = await self._read_answer(request)
                if answer is None:
                    return
                if not self._is_open(request):
                    self._write("The question is not open any more.")
                    return
                try:
                    await self._send(request, answer)
                except ClientError as error:
                    self._write(replace_control_characters(str(error)))
                    if not (isinstance(error, Refused) and error.status == HTTPStatus.UNPROCESSABLE_ENTITY):
                        return
                else:
                    return

    def _is_open(self, request: Input) -> bool:
        current = self._open.get(instance_of(request))
        return current is not None and current.asked_at == request.asked_at

    async def _read_answer(self, request: Input) -> Answer | None:
        self._write(describe_request(request))
        chosen: list[str] | None = None
        while chosen is None:
            line = await self._read_line("Choice: ")
            if line is None:
                return None
            chosen = parse_choice(line, request)
        params: dict[str, Any] = {}
        for name, param in request.params.items():
            label = f"{name} ({param.description})" if param.description else name
            prompt = replace_control_characters(f"{label} [{bytes(param.value).decode()}]: ")
            line = await self._read_line(prompt)
            if line is None:
                return None
            is_kept = not line.strip()
            params[name] = msgspec.json.decode(param.value) if is_kept else parse_value(line.strip(), param.schema)
        return Answer(chosen, params)


def describe_request(request: Input) -> str:
    """Return a request as lines of text, with its options numbered."""
    label = describe_instance(request.task_id, request.map_index, request.iteration)
    lines = [f"{label} asks: {request.subject or ''}"]
    if request.body:
        lines.append(request.body)
    lines += [f"  {number} {option}" for number, option in enumerate(request.options, 1)]
    return replace_control_characters("\n".join(lines))


def instance_of(frame: Input | InputAnswered | TaskTransition | TaskInfo) -> RequestKey:
    """Return the task instance of a frame, or of an entry of a snapshot."""
    return frame.task_id, frame.map_index, frame.iteration


def parse_choice(line: str, request: Input) -> list[str] | None:
    """Return the chosen options, by name or number, separated by commas; `None` if they do not fit the request.

    An empty line chooses the defaults.
    """
    if not line.strip():
        return [*request.defaults] if request.defaults else None
    if line.strip() in request.options:
        return [line.strip()]
    chosen = []
    for part in (part.strip() for part in line.split(",")):
        if part in request.options:
            chosen.append(part)
        elif part.isdecimal() and 0 < int(part) <= len(request.options):
            chosen.append(request.options[int(part) - 1])
        else:
            return None
    chosen = list(dict.fromkeys(chosen))
    return chosen if len(chosen) == 1 or request.multiple else None


def parse_value(text: str, schema: msgspec.Raw | None = None) -> Any:  # noqa: ANN401
    """Return a value of the form: JSON, or else a string.

    Args:
        text: What the user has typed.
        schema: JSON Schema of the value. If it permits strings, other JSON is a string too, except a permitted `null`.
    """
    types = () if schema is None else _read_types(schema)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_text = "string" in types and not isinstance(value, str) and not (value is None and "null" in types)
    return text if is_text else value


def _read_types(schema: msgspec.Raw) -> Sequence[object]:
    """Return the types that a JSON Schema permits; none if it does not have them in a valid form."""
    decoded = msgspec.json.decode(schema)
    types = decoded.get("type") if isinstance(decoded, dict) else None
    return types if isinstance(types, list) else (types,)


def parse_params(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the values of `name=value` pairs.

    Raises:
        ValueError: A pair has no `=`.
    """
    params = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise ValueError(f"{pair!r} has not the form name=value")
        params[name] = parse_value(value)
    return params


async def read_terminal_line(prompt: str) -> str | None:
    """Return a line of standard input; `None` at its end. The thread does not delay the end of the program."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str | None] = loop.create_future()

    def finish(line: str) -> None:
        if not done.done():
            done.set_result(line.rstrip("\n") if line else None)

    def read() -> None:
        sys.stdout.write(prompt)
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, line)

    threading.Thread(target=read, name="terminal input", daemon=True).start()
    return await done


def has_terminal() -> bool:
    """Whether standard input and output are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
