"""The candidates of the fan-out: how each is started, and its address."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.fanout_clients import Endpoint
from bench.fanout_payload import DAG_ID
from bench.recorder import BenchmarkError
from stream_server.cli.demo.ports import choose_port

SSE, ASGI, WEBSOCKET = "SSE", "SSE, plain ASGI", "WebSocket"
NCHAN_SSE, NCHAN_WEBSOCKET = "nchan SSE", "nchan WebSocket"
SSE_STARLETTE = "sse-starlette, a queue each"
ALL = (SSE, ASGI, WEBSOCKET, NCHAN_SSE, NCHAN_WEBSOCKET, SSE_STARLETTE)

OURS = {SSE: "direct", ASGI: "asgi", WEBSOCKET: "direct", SSE_STARLETTE: "naive"}
STREAM = f"/api/v2/dags/{DAG_ID}/dagRuns/{{run}}/stream?until=run"

START_SECONDS = 20.0

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
NCHAN = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000000;
  nchan_max_reserved_memory 512M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /publish {{
      nchan_publisher; nchan_channel_id $arg_run; nchan_message_buffer_length 100; nchan_message_timeout 30s;
    }}
    location = /sse {{
      nchan_subscriber eventsource; nchan_channel_id $arg_run; nchan_subscriber_first_message newest;
    }}
    location = /websocket {{
      nchan_subscriber websocket; nchan_channel_id $arg_run; nchan_subscriber_first_message newest;
    }}
  }}
}}
"""


class RunningCandidate(NamedTuple):
    """A running candidate."""

    target: Endpoint
    processes: list[psutil.Process]

    def rss(self) -> int:
        return sum(process.memory_info().rss for process in self.processes)

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        return sum(cpu_seconds(process.pid) for process in self.processes)


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has used, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def running_candidate(name: str, directory: Path, *, runs: int, core: int) -> Iterator[RunningCandidate]:
    """Run a candidate on a core.

    Raises:
        FileNotFoundError: It is not installed here.
    """
    if name in OURS:
        with _python(OURS[name], runs, core) as (port, feed_port, process):
            opened = b"snapshot"
            yield RunningCandidate(Endpoint(port, STREAM, name == WEBSOCKET, opened, feed_port), [process])
        return
    websocket = name == NCHAN_WEBSOCKET
    with _nginx(directory, core) as (port, processes):
        path, opened = ("/websocket", b"101 Switching") if websocket else ("/sse", b"200 OK")
        target = Endpoint(port, f"{path}?run={{run}}", websocket, opened, port, "/publish?run={run}")
        yield RunningCandidate(target, processes)


@contextmanager
def _python(what: str, runs: int, core: int) -> Iterator[tuple[int, int, psutil.Process]]:
    port, feed_port = choose_port(None, what), choose_port(None, what)
    command = [
        *(sys.executable, "-m", "bench.fanout_server", what),
        *("--port", str(port), "--feed-port", str(feed_port), "--runs", str(runs)),
    ]
    with _running_process(command, core, lambda: _listens(port)) as process:
        yield port, feed_port, process


@contextmanager
def _nginx(directory: Path, core: int) -> Iterator[tuple[int, list[psutil.Process]]]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None or not NCHAN_MODULE.exists():
        raise FileNotFoundError("Debian's packages nginx and libnginx-mod-nchan are not installed")
    port = choose_port(None, "nginx")
    configuration = directory / "nginx.conf"
    # As root, nginx runs its worker as the user nobody.
    directory.chmod(0o755)
    text = NCHAN.format(module=NCHAN_MODULE, directory=directory, port=port, files=20_000, connections=19_000)
    configuration.write_text(text)
    command = [binary, "-c", str(configuration), "-p", str(directory)]
    with _running_process(command, core, lambda: _listens(port)) as process:
        deadline = time.monotonic() + START_SECONDS
        while not (workers := process.children()) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield port, [process, *workers]


@contextmanager
def _running_process(command: list[str], core: int, started: Callable[[], bool]) -> Iterator[psutil.Process]:
    child = subprocess.Popen(command)
    try:
        process = psutil.Process(child.pid)
        process.cpu_affinity([core])
        deadline = time.monotonic() + START_SECONDS
        while not started():
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{command[0]} did not start; see its error above")
            time.sleep(0.05)
        yield process
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
