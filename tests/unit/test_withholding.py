from __future__ import annotations

from stream_server.examples import FRAMES
from stream_server.frames import Result
from stream_server.withholding import withhold


def test_results_lose_their_values_and_all_else_stays() -> None:
    frames = [wire.frame for wire in FRAMES]
    shown = withhold(frames)
    assert len(shown) == len(frames)
    for frame, bare in zip(frames, shown, strict=True):
        if isinstance(frame, Result):
            assert isinstance(bare, Result)
            assert (bare.results, bare.references, bare.withheld) == ({}, {}, True)
            assert (bare.dag_id, bare.run_id, bare.seq, bare.at) == (frame.dag_id, frame.run_id, frame.seq, frame.at)
        else:
            assert bare is frame
