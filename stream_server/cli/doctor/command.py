"""The command `stream-server doctor`."""

from __future__ import annotations

import asyncio
import json

from stream_server.cli.doctor.runner import DoctorTargets, run_checks
from stream_server.cli.standard_streams import write_output


def run_doctor(subject: DoctorTargets, *, as_json: bool) -> bool:
    """Run all checks and write the report to standard output. Return whether there is no problem."""
    report = asyncio.run(run_checks(subject))
    text = json.dumps(report.as_json(), indent=2) if as_json else "\n".join(report.format_lines())
    write_output(text)
    return report.is_healthy
