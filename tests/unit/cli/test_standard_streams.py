"""The commands `tail` and `run` with standard streams of all kinds, against a scripted server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_server.cli.exit import ExitCode
from stream_server.cli.follow import Follower
from stream_server.cli.standard_streams import OutputError, write_output
from stream_server.protocol.frames import AnyFrame, End, Reset, Result, RunInfo, Snapshot
from support.builders import KEY
from support.scripted_server import ScriptedServer, scripted_server, send_frames

RUN = KEY._asdict()
TEXT = "grün 🎉"
RESULT = Result(**RUN, results={"answer": msgspec.Raw(json.dumps(TEXT, ensure_ascii=False).encode())})
END = End(**RUN, state="success", outcome="result")
SNAPSHOT = Snapshot(
    **RUN,
    run=RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0),
    tasks=[],
    result_tasks=[],
)

ENVIRONMENTS = {
    "code page of Windows": {"PYTHONIOENCODING": "cp1252"},
    "strict ASCII": {"PYTHONIOENCODING": "ascii:strict"},
    "C locale": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
}


def run_command(
    seen: ScriptedServer, command: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which `$tail` watches the run."""
    tail = f"{sys.executable} -m stream_server tail {KEY.dag_id} {KEY.run_id} --url {seen.url}"
    all_env = {**os.environ, "tail": tail, **(env or {})}
    return subprocess.run(["bash", "-c", command], env=all_env, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
async def test_frames_are_utf8_whatever_the_encoding_is(env: dict[str, str]) -> None:
    async with scripted_server(send_frames(SNAPSHOT, RESULT, END)) as seen:
        done = await asyncio.to_thread(run_command, seen, "$tail", env)
    assert (done.returncode, done.stderr) == (0, b"")
    result = json.loads(done.stdout.decode().splitlines()[-2])
    assert result["results"] == {"answer": TEXT}


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_line_for_programs_is_utf8_whatever_the_encoding_is(env: dict[str, str]) -> None:
    """As `run --raw` writes a result; also half a surrogate pair, which JSON in the database may contain."""
    program = (
        "from stream_server.cli.standard_streams import configure_encodings, write_output\n"
        f"configure_encodings(); write_output({TEXT!a} + chr(0xD83C)); print('later')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{TEXT}?\nlater\n"


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_lines_for_people_escape_what_the_encoding_lacks(env: dict[str, str]) -> None:
    program = (
        "from stream_server.cli.standard_streams import ErrorConsole, OutputConsole, configure_encodings\n"
        f"configure_encodings(); OutputConsole().print({TEXT!a}); ErrorConsole().print({TEXT!a})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"gr")
    assert done.stderr.startswith(b"gr")
    assert b"Traceback" not in done.stderr


async def test_a_closed_pipe_ends_the_command_quietly() -> None:
    async with scripted_server(send_frames(SNAPSHOT, *[RESULT] * 2000, END)) as seen:
        done = await asyncio.to_thread(run_command, seen, "$tail | head -1 >/dev/null; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == (b"141\n", b"")


async def test_a_closed_standard_error_changes_nothing() -> None:
    async with scripted_server(send_frames(SNAPSHOT, RESULT, END)) as seen:
        done = await asyncio.to_thread(run_command, seen, "$tail 2>&-")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("target", [">/dev/full", ">&-"])
async def test_output_that_cannot_be_written_is_no_failed_run(target: str) -> None:
    async with scripted_server(send_frames(SNAPSHOT, RESULT, END)) as seen:
        done = await asyncio.to_thread(run_command, seen, f"$tail {target}")
    assert done.returncode == ExitCode.OUTPUT
    assert done.stderr.startswith(b"stream-server: cannot write to standard output: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_final_flush_of_the_interpreter_does_not_change_the_exit_code() -> None:
    command = [sys.executable, "-m", "stream_server", "version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == ExitCode.OUTPUT


def test_errors_of_the_output_are_no_os_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer ends the process with exit code 1 when it catches a `BrokenPipeError`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with pytest.raises(OutputError) as failed:
            write_output("x")
        assert failed.value.exit_code == ExitCode.CLOSED_PIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def make_follower(seen: ScriptedServer, **options: Any) -> Follower:
    return Follower(seen.url, results=(), until="run", timeout=30, patience=5, **{"token": None, **options})


@pytest.mark.parametrize(
    ("frames", "has_result"),
    [
        ([RESULT, Reset(**RUN, reason="cleared"), SNAPSHOT, End(**RUN, state="success", outcome="none")], False),
        ([RESULT, Reset(**RUN, reason="cleared"), SNAPSHOT, RESULT, END], True),
    ],
    ids=["retracted", "sent again"],
)
async def test_a_reset_forgets_the_result(frames: list[AnyFrame], has_result: bool) -> None:  # a parameter
    async with scripted_server(send_frames(SNAPSHOT, *frames)) as seen:
        follower = make_follower(seen)
        code = await asyncio.to_thread(follower.tail, KEY, as_json=True)
    assert code == ExitCode.RESULT
    assert (follower.result is not None) is has_result


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"reason": "task_skipped", "task_id": "answer"}, "task answer was skipped."),
        (
            {"reason": "no_result_task"},
            "no task of the DAG is a result task; mark one, or name it with --result.",
        ),
        ({"reason": "run_ended"}, "the run ended before its result tasks had a value."),
        ({"reason": "later_reason"}, "later reason."),
        ({}, "the server gave no reason."),
    ],
)
async def test_an_end_without_a_result_is_explained_and_no_error(
    members: dict[str, str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    end = End(**RUN, state="success", outcome="none", **members)
    async with scripted_server(send_frames(SNAPSHOT, end)) as seen:
        code = await asyncio.to_thread(make_follower(seen).tail, KEY, as_json=True)
    assert code == ExitCode.RESULT
    assert capfd.readouterr().err == f"Ended without a result: {sentence}\n"
