"""What the doctor found, without the finding of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

MIN_SUBSTRING_SECRET_LENGTH = 6
"""Characters from which on a secret is hidden inside of words, too; "a" can't be."""


class Level(str, Enum):
    """How a finding is meant."""

    OK = "ok"
    SKIPPED = "skipped"
    """It could not be looked at, for a reason that another finding tells."""

    WARNING = "warning"
    """Streams are whole and live, but something costs, or may break."""

    PROBLEM = "problem"
    """Streams are missing, incomplete or late."""


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    level: Level
    found: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs; plain values, times in seconds unless the name says otherwise."""


def ok(found: str, **facts: Any) -> Finding:  # noqa: ANN401 # any plain value
    """Return that all is well."""
    return Finding(Level.OK, found, facts=facts)


def warning(found: str, remedy: str, **facts: Any) -> Finding:  # noqa: ANN401 # any plain value
    """Return what should be looked after."""
    return Finding(Level.WARNING, found, remedy, facts)


def problem(found: str, remedy: str, **facts: Any) -> Finding:  # noqa: ANN401 # any plain value
    """Return what must be mended."""
    return Finding(Level.PROBLEM, found, remedy, facts)


def skipped(reason: str) -> Finding:
    """Return that a check was not made."""
    return Finding(Level.SKIPPED, reason)


class DoctorReport:
    """All findings, each under the name of its check, in the order in which they were made.

    Args:
        secrets: What no text may hold; asterisks take its place.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = _secrets_pattern(secrets)
        self._findings: list[tuple[str, Finding]] = []

    def add(self, check: str, finding: Finding) -> None:
        """Add what a check has found."""
        shown = replace(
            finding,
            found=self._redact(finding.found),
            remedy=self._redact(finding.remedy),
            facts={name: self._redact(value) for name, value in finding.facts.items()},
        )
        self._findings.append((check, shown))

    def get(self, check: str) -> Finding | None:
        """Return what a check has found, as it may be shown; `None` if it was not made."""
        return dict(self._findings).get(check)

    def count(self, level: Level) -> int:
        """Return how many findings are of a level."""
        return sum(finding.level is level for _, finding in self._findings)

    @property
    def is_healthy(self) -> bool:
        """Whether there is no problem."""
        return not self.count(Level.PROBLEM)

    def format_lines(self) -> list[str]:
        """Return a line for each check, and one that sums up."""
        width = max((len(check) for check, _ in self._findings), default=0)
        told = [
            f"{finding.level.value:<7}  {check:<{width}}  {_format_finding(finding)}"
            for check, finding in self._findings
        ]
        counts = ", ".join(f"{self.count(level)} {level.value}" for level in Level if self.count(level))
        return [*told, f"{len(self._findings)} checks: {counts}"]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "healthy": self.is_healthy,
            "counts": {level.value: self.count(level) for level in Level},
            "checks": [{"check": check, **asdict(finding)} for check, finding in self._findings],
        }

    def _redact(self, value: Any) -> Any:  # noqa: ANN401 # any plain value
        if isinstance(value, str):
            return value if self._secrets is None else self._secrets.sub("***", value)
        if isinstance(value, (list, tuple)):
            return [self._redact(item) for item in value]
        return value


def _format_finding(finding: Finding) -> str:
    text = finding.found if finding.remedy is None else f"{finding.found} -> {finding.remedy}"
    return " ".join(text.split())


def _secrets_pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    # The longest first: one secret may begin with another one.
    ordered = sorted(filter(None, secrets), key=len, reverse=True)
    if not ordered:
        return None
    return re.compile(
        "|".join(
            re.escape(secret) if len(secret) >= MIN_SUBSTRING_SECRET_LENGTH else rf"(?<!\w){re.escape(secret)}(?!\w)"
            for secret in ordered
        )
    )
