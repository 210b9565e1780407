"""The command `stream-server questions`: what the tasks of a run ask at the moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence

from stream_server.cli.answer import describe_request, instance_of
from stream_server.cli.control_characters import replace_control_characters
from stream_server.cli.exit import ExitCode, exit_with_error, print_message
from stream_server.cli.standard_streams import OutputConsole, write_output
from stream_server.client import ClientError, Message, Refused, follow
from stream_server.domain.human_input import WAITING_STATES, RequestKey
from stream_server.domain.run_state import RunKey
from stream_server.protocol.frames import AnyFrame, End, Snapshot
from stream_server.protocol.input_frames import Input, InputAnswered


def list_questions(url: str, key: RunKey, *, token: str | None, patience: float, as_json: bool) -> None:
    """Write the open questions of a run to standard output: as text on a terminal, else as NDJSON."""
    try:
        messages = asyncio.run(_read_state(url, key, token, patience))
    except Refused as error:
        exit_with_error(str(error), ExitCode.USAGE)
    except ClientError as error:
        exit_with_error(str(error), ExitCode.CONNECTION_LOST)
    questions = find_open_questions(message.frame for message in messages)
    if as_json or not OutputConsole().is_terminal:
        texts = {id(message.frame): message.text for message in messages}
        for question in questions:
            write_output(texts[id(question)])
        return
    if not questions:
        print_message("No task of the run asks for input.")
    for question in questions:
        write_output(describe_question(question))


async def _read_state(url: str, key: RunKey, token: str | None, patience: float) -> list[Message]:
    """Return the snapshot of a run, and what belongs to it."""
    read: list[Message] = []
    async for message in follow(url, *key, until="run", token=token, patience=patience):
        if isinstance(message.frame, Snapshot):
            read.clear()
        read.append(message)
        # Only the last frame of a batch has a cursor.
        if "cursor" in json.loads(message.text):
            break
    return read


def find_open_questions(frames: Iterable[AnyFrame]) -> Sequence[Input]:
    """Return the requests that are open after these frames, oldest first. The frames begin with a snapshot."""
    states: dict[RequestKey, tuple[int, str | None]] = {}
    requests: dict[RequestKey, Input] = {}
    for frame in frames:
        match frame:
            case Snapshot():
                states = {instance_of(task): (task.try_number, task.state) for task in frame.tasks}
            case Input():
                # A snapshot of many instances does not list them all.
                known = states.get(instance_of(frame))
                if known is None or (known[0] == frame.try_number and known[1] in WAITING_STATES):
                    requests[instance_of(frame)] = frame
            case InputAnswered():
                requests.pop(instance_of(frame), None)
            case End():
                requests.clear()
            case _:
                pass
    return sorted(requests.values(), key=lambda request: (request.asked_at, request.task_id, request.map_index))


def describe_question(request: Input) -> str:
    """Return a request as text, with the fields of its form, who may answer, and until when."""
    if request.withheld:
        return f"{describe_request(request)}(you may not read what it asks)"
    lines = [describe_request(request)]
    if request.reference is not None:
        lines.append(f"  too large to be shown; see {request.reference.href} of Airflow's REST API")
    for name, param in request.params.items():
        label = f"{name} ({param.description})" if param.description else name
        lines.append(f"  --param {label}, by default {bytes(param.value).decode()}")
    if request.assignees:
        lines.append(f"  only by {', '.join(user.name for user in request.assignees)}")
    if request.expires_at is not None:
        lines.append(f"  until {request.expires_at.isoformat(timespec='seconds')}")
    if request.defaults:
        lines.append(f"  without an answer: {', '.join(request.defaults)}")
    return replace_control_characters("\n".join(lines))
