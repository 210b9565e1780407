from __future__ import annotations

import socket

import pytest

from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.ports import LOOPBACK, choose_port, find_free_port


def test_free_port_is_available() -> None:
    with socket.create_server((LOOPBACK, find_free_port())):
        pass


def test_default_is_a_free_port() -> None:
    assert 0 < choose_port(None, "Airflow") < 65536


def test_requested_port_is_returned() -> None:
    requested = find_free_port()
    assert choose_port(requested, "Airflow") == requested


def test_port_in_use_is_rejected() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DemoError, match=rf"port {port} for Airflow is not available"):
            choose_port(port, "Airflow")


def test_invalid_port_is_rejected() -> None:
    with pytest.raises(DemoError, match="port 70000 for PostgreSQL is not available"):
        choose_port(70000, "PostgreSQL")
