"""The decorators on the installed Airflow; `matrix/test_authoring.py` tests all versions."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, setup, task, task_group
from airflow.sdk import result as native_result

from stream_server.authoring import CannotAnswer, result_task
from stream_server.authoring import result_task as answers
from stream_server.authoring.result_marks import DOC_NOTE, is_marked


@task
def fetch() -> str:
    """Fetch."""
    return "answer"


def only(dag: Any) -> Any:
    (operator,) = dag.tasks
    return operator


def test_result_task_does_not_change_the_function() -> None:
    with DAG("chat") as dag:
        result_task(fetch)
        fetch()
    assert not is_marked(only(dag))
    assert dag.tags == set()


def test_marking_twice_has_the_same_effect() -> None:
    with DAG("chat") as dag:
        returned = result_task(result_task(fetch))()
        assert result_task(result_task(returned)) is returned
    operator = result_task(only(dag))
    assert operator.doc_md == f"Fetch.\n\n{DOC_NOTE}"
    assert dict(operator.params) == {"stream_result": True}
    assert dag.tags == {"stream-result:fetch"}


def test_task_without_dag_is_marked_without_tag() -> None:
    operator = result_task(BaseOperator(task_id="alone"))
    with DAG("chat") as dag:
        dag.add_task(operator)
    assert is_marked(only(dag))
    assert dag.tags == set()


def test_other_decorators_above_and_below() -> None:
    with DAG("chat") as dag:
        setup(result_task(fetch))()
        native_result(result_task(fetch))()
        result_task(native_result(fetch.override()))()
        task.run_if(lambda context: True)(result_task(fetch.override(task_id="conditional")))()
    assert [is_marked(operator) for operator in dag.tasks] == [True] * 4
    assert [operator.is_setup for operator in dag.tasks] == [True, False, False, False]
    assert [operator.returns_dag_result for operator in dag.tasks] == [True] * 4
    assert dag.tags == {f"stream-result:{name}" for name in ("fetch", "fetch__1", "fetch__2", "conditional")}


@pytest.mark.parametrize("name", ["fetch_elsewhere", "fetch_mapped"])
def test_source_for_another_interpreter_has_no_decorator(name: str) -> None:
    with DAG("chat") as dag:

        @answers
        @task.external_python(python=sys.executable)  # type: ignore[untyped-decorator]
        def fetch_elsewhere(number: int) -> int:
            return number

        fetch_elsewhere(1)
        fetch_elsewhere.override(task_id="fetch_mapped").expand(number=[1])
    operator = dag.get_task(name)
    if name == "fetch_mapped":
        operator = operator.unmap({"op_kwargs": {"number": 1}})
    assert operator.get_python_source() == "def fetch_elsewhere(number: int) -> int:\n    return number\n"


def test_operator_keeps_its_class_name() -> None:
    with DAG("chat") as dag:
        fetch()
        result_task(fetch)()
    plain, marked = dag.tasks
    assert (marked.task_type, marked.operator_name) == (plain.task_type, plain.operator_name)
    assert (type(marked).__module__, type(marked).__qualname__) == (type(plain).__module__, type(plain).__qualname__)


def test_branch_in_a_mapped_group_may_be_a_result_task() -> None:
    @task.branch
    def choose(number: int) -> None: ...

    @task_group  # type: ignore[untyped-decorator]
    def group(number: int) -> None:
        result_task(choose)(number)

    with DAG("chat") as dag:
        group.expand(number=[1, 2])
        result_task(choose).override(task_id="mapped").expand(number=[1])
        with pytest.raises(CannotAnswer, match="task 'choose' cannot be a result task"):
            result_task(choose)(1)
    assert [is_marked(dag.get_task(name)) for name in ("group.choose", "mapped", "choose")] == [True, True, False]
