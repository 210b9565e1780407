from __future__ import annotations

import pytest

from stream_server.authoring.function_source import remove_decorators

NAMES = {"result_task", "answers"}
BARE = "def fetch():\n    return 1\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (BARE, BARE),
        ("@result_task\n" + BARE, BARE),
        ("@answers\n" + BARE, BARE),
        ("@stream_server.authoring.result_task\n" + BARE, BARE),
        ("@first\n@result_task  # why\n@last(1)\n" + BARE, "@first\n@last(1)\n" + BARE),
        ("@other(result_task)\n" + BARE, "@other(result_task)\n" + BARE),
        ("@result_task\nasync " + BARE, "async " + BARE),
        (
            "@result_task\ndef fetch():\n    @result_task\n    def inner(): ...\n    return '@result_task'\n",
            "def fetch():\n    @result_task\n    def inner(): ...\n    return '@result_task'\n",
        ),
        ("fetch = lambda: 1\n", "fetch = lambda: 1\n"),
    ],
)
def test_only_our_decorator_is_removed(source: str, expected: str) -> None:
    assert remove_decorators(source, NAMES) == expected
