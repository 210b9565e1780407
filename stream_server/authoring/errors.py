"""What can be wrong with the marks in a DAG file. Airflow shows the text as the file's import error.

    AuthoringError
    ├── MisplacedMark       what was marked is no task
    ├── UnknownResultTask   the DAG has no task of that name
    ├── CannotAnswer        the task never returns a value
    ├── ContradictingMarks  two marks cannot both be meant
    └── NothingToStream     a function under @task.stream yields nothing; told when the task runs

Every text names the DAG and the task as far as they are known, and ends with the remedy.
"""

from __future__ import annotations


class AuthoringError(Exception):
    """A DAG file marks its result tasks in a way that cannot be meant."""


class MisplacedMark(AuthoringError, TypeError):
    """What was marked is no task: a plain function, a task group, a part of what a task returns."""


class UnknownResultTask(AuthoringError, LookupError):
    """The DAG has no task of that name."""


class CannotAnswer(AuthoringError, ValueError):
    """The task never returns a value that Airflow would store."""


class ContradictingMarks(AuthoringError, ValueError):
    """Two marks cannot both be meant."""


class NothingToStream(AuthoringError, TypeError):
    """A function under `@task.stream` yields nothing."""
