"""Source of functions that Airflow runs in another interpreter, without `@result_task`."""

from __future__ import annotations

import ast
from collections.abc import Collection


def remove_decorators(source: str, names: Collection[str]) -> str:
    """Return the source of a function without the decorators with these names.

    Airflow's `DecoratedOperator.get_python_source` removes only Airflow's own decorators. The interpreter in which
    `@task.virtualenv` and similar ones run the function does not have `result_task`.

    Args:
        source: As Airflow returns it: not indented, the function first.
        names: `result_task`, or its aliases in the DAG file; `result_task` also matches `authoring.result_task`.
    """
    statement = ast.parse(source).body[0]
    decorators = getattr(statement, "decorator_list", [])
    lines = source.splitlines(keepends=True)
    for decorator in reversed([decorator for decorator in decorators if _decorator_name(decorator) in names]):
        del lines[decorator.lineno - 1 : decorator.end_lineno]
    return "".join(lines)


def _decorator_name(decorator: ast.expr) -> str | None:
    if isinstance(decorator, ast.Attribute):
        return decorator.attr
    return decorator.id if isinstance(decorator, ast.Name) else None
