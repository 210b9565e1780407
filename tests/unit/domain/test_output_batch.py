"""The XCom of output as libraries in several languages write it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import output_frames
from stream_server.protocol.output_frames import Progress
from support.builders import KEY, at

DOCS = (Path(__file__).resolve().parents[3] / "docs" / "other-languages.md").read_text()
TABLE_ROW = re.compile(r"^\| `(\{.+?\})` \| \[`(\w+)`\]", re.MULTILINE)


def frames_of(body: str) -> list[Any]:
    made = Transition(1, 1, at(0), TransitionKind.XCOM, *KEY, "answer", -1)
    return output_frames(made._replace(xcom_key=OUTPUT_KEY, body=body))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"index":3,"items":[{"chunk":"a"},{"chunk":"b"}],"try_number":2}', id="sorted members, as Go"),
        pytest.param('{"try_number":2.0,"index":3.0,"items":[{"chunk":"a"},{"chunk":"b"}]}', id="floats of a Go `any`"),
        pytest.param('{"items": [{"chunk": "a"}, {"chunk": "b"}], "index": 3, "try_number": 2}', id="a Map of Java"),
        pytest.param(
            json.dumps('{"try_number":2,"index":3,"items":[{"chunk":"a"},{"chunk":"b"}]}'), id="JSON text, as Java"
        ),
        pytest.param(
            '{"try_number":2,"index":3,"items":[{"chunk":"a","at":5},{"chunk":"b"}],"version":1}', id="more members"
        ),
    ],
)
def test_output_of_each_language(body: str) -> None:
    frames = frames_of(body)
    assert [(frame.try_number, frame.index, msgspec.json.decode(frame.value)) for frame in frames] == [
        (2, 3, "a"),
        (2, 4, "b"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        '{"try_number":1.5,"index":0,"items":[{"chunk":"a"}]}',
        '{"try_number":1,"index":-1.0,"items":[{"chunk":"a"}]}',
        '{"try_number":1,"index":1e300,"items":[{"chunk":"a"}]}',
        '"text"',
        '"',
        json.dumps(json.dumps('{"try_number":1,"index":0,"items":[{"chunk":"a"}]}')),
    ],
)
def test_other_values_are_no_output(body: str) -> None:
    assert frames_of(body) == []


def test_documented_items_become_the_documented_frames() -> None:
    rows = TABLE_ROW.findall(DOCS)
    assert len(rows) == 6
    items = [json.loads(item) for item, _ in rows]
    frames = frames_of(json.dumps({"try_number": 1, "index": 0, "items": items}))
    assert [frame.__struct_config__.tag for frame in frames] == [name for _, name in rows]
    (example,) = re.findall(r"```json\n(.+?)\n```", DOCS)
    assert len(frames_of(example)) == 2


def test_progress_is_bounded() -> None:
    body = '{"try_number":1,"index":0,"items":[{"progress":5},{"progress":-1,"text":"a"},{"progress":null}]}'
    values = [msgspec.to_builtins(frame.value) for frame in frames_of(body) if isinstance(frame, Progress)]
    assert [value["fraction"] for value in values] == [1.0, 0.0, None]
