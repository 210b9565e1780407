"""No password is shown to those who list processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import psutil
import pytest

from support.streams import DEADLINE
from support.waiting import eventually_async


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", *arguments), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def shown(process: asyncio.subprocess.Process) -> dict[str, str]:
    """Return each argument of a process, as anybody may see it, by the one before."""
    return dict(pairwise(psutil.Process(process.pid).cmdline()))


@pytest.mark.parametrize("joined", [False, True])
async def test_serve_does_not_show_its_password(journal: str, unused_tcp_port: int, *, joined: bool) -> None:
    url = journal.replace("//airflow@", "//airflow:s3cret+é@") + "?application_name=s3cret"
    option = [f"--database-url={url}"] if joined else ["--database-url", url]
    async with command("serve", *option, "--port", str(unused_tcp_port)) as process:
        assert process.stderr is not None
        while b"Following the journal" not in await asyncio.wait_for(process.stderr.readline(), DEADLINE):
            pass
        arguments = psutil.Process(process.pid).cmdline()
    assert not [argument for argument in arguments if "s3cret" in argument]
    hidden = url.replace("s3cret+é", "*" * 9).replace("application_name=s3cret", "*" * 23)
    assert arguments[4:] == [*(part.replace(url, hidden) for part in option), "--port", str(unused_tcp_port)]


async def test_run_shows_neither_password_nor_token() -> None:
    async with _silent() as silent:
        options = ["--airflow-url", silent, "--username", "ada", "--password", "s3cret", "--token", "t0ken"]
        async with command("run", "chat", *options) as process:
            await eventually_async(lambda: shown(process).get("--password") == "******", what="the password is hidden")
            seen = shown(process)
    assert (seen["--token"], seen["--username"], seen["--airflow-url"]) == ("*****", "ada", silent)


@asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    """An address that accepts connections and says nothing, so that a command stays."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["serve", "--database-url", "postgresql://u:s3cret/db"], 64, "no valid host and port"),
        (["serve", "--database-url", "mysql://u:s3cret@h/db"], 64, "must begin with postgresql://"),
        (["status", "--database-url", "postgresql://u:s3cret"], 1, "no valid host and port"),
        (["tail", "d", "r", "--patience", "0", "--url", "http://u:s3cret@127.0.0.1:1"], 2, "ws://127.0.0.1:1 for 0 s"),
        (["tail", "d", "r", "--url", "http://u:s3cret"], 64, "--url is no address"),
        (["run", "d", "--airflow-url", "http://u:s3cret@127.0.0.1:1"], 2, "does not answer at http://u@127.0.0.1:1"),
        (["run", "d", "--airflow-url", "http://u:s3cret"], 64, "--airflow-url is no address"),
    ],
)
async def test_no_error_repeats_a_password(arguments: list[str], code: int, told: str) -> None:
    async with command(*arguments) as process:
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, told in errors.decode()) == (code, True), errors.decode()
    assert b"s3cret" not in errors
    assert b"Traceback" not in errors
