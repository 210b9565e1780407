"""Runs commands of Airflow and other programs, each in a process of its own, with one import of Airflow for all.

For the interpreter of an environment with Airflow. Requests are the lines of standard input, each a JSON object:

- `program`: path of a Python file, or null for the command `airflow`
- `arguments`: of the program
- `settings`: environment variables, in addition to those of this process
- `output`: path of a file for what the program writes

The response to each is a line with its exit code, when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import traceback
from importlib import import_module
from typing import Any

MODULES = (
    *("airflow.__main__", "airflow.cli.commands.db_command", "airflow.models", "airflow.sdk", "airflow.utils.db"),
    *("airflow.serialization.serialized_objects", "alembic.command", "psycopg2"),
)


def main() -> None:
    # Nothing else may write where the responses are written.
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in MODULES:
        import_module(name)
    # Otherwise each process copies the memory of all modules when it collects garbage.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            run_to_exit(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=responses, flush=True)


def run_to_exit(request: dict[str, Any]) -> None:
    """Run one program, and exit with its exit code, without the end of an interpreter, which takes a second."""
    code: object = 1
    try:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, number)
        os.environ.update(request["settings"])
        run(request["program"], request["arguments"])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001 # a process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def run(program: str | None, arguments: list[str]) -> None:
    """Run a program in this process, with the settings of its environment variables."""
    from airflow import settings  # noqa: PLC0415 # imported by `main`, with another database

    settings.configure_vars()
    settings.configure_orm()
    sys.argv = [program or "airflow", *arguments]
    if program is None:
        import_module("airflow.__main__").main()
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
