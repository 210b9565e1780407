"""The distribution that `pip install airflow-stream-server` installs, and the error without the extras."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import stream_server
from stream_server.airflow_provider import get_provider_info
from stream_server.cli.exit import ExitCode

ROOT = Path(stream_server.__file__).parents[1]
NAME = "airflow-stream-server"


def test_the_base_distribution_depends_on_nothing() -> None:
    requirements = distribution(NAME).requires or []
    assert requirements
    assert [each for each in requirements if "extra ==" not in each] == []


def test_the_command_names_the_package_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "stream_server", "serve"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr == (
        "stream-server: module 'typer' is missing; the command needs the extra 'server':"
        " pip install 'airflow-stream-server[server]'\n"
    )


def test_airflow_finds_the_provider() -> None:
    (entry,) = [each for each in distribution(NAME).entry_points if each.group == "apache_airflow_provider"]
    assert entry.load() is get_provider_info
    info = get_provider_info()
    assert (info["package-name"], info["versions"]) == (NAME, [stream_server.__version__])
    for decorator in info["task-decorators"]:
        module, _, name = decorator["class-name"].rpartition(".")
        assert f"def {name}(" in Path(ROOT, *module.split(".")).with_suffix(".py").read_text()
