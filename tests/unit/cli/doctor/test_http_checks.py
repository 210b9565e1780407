from __future__ import annotations

import httpx
import pytest

from stream_server.cli.doctor.http_checks import ProbeTiming, evaluate_probe, is_buffered
from stream_server.cli.doctor.report import Level

ON_TIME = [0.01, 0.26, 0.51, 0.76]
TOGETHER = [0.77, 0.77, 0.78, 0.78]
HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


@pytest.mark.parametrize(
    ("pings", "headers", "level", "words"),
    [
        (
            ON_TIME,
            HEADERS,
            Level.OK,
            "no buffering; the first frame after 10 ms, then at intervals of 250, 250, 250 ms",
        ),
        (ON_TIME, {"cache-control": "no-transform"}, Level.OK, "a proxy used or removed X-Accel-Buffering"),
        (ON_TIME, {**HEADERS, "content-encoding": "br"}, Level.WARNING, "compressed with br"),
        (ON_TIME, {"x-accel-buffering": "no"}, Level.WARNING, "removed Cache-Control: no-transform"),
        (TOGETHER, HEADERS, Level.PROBLEM, "streams are buffered: "),
        (TOGETHER, {**HEADERS, "via": "1.1 cache"}, Level.PROBLEM, "streams are buffered (1.1 cache): "),
        (TOGETHER, {**HEADERS, "content-encoding": "gzip"}, Level.PROBLEM, "buffered and compressed with gzip"),
        ([], HEADERS, Level.WARNING, "status 200 and 0 of 4 pings"),
        (ON_TIME[:3], HEADERS, Level.WARNING, "status 200 and 3 of 4 pings"),
    ],
)
def test_timing_of_a_probe(pings: list[float], headers: dict[str, str], level: Level, words: str) -> None:
    timing = ProbeTiming(200, httpx.Headers(headers), 0.005, pings)
    finding = evaluate_probe(timing)
    assert (finding.level, words in finding.found) == (level, True), finding
    assert is_buffered(timing) is (level is Level.PROBLEM)
