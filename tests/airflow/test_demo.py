"""The examples, and the restart of a server, in a whole stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream_server.cli.demo.airflow_client import AirflowRestClient
    from stream_server.cli.demo.stack import DemoStack


def test_the_chat_example_returns_its_result_and_cleans_up(airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("chat_answer", {"question": "Why is the grass green?", "teardown_seconds": 0})
    assert airflow.wait_until_finished("chat_answer", run_id) == "success"
    answer = {"question": "Why is the grass green?", "answer": "Chlorophyll absorbs most light but green."}
    assert airflow.get_return_value("chat_answer", run_id, "answer") == answer
    assert airflow.get_task_states("chat_answer", run_id)["close_session"] == ["success"]


def test_failing_example(airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("fail_before_teardown", {"teardown_seconds": 0})
    assert airflow.wait_until_finished("fail_before_teardown", run_id) == "failed"
    states = airflow.get_task_states("fail_before_teardown", run_id)
    assert (states["think"], states["answer"], states["close_session"]) == (
        ["failed"],
        ["upstream_failed"],
        ["success"],
    )


def test_mapped_example(airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("mapped_squares", {"numbers": [2, 3, 4]})
    assert airflow.wait_until_finished("mapped_squares", run_id) == "success"
    assert [airflow.get_return_value("mapped_squares", run_id, "square", index) for index in range(3)] == [4, 9, 16]


def test_native_result_example(airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("native_result", {"question": "Why?", "archive_seconds": 0})
    assert airflow.wait_at_airflow("native_result", run_id) == {
        "state": "success",
        "results": {"answer": "You asked: Why?"},
    }


def test_server_restarts_on_the_same_port(stack: DemoStack) -> None:
    address, pid = stack.server_url, stack.server.child.pid
    stack.server.restart()
    assert stack.server.is_ready()
    assert (stack.server_url, stack.server.child.pid != pid) == (address, True)
