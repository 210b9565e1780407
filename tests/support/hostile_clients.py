"""Hostile clients: each kind attacks one resource of a server, again and again, from an address of its own.

`python -m support.hostile_clients PORT RUN SECONDS COPIES [KIND …]`, as a process that `support.hostile` starts. Its
last line is JSON: what was sent, and what came back, by kind. A server that trusts loopback as a proxy takes the
addresses from `X-Forwarded-For`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from itertools import count

from support.attacker import MASK, Attacker, websocket_frame

ROUND_SECONDS = 6.0
"""Longest time of one round of a client."""

PAUSE_SECONDS = 0.02
"""Pause between two rounds, so that one client is no flood by its connections alone."""

MANY = "/api/v2/stream"
SESSION = "/api/v2/stream/session"
TICKETS = "/api/v2/stream/tickets"
CHUNKED = ("Transfer-Encoding: chunked", "Content-Type: application/json")


Kind = Callable[[Attacker], Awaitable[None]]
KINDS: dict[str, Kind] = {}


def kind(attack: Kind) -> Kind:
    KINDS[attack.__name__] = attack
    return attack


# Connections and heads.


@kind
async def send_heads_slowly(attacker: Attacker) -> None:
    async with attacker.hold(attacker.request(attacker.run)[:-2]) as held:
        for _ in range(5):
            for one in held:
                await one.send(b"X")
            await asyncio.sleep(1)


@kind
async def stay_silent(attacker: Attacker) -> None:
    async with attacker.hold(b""):
        await asyncio.sleep(ROUND_SECONDS - 1)


@kind
async def send_endless_heads(attacker: Attacker) -> None:
    for start in (b"GET /", attacker.request(MANY)[:-2] + b"X: "):
        async with attacker.connect() as connection:
            for _ in range(20):
                await connection.send(start)
                start = b"x" * 2**16  # noqa: PLW2901
            await connection.read()


@kind
async def send_large_heads(attacker: Attacker) -> None:
    many = [f"X-{number}: 1" for number in range(5000)]
    for data in (
        attacker.request(f"{MANY}?cursor={'x' * 100_000}"),
        attacker.request(MANY, *many),
        attacker.request(MANY, "Cookie: " + "x" * 200_000),
    ):
        await attacker.exchange(data)


@kind
async def send_garbage(attacker: Attacker) -> None:
    client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500
    for data in (
        client_hello,
        os.urandom(1000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 10_000,
        b"GET /\r\n\r\n",
    ):
        await attacker.exchange(data)


@kind
async def open_and_abort(attacker: Attacker) -> None:
    for path in (
        attacker.run,
        MANY,
        "/api/v2/stream/probe",
        f"{attacker.base}/result",
        f"{attacker.base}/wait?interval=1",
    ):
        async with attacker.connect() as connection:
            await connection.send(attacker.request(path))
            await connection.read(0.05)


@kind
async def close_half(attacker: Attacker) -> None:
    async with attacker.hold(attacker.request(attacker.run)) as held:
        for one in held:
            one.writer.write_eof()
        await asyncio.sleep(1)


# Requests.


@kind
async def pipeline_behind_a_stream(attacker: Attacker) -> None:
    async with attacker.connect() as connection:
        await connection.send(attacker.request(attacker.run))
        for _ in range(10):
            await connection.send(b"GET / HTTP/1.1\r\n\r\n" * 13_333)


@kind
async def pipeline_without_reading(attacker: Attacker) -> None:
    paths = ("/openapi.json", "/", "/metrics", "/health", "/nowhere")
    async with attacker.hold(b"".join(attacker.request(path) for path in paths) * 15, 10):
        await asyncio.sleep(2)


@kind
async def send_odd_methods(attacker: Attacker) -> None:
    for method in ("HEAD", "OPTIONS", "TRACE", "DELETE", "PATCH", "CONNECT", "BREW"):
        for path in (attacker.run, MANY, "/", "/health"):
            await attacker.exchange(attacker.request(path, "Connection: close", method=method))


@kind
async def ask_for_unknown_runs(attacker: Attacker) -> None:
    for _ in range(50):
        name = os.urandom(8).hex()
        await attacker.exchange(
            attacker.request(attacker.run.replace("/dagRuns/", f"/dagRuns/{name}"), "Connection: close")
        )


@kind
async def send_large_queries(attacker: Attacker) -> None:
    odd = random.choice(
        ("result=%ff", "run_id=a+00:00", "until=x", "limit=" + "9" * 5000, "%00=%00", "cursor=" + "a" * 9000)
    )
    for query in ("&".join(f"result=t{n}" for n in range(1500)), "&".join(f"dag_id=d{n}" for n in range(1500)), odd):
        for path in (attacker.run, MANY, "/api/v2/stream/runs"):
            await attacker.exchange(attacker.request(f"{path}?{query}", "Connection: close"))


@kind
async def send_odd_headers(attacker: Attacker) -> None:
    for header in (
        "Accept: " + ",".join(f"a/b{n};q=0.{n}" for n in range(2000)),
        "Accept-Encoding: " + ",".join(f"x{n};q=nan" for n in range(2000)),
        "If-None-Match: " + ",".join(f'"{n}"' for n in range(3000)),
        "Origin: http://[",
        "Cookie: " + "; ".join(f"_token={n}" for n in range(1500)),
        "Last-Event-ID: " + "f" * 30_000,
        "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(2000)),
        "Authorization: Bearer " + "x" * 30_000,
    ):
        await attacker.exchange(attacker.request(random.choice((attacker.run, "/", MANY)), header, "Connection: close"))


# Bodies.


@kind
async def send_bodies_slowly(attacker: Attacker) -> None:
    head = attacker.request(SESSION, "Content-Length: 1000", "Content-Type: application/json", method="POST")
    async with attacker.hold(head) as held:
        for _ in range(5):
            for one in held:
                await one.send(b" ")
            await asyncio.sleep(1)


@kind
async def send_tiny_chunks(attacker: Attacker) -> None:
    await attacker.exchange(attacker.request(SESSION, *CHUNKED, method="POST") + b"1\r\nx\r\n" * 100_000)


@kind
async def send_trailers(attacker: Attacker) -> None:
    head = attacker.request(SESSION, *CHUNKED, method="POST")
    await attacker.exchange(head + b"0\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n")
    await attacker.exchange(head + b"1;" + b"a=b;" * 100_000 + b"\r\nx\r\n0\r\n\r\n")
    await attacker.exchange(head + b"0\r\nX: " + b"x" * 1_000_000)


@kind
async def send_large_bodies(attacker: Attacker) -> None:
    for body in (b"[" * 1_000_000, b'{"a":' * 150_000, b"x" * 2_000_000):
        for path in (SESSION, TICKETS):
            with suppress(ConnectionError):
                await attacker.exchange(
                    attacker.request(path, "Content-Type: application/json", method="POST", body=body)
                )


@kind
async def expect_and_send_nothing(attacker: Attacker) -> None:
    head = attacker.request(SESSION, "Expect: 100-continue", "Content-Length: 10", method="POST")
    async with attacker.hold(head):
        await asyncio.sleep(2)


@kind
async def request_tickets(attacker: Attacker) -> None:
    body = json.dumps({"paths": [attacker.run]}).encode()
    for _ in range(50):
        await attacker.exchange(attacker.request(TICKETS, "Connection: close", method="POST", body=body))


# Streams.


@kind
async def read_nothing(attacker: Attacker) -> None:
    async with attacker.hold(attacker.request(attacker.run)):
        await asyncio.sleep(ROUND_SECONDS - 1)


@kind
async def resume_from_the_beginning(attacker: Attacker) -> None:
    async with attacker.connect() as connection:
        await connection.send(attacker.request(MANY))
        data = await connection.read()
    cursor = data.partition(b"id: ")[2].partition(b"\n")[0].decode("latin-1") or "0.0:0:0"
    for text in (cursor, cursor[:-1], "f" * 100, f"{cursor}{cursor}"):
        for path in (MANY, attacker.run):
            await attacker.exchange(attacker.request(path, f"Last-Event-ID: {text}"))


# WebSockets.


async def _flood_with_frames(attacker: Attacker, frame: bytes, start: bytes = b"") -> None:
    for path in (MANY, attacker.run):
        async with attacker.websocket(path) as connection:
            await connection.send(start)
            for _ in range(10):
                await connection.send(frame * (240_000 // len(frame)))


@kind
async def flood_with_continuations(attacker: Attacker) -> None:
    await _flood_with_frames(attacker, websocket_frame(b"", 0x00), websocket_frame(b"", 0x01))


@kind
async def flood_with_pings(attacker: Attacker) -> None:
    await _flood_with_frames(attacker, websocket_frame(b"", 0x89))


@kind
async def flood_with_pongs(attacker: Attacker) -> None:
    await _flood_with_frames(attacker, websocket_frame(b"", 0x8A))


@kind
async def flood_with_messages(attacker: Attacker) -> None:
    await _flood_with_frames(attacker, websocket_frame(b'{"op":"ping","id":"a"}'))


@kind
async def send_invalid_frames(attacker: Attacker) -> None:
    for data in (
        b"\x81\x05hello",
        b"\x83\x80" + MASK,
        b"\xff" * 100,
        websocket_frame(b"\xff\xfe"),
        b"\x89\xfe\x01\x00" + MASK,
    ):
        async with attacker.websocket(MANY) as connection:
            await connection.send(data)
            await connection.read()


@kind
async def send_large_messages(attacker: Attacker) -> None:
    for payload in (b"[" * 65_000, b'{"op":"subscribe","id":"' + b"a" * 65_000, b"x" * 2_000_000):
        async with attacker.websocket(MANY) as connection:
            for _ in range(10):
                await connection.send(websocket_frame(payload))
            await connection.read()


@kind
async def subscribe_and_unsubscribe(attacker: Attacker) -> None:
    async with attacker.websocket(MANY) as connection:
        for number in range(400):
            opening = {"op": "subscribe", "id": f"{number}", "dag_id": [f"d{n}" for n in range(100)]}
            await connection.send(websocket_frame(json.dumps(opening).encode()))
            await connection.send(websocket_frame(json.dumps({"op": "unsubscribe", "id": f"{number}"}).encode()))
        await connection.read()


@kind
async def subscribe_and_read_nothing(attacker: Attacker) -> None:
    async with attacker.websocket(MANY) as connection:
        for number in range(200):
            await connection.send(websocket_frame(json.dumps({"op": "subscribe", "id": f"{number}"}).encode()))
        await asyncio.sleep(ROUND_SECONDS - 2)


@kind
async def authenticate_again_and_again(attacker: Attacker) -> None:
    for path in (MANY, attacker.run):
        async with attacker.websocket(path) as connection:
            for number in range(500):
                await connection.send(websocket_frame(b'{"op":"auth","token":"%d"}' % number))
            await connection.read()


async def attack_repeatedly(attacker: Attacker, attack: Kind, ends_at: float) -> None:
    """Attack in rounds until the end."""
    attacker.totals["clients"] += 1
    while (left := ends_at - time.monotonic()) > 0:
        attacker.totals["rounds"] += 1
        with suppress(OSError, EOFError, asyncio.TimeoutError):
            await asyncio.wait_for(attack(attacker), min(left, ROUND_SECONDS))
        await asyncio.sleep(PAUSE_SECONDS)


async def attack_all(
    port: int, run: str, seconds: float, copies: int, names: Collection[str]
) -> dict[str, Counter[str]]:
    totals = {name: Counter[str]() for name in names or KINDS}
    numbers, ends_at = count(), time.monotonic() + seconds
    attacks = [
        attack_repeatedly(Attacker(port, next(numbers), run, totals[name]), KINDS[name], ends_at)
        for name in totals
        for _ in range(copies)
    ]
    await asyncio.gather(*attacks)
    return totals


def main() -> None:
    port, run, seconds, copies, *names = sys.argv[1:]
    # The clients compete with the server by what they send, and not for its processor.
    os.nice(10)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    print(json.dumps(asyncio.run(attack_all(int(port), run, float(seconds), int(copies), names))))  # noqa: T201


if __name__ == "__main__":
    main()
