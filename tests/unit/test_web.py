"""What the TypeScript side takes from the server is as the server says it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WEB = REPOSITORY / "web"


def test_the_types_of_the_frames_are_those_of_the_server() -> None:
    script = runpy.run_path(str(WEB / "client" / "scripts" / "frame_types.py"))
    made = script["typescript"]()
    assert {path.name for path in made} == {"connection.ts", "frames.ts"}
    assert {path: path.read_text() for path in made} == made, "run `make frame-types`"


@pytest.mark.parametrize("directory", ["web", "tests/clients"])
def test_the_lock_file_names_no_registry(directory: str) -> None:
    text = (REPOSITORY / directory / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    assert len(locked) > 10
    assert {
        name: package["resolved"]
        for name, package in locked.items()
        if "resolved" in package and not package.get("link")
    } == {}
    assert re.findall(r"https?://[^\"/]*(?:registry|npm)[^\"/]*", text) == []


def test_the_lock_file_is_whole_for_every_platform() -> None:
    """`npm ci` refuses a lock file that was made where a registry lacks what other platforms need."""
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    names = {path.rpartition("node_modules/")[2] for path in locked}
    wanted = {name for package in locked.values() for name in package.get("optionalDependencies", {})}
    assert wanted <= names
