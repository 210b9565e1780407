"""The examples, as users run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_watches_a_run(stack: DemoStack, airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("chat_answer", {"teardown_seconds": 0})
    lines = output_of(str(EXAMPLES / "watch.sh"), "chat_answer", run_id, stack.server_url).splitlines()
    assert "event: snapshot" in lines
    assert lines.index("event: result") < lines.index("event: end")
    assert any('"results":{"answer":{' in line for line in lines)


def test_the_websocket_client_watches_a_run(stack: DemoStack, airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("fail_before_teardown", {"teardown_seconds": 0})
    lines = output_of(
        sys.executable, str(EXAMPLES / "client.py"), "fail_before_teardown", run_id, stack.server_url
    ).splitlines()
    assert "think: failed" in lines
    assert lines[-1] == "failure: task_failed in think"
