"""The source of functions that Airflow runs in another interpreter, without our decorator."""

from __future__ import annotations

import ast
from collections.abc import Collection


def remove_decorators(source: str, names: Collection[str]) -> str:
    """Return the source of a function without the decorators of these names.

    Airflow's `DecoratedOperator.get_python_source` takes out its own decorators alone; ours is not known where
    `@task.virtualenv` and its like run the rest.

    Args:
        source: As Airflow returns it: not indented, the function first.
        names: `result_task`, or what the DAG file calls it; also matches `authoring.result_task`.
    """
    statement = ast.parse(source).body[0]
    decorators = getattr(statement, "decorator_list", [])
    lines = source.splitlines(keepends=True)
    for decorator in reversed([each for each in decorators if _decorator_name(each) in names]):
        del lines[decorator.lineno - 1 : decorator.end_lineno]
    return "".join(lines)


def _decorator_name(decorator: ast.expr) -> str | None:
    if isinstance(decorator, ast.Attribute):
        return decorator.attr
    return decorator.id if isinstance(decorator, ast.Name) else None
