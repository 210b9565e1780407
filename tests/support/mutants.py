"""Makes hand-made faults in a copy of the project, one after the other, and checks that tests fail.

`python -m support.mutants [--only TEXT ...] [--jobs 2]`. The last line is JSON: the share of killed mutants, and as
misses those that survived.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from support.mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]

SECONDS = 900.0
"""For the tests of one mutant. A mutant that never ends is killed too."""

TARGET = 0.95

PASSED, FAILED = 0, 1
"""Exit codes of pytest."""

LINKED = (".venv", ".demo", "stream_server/web", "web/node_modules")
"""What git does not have, but tests use."""


def main() -> int:
    """Run the check. The exit status is 1 if there are misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="mutants whose name or path has one of these texts")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: %(default)d)")
    arguments = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if arguments.only is None or any(text in mutant.name or text in mutant.path for text in arguments.only)
    ]
    if not chosen:
        parser.error(f"no mutant has one of {arguments.only}")
    with _copied_project() as copy:
        if not _passes(copy, sorted({test for mutant in chosen for test in mutant.tests}), prints_failure=True):
            print(json.dumps({"check": "mutants", "misses": ["the tests fail without a mutant"]}))  # noqa: T201
            return 1
    with ThreadPoolExecutor(arguments.jobs) as pool:
        killed = list(pool.map(_is_killed, chosen))
    survivors = [mutant.name for mutant, is_killed in zip(chosen, killed, strict=True) if not is_killed]
    share = sum(killed) / len(killed)
    misses = [f"survived: {name}" for name in survivors] if share < TARGET else []
    print(  # noqa: T201
        json.dumps(
            {
                "check": "mutants",
                "mutants": len(killed),
                "killed": sum(killed),
                "share": round(share, 3),
                "survivors": survivors,
                "misses": misses,
            }
        )
    )
    return 1 if misses else 0


def _is_killed(mutant: Mutant) -> bool:
    began = time.monotonic()
    with _copied_project() as copy:
        path = copy / mutant.path
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.path} must have this text once, not {text.count(mutant.old)} times: {mutant.old!r}"
            )
        path.write_text(text.replace(mutant.old, mutant.new))
        is_killed = not _passes(copy, mutant.tests)
    verdict = "killed" if is_killed else "SURVIVED"
    print(f"{verdict:<9}{time.monotonic() - began:5.0f} s  {mutant.name}", flush=True)  # noqa: T201
    return is_killed


def _passes(copy: Path, tests: Sequence[str], *, prints_failure: bool = False) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "tests")])}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in {PASSED, FAILED}:
        # An import error, or a test that does not exist, is a mistake in the table.
        raise SystemExit(done.stdout.decode()[-3000:])
    if prints_failure and done.returncode == FAILED:
        print(done.stdout.decode()[-3000:])  # noqa: T201
    return done.returncode == PASSED


@contextmanager
def _copied_project() -> Iterator[Path]:
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    with TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in filter(None, files):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
        for name in LINKED:
            if (ROOT / name).exists():
                (copy / name).symlink_to(ROOT / name)
        yield copy


if __name__ == "__main__":
    sys.exit(main())
