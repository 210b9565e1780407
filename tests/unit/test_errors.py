from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable

import pytest

from stream_server import errors
from stream_server.errors import (
    AirflowRefused,
    AirflowUrlMissing,
    Draining,
    NoResult,
    NulInText,
    RunNotFound,
    StreamServerError,
    Throttled,
    TokenInUrl,
    TooManyJoins,
    UnknownTask,
)
from stream_server.protocol.close_codes import CloseCode


def subclasses(kind: type[StreamServerError]) -> list[type[StreamServerError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


ALL = [kind for kind in subclasses(StreamServerError) if kind.__module__ == errors.__name__]


MAKERS: dict[type[StreamServerError], Callable[[], StreamServerError]] = {
    UnknownTask: lambda: UnknownTask("d", "t", ["a"]),
    RunNotFound: lambda: RunNotFound("d", "r"),
    AirflowRefused: lambda: AirflowRefused("What happened", 403),
    TokenInUrl: lambda: TokenInUrl("token"),
    NoResult: lambda: NoResult("What happened", 502, {}),
    **{kind: kind for kind in (Draining, AirflowUrlMissing, NulInText)},
}
"""Arguments of errors whose constructor needs more than a text."""


def make_error(kind: type[StreamServerError]) -> StreamServerError:
    """Make an error of any kind."""
    if issubclass(kind, Throttled):
        return kind("What happened", 1)
    return MAKERS[kind]() if kind in MAKERS else kind("What happened")


def tree(kind: type[StreamServerError], depth: int = 0) -> list[tuple[int, str]]:
    return [(depth, kind.__name__), *(row for below in kind.__subclasses__() for row in tree(below, depth + 1))]


def documented_tree() -> list[tuple[int, str]]:
    """Return the tree in the module's docstring: the depth of each name, and the name."""
    lines = re.findall(r"^ {4}([│ ]*(?:[├└]── )?)(\w+)(?: {2,}.*)?$", inspect.getdoc(errors) or "", re.MULTILINE)
    return [(len(branch) // 4, name) for branch, name in lines]


def test_the_tree_in_the_docstring_matches_the_classes() -> None:
    assert documented_tree() == tree(StreamServerError)


def test_every_error_is_part_of_the_tree() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert set(kinds) == set(ALL)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_an_rfc_9457_problem(kind: type[StreamServerError]) -> None:
    error = make_error(kind)
    problem = error.problem_body()
    assert problem == json.loads(json.dumps(problem))
    assert list(problem) == ["type", "title", "status", "detail"]
    assert re.fullmatch(r"urn:stream-server:problem:[a-z]+(-[a-z]+)*", problem["type"])
    assert 400 <= problem["status"] <= 599
    assert problem["title"]
    assert problem["detail"] == str(error)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_detail(kind: type[StreamServerError]) -> None:
    assert (kind.__doc__ or "").endswith(".")


def test_a_problem_type_has_one_title_and_one_status() -> None:
    by_type = {make_error(kind).problem_body()["type"]: kind.title for kind in ALL}
    assert all(by_type[make_error(kind).problem_body()["type"]] == kind.title for kind in ALL)


def test_temporary_errors_have_a_retry_delay() -> None:
    assert {kind.retry_after is not None for kind in ALL if kind.status == 503} == {True}
    assert {kind.retry_after for kind in ALL if kind.status < 500 and not issubclass(kind, Throttled)} == {None}
    assert TooManyJoins("Too many", 7).retry_after == 7


def test_an_unknown_task_names_some_that_are_known() -> None:
    assert str(UnknownTask("d", "t", ["a", "b"])) == "DAG 'd' has no task 't'; its tasks are: a, b"
    many = str(UnknownTask("d", "t", [f"t{number}" for number in range(21)]))
    assert many.endswith("t18, t19, ...")
    assert not str(UnknownTask("d", "t", [f"t{number}" for number in range(20)])).endswith("...")


def test_airflows_own_status_is_kept() -> None:
    assert AirflowRefused("no", 403).problem_body()["status"] == 403


def test_a_missing_result_error_lists_the_known_results() -> None:
    problem = NoResult("The run failed", 502, {"dag_id": "d", "outcome": "failure"}).problem_body()
    assert (problem["status"], problem["outcome"], problem["detail"]) == (502, "failure", "The run failed")


@pytest.mark.parametrize("code", CloseCode)
def test_a_close_code_is_in_the_private_range_of_its_kind(code: CloseCode) -> None:
    assert 4000 <= code <= 4999
    assert code.should_reconnect == (code < 4500)


def test_a_copy_leaves_the_error_that_others_share_unchanged() -> None:
    shared = errors.UnknownTask("dag", "task", ["other"])
    before = str(shared)
    copied = shared.copy_with(f"{before}. Run 'r' was triggered", {"Location": "/r"})
    assert isinstance(copied, errors.UnknownTask)
    assert (copied.dag_id, copied.status, copied.problem_type()) == ("dag", shared.status, shared.problem_type())
    assert str(copied) == f"{before}. Run 'r' was triggered"
    assert copied.headers == {"Location": "/r"}
    assert (str(shared), dict(shared.headers)) == (before, {})
