"""Processes of each version of Airflow, which import it once for all commands of the session."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from matrix.environments import environment_python
from stream_server.cli.demo.airflow import airflow_version

NEWEST = airflow_version()
COMMAND_SECONDS = 600.0
SCRIPT = Path(__file__).with_name("forked_commands.py")


class AirflowProcesses:
    """Starts the process of a version when it is first needed.

    Args:
        environment: Environment variables of all processes.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._processes: dict[str, _AirflowProcess] = {}

    def run(self, version: str, program: Path | None, *arguments: str, **settings: str) -> None:
        """Run a program with a version of Airflow, in a process of its own.

        Args:
            version: Version of Airflow.
            program: A Python file; None for the command `airflow`.
            arguments: Of the program.
            settings: Further environment variables. Airflow's settings that its modules read when they are imported
                do not follow them.

        Raises:
            AssertionError: It failed; the message ends with its output.
        """
        if version not in self._processes:
            python = sys.executable if version == NEWEST else str(environment_python(version))
            self._processes[version] = _AirflowProcess(python, self._environment)
        self._processes[version].run(program, arguments, settings)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()


class _AirflowProcess:
    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the object
        self._process = subprocess.Popen(
            [python, str(SCRIPT)],
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # With what it starts, so that `close` ends that, too.
            start_new_session=True,
        )

    def run(self, program: Path | None, arguments: tuple[str, ...], settings: Mapping[str, str]) -> None:
        with self._lock, tempfile.NamedTemporaryFile() as output:
            path = None if program is None else str(program)
            request = {"program": path, "arguments": arguments, "settings": settings, "output": output.name}
            code = self._send(json.dumps(request))
            written = output.read().decode(errors="replace")
        what = " ".join([path or "airflow", *arguments])
        assert code == "0", (
            f"{what} failed with exit code {code or 'missing'}:\n{written[-10_000:]}\n{self._read_log()}"
        )

    def _send(self, request: str) -> str:
        """Return the exit code; empty if the process ended, or a command did not end in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{request}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        if not select.select([self._process.stdout], [], [], COMMAND_SECONDS)[0]:
            self._kill()
        return self._process.stdout.readline().decode().strip()

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def close(self) -> None:
        """End the process, and what it has started."""
        self._kill()
        # Waits, and closes the pipes.
        self._process.communicate()
        self._log.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
