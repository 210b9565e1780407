"""The command `stream-server`, also as `python -m stream_server`. Its dependencies may not be installed."""

from __future__ import annotations

import gc
import sys

from stream_server.cli.process_title import redact_command_line

USAGE_EXIT_CODE = 64
"""Exit code for bad usage, as sysexits.h has it; `stream_server.cli.exit.ExitCode` cannot be imported here."""

GC_THRESHOLD = 50_000
"""New objects from which on the garbage collector runs; `serve` sets its own thresholds when it has started."""


def main() -> None:
    """Run the command, or print how to install what it needs."""
    # Imports leave no garbage: collections meanwhile would take a tenth of the time of the start.
    gc.set_threshold(GC_THRESHOLD)
    # Before the slow imports: until then, other users can see the secrets in the list of processes.
    if not redact_command_line():
        sys.stderr.write("stream-server: others on this machine can see the secrets given as options\n")
    try:
        from stream_server.cli.main import main as run  # noqa: PLC0415 # what DAG files import is installed without it
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "stream_server":
            raise
        sys.stderr.write(
            f"stream-server: module {error.name!r} is missing; the command needs the extra 'server':"
            " pip install 'airflow-stream-server[server]'\n"
        )
        sys.exit(USAGE_EXIT_CODE)
    run()


if __name__ == "__main__":
    main()
