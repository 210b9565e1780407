"""Errors in the result marks of a DAG file. Airflow shows the text as the file's import error.

    AuthoringError
    ├── MisplacedMark       the marked object is not a task
    ├── UnknownResultTask   the DAG has no task with this ID
    ├── CannotAnswer        the task never returns a value
    ├── ContradictingMarks  two marks exclude each other
    └── NothingToStream     a function under @task.stream yields nothing; raised when the task runs

Every text names the DAG and the task, where they are known, and ends with the remedy.
"""

from __future__ import annotations


class AuthoringError(Exception):
    """A DAG file marks its result tasks in an invalid way."""


class MisplacedMark(AuthoringError, TypeError):
    """The marked object is not a task, but a plain function, a task group, or a part of a return value."""


class UnknownResultTask(AuthoringError, LookupError):
    """The DAG has no task with this ID."""


class CannotAnswer(AuthoringError, ValueError):
    """The task never returns a value that Airflow would store."""


class ContradictingMarks(AuthoringError, ValueError):
    """Two marks exclude each other."""


class NothingToStream(AuthoringError, TypeError):
    """A function under `@task.stream` yields nothing."""
