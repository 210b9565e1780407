"""The generated TypeScript types, and the lock files of npm."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WEB = REPOSITORY / "web"


def test_frame_types_match_the_servers_schema() -> None:
    script = runpy.run_path(str(WEB / "client" / "scripts" / "frame_types.py"))
    generated = script["typescript"]()
    names = {"connection_frames.ts", "frame_members.ts", "frames.ts", "input_frames.ts", "output_frames.ts"}
    assert {path.name for path in generated} == names
    assert {path: path.read_text() for path in generated} == generated, "run `make frame-types`"


@pytest.mark.parametrize("directory", ["web", "tests/clients", "tests/clients/copilotkit"])
def test_lock_files_contain_no_registry(directory: str) -> None:
    text = (REPOSITORY / directory / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    assert len(locked) > 10
    assert {
        name: package["resolved"]
        for name, package in locked.items()
        if "resolved" in package and not package.get("link")
    } == {}
    assert re.findall(r"https?://[^\"/]*(?:registry|npm)[^\"/]*", text) == []


def test_lock_file_has_the_packages_of_each_platform() -> None:
    """`npm ci` refuses a lock file without the optional packages of other platforms."""
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    names = {path.rpartition("node_modules/")[2] for path in locked}
    wanted = {name for package in locked.values() for name in package.get("optionalDependencies", {})}
    assert wanted <= names
