"""The docs match the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import httpx
import msgspec
import pytest

from stream_server import errors
from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.runner import list_airflow_checks, list_database_checks, list_server_checks
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.cli.exit import ExitCode
from stream_server.protocol import frames, wire
from stream_server.protocol.close_codes import CloseCode
from stream_server.settings import ENV_PREFIX, Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
ERRORS = (DOCS / "errors.md").read_text()
EXAMPLES = re.findall(r"```json\n(.+?)\n```", PROTOCOL, re.DOTALL)
TYPES = get_args(frames.AnyFrame)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_complete_frame(example: str) -> None:
    frame = wire.decode_frame(example)
    sent = json.loads(msgspec.json.encode(frame))
    written = json.loads(example)
    assert sent.keys() | {"cursor"} == written.keys() | {"cursor"}


@pytest.mark.parametrize("kind", TYPES)
def test_every_frame_is_described_and_has_an_example(kind: type[msgspec.Struct]) -> None:
    name = str(kind.__struct_config__.tag)
    section = PROTOCOL.split(f"### `{name}`\n", 1)[1].split("\n### ", 1)[0]
    assert f'{{"type":"{name}"' in section
    for member in kind.__struct_fields__:
        assert f'"{member}":' in section or f"`{member}`" in section, f"{name}.{member} is not documented"


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(rf"^\| `({ENV_PREFIX}\w+)` \|", (DOCS / "settings.md").read_text(), re.MULTILINE))
    assert documented == {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}


def _subclasses(kind: type[errors.StreamServerError]) -> set[type[errors.StreamServerError]]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def test_every_problem_is_documented() -> None:
    raised = {
        (error.status, error.title)
        for error in _subclasses(errors.StreamServerError)
        if error.status != errors.StreamServerError.status and error not in {errors.AirflowError, errors.AirflowRefused}
    }
    documented = {
        (int(status), title) for status, title in re.findall(r"^\| (\d+) \| ([^|]+?) \|", ERRORS, re.MULTILINE)
    }
    assert raised <= documented
    assert f"| Airflow's own | {errors.AirflowRefused.title} |" in ERRORS
    assert f"| 502, or `fail_status` | {errors.NoResult.title} |" in ERRORS


def test_every_close_code_is_documented() -> None:
    documented = {(int(code), name) for code, name in re.findall(r"^\| (4\d+) \| ([A-Z_]+) \|", PROTOCOL, re.MULTILINE)}
    assert documented == {(int(code), code.name) for code in CloseCode}


def test_every_exit_code_is_documented() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \| ", readme, re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}


def test_every_check_of_the_doctor_is_documented() -> None:
    section = (DOCS / "operations.md").read_text().split("\n## Doctor\n", 1)[1].split("\n## ", 1)[0]
    documented = re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)
    limits, client = Thresholds(), httpx.AsyncClient()
    checks = (
        *list_database_checks(ReadOnlySession("", 1.0), limits),
        *list_airflow_checks(client, "token"),
        *list_server_checks(client, None),
    )
    assert documented == [name for name, _ in checks]
