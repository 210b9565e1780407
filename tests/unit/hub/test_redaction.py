from __future__ import annotations

import json

import msgspec

from stream_server.hub.redaction import redact, redact_inputs
from stream_server.protocol.examples import FRAMES
from stream_server.protocol.frames import Result
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.output_frames import OutputFrame


def test_redaction_removes_values_and_nothing_else() -> None:
    frames = [wire.frame for wire in FRAMES]
    shown = redact(frames)
    for frame, bare in zip(frames, shown, strict=True):
        if not isinstance(frame, Result | OutputFrame):
            assert bare is frame
            continue
        before, after = (json.loads(msgspec.json.encode(one)) for one in (frame, bare))
        assert after["withheld"] is True
        assert not after.get("results")
        assert "value" not in after
        for without in (before, after):
            for name in ("withheld", "results", "references", "map_indexes", "value"):
                without.pop(name, None)
        assert after == before


IDENTITY = {"type", "dag_id", "run_id", "seq", "at", "task_id", "map_index", "try_number", "asked_at", "answered_at"}


def test_redaction_of_human_input_keeps_only_what_identifies_it() -> None:
    frames = [wire.frame for wire in FRAMES]
    for frame, bare in zip(frames, redact_inputs(frames), strict=True):
        if not isinstance(frame, (Input, InputAnswered)):
            assert bare is frame
            continue
        before, after = (json.loads(msgspec.json.encode(one)) for one in (frame, bare))
        assert after == {name: value for name, value in before.items() if name in IDENTITY} | {"withheld": True}
