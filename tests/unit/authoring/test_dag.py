from __future__ import annotations

import inspect
import re

import pytest
from airflow.sdk import task

from stream_server import authoring
from stream_server.authoring import DAG, AuthoringError, UnknownResultTask, dag, errors


@task
def answer(question: str = "") -> str:
    return question


@dag
def bare() -> None:
    """Answers."""
    answer()


@dag("named", result_task="answer", tags=["example"], doc_md="More.")
def chat(question: str = "Why?") -> None:
    """Less."""
    answer(question)


@dag(dag_id="by_keyword")
def keyword() -> None:
    answer()


def test_decorated_function_creates_dags() -> None:
    made = bare()
    assert isinstance(made, DAG)
    assert (made.dag_id, made.doc_md, made.tags, made.fileloc) == ("bare", "Answers.", set(), __file__)
    assert keyword().dag_id == "by_keyword"
    assert bare.__name__ == "bare"


def test_options_and_arguments_are_passed_to_airflow() -> None:
    made = chat()
    assert (made.dag_id, made.doc_md, made.tags) == ("named", "More.", {"example", "stream-result:answer"})
    assert made.params["question"] == "Why?"
    assert chat("Who?").params["question"] == "Who?"
    with pytest.raises(TypeError):
        chat("Who?", "What?")


def test_fileloc_is_the_dag_file() -> None:
    assert DAG("chat").fileloc == __file__


def test_error_in_the_body_is_not_replaced() -> None:
    with pytest.raises(ZeroDivisionError), DAG("chat", result_task="nothing"):
        raise ZeroDivisionError


def test_result_task_may_be_created_before_validation() -> None:
    with DAG("chat", result_task="answer") as made:
        pass
    with pytest.raises(UnknownResultTask):
        made.validate()
    with made:
        answer()
    made.validate()
    assert made.tags == {"stream-result:answer"}


def test_all_lists_every_public_name() -> None:
    assert authoring.__all__ == sorted(authoring.__all__, key=lambda name: (name[0].islower(), name != "DAG", name))
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds <= set(authoring.__all__)


def test_docstring_lists_the_error_classes() -> None:
    documented = re.findall(r"^(?: {4})(?:[├└]── )?(\w+)", inspect.getdoc(errors) or "", re.MULTILINE)
    assert documented == ["AuthoringError", *(kind.__name__ for kind in AuthoringError.__subclasses__())]
