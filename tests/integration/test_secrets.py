"""Process lists and errors contain no secrets."""

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
async def running_command(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", *arguments), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def arguments_of(process: asyncio.subprocess.Process) -> dict[str, str]:
    """Return each visible argument of a process by the one before it."""
    return dict(pairwise(psutil.Process(process.pid).cmdline()))


@pytest.mark.parametrize("joined", [False, True])
async def test_serve_hides_its_password(journal: str, unused_tcp_port: int, *, joined: bool) -> None:
    url = journal.replace("//airflow@", "//airflow:s3cret+é@") + "?application_name=s3cret"
    option = [f"--database-url={url}"] if joined else ["--database-url", url]
    async with running_command("serve", *option, "--port", str(unused_tcp_port)) as process:
        assert process.stderr is not None
        while b"Following the journal" not in await asyncio.wait_for(process.stderr.readline(), DEADLINE):
            pass
        arguments = psutil.Process(process.pid).cmdline()
    assert not [argument for argument in arguments if "s3cret" in argument]
    hidden = url.replace("s3cret+é", "*" * 9).replace("application_name=s3cret", "*" * 23)
    assert arguments[4:] == [*(part.replace(url, hidden) for part in option), "--port", str(unused_tcp_port)]


async def test_run_hides_password_and_token() -> None:
    async with _silent_server() as silent_url:
        options = ["--airflow-url", silent_url, "--username", "ada", "--password", "s3cret", "--token", "t0ken"]
        async with running_command("run", "chat", *options) as process:
            await eventually_async(lambda: arguments_of(process).get("--password") == "******", what="hidden password")
            visible = arguments_of(process)
    assert (visible["--token"], visible["--username"], visible["--airflow-url"]) == ("*****", "ada", silent_url)


@asynccontextmanager
async def _silent_server() -> AsyncIterator[str]:
    """Address of a server that accepts connections and sends nothing, so that a command keeps running."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["serve", "--database-url", "postgresql://u:s3cret/db"], 64, "no valid host and port"),
        (["serve", "--database-url", "mysql://u:s3cret@h/db"], 64, "must begin with postgresql://"),
        (["status", "--database-url", "postgresql://u:s3cret"], 1, "no valid host and port"),
        (["tail", "d", "r", "--patience", "0", "--url", "http://u:s3cret@127.0.0.1:1"], 2, "ws://127.0.0.1:1 for 0 s"),
        (["tail", "d", "r", "--url", "http://u:s3cret"], 64, "--url is not an address"),
        (["run", "d", "--airflow-url", "http://u:s3cret@127.0.0.1:1"], 2, "does not answer at http://u@127.0.0.1:1"),
        (["run", "d", "--airflow-url", "http://u:s3cret"], 64, "--airflow-url is not an address"),
    ],
)
async def test_errors_contain_no_password(arguments: list[str], code: int, text: str) -> None:
    async with running_command(*arguments) as process:
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, text in errors.decode()) == (code, True), errors.decode()
    assert b"s3cret" not in errors
    assert b"Traceback" not in errors
