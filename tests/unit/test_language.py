"""Texts are in plain language, with the standard terms of the field. CONTRIBUTING has the rules."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PARTIES = re.compile(r"\b(he|his|him|himself|whoever|somebody|nobody|anybody|everybody)\b", re.IGNORECASE)
"""Words that no text uses for a client, a caller or a user."""

MESSAGES = re.compile(r"\b(tell|tells|told|telling|hear|hears|heard|hearing|say|says|said|saying)\b", re.IGNORECASE)
"""Words that no text uses for sending and receiving."""

WHO = re.compile(r"(?:^|[.;:,(]\s+|\b(?:for|to|of|and|or|that)\s+)who\b(?!\s+may\b)", re.IGNORECASE)
"""`who` as a party: "who reads this" instead of "a client that reads this"."""

FIXED = re.compile(
    r"""i[-_]know[-_]that[-_]everybody[-_]can[-_]read[-_]everything|user\ nobody|"nobody\"""",
    re.IGNORECASE | re.VERBOSE,
)
"""A published option, and the system's user `nobody`."""

EXCLUDED = (
    # Installed journals have these texts as comments.
    ROOT / "stream_server" / "journal" / "sql" / "migrations",
    # It has the words as patterns.
    Path(__file__),
)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.splitlines()]


@cache
def tokens_of(path: Path) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))


def prose_of_python(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments and strings, docstrings included, with their numbers."""
    for token in tokens_of(path):
        if token.type in {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}:
            yield from enumerate(token.string.splitlines(), token.start[0])


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    return prose_of_python(path) if path.suffix == ".py" else iter(enumerate(path.read_text().splitlines(), 1))


PROSE = tracked(
    *("stream_server/*.py", "stream_server/*.sql", "tests/*.py", "bench/*.py", "examples/*"),
    *("README.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("web/*.ts", "web/*.tsx", "web/*.md", "web/*.html"),
)


@pytest.mark.parametrize("words", [PARTIES, MESSAGES, WHO], ids=["parties", "messages", "who"])
def test_texts_have_no_private_vocabulary(words: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PROSE
        if not any(path.is_relative_to(excluded) for excluded in EXCLUDED)
        # Tokenizing takes most of the time.
        if words.search(path.read_text())
        for number, line in prose_of(path)
        if words.search(FIXED.sub("", line))
    ]
    assert found == []


PRIVATE_NAMES = re.compile(
    r"(?:\b|_)(he|his|him|who|whoever|somebody|nobody|everybody"
    r"|tell|tells|told|telling|hear|hears|heard|say|says|said|saying|asked|asking|blame|blamed|courier)(?:_|\b)"
)
"""Parts of identifiers, in snake case."""

FIXED_NAMES = {"i_know_that_everybody_can_read_everything", "nobody", "asked_at"}
"""A published option, the system's user `nobody`, and a member of published frames."""


def test_identifiers_have_no_private_vocabulary() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {token.string}"
        for path in tracked("stream_server/*.py", "tests/*.py", "bench/*.py", "examples/*.py")
        if PRIVATE_NAMES.search(path.read_text())
        for token in tokens_of(path)
        if token.type == tokenize.NAME and PRIVATE_NAMES.search(token.string) and token.string not in FIXED_NAMES
    }
    assert found == set()
