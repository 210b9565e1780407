"""The application under another ASGI server, configured by the environment."""

from __future__ import annotations

import asyncio
import os
import sys

import httpx
import pytest

from support.streams import DEADLINE


async def uvicorn(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "stream_server.app:app", *arguments),
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )


async def test_uvicorn_serves_the_application(journal: str, unused_tcp_port: int) -> None:
    process = await uvicorn(
        *("--port", str(unused_tcp_port)),
        STREAM_SERVER_DATABASE_URL=journal,
        STREAM_SERVER_AUTH="none",
        STREAM_SERVER_I_KNOW_THAT_EVERYBODY_CAN_READ_EVERYTHING="true",
    )
    try:
        assert process.stderr is not None
        while b"running on" not in (line := await asyncio.wait_for(process.stderr.readline(), DEADLINE)):
            assert line, "uvicorn has ended"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_tcp_port}") as client:
            assert (await client.get("/health")).status_code == 200
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), DEADLINE)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"STREAM_SERVER_DATABASE_URL": "postgresql://h/d"}, b"Without authorization, everyone who can connect"),
        ({}, b"STREAM_SERVER_DATABASE_URL: Field required"),
    ],
)
async def test_the_application_does_not_start_without_auth_settings(
    environment: dict[str, str], message: bytes
) -> None:
    process = await uvicorn(**environment)
    _, output = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode != 0
    assert message in output
