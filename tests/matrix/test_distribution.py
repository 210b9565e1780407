"""What `hatch_build.py` builds: distributions with the pages, and editable installs that follow changes."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

from matrix.environments import BUILD_SECONDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = "stream_server/web"


def uv(*arguments: str, **settings: str) -> str:
    done = subprocess.run(
        [find_uv_bin(), *arguments],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_out(target: Path) -> Path:
    """Copy tracked and untracked sources, but no build results."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    assert not (target / PAGES).exists()
    return target


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return check_out(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def without_node(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with a shell, and nothing else."""
    directory = tmp_path_factory.mktemp("bin")
    (directory / "sh").symlink_to("/bin/sh")
    return str(directory)


@pytest.fixture(scope="module")
def built(checkout: Path, without_node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution and the wheel built from it without Node on PATH."""
    target = tmp_path_factory.mktemp("dist")
    uv("build", "--python", sys.executable, "--out-dir", str(target), str(checkout), PATH=without_node)
    return target


def files_of(archive: Path) -> dict[str, bytes]:
    """Return the files of the pages in a distribution, by their path below the package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if name.startswith(f"{PAGES}/")}
    with tarfile.open(archive) as source:
        found = {}
        for member in source.getmembers():
            name, file = member.name.partition("/")[2], source.extractfile(member)
            if name.startswith(f"{PAGES}/") and file is not None:
                found[name] = file.read()
        return found


def test_distributions_contain_the_pages_plain_and_compressed(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    files = files_of(wheel)
    assert files_of(source) == files
    page = files[f"{PAGES}/index.html"].decode()
    named = re.findall(r'(?:src|href)="/(assets/[^"]+)"', page)
    assert {Path(name).suffix for name in named} == {".js", ".css"}
    assert {name for name in named if f"{PAGES}/{name}" not in files} == set()
    plain = [name for name in files if name.startswith(f"{PAGES}/assets/") and name.endswith((".js", ".css"))]
    for name in plain:
        assert re.search(r"-[\w-]{8}\.(js|css)$", name), f"{name} has no hash"
        assert gzip.decompress(files[f"{name}.gz"]) == files[name]
        assert len(files[f"{name}.br"]) <= len(files[f"{name}.gz"])
    assert not [name for name in files if name.endswith((".ts", ".tsx", ".map"))]


def test_the_pages_can_be_left_out(without_node: str, tmp_path: Path) -> None:
    checkout = check_out(tmp_path / "checkout")
    command = ["build", "--wheel", "--python", sys.executable, "--out-dir", str(tmp_path / "dist"), str(checkout)]
    uv(*command, PATH=without_node, HATCH_BUILD_NO_HOOKS="true")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert files_of(wheel) == {}


def test_an_editable_install_builds_once_and_again_after_a_change(checkout: Path, built: Path, tmp_path: Path) -> None:
    def install() -> tuple[int, str]:
        """Install; return the inode of the page, which each build changes, and its text."""
        uv("pip", "install", "--python", str(tmp_path / "venv"), "--no-deps", "--editable", str(checkout))
        page = checkout / PAGES / "index.html"
        return page.stat().st_ino, page.read_text()

    assert built.is_dir(), "the checkout is built"
    uv("venv", "--python", sys.executable, str(tmp_path / "venv"))
    first = install()
    assert install() == first
    test = checkout / "web" / "pages" / "test" / "conversation.test.ts"
    test.write_text(f"{test.read_text()}\n")
    assert install() == first
    template = checkout / "web" / "pages" / "index.html"
    template.write_text(template.read_text().replace("<title>", "<title>Changed: "))
    changed = install()
    assert "<title>Changed: " in changed[1]
    assert install() == changed


def test_a_failed_build_reports_the_reason_and_keeps_the_pages(checkout: Path, built: Path) -> None:
    assert built.is_dir(), "the checkout is built"
    before = (checkout / PAGES / "index.html").read_text()
    broken = checkout / "web" / "pages" / "src" / "main.tsx"
    text = broken.read_text()
    broken.write_text(f"{text}\nimport './nothing.js'\n")
    try:
        with pytest.raises(AssertionError, match=r"nothing\.js(?s:.*)HATCH_BUILD_NO_HOOKS=true"):
            uv("build", "--wheel", "--python", sys.executable, "--out-dir", str(checkout / "dist"), str(checkout))
    finally:
        broken.write_text(text)
    assert (checkout / PAGES / "index.html").read_text() == before
    assert [path.name for path in (checkout / "stream_server").glob(".web-*")] == []
