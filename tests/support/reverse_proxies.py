"""nginx, HAProxy and Caddy in front of Airflow and the server, with the files of `examples/proxies`.

Only addresses, certificates and times differ.
"""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from stream_server.cli.demo.ports import LOOPBACK, find_free_port
from stream_server.cli.demo.processes import ChildProcess, wait_until
from stream_server.cli.demo.progress import SilentReporter
from support import system_programs
from support.certificate import Certificate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "proxies"
PROXIES = ("nginx", "haproxy", "caddy")
START_SECONDS = 20.0

NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 2000; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  proxy_read_timeout {patience};
  {gzip}
  include {directory}/airflow.conf;
}}
"""
GZIP = "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;"
CADDY = "{\n\tadmin off\n\tauto_https disable_redirects\n\tgrace_period 100ms\n}\n"


class Backends(NamedTuple):
    """The servers behind a proxy, and its options."""

    airflow: str
    """Address of Airflow's API server."""

    server: str
    """Address of the stream server."""

    patience: str = "60s"
    """Timeout of the proxy for streams and for responses of Airflow."""

    compressing: bool = False
    """Whether the proxy compresses all responses, if it has such an option."""


class ReverseProxy:
    """A proxy that can be stopped and started again."""

    def __init__(self, port: int, child: ChildProcess) -> None:
        self.url = f"https://{LOOPBACK}:{port}"
        self._port = port
        self._child = child

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._child.start()
        wait_until(self._listens, within=START_SECONDS, waiting_for=self._child, progress=SilentReporter())

    def stop(self) -> None:
        """Stop it, and cut its connections."""
        self._child.stop()

    def reload(self) -> None:
        """Have nginx reload its configuration."""
        self._child.send_signal(signal.SIGHUP)

    def workers(self) -> set[int]:
        """Return the processes that serve nginx's connections."""
        return {process.pid for process in psutil.Process(self._child.pid).children()}

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((LOOPBACK, self._port)) == 0


@contextmanager
def reverse_proxy(name: str, behind: Backends, certificate: Certificate) -> Iterator[ReverseProxy]:
    """Run one of `PROXIES` on a free port. A missing program is installed, or the test is skipped or fails."""
    path, port = system_programs.find_or_install(name, name), find_free_port()
    with tempfile.TemporaryDirectory(prefix="proxy-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)  # as root, nginx runs its workers as the user nobody
        child = ChildProcess(
            name,
            [path, *_configure(name, behind, certificate, directory, port)],
            log=directory / "log",
            environment={"HOME": temporary, "XDG_DATA_HOME": temporary, "XDG_CONFIG_HOME": temporary},
        )
        proxy = ReverseProxy(port, child)
        try:
            proxy.start()
            yield proxy
        finally:
            proxy.stop()


def _configure(name: str, behind: Backends, certificate: Certificate, directory: Path, port: int) -> list[str]:
    """Write the configuration of a proxy; return its arguments."""
    if name == "nginx":
        text = _example(
            "nginx.conf", behind, {"listen 443": f"listen {LOOPBACK}:{port}", "airflow.example.com": LOOPBACK}
        )
        text = _replace_all(
            text, {"/etc/ssl/airflow.crt": str(certificate.certificate), "/etc/ssl/airflow.key": str(certificate.key)}
        )
        (directory / "airflow.conf").write_text(text)
        main = NGINX.format(directory=directory, patience=behind.patience, gzip=GZIP if behind.compressing else "")
        (directory / "nginx.conf").write_text(main)
        return ["-c", str(directory / "nginx.conf"), "-p", str(directory)]
    if name == "haproxy":
        text = _example(
            "haproxy.cfg", behind, {":443": f"{LOOPBACK}:{port}", "/etc/haproxy/airflow.pem": str(certificate.both)}
        )
        if behind.compressing:
            types = "text/event-stream application/x-ndjson application/json"
            text = _replace_all(
                text, {"mode http\n": f"mode http\n  compression algo gzip\n  compression type {types}\n"}
            )
        (directory / "haproxy.cfg").write_text(text)
        return ["-db", "-f", str(directory / "haproxy.cfg")]
    site = f"https://{LOOPBACK}:{port} {{\n\ttls {certificate.certificate} {certificate.key}"
    (directory / "Caddyfile").write_text(CADDY + _example("Caddyfile", behind, {"airflow.example.com {": site}))
    return ["run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")]


def _example(name: str, behind: Backends, others: dict[str, str]) -> str:
    """Return an example file with the addresses and times of a test."""
    text = (EXAMPLES / name).read_text()
    addresses = {"127.0.0.1:8080": _address(behind.airflow), "127.0.0.1:8090": _address(behind.server)}
    # Caddy has no timeout.
    times = {" 60s": f" {behind.patience}"} if " 60s" in text else {}
    # Ports of inserted addresses must not be replaced again.
    return _replace_all(_replace_all(text, others), {**addresses, **times})


def _replace_all(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        assert old in text, f"{old!r} is not in the example any more"
        text = text.replace(old, new)
    return text


def _address(url: str) -> str:
    return urlsplit(url).netloc
