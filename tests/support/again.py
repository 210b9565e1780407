"""The few tests that have failed in the last run, once more, each for itself; the exit status tells how that went.

Whole servers, an Airflow and browsers run here beside each other on whatever machine there is. A test that fails there
and not by itself is told as unstable, with what it printed both times, and wants mending; more than a few are no
accident. CPython's own suite does so (`python -m test --rerun`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
"""Where pytest notes them."""

MOST = 3


def main() -> int:
    """Run them."""
    failed = json.loads(LAST_FAILED.read_text()) if LAST_FAILED.exists() else {}
    if not failed or len(failed) > MOST:
        _say(f"{len(failed)} tests have failed: nothing is tried again (that is done for 1 to {MOST})")
        return 1
    for test in failed:
        if subprocess.run([sys.executable, "-m", "pytest", test], check=False).returncode:
            return 1
    _say(f"unstable, passed by themselves: {', '.join(failed)}")
    return 0


def _say(text: str) -> None:
    print(f"=== {text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
