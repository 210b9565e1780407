"""The docs say what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from stream_server import errors, frames
from stream_server.client.commands import Exit
from stream_server.settings import PREFIX, Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
ERRORS = (DOCS / "errors.md").read_text()
EXAMPLES = re.findall(r"```json\n(.+?)\n```", PROTOCOL, re.DOTALL)
TYPES = get_args(frames.AnyFrame)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_frame_with_all_that_it_says(example: str) -> None:
    frame = frames.decode(example)
    sent = json.loads(msgspec.json.encode(frame))
    written = json.loads(example)
    assert sent.keys() | {"cursor"} == written.keys() | {"cursor"}


@pytest.mark.parametrize("kind", TYPES)
def test_every_frame_is_described_and_has_an_example(kind: type[frames.Frame]) -> None:
    name = str(kind.__struct_config__.tag)
    section = PROTOCOL.split(f"### `{name}`\n", 1)[1].split("\n### ", 1)[0]
    assert f'{{"type":"{name}"' in section
    for member in kind.__struct_fields__:
        assert f'"{member}":' in section or f"`{member}`" in section, f"{name}.{member} is not documented"


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(rf"^\| `({PREFIX}\w+)` \|", (DOCS / "settings.md").read_text(), re.MULTILINE))
    assert documented == {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


def _subclasses(kind: type[errors.StreamServerError]) -> set[type[errors.StreamServerError]]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def test_every_problem_is_documented() -> None:
    told = {
        (error.status, error.title)
        for error in _subclasses(errors.StreamServerError)
        if error.status != errors.StreamServerError.status and error is not errors.BadRequest
    }
    documented = {
        (int(status), title) for status, title in re.findall(r"^\| (\d+) \| ([^|]+?) \|", ERRORS, re.MULTILINE)
    }
    assert told <= documented


def test_every_close_code_is_documented() -> None:
    documented = {(int(code), name) for code, name in re.findall(r"^\| (4\d+) \| ([A-Z_]+) \|", ERRORS, re.MULTILINE)}
    assert documented == {(int(code), code.name) for code in errors.CloseCode}


def test_every_exit_code_is_documented() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \| ", readme, re.MULTILINE)}
    assert documented == {int(code) for code in Exit}
