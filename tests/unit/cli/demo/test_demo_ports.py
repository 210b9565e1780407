from __future__ import annotations

import socket

import pytest

from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.ports import LOOPBACK, choose_port, find_free_port


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server((LOOPBACK, find_free_port())):
        pass


def test_without_a_wish_any_free_port_is_chosen() -> None:
    assert 0 < choose_port(None, "Airflow") < 65536


def test_a_wanted_port_is_kept() -> None:
    wanted = find_free_port()
    assert choose_port(wanted, "Airflow") == wanted


def test_a_taken_port_is_refused_with_its_purpose() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DemoError, match=rf"Port {port} for Airflow cannot be used"):
            choose_port(port, "Airflow")


def test_an_impossible_port_is_refused() -> None:
    with pytest.raises(DemoError, match="Port 70000 for PostgreSQL cannot be used"):
        choose_port(70000, "PostgreSQL")
