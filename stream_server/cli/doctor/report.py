"""Findings of the checks, and their output as text and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

MIN_SUBSTRING_SECRET_LENGTH = 6
"""Secrets of at least this length are redacted inside words, too. A short one, such as "a", would redact most words."""


class Level(str, Enum):
    """Severity of a finding. The values are part of `doctor --json`."""

    OK = "ok"
    SKIPPED = "skipped"
    """The check did not run; another finding has the reason."""

    WARNING = "warning"
    """Streams are complete and live, but something is inefficient or may fail."""

    PROBLEM = "problem"
    """Streams are missing, incomplete or late."""


@dataclass(frozen=True)
class Finding:
    """Result of one check. The field names are part of `doctor --json`."""

    level: Level
    found: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: JSON values, times in seconds unless the name has another unit."""


def ok(found: str, **facts: Any) -> Finding:  # noqa: ANN401 # any plain value
    return Finding(Level.OK, found, facts=facts)


def warning(found: str, remedy: str, **facts: Any) -> Finding:  # noqa: ANN401 # any plain value
    return Finding(Level.WARNING, found, remedy, facts)


def problem(found: str, remedy: str, **facts: Any) -> Finding:  # noqa: ANN401 # any plain value
    return Finding(Level.PROBLEM, found, remedy, facts)


def skipped(reason: str) -> Finding:
    return Finding(Level.SKIPPED, reason)


class DoctorReport:
    """All findings by the name of their check, in the order of the checks.

    Args:
        secrets: Texts that are replaced by asterisks in all findings.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = _secrets_pattern(secrets)
        self._findings: list[tuple[str, Finding]] = []

    def add(self, check: str, finding: Finding) -> None:
        """Add the finding of a check, without secrets."""
        redacted = replace(
            finding,
            found=self._redact(finding.found),
            remedy=self._redact(finding.remedy),
            facts={name: self._redact(value) for name, value in finding.facts.items()},
        )
        self._findings.append((check, redacted))

    def get(self, check: str) -> Finding | None:
        """Return the finding of a check; `None` if the report has none."""
        return dict(self._findings).get(check)

    def count(self, level: Level) -> int:
        return sum(finding.level is level for _, finding in self._findings)

    @property
    def is_healthy(self) -> bool:
        """Whether there is no problem. Warnings are allowed."""
        return not self.count(Level.PROBLEM)

    def format_lines(self) -> list[str]:
        """Return a line for each check, and a summary."""
        width = max((len(check) for check, _ in self._findings), default=0)
        lines = [
            f"{finding.level.value:<7}  {check:<{width}}  {_format_finding(finding)}"
            for check, finding in self._findings
        ]
        counts = ", ".join(f"{self.count(level)} {level.value}" for level in Level if self.count(level))
        return [*lines, f"{len(self._findings)} checks: {counts}"]

    def as_json(self) -> dict[str, Any]:
        """Return the output of `doctor --json`. Its keys are stable."""
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
    # Longest first, because one secret may be a prefix of another.
    ordered = sorted(filter(None, secrets), key=len, reverse=True)
    if not ordered:
        return None
    return re.compile(
        "|".join(
            re.escape(secret) if len(secret) >= MIN_SUBSTRING_SECRET_LENGTH else rf"(?<!\w){re.escape(secret)}(?!\w)"
            for secret in ordered
        )
    )
