"""`stream-server doctor` with a real Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from stream_server.cli.demo.airflow import airflow_version
from stream_server.cli.demo.stack import DemoStack


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code, and the checks by name."""
    command = [sys.executable, "-m", "stream_server", "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, {check["check"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.core
def test_a_whole_stack_has_no_problem(stack: DemoStack, token: str) -> None:
    code, checks = doctor(
        *("--database-url", stack.database_url, "--url", stack.server_url),
        *("--airflow-url", stack.airflow_url, "--token", token),
    )
    assert {name: check["found"] for name, check in checks.items() if check["level"] != "ok"} == {}
    assert (code, len(checks)) == (0, 19)
    assert checks["airflow-api"]["facts"]["version"] == airflow_version()
    assert checks["token"]["found"] == "Airflow accepts the token"


@pytest.mark.parametrize(
    ("wrong", "reason"), [("nonsense", "403 Invalid JWT token"), ("a.b.c", "403 Invalid JWT token")]
)
def test_a_wrong_token_is_reported_without_showing_it(stack: DemoStack, wrong: str, reason: str) -> None:
    code, checks = doctor("--airflow-url", stack.airflow_url, "--token", wrong)
    assert (code, checks["airflow-api"]["level"], checks["token"]["level"]) == (1, "ok", "problem")
    assert checks["token"]["found"] == f"Airflow rejects the token with {reason}"
    assert "POST /auth/token" in checks["token"]["remedy"]
    assert wrong not in json.dumps(checks)


def test_a_server_url_given_as_airflow_url_is_reported(stack: DemoStack, token: str) -> None:
    code, checks = doctor("--airflow-url", stack.server_url, "--token", token)
    assert (code, checks["airflow-api"]["level"], checks["token"]["level"]) == (1, "problem", "skipped")
    assert "is not Airflow's API (status 404)" in checks["airflow-api"]["found"]


def test_an_airflow_url_given_as_server_url_is_reported(stack: DemoStack) -> None:
    code, checks = doctor("--url", stack.airflow_url)
    assert (code, checks["server"]["level"], checks["buffering"]["level"]) == (1, "problem", "skipped")
    assert "is not stream_server" in checks["server"]["found"]
